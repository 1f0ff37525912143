"""What pages say of evidence: sentences and tables from numbers whose truth is known, without a run."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from clipvip_lib.files import write_json
from clipvip_lib.profiles import get_profile
from clipvip_lib.retrieval import QueryRanks
from clipvip_lib.statistics import verdicts as rule
from clipvip_lib.statistics.claims import RECALL, statement
from clipvip_lib.statistics.intervals import expected_error, from_interval, paired_difference, student
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
@pytest.mark.thorough
def test_the_interval_of_the_difference_between_groups_covers_it(answers, share, effects):
    """Five seeds, 300 queries: the groups' distance from each other, or of both from zero, is not query noise."""
    rng, covered, runs = np.random.default_rng(0), 0, 100
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
        {
            "arm": arm,
            "benchmark": "msrvtt",
            RECALL: value,
            "low": value - 1,
            "high": value + 1,
            "R@1": value / 2,
        }
        for arm, value in recalls.items()
    ]
    return pd.DataFrame(rows)


def test_leaders_share_the_lead_when_level():
    assert evidence.leaders(scores(full=10.0, proxy=12.0), "msrvtt") == "proxy"
    assert evidence.leaders(scores(full=12.0, proxy=12.0, mean=3.0), "msrvtt") == "full and proxy"
    assert evidence.leaders(scores(a=1.0, b=1.0, c=1.0), "msrvtt") == "a, b and c"


def test_scores_side_by_side_and_in_words():
    table = evidence.side_by_side(scores(full=10.0, proxy=12.5))
    expected = {"arm": "proxy", "msrvtt": 12.5, "msrvtt, 95 %": "11.5 to 13.5", "msrvtt R@1": 6.25}
    assert table.to_dict("records")[1] == expected
    assert "proxy on msrvtt 12.5 (11.5 to 13.5)" in evidence.in_words(scores(full=10.0, proxy=12.5))


def test_the_average_recall_is_the_mean_of_three_recalls(monkeypatch):
    better = np.array([0, 3, 7, 20])  # places: hits at 1, 5, 10 and never
    found = QueryRanks(better, np.zeros(4, int), np.ones(4, int))
    monkeypatch.setattr(evidence, "ranks", lambda stage, home=None: found)
    assert evidence.hits(["seed"]).tolist() == [pytest.approx([1, 2 / 3, 1 / 3, 0])]
    assert evidence.hits(["seed"], "R@1").tolist() == [[1, 0, 0, 0]]
    assert evidence.hits(["seed"], 5).tolist() == [[1, 1, 0, 0]]


def judged(name: str, *intervals: tuple[float, float, float], seeds: int = 3) -> rule.Verdict:
    made = statement(name)
    each = [from_interval(*interval, seeds=seeds, queries=300) for interval in intervals]
    return rule.verdict(made, dict(zip(made.contrasts, each, strict=True)))


def test_headlines_tell_verdicts_with_units_and_nothing_of_one_seed():
    six, none = judged("6", (4.0, 2.0, 6.0), (5.0, 3.0, 7.0)), rule.blank(statement("7a"), "nothing ran")
    line = evidence.in_a_line([six, none])
    assert (
        line
        == "Claim 6 holds: 6 reproduced (+4.0 points of average recall, +2.0 to +6.0). Claim 7 not run: 7a not run"
    )
    five = judged("5", (-0.25, -0.3, -0.2), (-0.35, -0.4, -0.3))
    assert evidence.in_a_line([five]).startswith("Claim 5 does not hold: 5 contradicted (−0.350 NMI, −0.4")
    alone = judged("6", (4.0, 2.0, 6.0), (5.0, 3.0, 7.0), seeds=1)
    assert (
        evidence.in_a_line([alone]) == "Claim 6 not judged: 6 (+4.0 points of average recall, +2.0 to +6.0)"
    )
    frame = evidence.verdict_frame([six, none])
    assert list(frame["verdict"]) == ["reproduced", "not run"] and list(frame["effect"]) == ["+4.0 pt", "–"]
    assert list(frame["seeds"]) == [3, 0] and list(frame["level"]) == ["95.0 %", "95.0 %"]
    assert evidence.verdict_frame([six.row()]).equals(evidence.verdict_frame([six]))
    assert "    * 7a: nothing ran." in evidence.notes([six, none])


