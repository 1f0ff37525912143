"""A stage: a name, a function and its version, a configuration and inputs, and the result that they lead to.

The key of a stage is a hash of everything its result depends on, so nothing is computed twice. Only code is declared
by hand: every stage function carries a version, ``@version(2, "frames are drawn without jitter")``, which must be
raised when its results change. tests/test_smoke_results.py notices a version that was not raised.

A running stage works in ``<home>/stages/<name>-<key>.partial/``. ``result.json`` is its last file; after it a rename
removes ``.partial`` from the folder's name. A kill therefore leaves at most a partial folder, and the next run resumes
from it.
"""

from __future__ import annotations

import ast
import datetime
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import math
import numbers
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from clipvip_lib import files
from clipvip_lib.errors import ClipVipError
from clipvip_lib.locks import Lock
from clipvip_lib.progress import ProgressCallback, quiet
from clipvip_lib.workshop.machine import machine, peak_memory_mib, reset_peak_memory

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
    "decord",
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
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "none"
    return versions


@dataclass(frozen=True, eq=False)
class Stage:
    """One cached computation.

    name: path-like and unique in a study, ``finetune/msrvtt/proxy-4/seed0``.
    function: ``module:function``; called as ``function(config, inputs, folder, progress) -> dict``.
    config: JSON values only. inputs: name -> upstream stage; the function gets their folders.
    imports: modules that the function imports when it is called, worth an import once for all workers.
    cost: estimated seconds on two laptop cores, for the display of the remaining time only.

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
        return (self.folder(home) / "result.json").is_file()

    def result(self, home: Path | None = None) -> dict:
        """What the function returned. Raises ClipVipError if the stage has not run."""
        return self._record(home)["result"]

    def facts(self, home: Path | None = None) -> dict:
        """How it ran: seconds, peak_memory_mib, attempts, finished, machine, key, config, inputs."""
        return self._record(home)["stage"]

    def _record(self, home: Path | None) -> dict:
        if not self.done(home):
            raise ClipVipError(
                f"stage {self.name} has not run: expected {self.folder(home)}; run `clipvip reproduce`"
            )
        return files.read_json(self.folder(home) / "result.json")


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
        return _run_locked(stage, function, home, files.make_folder(partial), progress or quiet)


def _run_locked(
    stage: Stage, function: Callable, home: Path, partial: Path, progress: ProgressCallback
) -> dict:
    if (partial / "result.json").is_file():  # killed between its last file and the rename
        partial.rename(stage.folder(home))
        return stage.result(home)
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
    record = {
        "result": plain(result, f"the result of stage {stage.name}"),
        "stage": {
            "name": stage.name,
            "function": stage.function,
            "config": plain(stage.config),
            "inputs": {name: upstream.folder_name for name, upstream in stage.inputs.items()},
            "key": stage.key,
            "version": stage.version,
            "libraries": library_versions(),
            "seconds": round(time.monotonic() - start + spent_before, 3),
            "last_attempt_seconds": round(time.monotonic() - start, 3),
            "attempts": attempts,
            "peak_memory_mib": round(peak_memory_mib()),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": machine(),
        },
    }
    (partial / "attempts.jsonl").unlink(missing_ok=True)
    files.write_json(partial / "result.json", record)
    partial.rename(stage.folder(home))
    return record["result"]


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
        with suppress(json.JSONDecodeError):
            found.append(json.loads(line))
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
