"""The pipeline on a small study: real worker processes, real kernels, real pages."""

import dataclasses
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import patience
import pytest
import small_study

from clipvip_lib import files
from clipvip_lib.errors import ClipVipError
from clipvip_lib.study.pipeline import _unknown_stage, only_run, reproduce
from clipvip_lib.workshop.page_stage import bare, notebook_imports, page_stage

TESTS = Path(__file__).parent
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class House:
    """A cache, notebooks and an output folder, and runs on them."""

    def __init__(self, folder: Path):
        self.home, self.out = folder / "home", folder / "out"
        self.notebooks = small_study.write_notebooks(folder / "notebooks")
        self.costs: list[float] = []

    def run(self, profile="quick", **options) -> tuple[int, str]:
        said = io.StringIO()
        options = {"outline": small_study.OUTLINE, "notebooks": self.notebooks, "home": self.home} | options
        before = sum(os.times()[:4])  # seconds of processor time, of processes that have ended too
        code = reproduce(profile, out=options.pop("out", self.out), stream=said, **options)
        self.costs.append(sum(os.times()[:4]) - before)
        return code, said.getvalue()

    def log(self) -> str:
        return (self.home / "logs" / "reproduce.log").read_text()


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TESTS))
        yield House(tmp_path_factory.mktemp("house"))


@pytest.fixture(scope="module")
def first(house):
    """The first run on an empty cache."""
    return house.run(set={"note": "from outside"})


def test_one_run_makes_pages_results_and_an_index(house, first):
    code, said = first
    assert code == 0, said
    assert said.splitlines()[-1] == str(house.out / "index.html")
    names = sorted(p.name for p in house.out.iterdir())
    assert names == ["00_first.html", "01_second.html", "02_third.html", "index.html", "results"]
    results = json.loads((house.out / "results" / "00_first.json").read_text())
    assert results["headline"] == "counted to 4" and results["numbers"] == {"largest": 4}
    assert results["tables"]["What each stage counted to"]["rows"] == [["base", 3], ["arm/seed0", 4]]
    assert results["run"]["profile"] == "quick" and results["run"]["seconds"] > 0
    page = (house.out / "00_first.html").read_text()
    assert 'alt="bars, one a stage"' in page and 'class="provenance"' in page and "seeds" in page
    assert 'href="02_third.html"' in page and len(page) < 3 * 2**20
    index = (house.out / "index.html").read_text()
    assert index.count("counted to 4") == 3 and "Does 01_second count?" in index
    assert re.search(r"^02_third +counted to 4 +[\d.]+ +/", said, re.MULTILINE)
    run = json.loads((house.out / "results" / "run.json").read_text())
    assert {row["stage"] for row in run["stages"]} >= {"base", "arm/seed0", "odd", "page/02_third"}
    executed = next((house.home / "stages" / "page").glob("02_third-*/executed.ipynb")).read_text()
    assert "from outside" in executed  # --set reached the notebook that declares it


def test_the_second_run_does_nothing_and_is_quick(house, first):
    before = {p: p.stat().st_mtime_ns for p in (house.home / "stages").rglob("*")}
    code, said = house.run(set={"note": "from outside"})
    assert code == 0 and house.costs[-1] < house.costs[0] / 4
    assert "6 of 6 stages found done (cached)" in said and said.count("(cached)") == 4
    assert "page/00_first cached" in house.log()
    assert before == {p: p.stat().st_mtime_ns for p in (house.home / "stages").rglob("*")}


def test_a_new_cell_id_or_a_stored_output_does_not_run_a_page_again(house, first):
    small_study.write_notebooks(house.notebooks)
    assert "6 of 6 stages found done (cached)" in house.run(set={"note": "from outside"})[1]


def test_only_runs_what_is_asked_and_keeps_the_other_pages(house, first):
    code, said = house.run(only=["01"], force=["page/01*"])
    assert code == 0
    assert "page/01_second done" in said and "00_first" not in said
    assert "(--force)" in house.log()
    index = (house.out / "index.html").read_text()
    assert index.count('class="card done"') == 3
    assert "<dt>precision</dt>" not in index  # its pages have none