def test_signed_numbers_have_a_minus_and_zero_has_no_sign():
    assert [evidence.signed(x, 1) for x in (1.25, -1.25, 0.0, -0.01)] == ["+1.2", "−1.2", "0.0", "0.0"]


@pytest.mark.parametrize(
    ("profile", "seeds", "word"), (("mini", 3, "reproduced"), ("smoke", 3, "not judged"))
)
def test_smoke_judges_nothing(monkeypatch, profile, seeds, word):
    six = statement("6")
    found = dict.fromkeys(six.contrasts, from_interval(4.0, 2.0, 6.0, seeds=seeds))
    monkeypatch.setattr(evidence, "evidence", lambda *which: found)
    by_id = {v.id: v for v in evidence.verdicts(get_profile(profile), range(seeds), "04_video_proxy")}
    assert by_id["6"].verdict == word and by_id["7a"].verdict == "not run"


def test_basis_says_how_many_seeds():
    assert "One seed (3)" in evidence.basis(get_profile("mini"), [3])
    several = evidence.basis(get_profile("mini"), [0, 1, 2])
    assert several.startswith("3 seeds (0, 1, 2)") and "smoke" not in several
    assert "mean nothing" in evidence.basis(get_profile("smoke"), [0])


def table(effect: float, seeds: int, queries: int = 60) -> np.ndarray:
    """Noise [seeds, queries] with exactly this mean."""
    noise = np.random.default_rng(1).normal(0, 12, (seeds, queries))
    return noise - noise.mean() + effect


@pytest.mark.parametrize(("effect", "word"), ((0.0, rule.OPEN), (1.2, rule.REPRODUCED)))
def test_what_would_decide_an_open_statement(effect, word):
    """So many seeds of the same spread, and the rule decides; one less does not. Reproduced beside no difference is
    open however many there are."""
    six = statement("6")
    first, second = six.contrasts
    found = {first: paired_difference(table(effect, 4)), second: from_interval(9.0, 8.9, 9.1, seeds=4)}
    told = evidence.to_decide(rule.verdict(six, found), found)
    assert (told["id"], told["verdict"]) == ("6", word)
    if word == rule.OPEN:
        assert told["seeds"] is None and told["needs"] == "more queries: 200 seeds would not do"
        found[second] = from_interval(0.0, -0.1, 0.1, seeds=4)
        told = evidence.to_decide(rule.verdict(six, found), found)
        assert told["verdict"] == rule.NO_DIFFERENCE
    assert told["needs"] == f"{told['seeds']} seeds" and told["seeds"] > 4
    for seeds, decided in ((told["seeds"], True), (told["seeds"] - 1, False)):
        error, freedom = expected_error(found[first].components, seeds, 60)
        reach = student(freedom).ppf(0.975) * error
        assert (rule.word_of(effect - reach, effect + reach, 1.0) != rule.OPEN) == decided


def test_one_seed_judges_no_contrast_either():
    six = statement("6")
    for seeds, word in ((1, rule.NOT_JUDGED), (3, rule.REPRODUCED)):
        judged = rule.verdict(six, dict.fromkeys(six.contrasts, table(9.0, seeds)))
        assert list(evidence.contrast_frame([judged])["alone"]) == [word] * 2


def test_one_seed_does_not_tell_how_many_are_needed():
    one = statement("1a")
    found = {one.contrasts[0]: paired_difference(table(2.0, 1))}
    row = evidence.to_decide(rule.verdict(one, found), found)
    assert row["seeds"] is None and row["needs"].startswith("3 seeds or more")


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
