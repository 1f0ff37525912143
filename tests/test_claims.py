"""The ten claims and the rule that judges them, on evidence whose truth is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipvip_lib.errors import ClipVipError
from clipvip_lib.statistics.claims import (
    ATTENTION_ARMS,
    BENCHMARKS,
    CLAIMS,
    CORPORA,
    LOSS_ARMS,
    METHOD_ARMS,
    TEXT_SOURCES,
    Measure,
    checkpoint,
    claim,
    evidence_from_hits,
    verdict,
    verdicts,
)
from clipvip_lib.statistics.intervals import from_interval, paired_difference

DIDEMO, MSRVTT = "didemo", "msrvtt"


def all_measures(number: int | None = None) -> set[Measure]:
    claims = CLAIMS if number is None else [claim(number)]
    return {m for c in claims for contrast in c.contrasts for _, m in contrast.terms}


def simulated(level: dict, number: int | None = None, seeds: int = 5, queries: int = 1000) -> dict:
    """Hits of the arms of a claim (or of all), on shared queries: by chance 0.4 plus what ``level`` adds, by
    arm or by Measure."""
    rng = np.random.default_rng(0)
    hard = {b: rng.uniform(-0.2, 0.2, queries) for b in BENCHMARKS}
    hits = {}
    for m in sorted(all_measures(number)):
        if m.metric == "R@1":
            chance = 0.4 + level.get(m, level.get(m.arm, 0)) + hard[m.benchmark]
            chance = chance + rng.normal(0, 0.01, (seeds, 1))
            hits[m] = (rng.random((seeds, queries)) < chance) * 1.0
    return hits


def judged(number: int, level: dict, **options):
    return verdict(claim(number), evidence_from_hits(simulated(level, number, **options)))


def test_ten_claims_in_order():
    assert [c.id for c in CLAIMS] == list(range(1, 11))
    assert all(c.sentence.endswith(".") and c.contrasts and c.min_seeds >= 3 for c in CLAIMS)
    assert [int(c.notebook[:2]) for c in CLAIMS] == [1, 1, 1, 2, 3, 4, 4, 5, 5, 6]
    for c in CLAIMS:
        assert len({contrast.name for contrast in c.contrasts}) == len(c.contrasts)


def test_arms_are_the_studys():
    checkpoints = {checkpoint(c, which) for c in CORPORA for which in ("first", "last")}
    known = {*ATTENTION_ARMS, *LOSS_ARMS, *METHOD_ARMS, *TEXT_SOURCES, *checkpoints}
    assert {m.arm for m in all_measures()} <= known
    assert {m.benchmark for m in all_measures()} == set(BENCHMARKS)


@given(st.floats(0, 1))
def test_a_contrast_is_blind_to_what_its_arms_share(level):
    for contrast in (contrast for c in CLAIMS for contrast in c.contrasts):
        assert sum(weight * level for weight, _ in contrast.terms) == pytest.approx(0)


def test_what_each_claim_contrasts():
    def rows(number):
        return {(c.name, c.direction) for c in claim(number).contrasts}

    assert rows(6) == {("proxy-4 over full, msrvtt", "greater"), ("proxy-4 over full, didemo", "greater")}
    assert {name.split(",")[0] for name, _ in rows(7)} == {"proxy-4 over mean_pool", "proxy-4 over proxy-1"}
    assert len(rows(8)) == 5 * 2 and len(rows(9)) == 5 * 2 + 4 * 2 and len(rows(10)) == 4
    assert {direction for n in (1, 2) for _, direction in rows(n)} == {"less"}


def test_reproduced_contradicted_inconclusive():
    assert judged(6, {"proxy-4": 0.10}).verdict == "reproduced"
    assert judged(6, {"full": 0.10}).verdict == "contradicted"
    assert judged(6, {}).verdict == "inconclusive"


def test_all_contrasts_must_hold_and_one_may_contradict():
    one = judged(6, {Measure("proxy-4", MSRVTT): 0.10})
    assert one.verdict == "inconclusive" and "proxy-4 over full, didemo" in one.note
    assert "1 of 2 contrasts hold" in one.note and one.low < 0 < one.high
    mixed = judged(6, {Measure("proxy-4", MSRVTT): 0.10, Measure("full", DIDEMO): 0.10})
    assert mixed.verdict == "contradicted" and mixed.high < 0
    assert [c.verdict for c in mixed.contrasts] == ["reproduced", "contradicted"]


def test_overfitting_and_the_size_of_the_corpus():
    drop = {checkpoint(c, "last"): -d for c, d in zip(CORPORA, (0.20, 0.10, 0.0), strict=True)}
    first, second, third = (judged(n, drop) for n in (1, 2, 3))
    assert first.verdict == second.verdict == third.verdict == "reproduced"
    assert first.effect == pytest.approx(-20, abs=3) and first.high < 0
    assert second.effect == pytest.approx(-10, abs=4)
    rise = {arm: -d for arm, d in drop.items()}
    assert [judged(n, rise).verdict for n in (1, 2, 3)] == ["contradicted"] * 3


def test_losses():
    level = dict.fromkeys(LOSS_ARMS[1:], 0.12) | {"V-S,C + F-C": 0.20}
    assert judged(8, level).verdict == "reproduced"
    assert judged(8, level | {"V-S + F-C": -0.1}).verdict == "contradicted"
    best = judged(9, level)
    assert best.verdict == "inconclusive"  # best, but the others lie in the middle between it and V-S
    assert judged(9, level | {"V-S": -0.2, "V-S,C + F-C": 0.22}).verdict == "reproduced"
    assert judged(9, level | {"V-S + F-C": 0.35}).verdict == "contradicted"
    assert judged(9, level | {"V-S + V-C": 0.02}).verdict == "contradicted"  # far from the best


def test_clip_vip_and_dsl():
    level = {"clip-vip": 0.1} | {Measure("clip-vip", b, scoring="dsl"): 0.2 for b in BENCHMARKS}
    assert judged(10, level).verdict == "reproduced"
    worse = {Measure("clip-vip", b, scoring="dsl"): 0.0 for b in BENCHMARKS}
    assert judged(10, level | worse).verdict == "contradicted"


def test_effects_are_in_points_and_paired():
    hits = simulated({"proxy-4": 0.1}, 6)
    found = evidence_from_hits(hits)[claim(6).contrasts[0]]
    expected = 100 * (hits[Measure("proxy-4", MSRVTT)] - hits[Measure("full", MSRVTT)])
    assert found == pytest.approx(expected)
    assert judged(6, {"proxy-4": 0.1}).effect == pytest.approx(10, abs=3)


def test_plain_tuples_name_measures_too():
    hits = {tuple(m): table for m, table in simulated({"proxy-4": 0.1}, 6).items()}
    assert verdict(claim(6), evidence_from_hits(hits)).verdict == "reproduced"


def test_not_run_says_what_is_missing():
    hits = simulated({}, 6)
    del hits[Measure("full", DIDEMO)]
    found = verdict(claim(6), evidence_from_hits(hits))
    assert found.verdict == "not run" and "proxy-4 over full, didemo" in found.note
    assert (found.effect, found.low, found.high, found.seeds, found.queries) == (None, None, None, (), 0)
    assert "and 1 more" in verdict(claim(6), {}).note


def test_nmi_claims_take_intervals_and_differences():
    evidence = dict.fromkeys(claim(4).contrasts, (0.4, 0.3, 0.5))
    assert verdict(claim(4), evidence).verdict == "reproduced"
    evidence |= {contrast: from_interval(-0.2, -0.3, -0.1, seeds=3) for contrast in claim(5).contrasts}
    found = verdict(claim(5), evidence)
    assert found.verdict == "contradicted" and found.metric == "NMI" and not found.provisional
    assert "NMI" in str(found) and found.effect == pytest.approx(-0.2)


def test_one_seed_is_provisional_and_says_so():
    found = judged(6, {"proxy-4": 0.2}, seeds=1)
    assert found.verdict == "reproduced" and found.provisional
    assert "queries only (one seed)" in found.note and "1 of 3 seeds" in found.note
    assert not judged(6, {"proxy-4": 0.2}, seeds=3).provisional


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-3.5, 3.5), min_size=4, max_size=4))
def test_verdict_and_interval_never_disagree(standings):
    """Whatever the evidence, the interval shown lies where the verdict says."""
    number = 7
    evidence = {
        contrast: from_interval(z, z - 1.96, z + 1.96)
        for contrast, z in zip(claim(number).contrasts, standings, strict=True)
    }
    found = verdict(claim(number), evidence)
    side = {"reproduced": found.low > 0, "contradicted": found.high < 0}
    assert side.get(found.verdict, found.low <= 0 <= found.high)
    unadjusted = sum(abs(z) > 1.96 for z in standings)
    assert sum(c.verdict != "inconclusive" for c in found.contrasts) <= unadjusted


def test_holm_is_stricter_than_each_contrast_alone():
    evidence = {contrast: from_interval(2.0, 2.0 - 1.96, 2.0 + 1.96) for contrast in claim(7).contrasts}
    found = verdict(claim(7), evidence)
    assert all(c.low > 0 for c in found.contrasts)
    assert found.verdict == "inconclusive" and found.low < 0


def test_wrong_claims_are_rare_when_nothing_is_true():
    """Of 200 claims with no effect at all, about one in twenty may be decided."""
    rng, decided = np.random.default_rng(8), 0
    for _ in range(200):
        evidence = {
            contrast: paired_difference(rng.normal(0, 40, (5, 150)) + rng.normal(0, 2, (5, 1)), resamples=50)
            for contrast in claim(7).contrasts
        }
        decided += verdict(claim(7), evidence).verdict != "inconclusive"
    assert decided / 200 < 0.08


def test_rows_for_claims_json():
    rows = [v.row() for v in verdicts(evidence_from_hits(simulated({})), seeds=(5, 6, 7, 8, 9))]
    assert len(json.loads(json.dumps(rows, allow_nan=False))) == 10
    assert list(rows[5]) == [
        "id", "claim", "verdict", "effect", "low", "high", "seeds", "queries", "metric", "notebook",
    ]  # fmt: skip
    assert rows[5]["seeds"] == [5, 6, 7, 8, 9] and rows[5]["queries"] == 1000
    assert rows[3]["verdict"] == "not run" and rows[3]["effect"] is None


def test_arms_that_agree_on_every_query_leave_a_claim_open():
    """Two arms of a tiny study may have no effect and no spread at all. That must not raise a warning."""
    same = np.zeros((1, 40))
    found = verdict(claim(6), dict.fromkeys(claim(6).contrasts, same))
    assert found.verdict == "inconclusive" and (found.effect, found.low, found.high) == (0, 0, 0)
    ahead, behind = claim(6).contrasts
    found = verdict(claim(6), {ahead: same, behind: same - 1.0})  # off zero without spread: decided
    assert found.verdict == "contradicted" and found.note.startswith(f"decided by {behind.name}")


def test_bad_input_is_named():
    with pytest.raises(ClipVipError, match="claim"):
        claim(11)
    hits = simulated({}, 6)
    hits[Measure("full", MSRVTT)] = hits[Measure("full", MSRVTT)][:, :500]
    with pytest.raises(ClipVipError, match="proxy-4 over full, msrvtt"):
        evidence_from_hits(hits)
