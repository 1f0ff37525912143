"""The paper's claims as statements: what they contrast, with which arms, by which margin."""

from __future__ import annotations

import pytest

from clipvip_lib import paper
from clipvip_lib.errors import ClipVipError
from clipvip_lib.profiles import get_profile
from clipvip_lib.statistics import claims
from clipvip_lib.statistics.claims import (
    BENCHMARKS,
    CLAIMS,
    CONTRASTS,
    CORPORA,
    LOSS_ARMS,
    METHOD_ARMS,
    NMI,
    STATEMENTS,
    TEXT_ARMS,
    TEXT_SOURCES,
    checkpoint,
    claim,
    statement,
)
from clipvip_lib.study.experiments import attention_arms


def names(which: str) -> list[str]:
    return [contrast.name for contrast in statement(which).contrasts]


def test_eleven_claims_of_one_to_four_statements():
    assert [c.id for c in CLAIMS] == list(range(1, 12))
    assert all(1 <= len(c.statements) <= 4 and c.sentence.endswith(".") for c in CLAIMS)
    assert all(s.sentence.endswith(".") and s.contrasts for s in STATEMENTS)
    assert len({s.id for s in STATEMENTS}) == len({s.sentence for s in STATEMENTS}) == len(STATEMENTS)
    assert [s.claim for s in STATEMENTS] == [c.id for c in CLAIMS for _ in c.statements]


def test_arms_are_the_studys():
    checkpoints = {checkpoint(c, which) for c in CORPORA for which in ("first", "last")}
    known = {
        *attention_arms(get_profile("mini")),
        *LOSS_ARMS,
        *METHOD_ARMS,
        *TEXT_ARMS,
        *TEXT_SOURCES,
        *checkpoints,
    }
    assert {m.arm for c in CONTRASTS for m in (c.more, c.less)} <= known
    assert {c.more.benchmark for c in CONTRASTS} == set(BENCHMARKS)
    assert all(c.more.benchmark == c.less.benchmark and c.more != c.less for c in CONTRASTS)
    assert len({c.name for c in CONTRASTS}) == len(CONTRASTS)


def test_a_contrast_has_one_metric():
    for contrast in CONTRASTS:
        metrics = {s.metric for s in STATEMENTS if contrast in s.contrasts}
        assert metrics == {claims.metric_of(contrast)}
        assert (metrics == {NMI}) == (contrast.more.arm in TEXT_SOURCES)


def test_what_statements_contrast():
    assert names("1a") == ["clip4clip over webvid-2.5m@last, msrvtt"]
    assert names("1b") == ["clip4clip over hdvila-10m@last, msrvtt"]
    assert names("2a") == [
        "hdvila-10m@first over webvid-2.5m@first, msrvtt",
        "hdvila-100m@first over hdvila-10m@first, msrvtt",
    ]
    assert names("3a") == ["hdvila-100m@last over clip4clip, msrvtt"]
    assert names("6") == ["proxy-4 over full, msrvtt", "proxy-4 over full, didemo"]
    assert names("8d") == ["V-S,C + F-C over V-S, msrvtt", "V-S,C + F-C over V-S, didemo"]
    assert names("9a") == names("9b") and len(names("9a")) == 3 * 2
    assert statement("9b").level and not statement("9a").level
    assert names("10b")[0] == "clip-vip: DSL over simple, msrvtt"
    assert names("11c")[1] == "both texts over captions, didemo"


def test_the_margin_is_less_than_half_of_the_smallest_loss_at_the_end_of_the_papers_figure():
    ends = [[*paper.DATA_SCALES[corpus].values()][-1] for corpus in CORPORA]
    losses = [paper.NOT_POSTPRETRAINED - end for end in ends if end < paper.NOT_POSTPRETRAINED]
    assert claims.MARGIN[claims.RECALL] < min(losses) / 2


def test_the_papers_number_compares_checkpoints_of_the_same_steps():
    """WebVid's curve ends at 45 %: nothing is known of it at the end, where the others are."""
    known = {s.id: paper.effect([{"name": c.name} for c in s.contrasts], claims.RECALL) for s in STATEMENTS}
    assert known["1a"] is None and known["2a"] == pytest.approx(0.5)
    assert known["2b"] == known["3b"] == pytest.approx(2.9)


def test_bad_names_are_named():
    with pytest.raises(ClipVipError, match="claim"):
        claim(12)
    with pytest.raises(ClipVipError, match="statement"):
        statement("7z")
