"""The authors' recipes: the values of the facts, each with a source, changed only to what makes sense."""

import dataclasses

import pytest

from clipvip_lib.data.benchmarks import SETS
from clipvip_lib.errors import ClipVipError
from clipvip_lib.profiles import get_profile
from clipvip_lib.training.recipes import FREE, RECIPES, SOURCES, TrainRecipe, get_recipe, recipe_of, source


@pytest.mark.parametrize(
    ("part", "name"),
    [("postpretrain", "postpretrain"), ("finetune", "finetune-msrvtt")],
    ids=lambda each: each,
)
def test_the_paper_profile_says_the_same(part, name):
    ours = dataclasses.asdict(getattr(get_profile("paper"), part))
    theirs = dataclasses.asdict(RECIPES[name])
    # Their steps follow from their epochs (test_paper_plan.py); how often they evaluate is an option.
    shared = (ours.keys() & theirs.keys()) - {"steps", "evaluations"}
    assert {"batch", "lr", "weight_decay", "clip_norm", "warmup"} <= shared
    assert {key: ours[key] for key in shared} == {key: theirs[key] for key in shared}


def test_the_authors_values():
    post, full, msrvtt = (RECIPES[name] for name in ("postpretrain", "postpretrain-full", "finetune-msrvtt"))
    assert (post.batch, post.lr, post.weight_decay, post.clip_norm, post.text_tokens) == (
        1024,
        5e-6,
        0.05,
        5.0,
        70,
    )
    assert (msrvtt.batch, msrvtt.lr, msrvtt.weight_decay, msrvtt.clip_norm, msrvtt.text_tokens) == (
        128,
        1e-6,
        0.2,
        1.0,
        50,
    )
    assert post.for_data(None).steps == 97_656 == get_profile("paper").postpretrain.steps
    assert full.for_data(None).steps == 3 * 97_656
    assert msrvtt.for_data(9_000).steps == 100 * 70  # one of 20 captions per pass: 5 epochs over all of them
    assert RECIPES["finetune-activitynet"].frames == 32
    assert RECIPES["finetune-activitynet"].text_tokens == RECIPES["finetune-didemo-b16"].text_tokens == 70
    assert [RECIPES[f"finetune-{name}"].epochs for name in ("didemo", "lsmdc", "activitynet")] == [20, 10, 20]


@pytest.mark.parametrize("name", RECIPES)
def test_whatever_differs_from_this_projects_defaults_has_a_source(name):
    recipe, default = (
        RECIPES[name],
        TrainRecipe(reduction="mean", batch=0, lr=0.0, weight_decay=0.0, clip_norm=0.0, warmup=0.0),
    )
    own = {"lr_added", "kept_frames"}  # follow from lr and frames, no word of the authors
    for field in dataclasses.fields(recipe):
        if getattr(recipe, field.name) != getattr(default, field.name) and field.name not in own:
            assert "default" not in source(name, field.name), field.name
    assert source(name, "chunk") == "this project's default"


def test_sources_and_free_fields_are_fields():
    fields = {field.name for field in dataclasses.fields(TrainRecipe)}
    assert set(FREE) < fields
    assert all(set(found) < fields for found in SOURCES.values())


def test_changes_are_checked():
    assert get_recipe("postpretrain", batch=256, lr=1).lr == 1
    for changes, sentence in (
        ({"batch": "256"}, "'batch' expected int like 1024, got '256'"),
        ({"antialias": 1}, "'antialias' expected bool like False, got 1"),
        ({"precision": "int8"}, "unknown precision 'int8'"),
        ({"batch": 0}, "'batch' expected a number above 0"),
        ({"chunk": -1}, "'chunk' expected a number of 0 or more, got -1"),
        ({"reduction": "max"}, "unknown reduction 'max'"),
        ({"frames": 30}, "'kept_frames' expected at least the 30 frames"),
        ({"rate": 1.0}, "unknown recipe field 'rate'"),
        ({"lr": float("nan")}, "'lr' expected a finite number, got nan"),
        ({"lr": float("inf")}, "'lr' expected a finite number, got inf"),
        ({"warmup": float("nan")}, "'warmup' expected a finite number"),
        ({"warmup": 1.5}, "'warmup' expected a share of the steps, at most 1, got 1.5"),
        ({"patch_drop": 75.0}, "'patch_drop' expected a share of the patches, at most 1, got 75.0"),
        ({"epochs": float("inf")}, "'epochs' expected a finite number"),
    ):
        with pytest.raises(ClipVipError, match=sentence):
            get_recipe("postpretrain", **changes)


def test_steps_come_from_the_data_or_are_asked_for():
    assert get_recipe("postpretrain", steps=7).for_data(None).steps == 7
    assert get_recipe("finetune-didemo", batch=10, epochs=2).for_data(35).steps == 6
    assert get_recipe("finetune-didemo", batch=10, epochs=0.1).for_data(35).steps == 1
    with pytest.raises(ClipVipError, match="--set steps=N or --set samples=N"):
        get_recipe("finetune-didemo").for_data(None)


def test_a_set_has_its_own_recipe_or_msrvtts():
    found = {name: recipe_of(name).removeprefix("finetune-") for name in SETS}
    assert found == {
        "msrvtt": "msrvtt", "msrvtt-7k": "msrvtt", "didemo": "didemo", "activitynet": "activitynet",
        "activitynet-val2": "activitynet", "lsmdc": "lsmdc", "msvd": "msrvtt", "vatex": "msrvtt",
        "vatex-1500": "msrvtt", "jsonl": "msrvtt", "jsonl-paragraph": "msrvtt",
    }  # fmt: skip
