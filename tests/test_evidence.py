"""What pages say of evidence: sentences and tables from numbers whose truth is known, without a run."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from clipvip_lib.files import write_json
from clipvip_lib.profiles import get_profile
from clipvip_lib.statistics import claims
from clipvip_lib.statistics.intervals import from_interval, paired_difference
from clipvip_lib.study import evidence

SIDES = {+1: (1.0, 3.0), -1: (-3.0, -1.0), 0: (-1.0, 1.0), None: (None, None)}


def order_rows(all_: int, tells: int | None, rest: int | None, between: int | None) -> list[dict]:
    groups = {"all": all_, "tell the order": tells, "do not": rest, evidence.BETWEEN: between}
    return [
        {
            "contrast": "a over b",
            "benchmark": "msrvtt",
            "queries": group,
            "low": SIDES[s][0],
            "high": SIDES[s][1],
        }
        for group, s in groups.items()
    ]


@pytest.mark.parametrize(
    ("sides", "words"),
    [
        ((1, 1, 0, 1), "the gain is shown in {tell}; it is larger where the order is told."),
        ((1, 1, 0, 0), "the gain is shown in {tell}; that the groups differ is not shown."),
        ((1, 1, None, None), "a gain is shown; too few queries are in the group 'do not' to set it apart."),
        ((1, 0, 1, -1), "the gain is shown in {rest}; it is smaller where the order is told."),
        ((1, 1, 1, 0), "the gain is shown in both groups; that the groups differ is not shown."),
        ((1, 1, 1, 1), "the gain is shown in both groups; it is larger where the order is told."),
        ((1, 0, 0, 0), "the gain is shown in neither group on its own; that the groups differ is not shown."),
        ((-1, -1, 0, -1), "the loss is shown in {tell}; it is larger where the order is told."),
        ((-1, 1, -1, 1), "the loss is shown in {rest}; it is smaller where the order is told."),
        ((0, 1, 0, 1), "no difference is shown over all queries."),
    ],
)
def test_where_a_difference_comes_from(sides, words):
    groups = {"tell": "the queries that tell the order alone"}
    groups["rest"] = "the queries that do not tell the order alone"
    [said] = evidence.where_from(order_rows(*sides))
    assert said == f"a over b on msrvtt: {words.format(**groups)}"


@pytest.fixture
def answers(monkeypatch):
    """``answers(tells, a, b)``: what by_order finds of two arms' hits [seeds, queries] on msrvtt, by queries."""

    def found(tells, a, b):
        hits = {"a": np.atleast_2d(a) * 1.0, "b": np.atleast_2d(b) * 1.0}
        monkeypatch.setattr(evidence, "stages_of", lambda profile, arm, benchmark, seeds: arm)
        monkeypatch.setattr(evidence, "hits", lambda arm, home=None: hits[arm])
        monkeypatch.setattr(evidence, "tells_order", lambda *which: tells)
        rows = evidence.by_order(None, range(len(hits["a"])), "a", "b")
        return {row["queries"]: row for row in rows if row["benchmark"] == "msrvtt"}

    return found


def test_the_difference_between_groups_is_that_of_their_effects(answers):
    """Of 40 queries 10 tell the order: there one arm finds 8 and the other 2, elsewhere 18 and 15."""
    first, rest = np.arange(10), np.arange(30)
    rows = answers(np.arange(40) < 10, [np.r_[first < 8, rest < 18]] * 3, [np.r_[first < 2, rest < 15]] * 3)
    effects = {queries: row["effect"] for queries, row in rows.items()}
    assert effects == pytest.approx({"all": 22.5, "tell the order": 60, "do not": 10, evidence.BETWEEN: 50})
    row = rows[evidence.BETWEEN]
    assert 0 < row["low"] < 50 < row["high"] and row["n"] == 40


def test_what_a_seed_does_to_both_groups_is_no_doubt_about_their_difference(answers):
    tells, place = np.arange(200) < 100, np.tile(np.arange(100), 2)
    gains = np.array([10, 25, 40, 55])[:, None]  # of a hundred queries of each group, by seed
    widths = []
    for rest in (gains, gains[::-1]):
        hits = place < np.where(tells, gains, rest)
        row = answers(tells, hits, np.zeros_like(hits))[evidence.BETWEEN]
        assert row["effect"] == pytest.approx(0)
        widths.append(row["high"] - row["low"])
    assert widths[0] < widths[1] / 2


@pytest.mark.parametrize("few", (np.arange(40) < 1, np.arange(40) > 0))
def test_a_group_of_one_query_has_no_difference_to_the_other(answers, few):
    rows = answers(few, [np.arange(40) < 8] * 2, [np.arange(40) < 2] * 2)
    assert rows[evidence.BETWEEN]["low"] is None and rows["all"]["low"] is not None


