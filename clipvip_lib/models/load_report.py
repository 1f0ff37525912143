"""What became of every weight of a checkpoint, and the rule that refuses one that does not fit.

Weights are loaded whole or not at all: ``refuse_unequal`` raises one sentence if a name is missing, left over, of
another shape or not finite, before anything is written. The authors' loader logged a line and went on (R@1 = 0).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clipvip_lib.errors import ClipVipError

State = Mapping[str, Tensor]


@dataclass
class LoadReport:
    """What became of every weight: names loaded; names added, dropped or changed, each with how or why."""

    source: str
    loaded: list[str] = field(default_factory=list)
    added: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.loaded)} weights loaded"]
        for title in ("added", "dropped", "changed"):
            lines += [f"  {title} {name}: {why}" for name, why in getattr(self, title).items()]
        return "\n".join(lines)


def refuse_unequal(source: str, state: State, wanted: State, missing: Sequence[str], advice: str) -> None:
    """Raise ClipVipError, one sentence that ends with ``advice``, if names or shapes are not as in ``wanted``.

    missing: names of ``wanted`` that are not in ``state`` and may not be. Also raised for values that are not
    finite.
    """
    extra = [name for name in state if name not in wanted]
    shapes = [
        f"{name} {list(state[name].shape)} instead of {list(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    if missing or extra or shapes:
        faults = [
            f"{len(found)} {what}: {', '.join(found[:3])}{', ..' if len(found) > 3 else ''}"
            for what, found in (
                ("missing", list(missing)),
                ("left over", _with_nearest(extra, wanted)),
                ("of another shape", shapes),
            )
            if found
        ]
        raise ClipVipError(
            f"{source} does not fit the model ({'; '.join(faults)}), nothing was loaded; {advice}"
        )
    bad = not_finite(state)
    if bad:
        raise ClipVipError(
            f"{source} holds values that are not finite in {len(bad)} weights ({', '.join(bad[:3])}), nothing "
            "was loaded; take an earlier checkpoint"
        )


def not_finite(state: State) -> list[str]:
    """Names of the weights that hold a NaN or an infinity."""
    # A finite sum has finite terms, and is ten times faster to find than a look at every value.
    suspects = [name for name, value in state.items() if not bool(torch.isfinite(value.sum()))]
    return [name for name in suspects if not bool(torch.isfinite(state[name]).all())]


def _with_nearest(extra: Sequence[str], wanted: State) -> list[str]:
    """The first names that are left over, each with the nearest name that the model knows."""
    shown = []
    for name in extra:
        near = difflib.get_close_matches(name, wanted, 1) if len(shown) < 3 else []
        shown.append(f"{name} (nearest: {near[0]})" if near else name)
    return shown


def to_dtype_of(state: dict[str, Tensor], wanted: State, report: LoadReport) -> None:
    """Cast in place to the model's types; each change is in the report."""
    for name, value in state.items():
        if value.dtype != wanted[name].dtype:
            report.changed[name] = f"{value.dtype} to {wanted[name].dtype}".replace("torch.", "")
            state[name] = value.to(wanted[name].dtype)
