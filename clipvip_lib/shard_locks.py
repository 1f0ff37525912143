"""Deals shards out to any number of processes through files: each is held by one living process at a time.

What is special: a shard is held by a lock of the operating system (``flock``) on a file in the common folder, not by
a file's mere presence or age. The kernel lets go of it the moment its process dies, by whatever signal, so a
restart, or a rank that still lives, takes a dead rank's shard up at once, and no clock is compared; while a
process lives, even one that is stopped or slow, nobody else can take what it holds. No process group is needed.

The lock must hold between the machines that share the folder: local disks, NFS (version 4, or 3 with its lock
service), GPFS and CephFS do so; Lustre where it is mounted with ``flock``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import make_folder


@dataclass(frozen=True)
class Task:
    """A shard and the file that shows it is done."""

    shard: Path
    out: Path

    @property
    def lock(self) -> Path:
        return self.out.parent / ".locks" / f"{self.out.name}.lock"


@dataclass
class Held:
    """A task that this process holds until ``release``; ``left_by`` names the dead process that had begun it."""

    task: Task
    left_by: str
    _file: int = field(repr=False)

    def release(self) -> None:
        """Let go. The lock's file goes with a task that is done: who opens it later finds the task done."""
        if self._file < 0:
            return
        if self.task.out.exists():
            self.task.lock.unlink(missing_ok=True)
        os.close(self._file)
        self._file = -1


def hold(task: Task) -> Held | None:
    """Take a task, or None if another process holds it or it is done.

    What a dead holder left half written is removed. Raises ClipVipError if the folder's file system has no locks.
    """
    file = _open(task.lock)
    try:
        if not _lock(file, task.lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
            os.close(file)
            return None
        # Only now, under the lock: its holder may have finished between our look and our turn.
        held = Held(task, os.pread(file, 200, 0).decode(errors="replace"), file)
        if task.out.exists():
            held.release()
            return None
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} of {socket.gethostname()}".encode(), 0)
    except OSError as error:
        os.close(file)
        raise ClipVipError(
            f"cannot write {task.lock}: {error.strerror}; free some space or choose another folder"
        ) from error
    except ClipVipError:
        os.close(file)
        raise
    if held.left_by:
        for half in task.out.parent.glob(f"{task.out.name}.*.partial"):
            half.unlink(missing_ok=True)
    return held


def holder(task: Task) -> str:
    """Who holds a task, for people: ``process 12 of node3``."""
    try:
        return task.lock.read_text(errors="replace") or "another process"
    except OSError:
        return "another process"


def deal(
    tasks: Sequence[Task],
    rank: int,
    ranks: int,
    pause: Callable[[], bool],
    waiting: Callable[[list[Task]], None],
) -> Iterator[Held]:
    """Yield tasks to do, each held; ends when all are done, by whomever. The taker releases them.

    A rank begins with its own share, tasks[rank::ranks], then helps the others from the far end, then waits for what
    others hold: if they die, it takes that up. ``pause`` sleeps a little and returns whether to go on; ``waiting``
    is told once what is waited for.
    """
    own = tasks[rank::ranks]
    mine = set(own)
    left = [*own, *(task for task in reversed(tasks) if task not in mine)]
    told = False
    while left:
        others: list[Task] = []
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


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[None]:
    """Hold a folder against other processes for a moment; waits for its turn. Raises ClipVipError as ``hold``."""
    lock = path / ".locks" / "folder.lock"
    file = _open(lock)
    try:
        _lock(file, lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _open(lock: Path) -> int:
    make_folder(lock.parent)
    try:
        return os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ClipVipError(f"cannot write {lock}: {error.strerror}; choose another folder") from error


def _lock(file: int, lock: Path, how: int) -> bool:
    """Whether the lock was to be had."""
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    except OSError as error:
        raise ClipVipError(
            f"cannot lock {lock}: expected a file system with locks, got {error.strerror}; choose an output folder on "
            "another one (a local disk, or NFS with its lock service)"
        ) from error
    return True
