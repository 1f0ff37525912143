"""``clipvip reproduce``: from stages to nine pages and an index, as one graph of stages.

Everything is checked before anything runs. Every page is itself a stage, so unchanged pages are skipped and a failing
notebook does not stop the others. Pages and results are copied out whole. Each cache takes one run at a time. Killed at
any moment and started again, a run resumes where it was.
"""

from __future__ import annotations

import ast
import contextlib
import datetime
import difflib
import fnmatch
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TextIO

from clipvip_lib import files
from clipvip_lib.errors import ClipVipError, unknown
from clipvip_lib.locks import Lock, Taken
from clipvip_lib.precision import in_words, slower
from clipvip_lib.progress import duration
from clipvip_lib.say import counted, say, shown
from clipvip_lib.study import reference
from clipvip_lib.study.outline import Outline, check_seeds, study_outline
from clipvip_lib.study.publish import publish
from clipvip_lib.workshop.board import Board
from clipvip_lib.workshop.machine import gpus, product_rates
from clipvip_lib.workshop.page_stage import bare
from clipvip_lib.workshop.stages import Stage, closure, discard, empty_bin, plain
from clipvip_lib.workshop.workers import Outcome, check_workers, run_stages

ROOM_BYTES = 2**16


def reproduce(
    profile: str = "mini",
    *,
    only: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    force: Sequence[str] = (),
    out: str | Path | None = None,
    set: Mapping[str, object] | None = None,
    workers: int | None = None,
    verify: bool = False,
    outline: Outline | None = None,
    notebooks: Path | None = None,
    home: Path | None = None,
    stream: TextIO | None = None,
) -> int:
    """Run the study's notebooks with every stage they need and publish the pages.

    only: notebooks by name or number, all without it. force: names, beginnings or glob patterns of stages to
    run again with those that depend on them. out: folder of pages and results; without it ``reports/`` of the
    workplace, at smoke ``reports/smoke/``. set: further notebook parameters. verify: compare what is found done
    with its checksums. outline, notebooks, home: another study, for tests.

    Returns the exit code: 0, or 1 if a stage or a notebook failed.
    Raises ClipVipError, before anything runs, for an unknown profile, notebook, stage or parameter, an output
    folder that cannot be written to, and a second run on the same cache.
    """
    stream = stream or sys.stdout
    outline, notebooks = outline or study_outline(), notebooks or files.shipped("notebooks")
    given, further = split_settings(profile, dict(set or {}))
    # In the order of what each takes: a profile whose precision is not told times this machine, which imports torch.
    seeds = check_seeds(list(seeds))
    names = sorted({outline.find(name) for name in only}, key=list(outline.notebooks).index) or list(
        outline.notebooks
    )
    draft = outline.draft(profile, **given)
    stages = [stage for name in names for stage in outline.stages_for(name, draft, seeds)]
    to_force(stages, [f"page/{name}" for name in names], force)
    check_workers(workers)
    if said := slower(given.get("precision", ""), getattr(draft, "device", "cpu")):
        say(said, stream)
    always = {"profile": profile, "seeds": seeds, **given}
    parameters = check_notebooks(notebooks, names, always, further)
    home = require_room(home or files.home())
    if out is None:  # smoke's numbers mean nothing: its pages never take the place of a study's
        out = files.workplace() / ("reports/smoke" if profile == "smoke" else "reports")
    out = require_room(out)
    sized = outline.profile(profile, **given)
    needed = {name: outline.stages_for(name, sized, seeds) for name in names}
    with only_run(home):
        record = _log(home)
        start = time.monotonic()
        if computes := getattr(sized, "precision", ""):
            words = in_words(
                computes, getattr(sized, "device", "cpu"), functools.partial(product_rates, home)
            )
            say(f"{profile} computes in {words}", stream)
        record(f"reproduce profile={profile} seeds={seeds} notebooks={','.join(names)} out={out}")
        pages = {name: outline.page(name, notebooks, parameters[name], sized, needed[name]) for name in names}
        forget(list(pages.values()), force, home, record)
        try:
            outcomes = run_stages(
                pages.values(),
                home,
                workers=1 if "at_hand" in given else workers,  # a training takes all GPUs
                verify=verify,
                board=lambda total, count: Board(total, count, record=record, stream=stream),
            )
        except BaseException as error:
            record(f"stopped by {type(error).__name__} after {duration(time.monotonic() - start)}")
            raise
        seconds = time.monotonic() - start
        index = publish(outline, notebooks, pages, outcomes, home, out, seconds, reference.FOLDER)
        code = report(pages, outcomes, home, out, seconds, stream)
        record(f"ended with code {code} after {duration(seconds)}")
        say(str(index), stream)
    return code