def test_pages_of_smoke_never_take_the_place_of_a_study_and_tell_their_precision(house, first, monkeypatch):
    def profile(name, **_):
        return SimpleNamespace(**vars(small_study.profile(name)), precision="float32")

    monkeypatch.setattr(files, "workplace", lambda: house.out.parent)
    outline = dataclasses.replace(small_study.OUTLINE, profile=profile)
    code, said = house.run("smoke", only=["01"], out=None, outline=outline)
    assert code == 0 and said.startswith("smoke computes in float32 (this processor multiplies bfloat16 ")
    pages = house.out.parent / "reports/smoke"
    assert (pages / "01_second.html").is_file() and not (house.out.parent / "reports/index.html").exists()
    assert json.loads((pages / "results/01_second.json").read_text())["run"]["precision"] == "float32"
    index = (pages / "index.html").read_text()
    assert "<dt>precision</dt><dd>float32</dd>" in index
    assert re.search(r"<dt>this run took</dt><dd>\d+ s</dd>", index)
    assert re.search(
        r"<dt>all stages took</dt><dd>\d+ s of computing, in this run and in earlier ones", index
    )


def test_force_discards_a_stage_and_what_rests_on_it(house, first, monkeypatch):
    from clipvip_lib.study import pipeline

    stages = small_study.stages_for("00_first", small_study.profile("quick"), [0])
    page = page_stage("00_first", (house.notebooks / "00_first.ipynb").read_text(), {}, "", stages)
    gone = []
    monkeypatch.setattr(pipeline, "discard", lambda stage, home: gone.append(stage.name) or True)
    pipeline.forget([page], ["arm"], house.home, lambda _: None)
    assert gone == ["arm/seed0", "page/00_first"]
    with pytest.raises(ClipVipError, match=r"unknown stage 'arn/seed0'.*did you mean 'arm/seed0'"):
        pipeline.forget([page], ["arn/seed0"], house.home, lambda _: None)


@pytest.mark.fault(
    "cache: a result's payload is changed without a change of size, then `reproduce --verify`",
    sees="`count.json has another checksum`; without --verify, nothing",
    keeps="the damaged entry, moved aside; the payload is made again, byte for byte",
)
@pytest.mark.fault(
    "reproduce: result.json of a stage is emptied",
    sees="`the entry of stage base is damaged`, and that it ran again",
    keeps="the other stages, found done; the damaged entry, moved aside",
)
def test_damage_is_moved_aside_and_made_again_by_size_and_by_checksum(house, first):
    home, options = house.home, {"set": {"note": "from outside"}}
    base = next((home / "stages").glob("base-*"))
    (base / "result.json").write_bytes(b"")
    code, said = house.run(**options)
    assert code == 0 and "the entry of stage base is damaged" in said and "base done in" in said
    assert "1 stage run, 5 found done" in said
    content = (base / "count.json").read_bytes()
    (base / "count.json").write_bytes(content.replace(b"3", b"4"))
    assert "6 of 6 stages found done" in house.run(**options)[1]
    code, said = house.run(verify=True, **options)
    assert code == 0 and "count.json has another checksum" in said and "base done in" in said
    assert (base / "count.json").read_bytes() == content
    said = house.run(verify=True, **options)[1]
    assert "6 of 6 stages found done (cached, each file as its checksum says)" in said
    assert len(list((home / "damaged").iterdir())) == 2


