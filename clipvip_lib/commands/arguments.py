"""Parsers for command options: lists, folders, assignments. A wrong value gives one sentence."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib.metadata
import json
import math
import re
import sys
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from clipvip_lib.files import kind_of
from clipvip_lib.heap import keep_freed_memory
from clipvip_lib.precision import INT8, PRECISIONS, slower
from clipvip_lib.say import say
from clipvip_lib.stop_signals import signals_held

MOST_NUMBERS = 10_000  # that a range may mean


def numbers(text: str) -> list[int]:
    """``0,1,2`` or ``0-2`` as numbers."""
    found: list[int] = []
    try:
        for part in names(text):
            first, dash, last = part.partition("-")
            ends = int(first), int(last if dash else first)
            if not 0 <= ends[1] - ends[0] < MOST_NUMBERS:
                raise ValueError
            found += range(ends[0], ends[1] + 1)
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"expected whole numbers like 0,1,2 or 0-2, got {text!r}") from None
    return found


def names(text: str) -> list[str]:
    """``04,05`` as names; at least one, because a variable that is empty by mistake must not mean everything."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise argparse.ArgumentTypeError(f"expected names like 04,05, got {text!r}")
    return found


def path(text: str) -> str:
    """The name of a file or folder, which is not empty: a variable may be empty by mistake."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"expected the name of a file or folder, got {text!r}")
    return text


def new_file(text: str) -> str:
    """A file to write. A folder is refused before the work, not after it."""
    if not text.strip() or kind_of(text) == "folder":
        got = f"the folder {text}" if text.strip() else repr(text)
        raise argparse.ArgumentTypeError(f"expected a file to write, got {got}; name a file in a folder")
    return text


def at_least(least: int):
    """The parser of a whole number of at least ``least``."""

    def whole(text: str) -> int:
        if not re.fullmatch(r"\d{1,18}", text, re.ASCII) or int(text) < least:
            long = " and at most 18 digits" if text.isdigit() and len(text) > 18 else ""
            raise argparse.ArgumentTypeError(
                f"expected a whole number of at least {least}{long}, got {text!r}"
            )
        return int(text)

    return whole


def share(text: str) -> float:
    """A number from 0 to below 1."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 <= found < 1:  # NaN is neither
        raise argparse.ArgumentTypeError(f"expected a share to skip of at least 0 and below 1, got {text}")
    return found


def assignment(text: str) -> tuple[str, object]:
    """``name=value``; the value is read as JSON if possible (numbers, lists, true), otherwise as text."""
    name, equals, value = text.partition("=")
    if not equals or not all(part.isidentifier() for part in name.split(".")):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, such as data_root=/data, got {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def seconds(text: str) -> Fraction:
    """A length of time of a millisecond or more, as somebody types it, exact."""
    try:
        value = Decimal(text)
        if not 0 < value < 10**6 or value * 1000 != int(value * 1000):
            raise InvalidOperation
    except InvalidOperation:
        raise argparse.ArgumentTypeError(f"expected seconds, such as 10 or 2.5, got {text!r}") from None
    return Fraction(value)


def device(text: str) -> str:
    """A device's name. Which GPUs are there, torch knows; that there is none without a driver, anyone can see."""
    known = re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", text, re.ASCII)
    if known and (not text.startswith("cuda") or _has_driver()):
        return text
    why = " (no driver of an NVIDIA GPU was found)" if known else ""
    raise argparse.ArgumentTypeError(f"device {text!r} cannot be used{why}; expected cpu, cuda or cuda:1")


def _has_driver() -> bool:
    """Whether torch could find a GPU by its name "cuda". A torch for AMD's GPUs has the same name, another driver."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        if "rocm" in importlib.metadata.version("torch"):
            return True
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def load_torch(aloud: bool = True) -> None:
    """Between the checks and the model: say that it is loaded, and import torch, which takes seconds."""
    keep_freed_memory()
    if aloud:
        say("clipvip: loading the model", sys.stderr)
    with signals_held():
        import torch  # noqa: F401


def precision(parser: argparse.ArgumentParser, int8: bool = False) -> None:
    """Adds ``--precision`` to a command that runs a model; int8: the model is a video encoder."""
    parser.add_argument(
        "--precision",
        choices=(*PRECISIONS, INT8) if int8 else PRECISIONS,
        default="float32",
        help="what the model computes in: float32 (default), bfloat16, or auto, the faster one on the device"
        + int8 * "; int8 for videos on a CPU with VNNI or AMX, up to 1.5 times as fast as bfloat16",
    )


def say_slower(precision: str, device) -> None:
    """Tell a user who asks for bfloat16 where it is slow."""
    if said := slower(precision, device):
        say(f"clipvip: {said}", sys.stderr)
