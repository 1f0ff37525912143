"""The reference that is committed: one answer everywhere, and pages whose numbers are the results'."""

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
from page_tables import require_same_numbers

from clipvip_lib import paper
from clipvip_lib.files import CHECKOUT
from clipvip_lib.statistics.claims import STATEMENTS
from clipvip_lib.statistics.verdicts import NOT_RUN, VERDICTS
from clipvip_lib.study import answer, conditions, evidence_file, reference, robustness
from clipvip_lib.study.experiments import NOTEBOOKS
from clipvip_lib.study.figures import figure_svg
from clipvip_lib.study.reference import FOLDER
from clipvip_lib.workshop.pages import with_reference

FOUND = reference.read()


def read(folder: Path, name: str):
    return json.loads((folder / "results" / f"{name}.json").read_text(encoding="utf-8"))


def without_ids(page: str) -> str:
    """Headings as they were before the page got its outline."""
    return re.sub(r'<(h[23]) id="[^"]*">', r"<\1>", page)


def require_same_rows(rows: list[dict], again: list[dict]) -> None:
    """The same words, and numbers that differ by rounding at most."""
    for row, other in zip(rows, again, strict=True):
        for key in ("effect", "low", "high"):
            if row[key] is not None:
                assert row[key] == pytest.approx(other[key], abs=1e-6), row["id"]
        different = {key for key in row if row[key] != other[key]}
        assert different <= {"effect", "low", "high", "contrasts"}, row["id"]


@pytest.mark.slow
def test_the_verdicts_follow_from_the_evidence():
    stored = evidence_file.read(FOLDER / reference.EVIDENCE)
    assert (
        FOUND["seeds"] == list(stored.seeds) == list(range(len(stored.seeds)))
    )  # consecutive: none is left out
    assert (FOUND["metric"], FOUND["profile"]) == (stored.metric, stored.profile)
    require_same_rows(FOUND["statements"], reference.judged(stored, stored.metric))


@pytest.mark.thorough
def test_what_stands_beside_the_verdicts_follows_from_its_files():
    stored = evidence_file.read(FOLDER / reference.EVIDENCE)
    assert FOUND["registered"] and evidence_file.is_registered(stored)
    assert FOUND["seeds"] == json.loads(evidence_file.REGISTRATION.read_text())["seeds"]
    require_same_effects(FOUND["conditions"], conditions.effects(FOLDER / conditions.FOLDER))
    require_same_effects(
        FOUND["headlines"], conditions.headlines(stored.found(), len(stored.seeds), stored.metric)
    )
    others = sorted(FOLDER.glob("evidence-*.npz"))
    assert len(others) == len(FOUND["machines"]) == len(FOUND["apart"])
    for path, rows, apart in zip(others, FOUND["machines"].values(), FOUND["apart"].values(), strict=True):
        other = evidence_file.read(path)
        judged = [row for row in reference.judged(other, stored.metric) if row["verdict"] != NOT_RUN]
        require_same_rows(rows, judged)
        require_same_effects(apart, reference.apart(stored, other, stored.metric))


def test_all_evidence_was_made_under_the_registration_and_no_seed_is_left_out():
    run = [
        FOLDER / reference.EVIDENCE,
        *FOLDER.glob("evidence-*.npz"),
        *(FOLDER / "conditions").glob("*.npz"),
    ]
    assert len(run) == 2 + len(conditions.CONDITIONS)
    for path in run:
        stored = evidence_file.read(path)
        assert {run["registration"] for run in stored.runs} == {evidence_file.registration()}, path.name
        assert list(stored.seeds) == list(range(len(stored.seeds))), path.name
        if path.parent.name == conditions.FOLDER:
            assert len(stored.seeds) == conditions.CONDITIONS[path.stem].seeds, path.name


def require_same_effects(rows: list[dict], again: list[dict]) -> None:
    ends = ("effect", "low", "high")
    for row, other in zip(rows, again, strict=True):
        assert [row[end] for end in ends] == pytest.approx([other[end] for end in ends], abs=1e-6), row
        rest = [{name: each[name] for name in each if name not in ends} for each in (row, other)]
        assert rest[0] == rest[1]


