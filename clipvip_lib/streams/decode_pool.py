"""Samples of shards decoded, here or side by side in worker processes.

A worker is a fresh interpreter, not a fork (torch does not survive one), with one thread. It gets the
address of a sample, reads and decodes it, and leaves its frames in a slot of memory that it shares with its
parent; only words go through the pipe. Which worker decodes what has no influence on the order or on any pixel.

A worker that dies (a decoder's crash, too little memory) is an error that names the sample it was at; it is
noticed by the end of the pipe. A worker whose parent is gone ends itself for the same reason.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

import numpy as np

from clipvip_lib.children import Child
from clipvip_lib.data import hangs
from clipvip_lib.data.frame_folders import is_picture
from clipvip_lib.data.shards import Entry, NeverFetched, read_sample
from clipvip_lib.data.video import clip_indices, read
from clipvip_lib.errors import ClipVipError

STUCK_SECONDS = 2 * hangs.STUCK_SECONDS  # a worker whose decoder hangs ends by itself before
# Not -m: what the worker sends would be of classes of __main__, which its parent does not know.
MAIN = "from clipvip_lib.streams.decode_pool import work; work()"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass(frozen=True)
class View:
    """How samples are to be seen: frames of a clip, their side in pixels, resized with or without antialiasing,
    whether the ends of the clip are jittered, and whether damaged videos are accepted (``video.DAMAGED``)."""

    frames: int
    size: int
    antialias: bool
    jitter: bool
    damaged: str = "refuse"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of a decoded sample: the frames, and behind them the middle one."""
        return (self.frames + 1, self.size, self.size, 3)


@dataclass(frozen=True)
class Task:
    """A sample to decode. ``text``: that beside the shard, or None; ``seed``: the jitter's."""

    shard: str
    entry: Entry
    text: str | None
    seed: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.entry.key} of {self.shard}"


@dataclass(frozen=True)
class Reply:
    """What came of a task. status: "clip" (text and frames are there), "absent" (video2dataset says that it could not
    fetch the clip) or "bad"; reason: of the last two, or the damage of a clip that was accepted."""

    status: str
    text: str = ""
    reason: str = ""


def decode(task: Task, view: View, out: np.ndarray) -> Reply:
    """Read one sample and put its frames into ``out``: uint8 [frames + 1, size, size, 3], the middle one last."""
    try:
        sample = read_sample(task.shard, task.entry, task.text)
        out[:], damage = _frames(sample.media, task, view)
    except NeverFetched as error:
        return Reply("absent", reason=str(error))
    except (ClipVipError, OSError) as error:
        return Reply("bad", reason=" ".join(str(error).split()))
    return Reply("clip", sample.text, damage)


def _frames(media: bytes, task: Task, view: View) -> tuple[np.ndarray, str]:
    """(frames, what the decoder said of damage)."""
    # Here: torch takes seconds to import, which the parent of workers need not wait for.
    from clipvip_lib.data import transform
    from clipvip_lib.data.frames import still

    if is_picture(media):
        return transform.resize(still(media, task.name).copy(), view.size, view.antialias)[None], ""

    def wanted(total: int) -> list[int]:
        # Its own generator each time, because a doubtful file is asked twice.
        jitter = np.random.default_rng(task.seed) if view.jitter else None
        return clip_indices(total, view.frames, jitter)

    found = read(media, wanted, task.name, view.damaged)
    return transform.resize(found.frames, view.size, view.antialias), found.damage


# ---------------------------------------------------------------------------------------- the parent's side