# --- checks before anything runs --------------------------------------------------------------------------


def split_settings(profile: str, given: dict) -> tuple[dict, dict]:
    """``--set`` as what makes the profile, and further notebook parameters. At ``paper`` it says where data and weights
    are, which notebooks take as one parameter ``at_hand``. The number of GPUs is written out, because a page's
    own process sees only one, and paths are, because it works in another folder."""
    of_profile = {"precision": given.pop("precision")} if "precision" in given else {}
    from clipvip_lib.study.paper_plan import PATHS

    if profile != "paper":
        if name := next((name for name in given if name in (*PATHS, "gpus")), None):
            raise ClipVipError(
                f"--set {name}=...: expected --profile paper, to which it belongs, got {profile}; leave it out or "
                "change the profile"
            )
        return of_profile, given
    for name in PATHS:
        if isinstance(given.get(name), str) and given[name].strip():
            given[name] = str(Path(given[name]).expanduser().absolute())
    return of_profile | {"at_hand": {"gpus": max(1, len(gpus()))} | given}, {}


def require_room(folder: str | Path) -> Path:
    """Make a folder. Raises ClipVipError if no file can be written there: now, not after all is computed."""
    folder = files.make_folder(folder)
    probe = folder / f".room.{os.getpid()}.partial"
    try:
        probe.write_bytes(bytes(ROOM_BYTES))
    except OSError as error:
        raise ClipVipError(
            f"cannot write to {folder}: expected a folder with room, got {error.strerror}; free some space or "
            "choose another one"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    return folder


def check_notebooks(folder: Path, names: Iterable[str], always: dict, extra: dict) -> dict[str, dict]:
    """The parameters of each notebook: ``always``, and of ``extra`` those that it declares.

    Raises ClipVipError for a missing notebook, one without a cell tagged ``parameters`` (papermill would run
    it with its defaults and say nothing), and a parameter that no notebook declares.
    """
    plain(extra, "--set")
    declared = {name: declared_parameters(folder / f"{name}.ipynb") for name in names}
    for name, known in declared.items():
        for parameter in always:
            if parameter not in known:
                raise ClipVipError(
                    f"notebook {name} does not declare {parameter!r}: expected a line '{parameter} = ...' in "
                    "its cell tagged 'parameters'; add it"
                )
    for parameter in extra:
        if parameter in always:
            raise ClipVipError(
                f"--set {parameter}=...: expected another parameter; use --{parameter} instead"
            )
        if not any(parameter in known for known in declared.values()):
            raise unknown("notebook parameter", parameter, sorted(frozenset().union(*declared.values())))
    return {name: always | {k: v for k, v in extra.items() if k in declared[name]} for name in declared}


def declared_parameters(path: Path) -> set[str]:
    """The names to which a notebook's ``parameters`` cell assigns; papermill tells them too, but is slow to import."""
    try:
        text = path.read_text(encoding="utf-8")
        whole = json.loads(text)
        cells, _ = whole["cells"], whole["metadata"]["kernelspec"]["name"]  # papermill asks for the kernel
        if whole["nbformat"] < 4:
            raise ValueError(whole["nbformat"])
        tagged = [cell for cell in cells if "parameters" in cell.get("metadata", {}).get("tags", [])]
        body = ast.parse("".join(tagged[0]["source"])).body if tagged else []
        bare(text)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SyntaxError) as error:
        odd = (
            "its parameters are no Python" if isinstance(error, SyntaxError) else "it is not JSON with cells"
        )
        why = getattr(error, "strerror", None) or odd
        raise ClipVipError(f"no notebook {path} ({why}): expected Jupyter's format; restore it") from error
    if not tagged:
        raise ClipVipError(
            f"notebook {path.stem} has no cell tagged 'parameters': expected one, as its second cell; tag it"
        )
    assigned = [
        node.targets if isinstance(node, ast.Assign) else [node.target]
        for node in body
        if isinstance(node, ast.Assign | ast.AnnAssign)
    ]
    return {target.id for targets in assigned for target in targets if isinstance(target, ast.Name)}


