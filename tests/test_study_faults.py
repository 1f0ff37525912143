"""Faults in ``clipvip reproduce``, as real processes: signals while a page is written, a second run, a full and a
read-only disk, no memory, a loss that is not finite. The study is the small one (small_study.py)."""

import json
import os
import signal
from pathlib import Path

import patience
import pytest
import small_study
from fault_runs import disks, runs  # noqa: F401 (fixtures)
from soak import left_behind, processes_of

pytestmark = [pytest.mark.slow, pytest.mark.thorough]


#: A notebook that is not done before the test lets it: its kernel waits for a file.
WAIT = "while not (study.home / 'go').exists(): time.sleep(0.05)"


class House:
    """A cache, notebooks, and an output folder inside the cache, so that one small disk holds both."""

    def __init__(self, folder: Path) -> None:
        self.home, self.notebooks = folder / "home", small_study.write_notebooks(folder / "notebooks")
        self.home.mkdir()

    def line(self, profile: str, *more: str) -> list:
        return [
            self.home,
            self.notebooks,
            "reproduce",
            "--profile",
            profile,
            "--out",
            self.home / "out",
            *more,
        ]

    def run(self, runs, profile: str, *more: str, **circumstances):  # noqa: F811
        return runs(*self.line(profile, *more), target="small_study:command", **circumstances)

    def alone(self) -> None:
        patience.until(lambda: not processes_of(self.home), "the end of its workers and kernels", pause=0.05)


@pytest.mark.fault(
    "reproduce: SIGTERM, and Ctrl-C in the next start, while a kernel runs a notebook",
    sees="`stopped by SIGTERM`, exit code 143; `interrupted`, exit code 130; `run the same command to continue`",
    keeps="the stages; no page, no worker and no kernel; the next start makes the page, and leaves no half file",
)
@pytest.mark.fault(
    "reproduce: a second process on one cache, while the first one works",
    sees="`is working in`, with the number of the first process, exit code 2",
    keeps="the cache, and the first run",
)
def test_signals_while_a_page_is_written_cost_the_page_alone(runs, tmp_path):  # noqa: F811
    house = House(tmp_path)
    small_study.write_notebook(
        house.notebooks,
        "01_second",
        ["import time", WAIT, small_study.SHORT],
    )
    pages = house.home / "stages" / "page"

    def in_a_kernel() -> bool:
        return (
            bool(list(pages.glob("*.partial/executed.partial.ipynb"))) and len(processes_of(house.home)) >= 3
        )

    for number, code, words in (
        (signal.SIGTERM, 143, "stopped by SIGTERM"),
        (signal.SIGINT, 130, "interrupted"),
    ):
        run = house.run(runs, "quick", "--only", "01")
        run.until(in_a_kernel, "a kernel")
        if number == signal.SIGTERM:
            said = house.run(runs, "quick").sentence(2)
            assert f"process {run.pid} of" in said and "is working in" in said
        assert in_a_kernel()
        os.kill(run.pid, number)
        said = run.sentence(code)
        assert words in said and "run the same command to continue" in said
        house.alone()
        assert not list((house.home / "out").glob("*.html"))
    (house.home / "go").touch()
    house.run(runs, "quick", "--only", "01").sentence(0)
    assert (house.home / "out" / "01_second.html").is_file()
    assert (house.home / "stages" / "ran.txt").read_text() == "base\n"  # once
    assert not left_behind(house.home)


@pytest.mark.fault(
    "reproduce: the loss of a stage becomes NaN (the study's own pre-training, at an enormous learning rate)",
    sees="`clip/seed0 failed`, `expected a finite number; lower the learning rate (1e+30)`, exit code 1",
    keeps="the other stages and pages; the stage's partial folder with its log, and no result of it",
)
@pytest.mark.fault(
    "reproduce: a stage exhausts the memory (a limit on its process)",
    sees="`hungry failed: it ran out of memory; use fewer --workers`, exit code 1",
    keeps="the other stages and pages, which the same worker makes",
)
@pytest.mark.fault(
    "pages: a notebook exhausts the memory (a limit on its kernel)",
    sees="`page/02_third failed: cell 4 of the notebook: it ran out of memory; use fewer --workers`, exit code 1",
    keeps="the notebook as far as it got; the other pages",
)
def test_a_loss_that_is_nan_and_exhausted_memory_stop_what_rests_on_them(runs, tmp_path):  # noqa: F811
    house = House(tmp_path)
    small_study.write_notebook(house.notebooks, "02_third", ["small_study.exhaust_memory()"])
    code, said = house.run(runs, "faulty").end()
    assert code == 1 and "Traceback" not in said, said[-3000:]
    assert "clip/seed0 failed" in said
    assert "expected a finite number; lower the learning rate (1e+30)" in said
    assert "hungry failed: it ran out of memory; use fewer --workers" in said
    assert "page/02_third failed: cell 4 of the notebook: it ran out of memory; use fewer --workers" in said
    stages = house.home / "stages"
    assert json.loads(next(stages.glob("odd-*/result.json")).read_text())["result"]["sum"] == 4
    assert list((stages / "clip").glob("*.partial")) and not list((stages / "clip").glob("*/result.json"))
    assert "exhaust_memory" in (house.home / "failed" / "02_third.ipynb").read_text()
    house.alone()


@pytest.mark.fault(
    "reproduce: the disk of cache and pages fills up (a small tmpfs)",
    sees="`No space left on device`; `free some space`, exit code 2",
    keeps="what was finished; with room, the same command ends with exit code 0 and every page",
)
def test_a_disk_that_fills_up_is_told_and_loses_nothing(runs, disks, tmp_path):  # noqa: F811
    house = House(tmp_path)
    left, end = tmp_path / "left", tmp_path / "end"
    run = house.run(runs, "quick", small=house.home, room=140, left=left, end=end)
    code, said = run.end()
    assert code == 2 and "Traceback" not in said, said[-3000:]
    assert "No space left on device" in said and "free some space" in said
    assert "ended with 2, and again with 0" in said
    assert not list((left / "out").rglob("*.partial*"))
    assert len(list((end / "out").glob("0*.html"))) == 3 and not left_behind(end)


@pytest.mark.fault(
    "reproduce: the cache is on a disk that is mounted read-only",
    sees="`expected a writable folder, got`, exit code 2",
    keeps="all: nothing runs",
)
def test_a_read_only_cache_is_refused_before_anything_runs(runs, disks, tmp_path):  # noqa: F811
    house = House(tmp_path)
    said = house.run(runs, "quick", read_only=house.home).sentence(2)
    assert "expected a writable folder, got" in said and not list(house.home.iterdir())
