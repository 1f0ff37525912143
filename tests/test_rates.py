"""Learning rates are chosen on validation, from one list for every arm, and never by a test score."""

import pytest

from clipvip_lib.files import write_json
from clipvip_lib.profiles import get_profile
from clipvip_lib.study import experiments, jobs, rates

SMOKE = get_profile("smoke")


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ({1e-4: 30.0, 5e-4: 31.0}, 5e-4),
        ({1e-4: 35.0, 5e-4: 31.0}, 1e-4),
        ({1e-4: 32.4, 5e-4: 31.0}, 5e-4),  # better by less than a standard error, 1.46 points of 1,000 clips
        ({1e-4: 32.5, 5e-4: 31.0}, 1e-4),
        ({1e-4: 30.0, 5e-4: 30.0}, 5e-4),
        ({1e-4: 35.0, 2e-4: 35.0, 5e-4: 29.0}, 1e-4),
    ],
)
def test_the_best_on_validation_if_it_is_clearly_better(scores, chosen):
    assert rates.choose(scores, default=5e-4, clips=1000) == chosen


def test_rates_are_chosen_on_as_many_clips_as_are_tested():
    mini = get_profile("mini")
    found = experiments.candidates(rates.choosing(mini), 0)
    for stage in found["full/V-S/hdvila-100m"].values():
        clips = stage.inputs["frames"].inputs["benchmark"].config["clips"]
        assert clips["val"] == mini.world.test and clips["test"] == 4 and clips["train"] == mini.world.train


def test_an_arm_trains_with_the_chosen_rate(tmp_path, monkeypatch):
    monkeypatch.setattr(rates, "FILE", tmp_path / "rates.json")
    mini = get_profile("mini", bootstrap=1999)  # another value, so that no stage is found in memory
    arm = experiments.Arm("full")
    assert rates.chosen(mini, arm.slug) == mini.finetune.lr
    write_json(tmp_path / "rates.json", {"mini": {arm.slug: {"chosen": 1e-5, "validation": {}}}})
    stage = experiments.finetuned(mini, arm, "didemo", 3)
    assert stage.config["recipe"]["lr"] == 1e-5 and "/rate1e-05/" in stage.name
    assert (
        experiments.finetuned(mini, experiments.Arm(), "didemo", 3).config["recipe"]["lr"] == mini.finetune.lr
    )


def test_candidates_are_every_arm_at_every_rate_and_differ_in_nothing_else():
    found = experiments.candidates(SMOKE, 0)
    arms = {arm.slug for arm, _ in experiments.scored_arms(SMOKE).values()}
    assert set(found) == arms
    for by_rate in found.values():
        assert set(by_rate) == set(SMOKE.finetune_rates)
        recipes = [dict(stage.config["recipe"]) for stage in by_rate.values()]
        assert len({recipe.pop("lr") for recipe in recipes}) == len(recipes)
        assert all(recipe == recipes[0] for recipe in recipes)


@pytest.mark.slow
def test_a_validation_score_decides_and_no_test_score(tmp_path, monkeypatch, capsys):
    """A real run at smoke, of two arms: the file says what the stages' validation scores say."""
    monkeypatch.setenv("CLIPVIP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(rates, "FILE", tmp_path / "rates.json")
    both = dict(list(experiments.candidates(rates.choosing(SMOKE), rates.SEED).items())[:1])
    monkeypatch.setattr(experiments, "candidates", lambda profile, seed: both)
    jobs.choose_rates("smoke")
    (slug,) = both
    row = rates.table("smoke")[slug]
    for rate, stage in both[slug].items():
        scores = [evaluation["score"] for evaluation in stage.result()["evaluations"]]
        assert row["validation"][f"{rate:g}"] == max(scores)
    assert row["chosen"] == rates.choose(
        {float(k): v for k, v in row["validation"].items()}, SMOKE.finetune.lr, SMOKE.world.test
    )
    assert slug in capsys.readouterr().out


def test_the_list_is_short_and_holds_the_default():
    for name in ("smoke", "mini"):
        profile = get_profile(name)
        assert profile.finetune.lr in profile.finetune_rates and len(profile.finetune_rates) <= 3
