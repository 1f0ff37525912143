"""A stage: a name, a function and its version, a configuration and inputs, and the result that they lead to.

The key of a stage is a hash of everything its result depends on, so nothing is computed twice. Only code is declared
by hand: every stage function carries a version, ``@version(2, "frames are drawn without jitter")``, which must be
raised when its results change. tests/test_smoke_results.py notices a version that was not raised.

A running stage works in ``<home>/stages/<name>-<key>.partial/``. ``result.json`` is its last file; after it a rename
removes ``.partial`` from the folder's name. A kill therefore leaves at most a partial folder, and the next run resumes
from it. ``result.json`` also tells the size and the checksum of every other file. An entry that does not fit what it
tells is damaged: it counts as not done, and is moved to ``<home>/damaged/`` before the stage runs again. Sizes are
compared at each look, checksums by ``clipvip reproduce --verify``.
"""

from __future__ import annotations

import ast
import datetime
import functools
import hashlib
import importlib
import importlib.util
import json
import math
import numbers
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from clipvip_lib import files
from clipvip_lib.errors import ClipVipError
from clipvip_lib.locks import Lock
from clipvip_lib.progress import ProgressCallback, quiet
from clipvip_lib.say import say
from clipvip_lib.workshop.machine import installed, machine, peak_memory_mib, reset_peak_memory

RECORD = "result.json"
PART = r"[A-Za-z0-9_+=,-][A-Za-z0-9_.+=,-]*"

#: Libraries whose versions are part of every key: what steps.py and its callees import, decoders and tokenizers too.
LIBRARIES = (
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "scipy",
    "scikit-learn",
    "pillow",
    "av",
)


def version(number: int, why: str) -> Callable[[Callable], Callable]:
    """Marks a stage function. When the function's results change, raise the number and say why."""

    def mark(function: Callable) -> Callable:
        function.version = number
        return function

    return mark


@functools.cache
def version_of(function: str) -> int:
    """The number in a stage function's ``@version``, read from its source, because importing it may take seconds.

    Raises ClipVipError if there is no such module or function, or no version.
    """
    module, _, name = function.partition(":")
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.origin:
        raise ClipVipError(f"no module {module!r}: expected a Python module; correct the stage's function")
    wanted = 'expected @version(whole number, "why") directly above it'
    try:
        body = ast.parse(Path(found.origin).read_text(encoding="utf-8")).body
    except SyntaxError as error:
        raise ClipVipError(f"cannot read module {module!r} ({error}); correct it") from error
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            for mark in node.decorator_list[:1]:
                if (
                    isinstance(mark, ast.Call)
                    and isinstance(mark.func, ast.Name)
                    and mark.func.id == "version"
                ):
                    number = (
                        mark.args[0].value if mark.args and isinstance(mark.args[0], ast.Constant) else None
                    )
                    if type(number) is int:
                        return number
            raise ClipVipError(f"{function} has no version: {wanted}; put it there")
    raise ClipVipError(
        f"no function {name!r} in {module}: expected a stage function; correct the stage's function"
    )


@functools.cache
def library_versions() -> dict[str, str]:
    """Versions of LIBRARIES, read without importing them."""
    return installed(LIBRARIES)