@pytest.mark.slow
@pytest.mark.parametrize(("share", "effects"), ((0.5, (0.4, 0.4)), (0.1, (0.3, 0.0))))
def test_the_interval_of_the_difference_between_groups_covers_it(answers, share, effects):
    """Five seeds, 300 queries: the groups' distance from each other, or of both from zero, is not query noise."""
    rng, covered, runs = np.random.default_rng(0), 0, 200
    tells = np.arange(300) < 300 * share
    for _ in range(runs):
        ease = rng.uniform(0, 1, 300)
        b = rng.random((5, 300)) < 0.5 * ease
        a = rng.random((5, 300)) < 0.5 * ease + np.where(tells, *effects) + rng.normal(0, 0.02, (5, 1))
        row = answers(tells, a, b)[evidence.BETWEEN]
        covered += row["low"] <= 100 * (effects[0] - effects[1]) <= row["high"]
    assert 0.93 <= covered / runs <= 0.99  # without centring 0.999 where both groups gain


def scores(**recalls) -> pd.DataFrame:
    rows = [
        {"arm": arm, "benchmark": "msrvtt", "R@1": value, "low": value - 1, "high": value + 1}
        for arm, value in recalls.items()
    ]
    return pd.DataFrame(rows)


def test_leaders_share_the_lead_when_level():
    assert evidence.leaders(scores(full=10.0, proxy=12.0), "msrvtt") == "proxy"
    assert evidence.leaders(scores(full=12.0, proxy=12.0, mean=3.0), "msrvtt") == "full and proxy"
    assert evidence.leaders(scores(a=1.0, b=1.0, c=1.0), "msrvtt") == "a, b and c"


def test_scores_side_by_side_and_in_words():
    table = evidence.side_by_side(scores(full=10.0, proxy=12.5))
    assert table.to_dict("records")[1] == {"arm": "proxy", "msrvtt R@1": 12.5, "msrvtt, 95 %": "11.5 to 13.5"}
    assert "proxy on msrvtt 12.5 (11.5 to 13.5)" in evidence.in_words(scores(full=10.0, proxy=12.5))


def judged(number: int, *intervals: tuple[float, float, float], seeds: int = 1) -> claims.Verdict:
    claim = claims.claim(number)
    each = [from_interval(*interval, seeds=seeds, queries=300) for interval in intervals]
    return claims.verdict(claim, dict(zip(claim.contrasts, each, strict=True)))


def test_headlines_tell_verdicts_with_units_and_that_they_are_provisional():
    six = judged(6, (4.0, 2.0, 6.0), (5.0, 3.0, 7.0))
    line = evidence.in_a_line([six, claims.blank(claims.claim(7), "nothing ran")])
    assert line.startswith("Claim 6 reproduced (+4.0 points, +2.0 to +6.0); claim 7 not run.")
    assert line.endswith("Provisional: too few seeds")
    five = judged(5, (-0.25, -0.3, -0.2), (-0.35, -0.4, -0.3), seeds=3)
    assert evidence.in_a_line([five]).startswith("Claim 5 contradicted (−0.350 NMI, −0.4")
    assert not evidence.in_a_line([five]).endswith("seeds")
    frame = evidence.verdict_frame([six, claims.blank(claims.claim(7), "nothing ran")])
    assert list(frame["verdict"]) == ["reproduced", "not run"] and list(frame["effect"]) == ["+4.0 pt", "–"]
    assert list(frame["hold"]) == ["2/2", "0/0"] and list(frame["seeds"]) == [1, 0]
    assert "* Claim 7: nothing ran." in evidence.notes([six, claims.blank(claims.claim(7), "nothing ran")])


def test_basis_says_how_many_seeds():
    assert "One seed (3)" in evidence.basis(get_profile("mini"), [3])
    several = evidence.basis(get_profile("mini"), [0, 1, 2])
    assert several.startswith("3 seeds (0, 1, 2)") and "smoke" not in several
    assert "mean nothing" in evidence.basis(get_profile("smoke"), [0])


def open_claim(effect: float, seeds: int, queries: int = 60) -> list[dict]:
    """Claim 6 on noise with exactly this effect on msrvtt and none of it undecided on didemo."""
    noise = np.random.default_rng(1).normal(0, 30, (seeds, queries))
    table = noise - noise.mean() + effect
    first, second = claims.claim(6).contrasts
    found = {first: paired_difference(table), second: from_interval(9.0, 8.9, 9.1, seeds=seeds)}
    return evidence.to_decide(claims.claim(6), found)


def test_what_would_decide_an_open_claim():
    [row] = open_claim(2.0, seeds=1)
    assert row["undecided"] == "1 of 2" and row["seeds"] is None and "second seed" in row["needs"]
    # Twice the effect needs a quarter of the queries.
    assert open_claim(4.0, seeds=1)[0]["queries"] == pytest.approx(row["queries"] / 4, rel=0.1)
    [row] = open_claim(2.0, seeds=4)
    assert row["seeds"] > 4 and row["needs"] == f"{row['seeds']} seeds" and row["queries"] is None
    [row] = open_claim(0.0, seeds=1)
    assert row["needs"] == "no effect to size a study by"