@pytest.mark.slow
def test_executed_pages_pass_nbval_and_a_changed_number_fails(house, first, tmp_path):
    """The pages' outputs are the same in every run, so that nbval can compare them."""
    executed = next((house.home / "stages" / "page").glob("00_first-*/executed.ipynb"))
    book = nbformat.read(executed, as_version=4)
    nbformat.write(book, tmp_path / "same.ipynb")
    for cell in book.cells:
        for output in cell.get("outputs", []):
            if (
                "arm/seed0" in output.get("data", {}).get("text/html", "")
                and "<table" in output["data"]["text/html"]
            ):
                output["data"]["text/html"] = output["data"]["text/html"].replace(">4<", ">5<")
    nbformat.write(book, tmp_path / "changed.ipynb")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--nbval",
        "--nbval-current-env",
        "-p",
        "no:cacheprovider",
    ]
    command += ["-c", os.devnull, "--rootdir", str(tmp_path), str(tmp_path)]
    environment = dict(os.environ, CLIPVIP_HOME=str(house.home), PYTHONPATH=str(TESTS))
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert "changed.ipynb" in done.stdout and "FAILED same.ipynb" not in done.stdout
    assert re.search(r"1 failed, \d+ passed", done.stdout), done.stdout[-2000:]


@pytest.mark.bad_input("reproduce: values that make no sense", says="one sentence; the cache is untouched")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"profile": "quik"}, "unknown profile 'quik'"),
        ({"only": ["07"]}, "unknown notebook '07': expected one of 00_first, 01_second, 02_third"),
        ({"seeds": [0, 0]}, "seeds are"),
        ({"force": ["nothing"]}, "unknown stage 'nothing'"),
        ({"set": {"nose": 1}}, "unknown notebook parameter 'nose'.*did you mean 'note'"),
        ({"set": {"seeds": 1}}, "use --seeds"),
        ({"workers": 0}, "workers is 0"),
        ({"workers": 0, "force": ["*"]}, "workers is 0"),
        ({"seeds": [2**32]}, "from 0 to 4294967295"),
        ({"out": "/dev/null/x"}, "cannot write to /dev/null/x"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(house, options, words):
    options = dict(options)
    before = sorted((house.home / "stages").rglob("*"))
    with pytest.raises(ClipVipError, match=words) as caught:
        house.run(options.pop("profile", "quick"), **options)
    assert "\n" not in str(caught.value)
    assert sorted((house.home / "stages").rglob("*")) == before


@pytest.mark.fault(
    "reproduce: no room in the output folder (simulated)",
    sees="`expected a folder with room, got No space left on device`",
    keeps="all: no file is left in the folder",
)
def test_a_folder_without_room_is_refused_before_anything_runs(house, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ClipVipError, match="expected a folder with room, got No space left on device"):
        house.run(out=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault(
    "reproduce: the disk is full when the cache's lock is written (simulated)",
    sees="nothing; a second run is still refused, with its holder `(unknown)`",
    keeps="the lock",
)
def test_a_full_disk_does_not_keep_the_lock_from_being_taken(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with only_run(tmp_path), pytest.raises(ClipVipError, match=r"another .* \(unknown\)"), only_run(tmp_path):
        pass


def test_an_unknown_stage_is_told_in_a_short_sentence():
    error = _unknown_stage("finetun", [f"finetune/{i}" for i in range(300)] + ["clip/seed0"])
    assert "a beginning such as finetune, clip" in str(error) and len(str(error)) < 200
    error = _unknown_stage("finetune/didem", ["finetune/didemo/mean_pool/as-it-is/seed0", "cost"])
    assert str(error).endswith("did you mean 'finetune/didemo'?")


@pytest.mark.bad_input(
    "reproduce: notebooks that are damaged, or lack parameters",
    says="such as `has no cell tagged 'parameters'`",
)
def test_notebooks_that_papermill_would_run_wrongly_are_refused(tmp_path, house):
    folder = small_study.write_notebooks(tmp_path)
    small_study.write_notebook(folder, "01_second", [small_study.SHORT], tagged=False)
    with pytest.raises(ClipVipError, match="01_second has no cell tagged 'parameters'"):
        house.run(notebooks=folder)
    (folder / "01_second.ipynb").write_text(
        (house.notebooks / "01_second.ipynb").read_text().replace("seeds = [0]", "seed = 0")
    )
    with pytest.raises(ClipVipError, match="01_second does not declare 'seeds'"):
        house.run(notebooks=folder)
    whole = json.loads((house.notebooks / "01_second.ipynb").read_text())
    for damaged in (
        "not json",
        '{"cells": [1]}',
        json.dumps(whole | {"metadata": {}}),
        json.dumps(whole | {"nbformat": 3}),
    ):
        (folder / "01_second.ipynb").write_text(damaged)
        with pytest.raises(ClipVipError, match="no notebook .*01_second") as caught:
            house.run(notebooks=folder)
        assert "\n" not in str(caught.value)


@pytest.mark.fault(
    "reproduce: two runs on one cache",
    sees="`is working`, with the number of the process that has the cache",
    keeps="the cache: the second run is refused",
)
def test_a_second_run_on_the_same_cache_is_told_who_has_it(house):
    with (
        only_run(house.home),
        pytest.raises(ClipVipError, match=f"process {os.getpid()} of .* is working"),
    ):
        house.run()


@pytest.mark.fault(
    "pages: a cell raises",
    sees="`page/00_first failed: cell 4 of the notebook: ZeroDivisionError: division by zero`, exit code 1",
    keeps="the other notebooks, which run; the failed one is kept with its error",
)
@pytest.mark.fault(
    "pages: the kernel dies (SIGKILL)",
    sees="`page/01_second failed: the notebook's kernel died`, exit code 1",
    keeps="the other notebooks, which run; the index says `the page is of an earlier run`",
)
@pytest.mark.fault(
    "pages: a notebook ends without recording its results",
    sees="`page/02_third failed: 02_third recorded results 0 times`, exit code 1",
    keeps="the other notebooks, which run; the index says `the page is of an earlier run`",
)
def test_failing_notebooks_stop_no_other_and_are_kept(house, first, tmp_path):
    small_study.write_notebook(tmp_path / "nb", "00_first", ["1 / 0"])
    small_study.write_notebook(tmp_path / "nb", "01_second", ["import os, signal", "os.kill(os.getpid(), 9)"])
    small_study.write_notebook(tmp_path / "nb", "02_third", ["x = 1"])
    code, said = house.run(notebooks=tmp_path / "nb")
    assert code == 1
    assert "page/00_first failed: cell 4 of the notebook: ZeroDivisionError: division by zero" in said
    assert "page/01_second failed: the notebook's kernel died" in said
    assert "page/02_third failed: 02_third recorded results 0 times" in said
    assert "ZeroDivisionError" in (house.home / "failed" / "00_first.ipynb").read_text()
    assert said.splitlines()[-1] == str(house.out / "index.html")
    index = (house.out / "index.html").read_text()
    assert index.count('class="card failed"') == 3 and "the page is of an earlier run" in index


def started(house: House, only: str) -> subprocess.Popen:
    code = (
        "import sys, small_study; from pathlib import Path; from clipvip_lib.study.pipeline import reproduce;"
        f"notebooks, home = Path({str(house.notebooks)!r}), Path({str(house.home)!r});"
        f"options = dict(notebooks=notebooks, home=home, out={str(house.out)!r}, only=['{only}']);"
        "options['outline'] = small_study.OUTLINE;"
        "sys.exit(reproduce('slow', **options))"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def processes_of(home: Path) -> list[int]:
    """Workers and kernels of a cache."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("CLIPVIP_HOME") == str(home):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


@pytest.mark.fault(
    "reproduce: SIGKILL, once in the middle of a stage and once while a kernel runs a notebook",
    sees="the next start resumes: `resumed from its partial folder`",
    keeps="what was done; no stage that was finished runs again, no half file stays",
)
@pytest.mark.fault(
    "pages: SIGKILL while a kernel runs a notebook",
    sees="no page; workers and kernels end too",
    keeps="the stages; the next start writes the page",
)
@pytest.mark.slow
@pytest.mark.thorough
def test_killed_twice_and_started_again_it_ends_the_same_and_does_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    house = House(tmp_path)
    stages = house.home / "stages"
    counted, partial = "base-*.partial/count.json", "page/*.partial/executed.partial.ipynb"
    middles = {
        "five counts": lambda: any(int(file.read_text() or 0) >= 5 for file in stages.glob(counted)),
        "a worker and a kernel": lambda: list(stages.glob(partial)) and len(processes_of(house.home)) >= 3,
    }
    for what, reached in middles.items():
        run = started(house, "01")
        patience.until(reached, what, run, pause=0.05)
        run.send_signal(signal.SIGKILL)
        run.communicate()
        patience.until(lambda: not processes_of(house.home), "the end of its workers and kernels", pause=0.05)
    assert not list(house.out.glob("*.html"))
    run = started(house, "01")
    said, _ = patience.wait(run)
    assert run.returncode == 0, said
    log = house.log()
    assert "base resumed from its partial folder" in log and "base cached" in log
    base = next(stages.glob("base-*/result.json"))
    assert json.loads(base.read_text())["result"]["resumed_at"] >= 5
    assert (stages / "ran.txt").read_text() == "base\n" and (
        stages / "arm" / "ran.txt"
    ).read_text() == "arm0\n"
    assert not list(house.home.rglob("*.partial*")) and (house.out / "01_second.html").is_file()


def test_the_key_of_a_page_follows_what_it_shows(house, tmp_path):
    source = (house.notebooks / "00_first.ipynb").read_text()
    base = page_stage("00_first", source, {"seeds": [0]}, "p", [])
    assert page_stage("00_first", source, {"seeds": [0]}, "p", []).key == base.key
    assert page_stage("00_first", source, {"seeds": [1]}, "p", []).key != base.key
    assert page_stage("00_first", source, {"seeds": [0]}, "q", []).key != base.key
    assert page_stage("00_first", source.replace("count?", "add?"), {"seeds": [0]}, "p", []).key != base.key
    beside = tmp_path / "measured.json"
    assert page_stage("00_first", source, {"seeds": [0]}, "p", [], [beside]).key == base.key
    keys = {base.key}
    for content in ("{}", "[]"):
        beside.write_text(content)
        keys.add(page_stage("00_first", source, {"seeds": [0]}, "p", [], [beside]).key)
    assert len(keys) == 3
    nbformat.validate(nbformat.reads(bare(source), as_version=4))
    assert json.loads(bare(source))["cells"][1]["metadata"] == {"tags": ["parameters"]}


def test_a_page_is_made_again_after_any_change_of_the_package(house, monkeypatch):
    source = (house.notebooks / "00_first.ipynb").read_text()
    base = page_stage("00_first", source, {"seeds": [0]}, "p", [])
    monkeypatch.setattr("clipvip_lib.workshop.page_stage.package_digest", lambda: "another")
    assert page_stage("00_first", source, {"seeds": [0]}, "p", []).key != base.key


def test_what_a_notebook_imports_is_imported_once_for_all_kernels():
    code = "from clipvip_lib import losses\nfrom clipvip_lib.errors import unknown\nimport numpy.random as r"
    cells = [{"cell_type": "code", "source": code}, {"cell_type": "code", "source": "import ("}]
    expected = {"clipvip_lib.losses", "clipvip_lib.errors", "numpy.random"}
    assert notebook_imports(json.dumps({"cells": cells})) == expected


def test_who_asks_for_bfloat16_where_it_is_slow_is_told_by_how_much(house, monkeypatch):
    rates = {"float32": 50.0, "bfloat16": 1.0}
    monkeypatch.setattr("clipvip_lib.precision.product_rates", lambda: rates)
    outline = dataclasses.replace(
        small_study.OUTLINE, profile=lambda name, precision: small_study.profile(name)
    )
    said = io.StringIO()
    options = {
        "outline": outline,
        "notebooks": house.notebooks,
        "home": house.home,
        "out": house.out,
        "stream": said,
    }
    with pytest.raises(ClipVipError, match="does not declare 'precision'"):  # the small study's notebooks
        reproduce("quick", set={"precision": "bfloat16"}, **options)
    assert "bfloat16 50 times slower than float32" in said.getvalue()
