"""The rule that judges statements, on evidence whose truth is known: words by geometry, error rates by simulation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipvip_lib.errors import ClipVipError
from clipvip_lib.statistics import intervals
from clipvip_lib.statistics.claims import (
    BENCHMARKS,
    CONTRASTS,
    NMI,
    STATEMENTS,
    Measure,
    claim,
    metric_of,
    statement,
)
from clipvip_lib.statistics.intervals import from_interval, paired_difference
from clipvip_lib.statistics.verdicts import (
    CONTRADICTED,
    DECIDED,
    NO_DIFFERENCE,
    NOT_JUDGED,
    NOT_RUN,
    OPEN,
    REPRODUCED,
    blank,
    claims_of,
    combined,
    confidence,
    evidence_from_hits,
    sum_up,
    verdict,
    verdicts,
    word_of,
)

DIDEMO, MSRVTT = "didemo", "msrvtt"


def judged(name: str, *intervals: tuple[float, float, float], seeds: int = 5):
    """A statement judged on (effect, low, high) of its contrasts; the ends are meant at the statement's level."""
    made = statement(name)
    level = confidence(made)
    each = [from_interval(*interval, seeds=seeds, queries=300, level=level) for interval in intervals]
    return verdict(made, dict(zip(made.contrasts, each, strict=True)))


@pytest.mark.parametrize(
    ("low", "high", "word", "level_word"),
    [
        (0.1, 3.0, REPRODUCED, OPEN),
        (0.1, 0.9, REPRODUCED, REPRODUCED),  # above zero, and within a point of it
        (-3.0, -0.1, CONTRADICTED, OPEN),
        (-0.9, -0.1, CONTRADICTED, REPRODUCED),
        (-0.9, 0.9, NO_DIFFERENCE, REPRODUCED),
        (-1.0, 0.9, OPEN, OPEN),  # the margin itself is outside
        (-0.5, 2.0, OPEN, OPEN),
        (1.0, 3.0, REPRODUCED, CONTRADICTED),
        (-3.0, -1.0, CONTRADICTED, CONTRADICTED),
        (0.0, 0.0, NO_DIFFERENCE, REPRODUCED),
    ],
)
def test_a_contrasts_word_is_where_its_interval_lies(low, high, word, level_word):
    assert word_of(low, high, 1.0) == word
    assert word_of(low, high, 1.0, level=True) == level_word


@pytest.mark.parametrize(
    ("words", "within", "together"),
    [
        ([REPRODUCED, REPRODUCED], False, REPRODUCED),
        ([REPRODUCED, REPRODUCED], True, REPRODUCED),
        ([REPRODUCED, CONTRADICTED], False, CONTRADICTED),
        ([OPEN, CONTRADICTED], False, CONTRADICTED),
        ([NO_DIFFERENCE, CONTRADICTED], True, CONTRADICTED),
        ([REPRODUCED, NO_DIFFERENCE], False, OPEN),  # a large effect on one benchmark, none on the other
        ([REPRODUCED, NO_DIFFERENCE], True, NO_DIFFERENCE),
        ([NO_DIFFERENCE, NO_DIFFERENCE], True, NO_DIFFERENCE),
        ([NO_DIFFERENCE, OPEN], False, OPEN),
        ([REPRODUCED, OPEN], False, OPEN),
    ],
)
def test_one_word_of_several(words, within, together):
    assert combined(words, within) == together


def test_the_effect_shown_is_that_on_which_the_verdict_hangs():
    found = judged("6", (3.0, 2.0, 4.0), (1.5, 0.5, 2.5))
    assert (found.verdict, found.effect) == (REPRODUCED, 1.5)
    assert found.note == "reproduced in 2 of 2; hangs on proxy-4 over full, didemo"
    mixed = judged("6", (3.0, 2.0, 4.0), (-1.5, -2.5, -0.5))
    assert (mixed.verdict, mixed.effect) == (CONTRADICTED, -1.5)
    level = judged("6", (0.6, 0.3, 0.9), (0.1, -0.5, 0.7))
    assert (level.verdict, level.effect) == (NO_DIFFERENCE, 0.1)
    assert level.note.startswith("reproduced in 1 of 2; no difference in 1 of 2")
    apart = judged("6", (3.0, 2.0, 4.0), (0.1, -0.5, 0.7))
    assert (apart.verdict, apart.effect) == (OPEN, 0.1) and apart.note == level.note
    near = judged("9b", *[(0.0, -0.5, 0.5)] * 5, (0.4, -0.1, 0.9))
    assert (near.verdict, near.effect) == (REPRODUCED, 0.4)  # the one nearest to the margin