def test_every_statement_has_a_verdict_and_its_numbers():
    assert [row["id"] for row in FOUND["statements"]] == [s.id for s in STATEMENTS]
    for row, statement in zip(FOUND["statements"], STATEMENTS, strict=True):
        assert row["statement"] == statement.sentence and row["verdict"] in VERDICTS
        if row["verdict"] != "not run":
            assert row["low"] <= row["effect"] <= row["high"] and len(row["seeds"]) == len(FOUND["seeds"])
            for contrast in row["contrasts"]:
                assert np.mean(contrast["by_seed"]) == pytest.approx(contrast["effect"])


def test_readme_index_and_figure_give_the_same_answer():
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    assert answer.readme(readme, FOUND) == readme
    shown = answer.figure(FOUND["statements"], FOUND["metric"], FOUND["machines"])
    assert (FOLDER / answer.FIGURE).read_text(encoding="utf-8") == figure_svg(shown)
    index = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert without_ids(answer.lead(FOUND)) in without_ids(index)
    assert answer.sentence(FOUND) in html.unescape(index) and answer.sentence(FOUND) in readme


def test_the_pages_lead_with_the_verdicts_of_the_reference():
    rows = {row["id"]: row for row in FOUND["statements"]}
    led = 0
    for name in NOTEBOOKS:
        results = read(FOLDER, name)
        page = (FOLDER / f"{name}.html").read_text(encoding="utf-8")
        own = [row["id"] for row in results["numbers"].get("claims", [])]
        assert [row["id"] for row in results["beside"].get("statements", [])] == own
        for row in results["beside"].get("statements", []):
            assert row == rows[row["id"]]
        if own:
            section = reference.section(results["beside"], FOUND, results["seeds"])
            section += robustness.on_page(FOUND, results["beside"]["statements"])
            assert without_ids(with_reference(page, section)) == without_ids(page)
            assert without_ids(section) in without_ids(page)
            led += 1
    assert led == len(NOTEBOOKS) - 2  # 00 and 07 have no statements


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_pages_are_small_and_say_what_results_hold(name):
    path = FOLDER / f"{name}.html"
    assert path.stat().st_size < 3 * 2**20
    page, results = path.read_text(encoding="utf-8"), read(FOLDER, name)
    require_same_numbers(with_reference(page, ""), results)
    said = [results["headline"], *(text for f in results["figures"] for text in (f["title"], f["caption"]))]
    shown = html.unescape(re.sub(r"<[^>]+>", "", page))
    assert [text for text in said if text not in shown] == []
    whole = html.unescape(page)
    assert [f["alt"] for f in results["figures"] if f["alt"] not in whole] == []


def test_what_is_said_of_the_real_sets_does_not_bear_the_miniatures_names():
    [points] = [
        table["rows"]
        for title, table in read(FOLDER, "01_data_size")["tables"].items()
        if title.startswith("The paper's figure")
    ]
    assert [row[0] for row in points] == list(paper.CORPUS_NAMES.values())
    rows = [row for table in read(FOLDER, "07_cost")["tables"].values() for row in table["rows"]]
    years = [row[0] for row in rows if str(row[0]).startswith("years of a core")]
    assert len(years) == 2 and not any("mini-" in what for what in years)


def test_the_index_has_the_headlines_of_the_pages():
    index = html.unescape((FOLDER / "index.html").read_text(encoding="utf-8"))
    assert [name for name in NOTEBOOKS if read(FOLDER, name)["headline"] not in index] == []


def test_every_page_has_the_verdicts_of_claims_json():
    rows = {row["id"]: row for row in read(FOLDER, "claims")}
    assert list(rows) == [statement.id for statement in STATEMENTS]
    for name in NOTEBOOKS:
        for row in read(FOLDER, name)["numbers"].get("claims", []):
            assert row == rows[row["id"]], name


def test_the_runs_own_pages_name_no_uncommitted_code():
    commits = {read(FOLDER, name)["run"]["commit"] for name in NOTEBOOKS}
    assert all(re.fullmatch("[0-9a-f]{12}", commit) for commit in commits), commits
