"""Where the golden cases are, and how one is read: vectors that the authors' code made, one folder per case.

``goldens/clip_vip/*`` and ``goldens/ofa/*``, or the same in the folder that CLIPVIP_GOLDENS names; a folder may
hold one family only. A case is case.json, vectors.safetensors and weights.safetensors (of OFA perhaps only a
``weight_seed``); it is built from these alone. Nothing is skipped: what is missing raises AssertionError.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from clipvip_lib.files import read_json

OWN = Path(__file__).parent / "goldens"
FOLDER = Path(os.environ.get("CLIPVIP_GOLDENS") or OWN)
FAMILIES = ("clip_vip", "ofa")


class Row(NamedTuple):
    """One compared quantity: its largest difference, the one allowed, and what differs most."""

    quantity: str
    difference: float
    tolerance: float
    where: str = ""


def case_folders(family: str) -> list[Path]:
    """Sorted folders of a family. Hidden folders, and ofa/bpe with OFA's BPE files, are not cases."""
    folder = FOLDER / family
    found = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return [path for path in found if not path.name.startswith(".") and (family, path.name) != ("ofa", "bpe")]


def faults_of_folder() -> list[str]:
    """What is wrong with the folder as a whole: no family at all, or one without a case."""
    there = [family for family in FAMILIES if (FOLDER / family).is_dir()]
    if not there:
        return [f"{FOLDER} expected the folder clip_vip or ofa with golden cases, has neither"]
    return [
        f"{FOLDER / family} expected golden cases, has none" for family in there if not case_folders(family)
    ]


def shared(name: str) -> Path:
    """A file that all OFA cases share; this project's own where the named folder has none."""
    path = FOLDER / "ofa" / name
    return path if path.is_file() else OWN / "ofa" / name


class Case:
    """A case: ``info`` of its case.json, and its vectors by name."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.info = read_object(folder / "case.json")
        with safe_open(existing(folder / "vectors.safetensors"), "pt") as file:
            self.keys = frozenset(file.keys())

    @functools.cached_property
    def vectors(self) -> dict[str, Tensor]:
        return load_file(self.folder / "vectors.safetensors")

    def __getitem__(self, key: str) -> Tensor:
        assert key in self.keys, f"{self.folder} expected the vector {key}, it has none"
        return self.vectors[key]

    def starting(self, prefix: str) -> list[str]:
        return sorted(key for key in self.keys if key.startswith(prefix))

    def weights(self) -> dict[str, Tensor]:
        return load_file(existing(self.folder / "weights.safetensors"))

    def lacks(self, keys: Iterable[str]) -> list[str]:
        """A fault for each vector that is not there."""
        return [f"the vector {key} is missing" for key in keys if key not in self.keys]

    def lacks_info(self, kinds: dict[str, Any], *path: str) -> list[str]:
        """A fault for each entry of case.json, below ``path``, that is not there or of another kind."""
        entries = functools.reduce(lambda found, name: dict(found or {}).get(name), path, self.info)
        if not isinstance(entries, dict):
            return [f"case.json lacks the object {'.'.join(path)}"]
        wrong = [name for name, kind in kinds.items() if not is_a(entries.get(name), kind)]
        return [f"case.json lacks {'.'.join((*path, name))}, or it is of another kind" for name in wrong]


def is_a(value: Any, kind: Any) -> bool:
    """isinstance, but a truth value is not a number."""
    return isinstance(value, kind) and not isinstance(value, bool)


def existing(path: Path) -> Path:
    assert path.is_file(), f"no file {path}: a golden case has it"
    return path


def read_object(path: Path) -> dict[str, Any]:
    value = read_json(existing(path))
    assert isinstance(value, dict), f"{path} expected a JSON object, got {type(value).__name__}"
    return value


@functools.cache
def read(family: str, name: str) -> Case:
    return Case(FOLDER / family / name)


def readable(family: str, name: str) -> Case | None:
    """The case, or None if it cannot be read; ``read`` then says why."""
    try:
        return read(family, name)
    except Exception:
        return None