@pytest.mark.parametrize("effect", [0.8, 1.5, 3.0])
def test_so_many_queries_do_decide(effect):
    """A study of the size that ``to_decide`` names is off zero at its effect and spread; half of it is not."""
    noise = np.random.default_rng(2).normal(0, 30, (1, 80))
    table = noise - noise.mean() + effect
    first, second = claims.claim(6).contrasts
    found = {first: paired_difference(table), second: from_interval(9.0, 8.9, 9.1)}
    [row] = evidence.to_decide(claims.claim(6), found)
    for share, decides in ((1.25, True), (0.5, False)):
        larger = np.tile(table, (1, round(share * row["queries"] / 80) or 1))
        assert (paired_difference(larger).interval(1 - claims.ALPHA / 2)[0] > 0) == decides


def test_the_most_demanding_contrast_comes_first():
    claim = claims.claim(7)
    effects = (3.0, 1.0, 2.0, 0.5)
    found = {
        c: from_interval(e, e - 4, e + 4, queries=100) for c, e in zip(claim.contrasts, effects, strict=True)
    }
    rows = evidence.to_decide(claim, found)
    assert [row["effect"] for row in rows] == [0.5, 1.0, 2.0, 3.0]
    assert {row["would be"] for row in rows} == {"reproduced"}


def test_of_contrasts_on_the_other_side_the_one_that_needs_least_would_decide():
    claim = claims.claim(7)
    effects = (3.0, -1.0, -2.0, 0.5)
    found = {
        c: from_interval(e, e - 4, e + 4, queries=100) for c, e in zip(claim.contrasts, effects, strict=True)
    }
    rows = evidence.to_decide(claim, found)
    assert [row["effect"] for row in rows] == [-2.0, -1.0, 0.5, 3.0]
    assert [row["would be"] for row in rows] == ["contradicted"] * 2 + ["reproduced"] * 2
    # Claim 1 claims less than zero, so an effect above it would contradict.
    one = claims.claim(1)
    [row] = evidence.to_decide(one, {one.contrasts[0]: from_interval(2.0, -1.0, 5.0, queries=100)})
    assert row["would be"] == "contradicted"


def stored(folder, text, video):
    folder.mkdir(parents=True)
    np.savez(folder / "features.npz", text=np.float16(text), video=np.float16(video))
    return SimpleNamespace(folder=lambda home: folder)


def test_told_apart_counts_the_texts_that_prefer_their_clip_to_its_undoing(tmp_path, monkeypatch):
    """Two long videos of two clips each; the third text does not tell its event and is not asked."""
    motions = [["grows"], ["shrinks"], ["falls"], ["rises"]]
    truth = {
        f"video{i}": {
            "split": "test", "group": i // 2, "tells_order": i != 2,
            "events": [{"motion": motion} for motion in each],
        }
        for i, each in enumerate(motions)
    }  # fmt: skip
    write_json(tmp_path / "world" / "truth.json", truth | {"video9": truth["video0"] | {"split": "train"}})
    world = SimpleNamespace(folder=lambda home: tmp_path / "world")
    eye = np.eye(4)
    knows, swaps = stored(tmp_path / "a", eye, eye), stored(tmp_path / "b", eye, eye[[1, 0, 2, 3]])
    level = stored(tmp_path / "c", eye, np.ones((4, 4)))
    monkeypatch.setattr(evidence.experiments, "benchmark", lambda profile, name: world)
    monkeypatch.setattr(
        evidence,
        "stages_of",
        lambda profile, arm, name, seeds: {"x": [knows, knows], "y": [swaps, level]}[arm],
    )
    found = evidence.told_apart(None, [0, 1], ["x", "y"], "msrvtt").set_index(["arm", "events"])["share"]
    assert found["x", "all"] == 100 and found["x", "grows / shrinks"] == 100
    assert found["y", "grows / shrinks"] == pytest.approx((0 + 50) / 2)
    assert found["y", "all"] == pytest.approx((0 + 0 + 100 + 50 + 50 + 50) / 6)
    assert ("x", "rises / falls") not in found  # one query alone has no interval


def test_rates_are_shown_as_they_were_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence.rates, "FILE", tmp_path / "rates.json")
    mini = get_profile("mini")
    low, high = mini.finetune_rates
    row = {"chosen": low, "validation": {f"{low:g}": 33.0, f"{high:g}": 31.5}}
    write_json(tmp_path / "rates.json", {"mini": {"full/V-S/hdvila-100m": row}})
    frame = evidence.rates_frame(mini, {"full": "full/V-S/hdvila-100m", "other": "other/V-S/hdvila-100m"})
    assert frame.loc[0].tolist() == ["full", 33.0, 31.5, f"{low:g}"]
    assert frame.loc[1, "taken"] == f"{mini.finetune.lr:g}" and frame.loc[1].isna().sum() == 2