def test_more_than_two_contrasts_have_wider_intervals():
    assert [confidence(statement(name)) for name in ("1a", "6")] == [0.95, 0.95]
    assert confidence(statement("9a")) == pytest.approx(1 - 0.1 / 6)


def test_fewer_than_three_seeds_judge_nothing():
    found = judged("6", (3.0, 2.0, 4.0), (1.5, 0.5, 2.5), seeds=2)
    assert found.verdict == NOT_JUDGED and found.effect == 1.5 and "2 of 3 seeds" in found.note
    assert judged("6", (3.0, 2.0, 4.0), (1.5, 0.5, 2.5), seeds=3).verdict == REPRODUCED


def test_not_run_says_what_is_missing():
    made = statement("6")
    found = verdict(made, {made.contrasts[0]: (1.0, 0.5, 1.5)})
    assert found.verdict == NOT_RUN and found.note == "no evidence for proxy-4 over full, didemo"
    assert (found.effect, found.low, found.high, found.seeds, found.queries) == (None, None, None, (), 0)
    assert "and 1 more" in verdict(made, {}).note


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((REPRODUCED, REPRODUCED), "holds"),
        ((REPRODUCED, OPEN), "holds in part (1 of 2)"),
        ((CONTRADICTED, REPRODUCED), "holds in part (1 of 2, 1 contradicted)"),
        ((CONTRADICTED, NO_DIFFERENCE), "does not hold"),
        ((CONTRADICTED, OPEN), "open (1 of 2 contradicted)"),
        ((REPRODUCED, NOT_RUN), "not run in full (1 of 2 reproduced)"),
        ((NOT_RUN, NOT_RUN), NOT_RUN),
        ((REPRODUCED, NOT_JUDGED), NOT_JUDGED),
    ],
)
def test_a_claim_sums_its_statements_in_words(words, said):
    seven = claim(7)
    found = [blank(s, "", word) for s, word in zip(seven.statements, words, strict=True)]
    assert sum_up(seven, [*found, blank(statement("6"), "")]) == said
    assert sum_up(seven, [v.row() for v in found]) == said
    assert claims_of(found) == [seven]


def hits_of(level: dict, seeds: int = 5, queries: int = 1000) -> dict:
    """Hits of every arm on shared queries: by chance 0.4 plus what ``level`` adds, by arm or by Measure."""
    rng = np.random.default_rng(0)
    hard = {b: rng.uniform(-0.2, 0.2, queries) for b in BENCHMARKS}
    measures = {m for c in CONTRASTS if metric_of(c) != NMI for m in (c.more, c.less)}
    hits = {}
    for m in sorted(measures):
        chance = 0.4 + level.get(m, level.get(m.arm, 0)) + hard[m.benchmark] + rng.normal(0, 0.01, (seeds, 1))
        hits[m] = (rng.random((seeds, queries)) < chance) * 1.0
    return hits


def test_effects_are_in_points_and_paired():
    hits = hits_of({"proxy-4": 0.1})
    first = statement("6").contrasts[0]
    found = evidence_from_hits(hits)[first]
    assert found == pytest.approx(100 * (hits[Measure("proxy-4", MSRVTT)] - hits[Measure("full", MSRVTT)]))
    by_hand = verdict(statement("6"), evidence_from_hits(hits)).contrasts[0]
    assert by_hand.effect == pytest.approx(10, abs=3)
    assert by_hand.by_seed == pytest.approx(found.mean(axis=1)) and len(by_hand.by_seed) == 5


def test_all_statements_from_hits_and_intervals():
    level = {"proxy-4": 0.1, "clip-vip": 0.1, "both texts": 0.1, Measure("clip-vip", DIDEMO, "dsl"): 0.3}
    evidence = evidence_from_hits(hits_of(level))
    evidence |= {c: from_interval(0.4, 0.3, 0.5, seeds=3) for c in CONTRASTS if metric_of(c) == NMI}
    found = {v.id: v for v in verdicts(evidence, (5, 6, 7, 8, 9))}
    assert list(found) == [s.id for s in STATEMENTS]
    assert all(found[name].verdict == REPRODUCED for name in ("4a", "4b", "5", "6", "7a", "7b", "10a", "11a"))
    rows = json.loads(json.dumps([v.row() for v in found.values()], allow_nan=False))
    assert rows[-1]["seeds"] == [5, 6, 7, 8, 9] and rows[-1]["queries"] == 1000
    assert list(rows[0]) == [
        "id", "claim", "statement", "verdict", "effect", "low", "high", "confidence", "seeds", "queries", "metric",
        "note", "contrasts",
    ]  # fmt: skip