def only_run(home: Path) -> Lock:
    """Hold the cache for one run. Raises ClipVipError naming the run that has it."""
    try:
        return Lock(home / "lock")
    except Taken as taken:
        raise ClipVipError(
            f"another run ({taken.holder or 'unknown'}) is working in {home}: expected one run per cache; wait for it "
            "or stop it, or set CLIPVIP_HOME to another folder"
        ) from None


def to_force(stages: list[Stage], others: list[str], patterns: Iterable[str]) -> set[str]:
    """The names of stages, of those that they need and of ``others`` that fit ``--force``.

    Raises ClipVipError for a pattern that fits none.
    """
    names = [stage.name for stage in closure(stages)] + others
    forced: set[str] = set()
    for pattern in patterns:
        fits = {name for name in names if _fits(name, pattern)}
        if not fits:
            raise _unknown_stage(pattern, names)
        forced |= fits
    return forced


def forget(pages: list[Stage], patterns: Iterable[str], home: Path, record) -> None:
    """Discard the stages that fit ``--force``, and those that depend on them.

    Raises ClipVipError for a pattern that fits no stage.
    """
    empty_bin(home)
    stages = closure(pages)
    forced = to_force(stages, [], patterns)
    for stage in stages:  # inputs come before dependents
        if stage.name in forced or any(up.name in forced for up in stage.inputs.values()):
            forced.add(stage.name)
            if discard(stage, home):
                record(f"{stage.name} discarded (--force)")


def _unknown_stage(pattern: str, names: list[str]) -> ClipVipError:
    """The error for an unknown stage. There are hundreds of stages, so it lists beginnings and the nearest name, or the
    nearest beginning of one."""
    parents = (str(parent) for name in names for parent in PurePosixPath(name).parents)
    near = difflib.get_close_matches(pattern, list(dict.fromkeys([*names, *parents])), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    kinds = ", ".join(dict.fromkeys(name.split("/")[0] for name in names))
    return ClipVipError(
        f"unknown stage {pattern!r}: expected a stage of these notebooks, a pattern, or a beginning such as "
        f"{kinds}{hint}"
    )


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or name.startswith(pattern.rstrip("/") + "/") or fnmatch.fnmatchcase(name, pattern)


# --- what a run says --------------------------------------------------------------------------------------


def _log(home: Path) -> Callable[[str], None]:
    """The append-only log of all runs on a cache: a function that writes a line with the time."""
    path = files.make_folder(home / "logs") / "reproduce.log"

    def record(text: str) -> None:
        # A full disk stops stages with a sentence; the log must not turn that into a traceback.
        with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as stream:
            stream.write(shown(f"{_now()} {text}") + "\n")

    return record


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def report(
    pages: dict[str, Stage],
    outcomes: dict[str, Outcome],
    home: Path,
    out: Path,
    seconds: float,
    stream: TextIO,
) -> int:
    """Print what failed and the table of pages; returns the exit code."""
    failed = [outcome for outcome in outcomes.values() if outcome.status == "failed"]
    rows = [("notebook", "verdict", "seconds", "page")]
    for name, page in pages.items():
        outcome = outcomes[page.name]
        if outcome.status in ("cached", "done"):
            took = f"{page.facts(home)['last_attempt_seconds']:.1f}" + (
                " (cached)" if outcome.status == "cached" else ""
            )
            rows.append((name, page.result(home)["headline"], took, str(out / f"{name}.html")))
        else:
            rows.append((name, f"{outcome.status.upper()}: {outcome.error}", f"{outcome.seconds:.1f}", "-"))
    say("", stream)
    for outcome in failed:
        say(f"{outcome.stage.name} failed: {outcome.error} (more in {outcome.log})", stream)
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    widths[1] = min(widths[1], 90)
    for row in rows:
        cut = row[1] if len(row[1]) <= widths[1] else row[1][: widths[1] - 1] + "…"
        cells = (row[0].ljust(widths[0]), cut.ljust(widths[1]), row[2].ljust(widths[2]), row[3])
        say("  ".join(cells).rstrip(), stream)
    if any(page.config["parameters"].get("profile") == "smoke" for page in pages.values()):
        say(
            "the smoke profile only tests the machinery: its numbers mean nothing, and it judges nothing",
            stream,
        )
    counts = {status: sum(o.status == status for o in outcomes.values()) for status in ("done", "cached")}
    told = f"{counted(counts['done'], 'stage')} run, {counts['cached']} found done, {len(failed)} failed"
    say(f"{told}, in {duration(seconds)}", stream)
    return 1 if failed else 0
