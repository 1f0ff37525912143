"""The headline contrasts again under other conditions, a dose at a time and in other worlds.

Each condition changes one thing of the profile. *Dose*: the amount of fine-tuning, and of post-pretraining. *World*:
what the embedded world is like. *Rival*: another explanation of a claim, made true. Conditions tell how far an answer
reaches; no statement is judged on them. ``make condition NAME=..`` trains one, with as many seeds as it asks for, and
keeps its evidence in reports/reference/conditions/.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from clipvip_lib.errors import ClipVipError, unknown
from clipvip_lib.profiles import PROFILES, Profile
from clipvip_lib.statistics import claims
from clipvip_lib.statistics import verdicts as rule

HEADLINES = tuple(claims.statement(name) for name in ("3a", "6", "7a", "8d", "10a"))
TUNING, POST, WORLD, RIVAL = (
    "amount of fine-tuning",
    "amount of post-pretraining",
    "another world",
    "a rival explanation",
)
FOLDER = "conditions"


@dataclass(frozen=True)
class Condition:
    """One change. kind: TUNING, POST, WORLD or RIVAL; what: the change in words; dose: times the amount of the study,
    for the first two kinds; seeds: how many are asked for; change: of the profile."""

    name: str
    kind: str
    what: str
    seeds: int
    change: Callable[[Profile], Profile]
    dose: float = 1.0
    of: tuple[str, ...] = tuple(
        statement.id for statement in HEADLINES
    )  # the statements whose arms it changes


def _dose(part: str, kind: str, dose: float, name: str) -> Condition:
    def change(profile: Profile) -> Profile:
        recipe = getattr(profile, part)
        return dataclasses.replace(
            profile, **{part: dataclasses.replace(recipe, steps=round(recipe.steps * dose))}
        )

    return Condition(name, kind, f"{dose:.2g} times as many steps", 5, change, dose)


def _part(part: str, **values: object) -> Callable[[Profile], Profile]:
    return lambda profile: dataclasses.replace(
        profile, **{part: dataclasses.replace(getattr(profile, part), **values)}
    )


def _patches_dropped(profile: Profile) -> Profile:
    recipes = {
        part: dataclasses.replace(getattr(profile, part), patch_drop=0.75)
        for part in ("postpretrain", "finetune")
    }
    return dataclasses.replace(profile, **recipes)


CONDITIONS = {
    condition.name: condition
    for condition in (
        _dose("finetune", TUNING, 0.0, "fine-tuning-none"),
        _dose("finetune", TUNING, 0.25, "fine-tuning-quarter"),
        _dose("finetune", TUNING, 3.0, "fine-tuning-three-times"),
        _dose("postpretrain", POST, 1 / 3, "post-pretraining-third"),
        _dose("postpretrain", POST, 3.0, "post-pretraining-three-times"),
        Condition("world-2", WORLD, "drawn from another seed", 3, _part("world", seed=2)),
        Condition("no-order", WORLD, "no caption tells the order of events", 3, _part("world", tells_order=0.0)),
        Condition(
            "spoken-as-written", WORLD, "speech names things as captions do", 3, _part("world", spoken_as_written=1.0)
        ),
        Condition(
            "spoken-apart", WORLD, "speech shares no name with captions", 3, _part("world", spoken_as_written=0.0)
        ),
        Condition(
            "no-siblings", WORLD, "batches of single clips, without the clip that undoes another", 3,
            lambda profile: dataclasses.replace(profile, group=1),
        ),
        Condition(
            "frozen-text", RIVAL, "post-pretraining leaves the text tower alone: subtitles cannot harm it", 5,
            _part("postpretrain", frozen_text=True),
        ),
        Condition(
            "rewritten", RIVAL, "subtitles are rewritten as short captions: the style is the same, the source is not",
            5, _part("world", rewritten=True),
        ),
        Condition(
            "patches-dropped", RIVAL, "full attention does not see 75 % of the patches in training", 5,
            _patches_dropped, of=("6",),
        ),
    )
}  # fmt: skip


def condition(name: str) -> Condition:
    """The condition of this name. Raises ClipVipError for another."""
    if name not in CONDITIONS:
        raise unknown("condition", name, CONDITIONS)
    return CONDITIONS[name]


def effects(folder: Path) -> list[dict]:
    """A row for each headline contrast that a condition changes, if its evidence lies in ``folder``: condition, kind,
    what, dose, statement, contrast, effect, low, high (95 %), seeds, metric. Raises ClipVipError for another's."""
    from clipvip_lib.study import evidence_file

    rows = []
    for name, each in CONDITIONS.items():
        path = folder / f"{name}.npz"
        if path.is_file():
            stored = evidence_file.read(path)
            if stored.profile not in {repr(each.change(profile)) for profile in PROFILES.values()}:
                raise ClipVipError(
                    f"{path} is evidence of another profile: expected one under {name!r}; run `make condition "
                    f"NAME={name}` again, or take the file away"
                )
            about = {"condition": name, "kind": each.kind, "what": each.what, "dose": each.dose}
            found = headlines(stored.found(), len(stored.seeds), stored.metric)
            rows += [about | row for row in found if row["statement"] in each.of]
    return rows


def headlines(found: Mapping[claims.Contrast, object], seeds: int, metric: str) -> list[dict]:
    """The headline contrasts in some evidence, as the rows of ``effects`` without their condition."""
    rows = []
    for statement in HEADLINES:
        for contrast in statement.contrasts:
            if contrast in found:
                effect, low, high = rule.difference(found[contrast])
                row = {"statement": statement.id, "contrast": contrast.name, "metric": metric, "seeds": seeds}
                rows.append(row | {"effect": float(effect), "low": float(low), "high": float(high)})
    return rows
