"""The reference run that is committed: five seeds, ten claims, pages whose numbers are the results'."""

import json
import re
from pathlib import Path

import pytest
from page_tables import require_same_numbers

from clipvip_lib.claims import CLAIMS, VERDICTS
from clipvip_lib.study import more_seeds
from clipvip_lib.study.experiments import NOTEBOOKS
from clipvip_lib.study.reference import FOLDER

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
    require_same_numbers(path.read_text(encoding="utf-8"), read(FOLDER, name))


def test_every_page_has_the_verdicts_of_claims_json():
    rows = {row["id"]: row for row in read(FOLDER, "claims")}
    for name in NOTEBOOKS:
        for row in read(FOLDER, name)["numbers"].get("claims", []):
            assert row == rows[row["id"]], name


def test_the_runs_own_page_names_no_uncommitted_code():
    commits = {read(FOLDER, name)["run"]["commit"] for name in NOTEBOOKS}
    assert all(re.fullmatch("[0-9a-f]{12}", commit) for commit in commits), commits


def test_other_seeds_are_compared():
    rows = read(FOLDER, "08_verdict")["numbers"]["other_seeds"]
    others = more_seeds.read()
    if others:
        assert [row["reference"] for row in rows] == others["claims"]
        assert [row["claim"] for row in rows] == [6, 7, 8, 9] and rows[0]["reference"]["seeds"] == [5, 6, 7, 8, 9]
        return
    for row in rows:
        assert row["here"]["seeds"] + row["reference"]["seeds"] == SEEDS
