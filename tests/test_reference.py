"""A run's verdicts beside the reference's: agreement in words, numbers in results and page alike."""

import io
import json
import re

import pytest
import small_study

from clipvip_lib.files import write_json
from clipvip_lib.study import reference
from clipvip_lib.study.pipeline import reproduce

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def row(number, verdict, effect=1.0, seeds=(0,)):
    names = {"id": number, "claim": f"Claim {number}.", "verdict": verdict, "metric": "R@1", "notebook": "04"}
    ends = {"effect": effect, "low": effect - 0.5, "high": effect + 0.5} if effect is not None else {}
    return (
        {"effect": None, "low": None, "high": None} | names | ends | {"seeds": list(seeds), "queries": 1000}
    )


def write_reference(folder, rows, profile="quick"):
    write_json(folder / "results" / "claims.json", rows)
    write_json(folder / "results" / "run.json", {"profile": profile})
    return folder


@pytest.mark.parametrize(
    ("here", "there", "agree"),
    [
        ("reproduced", "reproduced", "agree"),
        ("inconclusive", "inconclusive", "agree"),
        ("reproduced", "contradicted", "disagree"),
        ("contradicted", "reproduced", "disagree"),
        ("inconclusive", "reproduced", "one open"),
        ("not run", "contradicted", "one open"),
    ],
)
def test_agreement(here, there, agree, tmp_path):
    write_reference(tmp_path, [row(6, there, seeds=range(5))])
    those = reference.compared_with(tmp_path / "elsewhere", tmp_path)
    found = reference.beside([row(6, here), row(7, here)], "quick", those)
    [(compared,)] = found.values()
    assert compared["agree"] == agree
    text = reference.sections(found, those)
    assert f"<td>{here}</td>" in text and f"<td>{there}</td>" in text and "0–4" in text
    assert ("opposite things of claim 6" in text) == (agree == "disagree")
    assert ("Every verdict is that of the reference" in text) == (agree == "agree")


def test_nothing_beside_another_profile_or_without_a_reference(tmp_path):
    assert reference.read(tmp_path) is None
    assert reference.compared_with(tmp_path / "elsewhere", tmp_path) == {}
    write_reference(tmp_path, [row(6, "reproduced")])
    those = reference.compared_with(tmp_path / "elsewhere", tmp_path)
    assert reference.beside([row(6, "reproduced")], "smoke", those) == {}
    assert reference.beside([row(7, "reproduced")], "quick", those) == {}
    assert reference.sections({}, those) == ""


def test_a_run_on_a_gpu_is_of_the_same_study():
    those = {"the reference run": {"profile": "mini", "claims": {6: row(6, "reproduced")}}}
    assert reference.beside([row(6, "reproduced")], "mini-gpu", those) == reference.beside(
        [row(6, "reproduced")], "mini", those
    )
    assert reference.beside([row(6, "reproduced")], "smoke", those) == {}


def test_a_verdict_that_was_not_run_has_dashes():
    rows = [{"claim": 3, "here": row(3, "not run", None), "reference": row(3, "reproduced"), "agree": "x"}]
    text = reference.section(rows, reference.THE_REFERENCE, {})
    assert "– (–)" in text and "+1.0 pt (+0.5 to +1.5)" in text


RECORD = "study.results()\nstudy.record(headline='judged', claims={rows})"


def run(folder, out, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(small_study.__file__).rpartition("/")[0])
    notebooks = small_study.write_notebooks(folder / "notebooks")
    small_study.write_notebook(notebooks, "00_first", [RECORD.format(rows=[row(6, "reproduced")])])
    options = {"only": ["00"], "plan": small_study.PLAN, "notebooks": notebooks, "home": folder / "home"}
    assert reproduce("quick", out=out, stream=io.StringIO(), **options) == 0
    page = (out / "00_first.html").read_text()
    return page, json.loads((out / "results" / "00_first.json").read_text())


@pytest.mark.slow
def test_published_beside_the_run_and_not_beside_itself(tmp_path, monkeypatch):
    there = write_reference(tmp_path / "reference", [row(6, "contradicted", -2.25, range(5))])
    monkeypatch.setattr(reference, "FOLDER", there)
    page, results = run(tmp_path, tmp_path / "out", monkeypatch)
    (compared,) = results["beside"]["the reference run"]
    assert compared["agree"] == "disagree" and compared["reference"]["effect"] == -2.25
    section = re.search(r"<!--reference-->(.*)<!--/reference-->", page, re.DOTALL)[1]
    assert "opposite things of claim 6" in section and "−2.2 pt (−2.8 to −1.8)" in section
    again, results = run(tmp_path, there, monkeypatch)  # the reference run itself, found done
    assert results["beside"] == {} and "opposite things" not in again


def test_seeds_stand_in_the_heading_if_they_are_those_of_every_claim():
    rows = [
        {
            "claim": c,
            "here": row(c, "reproduced", seeds=range(5)),
            "reference": row(c, "reproduced", seeds=more),
        }
        | {"agree": "agree"}
        for c, more in ((6, range(5, 8)), (7, range(5, 9)))
    ]
    found = reference.frame(rows, there="others")
    assert list(found) == [
        "claim",
        "here, seeds 0–4",
        "effect here",
        "others",
        "effect others",
        "seeds others",
        "",
    ]
    assert found["seeds others"].tolist() == ["5–7", "5–8"]
