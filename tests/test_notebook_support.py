"""What a notebook calls, without a kernel: values, tables, figures, records."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import small_study
from hypothesis import given
from hypothesis import strategies as st
from IPython.core import display_functions

from clipvip_lib.errors import ClipVipError
from clipvip_lib.study import notebook
from clipvip_lib.study.outline import check_seeds
from clipvip_lib.workshop import tables
from clipvip_lib.workshop import workers as workers_module
from clipvip_lib.workshop.page_stage import recorded_results


@pytest.fixture
def shown(monkeypatch):
    """What a cell displays, as mime bundles."""
    bundles = []
    monkeypatch.setattr(notebook, "_display", bundles.append)
    return bundles


@pytest.fixture
def study(tmp_path, shown, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(small_study.__file__).parent))
    return notebook.start(
        "00_first", profile="quick", seeds=[0, 1], outline=small_study.OUTLINE, home=tmp_path
    )


FRAME = pd.DataFrame({"arm": ["proxy", "<full>"], "R@1": [45.25, np.nan], "n": [1000, 12]})


def test_start_shows_where_numbers_come_from_and_seeds(study, shown):
    assert shown[0]["text/plain"] == "Profile quick, seeds 0, 1."
    first = (random.random(), np.random.rand())
    notebook.seed_everything(0)
    assert (random.random(), np.random.rand()) == first


@pytest.mark.bad_input(
    "notebook: profile or seeds that make no sense", says="such as `unknown profile 'quik'`"
)
@pytest.mark.parametrize(
    ("name", "profile", "seeds", "words"),
    [
        ("00_frist", "quick", [0], "unknown notebook '00_frist'.*did you mean '00_first'"),
        ("00_first", "quik", [0], "unknown profile 'quik'"),
        ("00_first", "quick", [], "seeds are"),
        ("00_first", "quick", [0, 0], "seeds are"),
        ("00_first", "quick", [0.5], "seeds are"),
        ("00_first", "quick", ["0"], "seeds are"),
        ("00_first", "quick", [-1], "seeds are"),
        ("00_first", "quick", [True], "seeds are"),
        ("00_first", "quick", 1, "seeds are 1: expected a list"),  # a notebook goes through them
        ("00_first", "quick", [2**32], "from 0 to 4294967295"),  # numpy takes no larger one
    ],
)
def test_bad_parameters_are_a_sentence(shown, tmp_path, name, profile, seeds, words):
    with pytest.raises(ClipVipError, match=words):
        notebook.start(name, profile=profile, seeds=seeds, outline=small_study.OUTLINE, home=tmp_path)
    assert shown == []


def test_a_notebook_is_found_by_number():
    assert (
        small_study.OUTLINE.find("01")
        == small_study.OUTLINE.find("1")
        == small_study.OUTLINE.find("second")
        == "01_second"
    )
    assert check_seeds(range(3)) == [0, 1, 2]


@pytest.mark.parametrize(("real", "count"), [(False, None), (True, 1)])
def test_on_real_corpora_one_stage_runs_at_a_time(study, monkeypatch, real, count):
    """A training there takes all GPUs; the pipeline does the same."""
    asked = []

    def run_stages(stages, home, workers=None):
        asked.append(workers)
        return {}

    monkeypatch.setattr(workers_module, "run_stages", run_stages)
    monkeypatch.setattr(notebook.Study, "of_the_world", property(lambda self: not real))
    with pytest.raises(ClipVipError):
        study.results("arm/*")
    assert asked == [count]


def test_results_run_what_is_missing_and_come_in_order(study, capsys):
    found = study.results("arm/*")
    assert [(stage.name, result["sum"]) for stage, result in found] == [("arm/seed0", 4), ("arm/seed1", 5)]
    assert "[3/3]" in capsys.readouterr().out
    assert study.result("base")["sum"] == 3
    assert capsys.readouterr().out == ""  # nothing ran again
    assert (study.folder("base") / "count.json").is_file()
    assert study.facts("base")["seconds"] >= 0
    with pytest.raises(ClipVipError, match="unknown stage of 00_first 'arms/"):
        study.results("arms/*")


@pytest.mark.fault(
    "notebook: a stage fails",
    sees="`stage odd failed: RuntimeError: the count went wrong`",
    keeps="the stages that do not rest on it",
)
def test_a_stage_that_fails_is_named(tmp_path, shown, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(Path(small_study.__file__).parent))
    study = notebook.start(
        "02_third", profile="broken", seeds=[0], outline=small_study.OUTLINE, home=tmp_path
    )
    with pytest.raises(ClipVipError, match="stage odd failed: RuntimeError: the count went wrong"):
        study.results()
    assert study.result("base")["sum"] == 3  # what does not rest on it is there


def test_everything_that_is_shown_is_recorded(study, shown):
    study.table(FRAME, "Main")
    study.table(FRAME.set_index("arm"), "By arm")
    study.record(headline="proxy wins", best=np.float32(45.25), counts=np.arange(2), note=None)
    bundle = shown[-1]
    results = bundle[notebook.RESULTS_MIME]
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert results["numbers"] == {"best": 45.25, "counts": [0, 1], "note": None}
    rows = [["proxy", 45.25, 1000], ["<full>", None, 12]]
    assert results["tables"]["Main"] == {"columns": ["arm", "R@1", "n"], "rows": rows}
    assert results["tables"]["By arm"] == results["tables"]["Main"]
    assert bundle["text/plain"].startswith("proxy wins")


def test_tables_are_accessible_and_escaped(study, shown):
    study.table(FRAME.set_index("arm"), "R@1 & more")
    html = shown[-1]["text/html"]
    assert "<caption>R@1 &amp; more</caption>" in html
    assert '<th scope="row" class="short">&lt;full&gt;</th>' in html and html.count('scope="col"') == 3
    assert ">45.2<" in html and ">–<" in html and ">1,000<" in html
    assert "45.2" in shown[-1]["text/plain"] and "<full>" in shown[-1]["text/plain"]


def test_mistakes_in_the_order_of_calls_are_refused(study):
    study.table(FRAME, "once")
    with pytest.raises(ClipVipError, match="two tables"):
        study.table(FRAME, "once")
    with pytest.raises(ClipVipError, match="no alt text"):
        study.figure(None, "title", alt=" ")
    with pytest.raises(ClipVipError, match="empty headline"):
        study.record(headline=" ")
    with pytest.raises(ClipVipError, match=r"numbers\['x'\] is nan"):
        study.record(headline="a", x=float("nan"))
    study.record(headline="a")
    with pytest.raises(ClipVipError, match=r"after study\.record"):
        study.table(FRAME, "late")
    with pytest.raises(ClipVipError, match=r"after study\.record"):
        study.record(headline="b")


def test_what_the_study_has_is_silent_and_what_it_lacks_is_said(study, shown):
    assert study.has("world", "base", "arm/*") is True and len(shown) == 1  # the header
    assert study.has("arm/*", "leg/*") is False
    assert [bundle["text/plain"] for bundle in shown[1:]] == ["Left out: not at hand: leg/*."]


def test_without_data_a_notebook_says_what_it_lacks_and_records_that_it_did_not_run(tmp_path, shown):
    (tmp_path / "weights.safetensors").touch()
    at_hand = {"data_root": str(tmp_path), "weights": str(tmp_path / "weights.safetensors"), "gpus": 1}
    study = notebook.start("01_data_size", profile="paper", seeds=[0], at_hand=at_hand, home=tmp_path)
    assert not study.has("world") and not study.has("postpretrain/*")
    said = [bundle["text/plain"] for bundle in shown[-2:]]
    assert said[0] == "Left out: it looks into the embedded world."
    assert said[1].startswith("Left out: not at hand: ") and "msrvtt" in said[1] and "hdvila-100m" in said[1]
    study.record_not_run()
    recorded = shown[-1][notebook.RESULTS_MIME]
    assert recorded["headline"].startswith("Not run, not at hand: ") and "msrvtt" in recorded["headline"]
    assert [row["verdict"] for row in recorded["numbers"]["claims"]] == ["not run"] * 6
    with pytest.raises(ClipVipError, match="comes after"):
        study.record_not_run()


def test_an_infinite_number_in_a_table_is_named(study):
    with pytest.raises(ClipVipError, match="table 'bad'"):
        study.table(pd.DataFrame({"x": [1.0, np.inf]}), "bad")


def test_display_reaches_ipython(monkeypatch):
    caught = {}
    monkeypatch.setattr(display_functions, "publish_display_data", lambda data, **_: caught.update(data))
    monkeypatch.setattr("IPython.core.interactiveshell.InteractiveShell.initialized", lambda: True)
    notebook._display({"text/plain": "x"})
    assert caught == {"text/plain": "x"}


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6))
def test_the_largest_value_keeps_three_figures(values):
    digits = tables.decimals(values)
    largest = max(abs(v) for v in values)
    assert 0 <= digits <= 4
    if largest >= 0.01:
        assert abs(float(f"{largest:.{digits}f}") - largest) <= 0.0051 * largest


def test_a_notebook_alone_works_from_a_cold_cache_and_any_folder(tmp_path):
    """What a reader does with papermill: no pipeline, an empty cache, another working directory."""
    tests = Path(small_study.__file__).parent
    path = small_study.write_notebook(tmp_path / "nb", "01_second", [small_study.TABLE, small_study.RECORD])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = dict(os.environ, PYTHONPATH=str(tests), CLIPVIP_HOME=str(tmp_path / "home"))
    command = [sys.executable, "-m", "papermill", str(path), str(tmp_path / "done.ipynb")]
    command += ["-p", "profile", "quick", "-y", "seeds: [0, 1]", "--no-progress-bar"]
    done = subprocess.run(
        command, env=environment, cwd=elsewhere, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = recorded_results(nbformat.read(tmp_path / "done.ipynb", as_version=4), "01_second")
    assert results["numbers"] == {"largest": 5} and results["seeds"] == [0, 1]
    assert list(elsewhere.iterdir()) == []
    assert not list((tmp_path / "home").rglob("*.partial"))


def test_what_moves_is_recorded_in_words_and_the_embedded_sets_have_names_of_their_own(study, shown):
    from clipvip_lib.data.corpora import encode_h264
    from clipvip_lib.study.players import Player

    film = encode_h264(np.zeros((3, 16, 16, 3), np.uint8))
    groups = {
        "“a ring”": [
            Player(film, "1 · 0.50", "a ring on msrvtt"),
            Player(film, "7", "its own video", own=True),
        ]
    }
    study.players(groups, "On msrvtt -0.5 points", "didemo")
    study.table(pd.DataFrame({"msrvtt": [-0.04]}), "On didemo", digits=1)
    study.record(headline="msrvtt: -1")
    results = shown[-1][notebook.RESULTS_MIME]
    assert results["figures"] == [
        {
            "title": "On mini-MSRVTT −0.5 points",
            "caption": "mini-DiDeMo",
            "alt": "On mini-MSRVTT −0.5 points",
            "shows": {"“a ring”": ["1 · 0.50 a ring on msrvtt", "7 its own video"]},
        }
    ]
    assert results["headline"] == "mini-MSRVTT: −1"
    assert results["tables"]["On mini-DiDeMo"] == {"columns": ["mini-MSRVTT"], "rows": [[-0.04]]}
    page = shown[1]["text/html"] + shown[2]["text/html"]
    assert page.count("<video ") == 2 and "a ring on msrvtt" in page and '<td class="number">0.0</td>' in page