@dataclass(frozen=True, eq=False)
class Stage:
    """One cached computation.

    name: path-like and unique in a study, ``finetune/msrvtt/proxy-4/seed0``.
    function: ``module:function``; called as ``function(config, inputs, folder, progress) -> dict``.
    config: JSON values only. inputs: name -> upstream stage; the function gets their folders.
    imports: modules that the function imports when it is called, worth an import once for all workers.
    cost: estimated seconds of a core, for the display of the remaining time only.

    Raises ClipVipError for a name that is not a relative path.
    """

    name: str
    function: str
    config: Mapping[str, object] = field(default_factory=dict)
    inputs: Mapping[str, Stage] = field(default_factory=dict)
    imports: tuple[str, ...] = ()
    cost: float = 1.0

    def __post_init__(self) -> None:
        if not re.fullmatch(f"{PART}(/{PART})*", self.name):
            raise ClipVipError(
                f"stage name {self.name!r}: expected letters, digits and -_.+=, in parts joined by '/'; "
                "rename it"
            )

    @property
    def version(self) -> int:
        return version_of(self.function)

    @functools.cached_property
    def key(self) -> str:
        """Hash (64 hex digits) of function, version, configuration, libraries and inputs, but not of the name."""
        facts = {
            "function": self.function,
            "version": self.version,
            "config": plain(self.config, f"the configuration of stage {self.name}"),
            "libraries": library_versions(),
            "inputs": {name: stage.key for name, stage in sorted(self.inputs.items())},
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def modules(self) -> tuple[str, ...]:
        """The modules that a process needs to import for it."""
        return (self.function.partition(":")[0], *self.imports)

    @property
    def folder_name(self) -> str:
        return f"{self.name}-{self.key[:12]}"

    def folder(self, home: Path | None = None) -> Path:
        """Where the finished stage is, whether or not it exists yet."""
        return (home or files.home()) / "stages" / self.folder_name

    def partial_folder(self, home: Path | None = None) -> Path:
        """Where the stage works until it is finished."""
        return (home or files.home()) / "stages" / f"{self.folder_name}.partial"

    def done(self, home: Path | None = None) -> bool:
        """Whether there is an entry, and it is whole as far as sizes tell."""
        return self.folder(home).exists() and not self.damage(home)

    def damage(self, home: Path | None = None, full: bool = False) -> str:
        """What is wrong with the entry in the cache, in a few words; empty if it is whole, or there is none.

        full: compare checksums too, not sizes alone. An entry from before there were any is taken as whole.
        """
        folder = self.folder(home)
        return what_is_wrong(folder, self.key, full) if folder.exists() else ""

    def result(self, home: Path | None = None) -> dict:
        """What the function returned. Raises ClipVipError if the stage has not run."""
        return self._record(home)["result"]

    def facts(self, home: Path | None = None) -> dict:
        """How it ran: seconds, peak_memory_mib, attempts, finished, machine, key, config, inputs."""
        return self._record(home)["stage"]

    def _record(self, home: Path | None) -> dict:
        folder = self.folder(home)
        if not folder.exists():
            raise ClipVipError(f"stage {self.name} has not run: expected {folder}; run `clipvip reproduce`")
        if damage := self.damage(home):
            raise ClipVipError(
                f"the entry {folder} of stage {self.name} is damaged ({damage}); `clipvip reproduce` moves it aside "
                "and makes it again"
            )
        return files.read_json(folder / RECORD)


def closure(stages: Iterable[Stage]) -> list[Stage]:
    """The stages with everything that they need, inputs first, each once.

    Raises ClipVipError if two different stages carry one name.
    """
    found: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        known = found.get(stage.name)
        if known is not None:
            if known.key != stage.key:
                raise ClipVipError(
                    f"two different stages are named {stage.name}: expected one configuration per name; "
                    "rename one"
                )
            return
        for upstream in stage.inputs.values():
            visit(upstream)
        found[stage.name] = stage

    for stage in stages:
        visit(stage)
    return list(found.values())


# ---------------------------------------------------------------------------------------------- whole or damaged


def what_is_wrong(folder: Path, key: str, full: bool = False) -> str:
    """What a stage's folder lacks of what its result.json tells, in a few words; empty if nothing.

    full: by checksums, also of the record itself; else by sizes.
    """
    try:
        record = files.read_json(folder / RECORD)
    except ClipVipError as error:
        return f"{RECORD} is not there" if not (folder / RECORD).exists() else str(error).split(";")[0]
    parts = [record.get(name) for name in ("result", "stage")] if isinstance(record, dict) else []
    if not parts or not all(isinstance(part, dict) for part in parts) or parts[1].get("key") != key:
        return f"{RECORD} is not that of this stage"
    told = record.get("files", {})
    if not isinstance(told, dict) or (full and "sha256" in record and record["sha256"] != _checksum(record)):
        return f"{RECORD} was changed"
    for name, expected in told.items():
        fault = _fault(folder, name, expected, full)
        if fault:
            return fault
    return ""


def _fault(folder: Path, name: str, expected: object, full: bool) -> str:
    try:
        size, digest = expected["bytes"], expected["sha256"]
        found = (folder / name).stat().st_size
        if found != size:
            return f"{name} has {found} bytes, expected {size}"
        with (folder / name).open("rb"):  # whether it can be read is told in any case
            if full and files.sha256(folder / name) != digest:
                return f"{name} has another checksum than it was written with"
    except OSError as error:
        return f"{name}: {error.strerror}"
    except (KeyError, TypeError):
        return f"{RECORD} was changed"
    return ""


def _checksum(record: Mapping) -> str:
    told = {name: value for name, value in record.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _sealed(folder: Path) -> dict[str, dict]:
    """Size and checksum of every file in a folder, after all of it is on the disk. Links lead to others' files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            continue
        files.sync(path)
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            found[name] = {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
    return found


def set_aside_if_damaged(stage: Stage, home: Path, full: bool = False) -> str:
    """Move a damaged entry to ``<home>/damaged/``; returns a sentence about it, empty if there was nothing to move."""
    damage = stage.damage(home, full)
    if not damage:
        return ""
    place = _damaged_place(stage, home)
    with suppress(FileNotFoundError):  # another process was faster
        stage.folder(home).rename(place)
    return f"the entry of stage {stage.name} is damaged ({damage}): moved to {place}, the stage runs again"


def _damaged_place(stage: Stage, home: Path) -> Path:
    name = f"{stage.folder_name.replace('/', '__')}-{time.time_ns()}"
    return files.make_folder(home / "damaged") / name


def run_stage(stage: Stage, home: Path | None = None, progress: ProgressCallback | None = None) -> dict:
    """Run a stage in this process and return its result. A stage found done is not run again.

    A second process that wants the same stage waits for the first and takes its result. An exception in the
    function passes through and leaves the partial folder for the next attempt.

    Raises ClipVipError if an input has not run, the function's version is not the key's, or the result is not JSON.
    """
    home = home or files.home()
    if stage.done(home):
        return stage.result(home)
    for name, upstream in stage.inputs.items():
        if not upstream.done(home):
            raise ClipVipError(
                f"stage {stage.name} needs {upstream.name} (its input {name!r}), which has not run; "
                "run it first"
            )
    function = load_function(stage.function)
    if getattr(function, "version", None) != stage.version:
        raise ClipVipError(f"the version of {stage.function} changed during the run; start it again")
    partial = files.make_folder(stage.partial_folder(home))
    with Lock(partial, wait=True):
        if stage.done(home):
            return stage.result(home)
        if said := set_aside_if_damaged(stage, home):
            say(said, sys.stderr)
        return _run_locked(stage, function, home, files.make_folder(partial), progress or quiet)


def _run_locked(
    stage: Stage, function: Callable, home: Path, partial: Path, progress: ProgressCallback
) -> dict:
    if (partial / RECORD).is_file():  # killed between its last file and the rename
        if not what_is_wrong(partial, stage.key):
            _finish(partial, stage.folder(home))
            return stage.result(home)
        place = files.make_folder(_damaged_place(stage, home))
        for child in partial.iterdir():  # the folder itself is locked, and stays
            child.rename(place / child.name)
    for half in list(
        partial.rglob("*.partial")
    ):  # left by an earlier attempt that was killed; the lock is ours
        if half.is_dir():
            shutil.rmtree(half)
        else:
            half.unlink(missing_ok=True)
    spent_before, attempts = _note_attempt(partial)
    inputs = {name: upstream.folder(home) for name, upstream in stage.inputs.items()}
    reset_peak_memory()
    start = time.monotonic()
    result = function(dict(stage.config), inputs, partial, progress)
    if not isinstance(result, Mapping):
        raise ClipVipError(
            f"stage {stage.name} returned {type(result).__name__}: expected a dict of JSON values; "
            f"correct {stage.function}"
        )
    seconds = time.monotonic() - start
    (partial / "attempts.jsonl").unlink(missing_ok=True)
    sealed = _sealed(partial)
    record = {
        "result": plain(result, f"the result of stage {stage.name}"),
        "files": sealed,
        "stage": {
            "name": stage.name,
            "function": stage.function,
            "config": plain(stage.config),
            "inputs": {name: upstream.folder_name for name, upstream in stage.inputs.items()},
            "key": stage.key,
            "version": stage.version,
            "libraries": library_versions(),
            "seconds": round(seconds + spent_before, 3),
            "last_attempt_seconds": round(seconds, 3),
            "attempts": attempts,
            "peak_memory_mib": round(peak_memory_mib()),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": machine(),
        },
    }
    files.write_json(partial / RECORD, record | {"sha256": _checksum(record)})
    _finish(partial, stage.folder(home))
    return record["result"]


def _finish(partial: Path, folder: Path) -> None:
    partial.rename(folder)
    files.sync(folder.parent)


def discard(stage: Stage, home: Path | None = None) -> bool:
    """Forget a stage's result and partial work; True if there was any. A rename comes first: never half a result."""
    home = home or files.home()
    found = False
    for folder in (stage.folder(home), stage.partial_folder(home)):
        if folder.exists():
            found = True
            bin_ = files.make_folder(home / "discarded") / f"{os.getpid()}-{time.monotonic_ns()}"
            folder.rename(bin_)
            shutil.rmtree(bin_)
    return found


def empty_bin(home: Path) -> None:
    """Remove what ``discard`` left when it was killed. Only for the process that holds the cache."""
    shutil.rmtree(home / "discarded", ignore_errors=True)


def _note_attempt(partial: Path) -> tuple[float, int]:
    """Seconds that earlier attempts took (to their last sign of life), and the number of this one."""
    log = partial / "attempts.jsonl"
    earlier = _attempts(log.read_text(errors="replace")) if log.exists() else []
    spent = 0.0
    if earlier:
        alive = max((f.stat().st_mtime for f in partial.rglob("*") if f.is_file()), default=0.0)
        spent = earlier[-1]["spent_before"] + max(0.0, alive - earlier[-1]["started"])
    with log.open("a") as stream:
        stream.write(json.dumps({"started": time.time(), "spent_before": spent, "pid": os.getpid()}) + "\n")
    return spent, len(earlier) + 1


def _attempts(text: str) -> list[dict]:
    """The attempts noted; a line cut short by a kill or a full disk is ignored."""
    found = []
    for line in text.splitlines():
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            row = json.loads(line)
            found.append({name: float(row[name]) for name in ("started", "spent_before")})
    return found


def load_function(path: str) -> Callable[..., dict]:
    """``module:function`` as a callable. Raises ClipVipError if there is no such function."""
    module, _, name = path.partition(":")
    function = getattr(importlib.import_module(module), name, None)
    if not callable(function):
        raise ClipVipError(
            f"stage function {path!r}: expected module:function, found no such function; correct its name"
        )
    return function


def plain(value: object, where: str = "a value") -> object:
    """The value as JSON types: numpy scalars and arrays, tuples and paths are converted.

    Raises ClipVipError, naming the place, for NaN, infinity, and anything that JSON cannot hold.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Mapping):
        return {str(k): plain(v, f"{where}[{k!r}]") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy arrays and scalars, torch tensors
        return plain(value.tolist(), where)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        if not math.isfinite(value):
            raise ClipVipError(
                f"{where} is {value}: expected a finite number; look at the step that computed it"
            )
        return float(value)
    raise ClipVipError(f"{where} is a {type(value).__name__}: expected a JSON value; convert it first")