class DecodePool:
    """``workers`` processes and ``slots`` tasks under way at most; 0 workers decode here, in ``submit``."""

    def __init__(self, view: View, workers: int, slots: int) -> None:
        self.view, self.slots = view, slots
        self._free = list(range(slots))
        self._tasks: dict[int, tuple[Task, int, _Decoder | None]] = {}  # number -> task, slot, who has it
        self._done: dict[int, Reply] = {}
        self._frames_of: dict[int, np.ndarray] = {}
        self._memory, self._workers = None, []
        if workers:
            self._memory, handle = _shared_memory(slots * int(np.prod(view.shape)))
            try:
                self._workers = [_Decoder(number, handle, view, slots) for number in range(workers)]
            finally:
                os.close(handle)
        self._slots = _slots(self._memory, view, slots) if workers else None

    def submit(self, number: int, task: Task) -> None:
        """Begin a task. At most ``slots`` may be under way."""
        if self._slots is None:
            out = np.empty(self.view.shape, np.uint8)
            self._tasks[number] = (task, -1, None)
            self._done[number], self._frames_of[number] = decode(task, self.view, out), out
            return
        slot = self._free.pop()
        worker = min(self._workers, key=lambda each: len(each.numbers))
        worker.numbers.append(number)
        self._tasks[number] = (task, slot, worker)
        worker.send((number, slot, task))

    def take(self, number: int) -> tuple[Reply, np.ndarray | None]:
        """The reply to a task, and a copy of its frames if it is a clip. Waits for it.

        Raises ClipVipError if the worker that has it died or hangs, RuntimeError with its traceback if it failed
        for a reason that is not the sample's fault.
        """
        while number not in self._done:
            self._hear(self._tasks[number][2])
        task_slot = self._tasks.pop(number)[1]
        reply = self._done.pop(number)
        if self._slots is None:
            frames = self._frames_of.pop(number)
        else:
            frames = self._slots[task_slot].copy() if reply.status == "clip" else None
            self._free.append(task_slot)
        return reply, frames if reply.status == "clip" else None

    def _hear(self, awaited: _Decoder) -> None:
        ready = wait([worker.connection for worker in self._workers], timeout=STUCK_SECONDS)
        if not ready:
            raise ClipVipError(
                f"a worker has been {self._at(awaited)} for {STUCK_SECONDS:.0f} seconds: expected a clip in seconds, "
                "the decoder hangs; take the sample out of the shard"
            )
        for worker in [each for each in self._workers if each.connection in ready]:
            try:
                number, reply, failure = worker.connection.recv()
            except (EOFError, OSError):
                raise ClipVipError(worker.epitaph(self._at(worker))) from None
            if failure:
                raise RuntimeError(f"decoding {self._tasks[number][0].name} failed:\n{failure}")
            worker.numbers.remove(number)
            self._done[number] = reply

    def _at(self, worker: _Decoder) -> str:
        """What a worker is at: it takes its tasks in order."""
        return f"at {self._tasks[worker.numbers[0]][0].name}" if worker.numbers else "waiting for work"

    def close(self) -> None:
        """End the workers; what is under way is lost."""
        for worker in self._workers:
            worker.kill()
        self._workers, self._slots = [], None


class _Decoder(Child):
    """A decoding process as its parent sees it."""

    def __init__(self, number: int, memory: int, view: View, slots: int) -> None:
        environment = dict(os.environ, PYTHONFAULTHANDLER="1", **dict.fromkeys(THREADS, "1"))
        super().__init__(["-c", MAIN], environment=environment, handles=[memory])
        self.number, self.numbers = number, []  # of the tasks that it has, in order
        self.send((view, slots))

    def epitaph(self, busy: str) -> str:
        """A sentence on how the worker died."""
        try:
            code = self.process.wait(3.0)
        except subprocess.TimeoutExpired:
            self.kill()
            code = 0
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        advice = "the decoder may have crashed on it: take the sample out of the shard if it happens again"
        if code in (-signal.SIGKILL, -signal.SIGBUS):
            advice = "most often for lack of memory: use fewer workers or a smaller prefetch"
        elif code >= 0:
            advice = "look at what it wrote before"
        return (
            f"decoding worker {self.number} (process {self.process.pid}) {how} while it was {busy}, {advice}"
        )


def _shared_memory(size: int) -> tuple[mmap.mmap, int]:
    """Memory of ``size`` bytes and a handle by which a child process can map it too.

    Not /dev/shm, which containers make too small: anonymous on Linux, elsewhere a file without a name.
    """
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("clipvip-frames")
    else:
        with tempfile.TemporaryFile() as file:
            handle = os.dup(file.fileno())
    os.ftruncate(handle, size)
    return mmap.mmap(handle, size), handle


def _slots(memory: mmap.mmap, view: View, slots: int) -> np.ndarray:
    return np.frombuffer(memory, np.uint8).reshape(slots, *view.shape)


# ---------------------------------------------------------------------------------------- the worker's side


def work() -> None:
    """Decode what comes through the pipe until it ends."""
    import torch

    torch.set_num_threads(1)
    connection, handle = Connection(int(sys.argv[1])), int(sys.argv[2])
    with contextlib.suppress(EOFError, OSError):  # the parent is gone, or wants no more
        view, slots = connection.recv()
        memory = mmap.mmap(handle, slots * int(np.prod(view.shape)))
        views = _slots(memory, view, slots)
        while True:
            number, slot, task = connection.recv()
            reply, failure = None, ""
            try:
                reply = decode(task, view, views[slot])
            except Exception:
                failure = traceback.format_exc()
            connection.send((number, reply, failure))
