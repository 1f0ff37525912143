"""Weights and states of a training as files of torch's: written whole or not at all, loaded strictly."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch

from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import atomic_path
from clipvip_lib.models.clip_vip import ClipViP

# What torch raises for a file that is cut, empty, of another kind, or of another model.
UNREADABLE = (
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    EOFError,
    OSError,
    pickle.UnpicklingError,
)


def save_state(state: Mapping[str, object], path: Path) -> None:
    """Write a state dict, or a dict of several and of numbers, whole or not at all."""
    with atomic_path(path) as partial:
        torch.save(state, partial)


def load_state(model: ClipViP, path: Path) -> None:
    """Load weights that ``save_state`` wrote. Raises ClipVipError if they are missing or do not fit the model."""
    try:
        model.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    except UNREADABLE as error:
        raise ClipVipError(
            f"the weights {path} do not fit this model ({_reason(error)}); train that stage again"
        ) from error


def _reason(error: Exception) -> str:
    """What torch says of a file that it cannot load, without its advice to load it unsafely."""
    if isinstance(error, pickle.UnpicklingError):
        return "it is not a file of weights"
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
