"""Trials measure what a claim names under another condition, and change no verdict."""

import numpy as np
import pytest

from clipvip_lib.profiles import get_profile
from clipvip_lib.statistics import claims, intervals
from clipvip_lib.study import evidence, experiments, tried
from clipvip_lib.study.plan import runnable_profile

MINI = get_profile("mini")


@pytest.mark.parametrize("trial", tried.TRIALS, ids=lambda trial: f"{trial.claim}-{trial.condition}")
def test_a_trial_looks_at_its_claims_own_contrasts_and_changes_something(trial):
    assert set(trial.contrasts) <= set(claims.claim(trial.claim).contrasts)
    assert trial.zero_shot or runnable_profile("mini", **trial.changes) != MINI
    assert trial.condition


def test_a_changed_condition_has_stages_of_its_own():
    (trial,) = [each for each in tried.TRIALS if each.claim == 6]
    changed = tried.stages(trial, runnable_profile("mini", **trial.changes), [0])
    for measure, (stage,) in changed.items():
        (plain,) = evidence.stages_of(MINI, measure.arm, measure.benchmark, [0])
        assert stage.key != plain.key and stage.config["recipe"]["steps"] == 720


def test_before_fine_tuning_nothing_is_trained():
    trials = [each for each in tried.TRIALS if each.zero_shot]
    assert {trial.claim for trial in trials} == {8, 9, 10}
    for trial in trials:
        for found in tried.stages(trial, MINI, [0, 1]).values():
            assert [stage.config["recipe"]["steps"] for stage in found] == [0, 0]


def test_a_row_is_the_paired_difference_of_its_stages(monkeypatch):
    rng = np.random.default_rng(0)
    tables: dict[str, np.ndarray] = {}

    def hits(stages, home=None, scoring="simple"):
        assert scoring == "simple"
        return tables.setdefault(stages[0].name, (rng.random((len(stages), 50)) < 0.5).astype(float))

    monkeypatch.setattr(evidence, "hits", hits)
    (trial,) = [each for each in tried.TRIALS if each.claim == 7]
    profile = runnable_profile("mini", **trial.changes)
    (row,) = tried.measured(trial, profile, (0, 1))
    left, right = (
        tables[experiments.finetuned(profile, experiments.Arm("proxy", m), "msrvtt", 0).name] for m in (4, 1)
    )
    expected = intervals.paired_difference(100 * left, 100 * right)
    assert (row["effect"], row["low"], row["high"]) == pytest.approx(tuple(expected))
    assert row["seeds"] == [0, 1] and row["queries"] == 50 and row["claimed"] == "greater"


def test_a_trial_of_a_scoring_reads_that_scoring(monkeypatch):
    found = {"dsl": 0.75, "simple": 0.5}
    monkeypatch.setattr(
        evidence, "hits", lambda stages, home=None, scoring="simple": np.full((2, 9), found[scoring])
    )
    (trial,) = [each for each in tried.TRIALS if each.claim == 10]
    assert [row["effect"] for row in tried.measured(trial, MINI, (0, 1))] == [25, 25]


def test_claim_9_is_tried_on_every_other_loss_with_captions():
    (trial,) = [each for each in tried.TRIALS if each.claim == 9]
    named = {contrast.name.split(" over ")[1].removesuffix(", msrvtt") for contrast in trial.contrasts}
    assert named == set(claims.WITH_CAPTIONS) - {"V-S,C + F-C"}


def test_nothing_tried_is_no_rows(tmp_path):
    assert tried.read(tmp_path / "tried.json") == []


@pytest.mark.parametrize(
    ("claimed", "low", "high", "said"),
    [
        ("greater", 0.5, 2.0, "as claimed"),
        ("greater", -2.0, -0.5, "against the claim"),
        ("less", -2.0, -0.5, "as claimed"),
        ("less", 0.5, 2.0, "against the claim"),
        ("greater", -0.5, 0.5, "no difference is shown"),
        ("less", -0.5, 0.5, "no difference is shown"),
    ],
)
def test_words_follow_the_interval(claimed, low, high, said):
    row = {"claim": 8, "question": "Q?", "contrast": "a over b", "claimed": claimed, "low": low, "high": high}
    assert tried.in_words([row]) == [f"Claim 8: Q? a over b: {said}."]
