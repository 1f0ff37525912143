"""Deals shards out to any number of processes through files: each is held by one living process at a time.

A shard is held by a lock (locks.py) on a file in the common folder. So a restart, or a rank that still lives, takes a
dead rank's shard up at once, and no process group is needed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import read_json, write_json
from clipvip_lib.locks import Lock, Taken


@dataclass(frozen=True)
class ShardTask:
    """A shard and the file that shows it is done."""

    shard: Path
    out: Path

    @property
    def lock(self) -> Path:
        return self.out.parent / ".locks" / f"{self.out.name}.lock"


@dataclass
class Held:
    """A task that this process holds until ``release``; ``left_by`` names the dead process that had begun it."""

    task: ShardTask
    lock: Lock

    @property
    def left_by(self) -> str:
        return self.lock.left_by

    def release(self) -> None:
        """Let go. The lock's file goes with a task that is done: a process that opens it later finds the task done."""
        if self.task.out.exists():
            self.task.lock.unlink(missing_ok=True)
        self.lock.release()


def hold(task: ShardTask) -> Held | None:
    """Take a task, or None if another process holds it or it is done.

    What a dead holder left half written is removed. Raises ClipVipError if the folder's file system has no locks.
    """
    try:
        held = Held(task, Lock(task.lock))
    except Taken:
        return None
    if task.out.exists():  # its holder may have finished between our look and our turn
        held.release()
        return None
    if held.left_by:
        for half in task.out.parent.glob(f"{task.out.name}.*.partial"):
            half.unlink(missing_ok=True)
    return held


def holder(task: ShardTask) -> str:
    """Who holds a task, for people: ``process 12 of node3``."""
    try:
        return task.lock.read_text(errors="replace") or "another process"
    except OSError:
        return "another process"


def hold_each(
    tasks: Sequence[ShardTask],
    rank: int,
    ranks: int,
    pause: Callable[[], bool],
    waiting: Callable[[list[ShardTask]], None],
) -> Iterator[Held]:
    """Yield tasks to do, each held, until all are done, by any process, or ``pause`` says to end. The taker releases
    them.

    A rank begins with its own share, tasks[rank::ranks], then helps the others from the far end, then waits for what
    others hold: if they die, it takes that up. ``pause`` sleeps a little and returns whether to continue; ``waiting``
    is told once what is waited for.
    """
    own = tasks[rank::ranks]
    mine = set(own)
    left = [*own, *(task for task in reversed(tasks) if task not in mine)]
    told = False
    while left:
        others: list[ShardTask] = []
        took = False
        for task in left:
            if task.out.exists():
                continue
            held = hold(task)
            if held is not None:
                took = True
                yield held
            elif not task.out.exists():
                others.append(task)
        left = others
        if left and not took:
            if not told:
                waiting(left)
                told = True
            if not pause():
                return
    # A process may have died when its task was done and its lock not yet gone.
    known = {task.lock: task for task in tasks}
    there = {lock for folder in {lock.parent for lock in known} for lock in folder.glob("*.lock")}
    for lock in there & known.keys():
        if known[lock].out.exists():
            with contextlib.suppress(OSError):
                lock.unlink(missing_ok=True)


def same_maker(record: Path, made_by: dict, what: str, files: Iterable[Path]) -> None:
    """What ``files`` of a folder were made with, kept in ``record``: written by the first process, compared by others.

    Two ways of making them in one folder would be taken for one corpus. Raises ClipVipError if the record says another
    way, or if there are files and no record. ``what``: "captions", for the sentence.
    """
    made_by = json.loads(json.dumps(made_by))
    out = record.parent
    with Lock(out / ".locks" / "folder.lock", wait=True):
        if not record.exists():
            if there := [path.name for path in files if path.exists()]:
                raise ClipVipError(
                    f"{out} holds {there[0]} but no {record.name}: expected {what} of this command, or none; choose "
                    "another folder"
                )
            write_json(record, made_by)
            return
        before = read_json(record)
    if before != made_by:
        before = before if isinstance(before, dict) else {}
        names = [name for name in {**before, **made_by} if before.get(name) != made_by.get(name)]
        told = ", ".join(f"{name} {before.get(name)!r} then, {made_by.get(name)!r} now" for name in names)
        raise ClipVipError(
            f"{out} holds {what} made in another way ({told}); choose another folder, or remove that one to make them "
            "again"
        )
