"""The profile ``paper`` with data and weights at hand: what ``reproduce --profile paper --set NAME=VALUE`` says.

A plain ``paper`` profile can only be planned; with a `RealProfile` the study's graph (experiments.py) is built from
stages.py, and a stage without its data raises `NotAtHand`, so that the rest still runs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType

from clipvip_lib.errors import ClipVipError, unknown
from clipvip_lib.profiles import PROFILES, Profile
from clipvip_lib.study.experiments import NotAtHand
from clipvip_lib.study.paper_plan import WEIGHTS, Settings
from clipvip_lib.study.real import data_at_hand
from clipvip_lib.study.real.data_at_hand import Need
from clipvip_lib.training.recipes import TrainRecipe, expect_value
from clipvip_lib.workshop.machine import gpus

NAME = "paper"
TRAININGS = ("postpretrain", "finetune")


@dataclass(frozen=True)
class RealProfile(Profile):
    """The published sizes, and where data and weights are.

    recipe_changes: (training, field of ``TrainRecipe``, value) that differ from the authors' recipe.
    """

    settings: Settings = field(default_factory=Settings)
    recipe_changes: tuple[tuple[str, str, object], ...] = ()

    @classmethod
    def of(cls, given: Mapping[str, object]) -> RealProfile:
        """The profile of settings by name: those of a plan, and ``postpretrain.FIELD`` or ``finetune.FIELD`` of a
        recipe. ``gpus``, the ranks of a training, is by default what this machine has.

        Raises ClipVipError for an unknown name or a value of another kind, and unless both data and weights are named
        and every file or folder that is named is there.
        """
        changes = {name: value for name, value in given.items() if "." in name}
        settings = Settings.of(
            {"gpus": max(1, len(gpus()))} | {k: v for k, v in given.items() if k not in changes}
        )
        wanted = {"data_root": "data_root=DIR", "weights": "weights=PATH"}
        if lacks := [how for name, how in wanted.items() if getattr(settings, name) is None]:
            raise ClipVipError(
                f"profile 'paper' expected data and weights, without {' and '.join(lacks)}; "
                f"add --set {' --set '.join(lacks)} (in a notebook: at_hand), or look first with --plan"
            )
        _check_there(settings)
        paper = PROFILES[NAME]
        fields = {f.name: getattr(paper, f.name) for f in dataclasses.fields(paper)}
        listed = tuple(_change(name, value) for name, value in sorted(changes.items()))
        for training, name, value in listed:
            if name == "steps":
                fields[training] = dataclasses.replace(fields[training], steps=value)
        return cls(**fields, settings=settings, recipe_changes=listed)

    def changed(self, training: str) -> dict[str, object]:
        """The fields of a training's recipe that were changed, and its precision."""
        changed = {name: value for which, name, value in self.recipe_changes if which == training}
        return {"precision": self.precision} | changed

    @property
    def at_hand(self) -> dict[str, Need]:
        """What there is, looked up once per process."""
        return _look(self)

    def graph(self) -> ModuleType:
        """The functions that make this profile's stages, by the names that they have in experiments.py."""
        from clipvip_lib.study.real import stages

        return stages

    def require(self, *names: str) -> None:
        """Raises NotAtHand unless the data and weights of these names are there."""
        lacks = [self.at_hand[name] for name in names if not self.at_hand[name].there]
        if lacks:
            raise NotAtHand(
                "lacks " + "; ".join(f"{need.name} ({need.where}: {need.state})" for need in lacks)
            )


def _check_there(settings: Settings) -> None:
    root = settings.data_root
    if not root.is_dir():
        raise ClipVipError(
            f"--set data_root={root}: expected the folder of corpora and benchmarks, "
            f"got {'a file' if root.exists() else 'no such folder'}; name the one that holds them"
        )
    for name, what in WEIGHTS.items():
        path = getattr(settings, name)
        if path is not None and not path.exists():
            raise ClipVipError(
                f"--set {name}={path}: expected {what}, got no such file or folder; name the one that holds them"
            )


@functools.cache
def _look(profile: RealProfile) -> dict[str, Need]:
    return data_at_hand.look(profile, profile.settings)


def planned(given: Mapping[str, object]) -> tuple[Profile, Settings]:
    """The paper profile and the settings of a plan, from the names that a run takes too (``RealProfile.of``), where
    data and weights need not be there. Of changed recipes the plan counts steps and batches.

    Raises ClipVipError for an unknown name or a value of another kind.
    """
    profile, others = PROFILES[NAME], {name: value for name, value in given.items() if "." not in name}
    for name, value in given.items():
        if name not in others:
            training, part, value = _change(name, value)
            recipe = getattr(profile, training)
            if hasattr(recipe, part):
                recipe = dataclasses.replace(recipe, **{part: value})
                profile = dataclasses.replace(profile, **{training: recipe})
    return profile, Settings.of(others)


def uncounted(given: Mapping[str, object]) -> list[str]:
    """The changes of recipes that make a training longer or shorter, and that ``planned`` does not count."""
    sizes = ("epochs", "samples", "frames", "kept_frames", "text_tokens", "checkpointing", "chunk")
    return [name for name in given if name.partition(".")[2] in sizes]


def _change(name: str, value: object) -> tuple[str, str, object]:
    training, _, part = name.partition(".")
    if training not in TRAININGS:
        raise unknown(f"setting {name!r}: training", training, TRAININGS)
    known = {f.name: f.default for f in dataclasses.fields(TrainRecipe)}
    if part not in known:
        raise unknown(f"setting {name!r}: recipe field", part, known)
    expect_value(f"--set {name}=...:", part, value, known[part])
    if part == "steps" and value < 1:
        raise ClipVipError(f"--set {name}=...: expected a whole number from 1, got {value!r}; change it")
    return training, part, value
