"""The paper's numbers: those that were verified, and two words for all others."""

from __future__ import annotations

import pytest

from clipvip_lib import paper
from clipvip_lib.statistics.claims import CLAIMS


def test_verified_numbers():
    assert paper.number("msrvtt") == 50.1
    assert paper.number("msrvtt", "R@10", model="B/16", scoring="dsl") == 88.2
    assert paper.number("didemo", "R@5") == 77.1
    assert paper.number("msrvtt", method="CLIP4Clip mean pooling") == 43.1
    assert paper.number("msrvtt", direction="video_to_text") == 49.1
    assert paper.text("activitynet", model="B/16") == "53.4"


@pytest.mark.parametrize(
    ("benchmark", "metric", "names"),
    [
        ("lsmdc", "R@1", {"scoring": "dsl"}),
        ("msrvtt", "MdR", {}),
        ("didemo", "R@1", {"setting": "zero-shot"}),
        ("msrvtt", "R@1", {"method": "full attention"}),
        ("msvd", "R@1", {}),
    ],
)
def test_everything_else_says_so(benchmark, metric, names):
    assert paper.number(benchmark, metric, **names) == "NOT VERIFIED"
    assert paper.text(benchmark, metric, **names) == "NOT VERIFIED"


def test_every_result_has_a_source_and_is_one():
    keys = [(r.benchmark, r.model, r.scoring, r.method, r.direction, r.setting) for r in paper.RESULTS]
    assert len(set(keys)) == len(keys)
    for r in paper.RESULTS:
        assert r.source and 0 < r.recall[0] < r.recall[1] < r.recall[2] < 100


def test_video_to_text_is_what_its_note_says():
    found = paper.find("msrvtt", direction="video_to_text")
    assert [round(100 * hits / 1008, 1) for hits in (495, 768, 847)] == [49.1, 76.2, 84.0]
    assert "495, 768, 847 of 1008" in found.note


def test_tables():
    rows = paper.results_table()
    assert [row["benchmark"] for row in rows] == ["MSR-VTT 1k-A", "DiDeMo", "ActivityNet", "LSMDC"]
    assert rows[0]["B/32"] == "50.1 / 74.8 / 84.6"
    assert sum(row[c] == "NOT VERIFIED" for row in rows for c in row) == 1
    assert {row["source"] for row in paper.other_results_table()} >= {"the author in XPretrain#15"}


def test_findings_belong_to_notebooks_of_claims():
    notebooks = {claim.notebook for claim in CLAIMS}
    for found in paper.PUBLISHED:
        known = found.notebook == "01_data_size"  # its figure prints its points
        assert found.notebook in notebooks and (found.values == "NOT VERIFIED") != known
    assert paper.published("04_video_proxy").conclusion.startswith("proxies beat")
    assert paper.published("07_cost") is None