def test_arms_of_different_queries_are_refused():
    hits = hits_of({})
    hits[Measure("full", MSRVTT)] = hits[Measure("full", MSRVTT)][:, :500]
    with pytest.raises(ClipVipError, match="proxy-4 over full, msrvtt"):
        evidence_from_hits(hits)


def test_arms_that_agree_on_every_query_show_no_difference():
    """Two arms of a tiny study may have no effect and no spread at all. That must not raise a warning."""
    six = statement("6")
    same = np.zeros((3, 40))
    assert verdict(six, dict.fromkeys(six.contrasts, same)).verdict == NO_DIFFERENCE
    ahead, behind = six.contrasts
    assert verdict(six, {ahead: same, behind: same - 1.0}).verdict == CONTRADICTED


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-3.5, 3.5), min_size=2, max_size=2), st.floats(0.05, 2))
def test_verdict_and_interval_never_disagree(effects, width):
    """Whatever the evidence, the interval shown lies where the verdict says."""
    found = judged("7a", *((z, z - width, z + width) for z in effects))
    side = {
        REPRODUCED: found.low > 0,
        CONTRADICTED: found.high < 0,
        NO_DIFFERENCE: -1 < found.low <= 0 <= found.high < 1,
        OPEN: found.low <= 0 <= found.high,
    }
    assert side[found.verdict]


# ---------------------------------------------------------------------------------------------- error rates


@pytest.fixture
def rates(monkeypatch):
    """``rates(statement, truth)``: shares of the verdicts on made-up evidence, eight seeds, 200 queries, both with a
    spread of their own. Normal values have no skew for the bootstrap to find (test_intervals.py holds that part)."""
    monkeypatch.setattr(intervals, "bootstrap_shape", lambda *_: (1.0, 1.0))

    def found(name: str, truth: list[float], runs: int = 500) -> dict[str, float]:
        made, rng = statement(name), np.random.default_rng(11)
        words = []
        for _ in range(runs):
            evidence = {
                contrast: paired_difference(
                    effect
                    + rng.normal(0, 0.7, (8, 1))
                    + rng.normal(0, 3, (1, 200))
                    + rng.normal(0, 4, (8, 200))
                )
                for contrast, effect in zip(made.contrasts, truth, strict=True)
            }
            words.append(verdict(made, evidence).verdict)
        return {word: words.count(word) / runs for word in (*DECIDED, OPEN)}

    return found


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "truth", "wrong"),
    [
        ("6", [0.0, 0.0], (REPRODUCED, CONTRADICTED)),  # nothing there
        ("6", [0.0, 2.0], (REPRODUCED, CONTRADICTED, NO_DIFFERENCE)),  # on one benchmark only
        ("6", [1.0, 1.0], (CONTRADICTED, NO_DIFFERENCE)),  # just as large as matters
        ("6", [-1.0, 1.0], (REPRODUCED, NO_DIFFERENCE)),
        ("1a", [0.0], (REPRODUCED, CONTRADICTED)),
        ("9a", [0.0] * 6, (REPRODUCED, CONTRADICTED)),
        ("9b", [1.0] * 6, (REPRODUCED, CONTRADICTED)),  # level is claimed, and it is not quite
        ("9b", [0.0] * 5 + [1.0], (REPRODUCED, CONTRADICTED)),
    ],
)
def test_each_wrong_verdict_is_rare(rates, name, truth, wrong):
    """At most one in twenty; in 500 runs up to 0.075 by chance."""
    found = rates(name, truth)
    assert all(found[word] <= 0.075 for word in wrong), found


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "truth", "right", "least"),
    [
        ("6", [2.0, 2.0], REPRODUCED, 0.95),
        ("6", [-2.0, -2.0], CONTRADICTED, 0.95),
        ("1a", [0.0], NO_DIFFERENCE, 0.5),
        ("6", [0.0, 0.0], NO_DIFFERENCE, 0.25),
        ("9b", [2.5] * 6, CONTRADICTED, 0.95),
    ],
)
def test_what_is_there_is_found(rates, name, truth, right, least):
    found = rates(name, truth, runs=200)
    assert found[right] >= least, found
