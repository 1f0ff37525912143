"""What became of every weight of a checkpoint, and the rule that refuses one that does not fit.

Weights are loaded whole or not at all: ``fit`` raises one sentence if a name is missing, left over, of another shape or
type, or not finite, before anything is written. The authors' loader logged a line and continued (R@1 = 0).
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clipvip_lib.errors import ClipVipError

State = Mapping[str, Tensor]
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass
class LoadReport:
    """What became of every weight: names loaded; names added, dropped or changed, each with how or why.

    assumed: what the weights do not say about the configuration, and what was taken instead.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    added: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    assumed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Names with the same reason share one line; of many names the first three are shown."""
        lines = [f"{self.source}: {len(self.loaded)} weights loaded"]
        for title in ("added", "dropped", "changed", "assumed"):
            reasons: dict[str, list[str]] = {}
            for name, why in getattr(self, title).items():
                reasons.setdefault(why, []).append(name)
            for why, names in reasons.items():
                shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
                lines.append(f"  {title} {shown}: {why}")
        return "\n".join(lines)


def fit(
    source: str,
    state: dict[str, Tensor],
    wanted: State,
    missing: Sequence[str],
    advice: str,
    report: LoadReport,
) -> None:
    """Make ``state`` the model's in place, or raise ClipVipError, one sentence that ends with ``advice``.

    Names and shapes must be those of ``wanted`` (missing: names that are not in ``state`` and may not be), values
    finite numbers of a kind that can be cast. Casts are in the report. What shares memory gets its own.
    """
    extra = [name for name in state if name not in wanted]
    shapes = [
        f"{_short(name)} {list(state[name].shape)} instead of {list(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    kinds = [
        f"{name} {_kind(state[name])}"
        for name in wanted
        if name in state and not _castable(state[name], wanted[name])
    ]
    if missing or extra or shapes or kinds:
        faults = [
            f"{len(found)} {what}: {', '.join(map(_short, found[:3]))}{', ..' if len(found) > 3 else ''}"
            for what, found in (
                ("missing", list(missing)),
                ("left over", _with_nearest(extra, wanted)),
                ("of another shape", shapes),
                ("of a type that no weight has", kinds),
            )
            if found
        ]
        raise ClipVipError(
            f"{source} does not fit the model ({'; '.join(faults)}), nothing was loaded; {advice}"
        )
    seen: set[int] = set()
    for name, value in state.items():
        if value.dtype != wanted[name].dtype:
            report.changed[name] = f"{value.dtype} to {wanted[name].dtype}".replace("torch.", "")
            value = value.to(wanted[name].dtype)
        storage = value.untyped_storage()
        if storage.data_ptr() in seen or not value.is_contiguous() or storage.nbytes() != value.nbytes:
            value = value.clone(memory_format=torch.contiguous_format)
        seen.add(storage.data_ptr())
        state[name] = value
    if bad := not_finite(state):
        raise ClipVipError(
            f"{source} holds values that are not finite in {len(bad)} weights ({', '.join(bad[:3])}), nothing "
            "was loaded; take an earlier checkpoint"
        )


def put(state: dict[str, Tensor], name: str, value: Tensor, source: str) -> None:
    """``state[name] = value``. Raises ClipVipError if another tensor has that name already."""
    if name in state:
        raise ClipVipError(
            f"{source} holds {_short(name)} twice, under two spellings, nothing was loaded; keep one of them"
        )
    state[name] = value


def _castable(value: Tensor, wanted: Tensor) -> bool:
    if value.layout != torch.strided or value.is_meta or value.is_quantized:
        return False
    return value.dtype in FLOATS if wanted.is_floating_point() else value.dtype == wanted.dtype


def _kind(value: Tensor) -> str:
    return f"{value.dtype} {value.layout if value.layout != torch.strided else value.device.type}".replace(
        "torch.", ""
    )


def _short(name: str) -> str:
    """A name in one line, however long it is."""
    name = " ".join(name.split())
    return name if len(name) <= 120 else f"{name[:100]}.. ({len(name)} characters)"


@contextlib.contextmanager
def one_sentence(source: object) -> Iterator[None]:
    """Whatever a malformed source makes the libraries raise becomes one sentence; nothing is loaded then."""
    try:
        yield
    except ClipVipError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or "no reason given"
        raise ClipVipError(
            f"{source} could not be loaded ({type(error).__name__}: {reason:.200}), nothing was loaded; expected "
            "weights and a configuration as they are released, take them again"
        ) from error


def not_finite(state: State) -> list[str]:
    """Names of the weights that hold a NaN or an infinity."""
    # A finite sum has finite terms, and is ten times faster to find than a look at every value.
    suspects = [name for name, value in state.items() if not bool(torch.isfinite(value.sum()))]
    return [name for name in suspects if not bool(torch.isfinite(state[name]).all())]


def _with_nearest(extra: Sequence[str], wanted: State) -> list[str]:
    """The first names that are left over, each with the nearest name that the model knows."""
    shown = []
    for name in extra:
        near = difflib.get_close_matches(name, wanted, 1) if len(shown) < 3 and len(name) <= 120 else []
        shown.append(f"{_short(name)} (nearest: {near[0]})" if near else name)
    return shown
