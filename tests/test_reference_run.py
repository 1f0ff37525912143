"""The reference run that is committed: five seeds, ten claims, pages whose numbers are the results'."""

import html
import json
import re
from pathlib import Path

import pytest
from page_tables import require_same_numbers

from clipvip_lib.files import CHECKOUT
from clipvip_lib.statistics.claims import CLAIMS, VERDICTS
from clipvip_lib.study.experiments import NOTEBOOKS
from clipvip_lib.study.reference import FOLDER, ON_GPU, OTHER_SEEDS, OTHERS, others, sections
from clipvip_lib.workshop.pages import with_reference

SEEDS = list(range(5))


def read(folder: Path, name: str):
    return json.loads((folder / "results" / f"{name}.json").read_text(encoding="utf-8"))


def test_ten_claims_with_five_seeds_each():
    rows = read(FOLDER, "claims")
    assert [row["id"] for row in rows] == [claim.id for claim in CLAIMS]
    for row, claim in zip(rows, CLAIMS, strict=True):
        assert row["claim"] == claim.sentence and row["seeds"] == SEEDS
        assert row["verdict"] in VERDICTS and row["verdict"] != "not run"
        assert row["low"] <= row["effect"] <= row["high"] and row["queries"] >= 100
        assert (row["verdict"] == "inconclusive") == (row["low"] <= 0 <= row["high"])


def test_open_claims_say_what_would_decide_them():
    numbers = read(FOLDER, "08_verdict")["numbers"]
    open_claims = [row["id"] for row in numbers["claims"] if row["verdict"] == "inconclusive"]
    assert [row["claim"] for row in numbers["undecided"]] == open_claims
    assert all(row["needs"] for row in numbers["undecided"])


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
    # the tables that are written when pages are published
    assert with_reference(page, sections(results["beside"], others())) == page


def test_the_index_has_the_headlines_of_the_pages():
    index = html.unescape((FOLDER / "index.html").read_text(encoding="utf-8"))
    assert [name for name in NOTEBOOKS if read(FOLDER, name)["headline"] not in index] == []


def test_every_page_has_the_verdicts_of_claims_json():
    rows = {row["id"]: row for row in read(FOLDER, "claims")}
    for name in NOTEBOOKS:
        for row in read(FOLDER, name)["numbers"].get("claims", []):
            assert row == rows[row["id"]], name


def test_the_runs_own_page_names_no_uncommitted_code():
    commits = {read(FOLDER, name)["run"]["commit"] for name in NOTEBOOKS}
    assert all(re.fullmatch("[0-9a-f]{12}", commit) for commit in commits), commits


def test_the_readme_says_what_the_run_found():
    def said(rows):
        found = {
            verdict: [str(row["id"]) for row in rows if row["verdict"] == verdict] for verdict in VERDICTS
        }
        return "; ".join(f"{verdict} {', '.join(ids)}" for verdict, ids in found.items() if ids)

    more, on_gpu = (others()[OTHERS[file]] for file in (OTHER_SEEDS, ON_GPU))
    together = more["together"].values()
    assert all(len(row["seeds"]) == 20 for row in together)
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    for what, rows in (
        ("five seeds", read(FOLDER, "claims")),
        ("twenty seeds", together),
        ("the same five on a GPU", on_gpu["claims"].values()),
    ):
        assert f"* {what}: {said(rows)}\n" in readme


def test_other_seeds_and_another_device_stand_beside_the_verdicts():
    """What ``make more-seeds`` has written since: other seeds, and the same on a GPU; the pages show it."""
    shown, written = read(FOLDER, "08_verdict")["beside"], others()
    assert set(shown) == set(written) == set(OTHERS.values())
    for title, rows in shown.items():
        assert {row["claim"]: row["reference"] for row in rows} == written[title]["claims"]
        assert len(rows) == len(CLAIMS) and all(row["reference"]["verdict"] != "not run" for row in rows)
    for row in shown[OTHERS[OTHER_SEEDS]]:
        assert len(row["reference"]["seeds"]) >= 5 and not set(row["reference"]["seeds"]) & set(SEEDS)
    assert all(row["reference"]["seeds"] == SEEDS for row in shown[OTHERS[ON_GPU]])
