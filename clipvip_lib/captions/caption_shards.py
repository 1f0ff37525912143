"""Auxiliary captions of a whole corpus (paper section 4): many shards, any number of processes and devices.

* A shard's captions appear once and whole, ``00000.tar`` -> ``00000.captions.jsonl``, the sidecar that
  ``sidecars.read_sidecar`` reads and post-pretraining takes. What is there is not made again. Parquet, where it is
  asked for, is a copy that is written again when it is older.
* Shards are dealt out by locks (shard_locks.py), so ranks share work without talking. What a dead one held is taken
  up by the living or by the next start. Two never work at one shard.
* Middle frames are decoded, and brought to the captioner's size, in threads while the model works, across the
  borders of shards: the model never waits for a shard to begin.
* A sample that cannot be read stops the run by its name, or is skipped and written down with its reason as far as
  ``skip_share`` allows. It never gets another sample's caption.

A shard is cut into batches of nearly one size (1000 samples at 64: 16 of 62 or 63, not 15 of 64 and one of 40), so
no device runs a small last batch, and a batch is the same however many processes share the corpus: so are the texts.
"""

from __future__ import annotations

import functools
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from clipvip_lib.ahead import ahead
from clipvip_lib.captions.captioners import ImageCaptioner
from clipvip_lib.data.shards import NeverFetched, index_shard
from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import make_folder
from clipvip_lib.progress import ProgressCallback, quiet
from clipvip_lib.say import counted
from clipvip_lib.streams.middle_frames import middle_frames
from clipvip_lib.streams.parquet import parquet_path, write_captions
from clipvip_lib.streams.shard_jobs import Skipped, taking
from clipvip_lib.streams.shard_locks import Held, ShardTask, hold, hold_each, holder, same_maker
from clipvip_lib.streams.sidecars import read_sidecar, sidecar_path, write_sidecar

MADE_BY = "captions.json"
# Decoded and waiting for the model; more would only take memory (44 MB for 64 images of 480 pixels).
BATCHES_AHEAD = 2
LOOK_EVERY = 30.0  # seconds between looks at what other processes have finished


@dataclass
class Tally:
    """What this process did. ``absent``: samples that the corpus itself says could not be fetched."""

    shards: int = 0
    found: int = 0  # done before this start
    written: int = 0
    captions: int = 0
    empty: int = 0  # captions without a word
    skipped: int = 0
    absent: int = 0
    seconds: float = 0.0


@dataclass
class _Shard:
    """A shard that this process works at."""

    held: Held
    skipped: Skipped
    captions: list[tuple[str, str]] = field(default_factory=list)
    absent: int = 0

    @property
    def total(self) -> int:
        return self.skipped.total


@dataclass
class _Batch:
    shard: _Shard
    keys: list[str]
    frames: list[np.ndarray]
    last: bool


def caption_shards(
    shards: Sequence[str | Path],
    out: str | Path,
    captioner: ImageCaptioner,
    *,
    made_by: dict | None = None,
    batch: int = 64,
    threads: int = 2,
    skip_share: float = 0.0,
    parquet: bool = False,
    rank: int = 0,
    ranks: int = 1,
    progress: ProgressCallback = quiet,
    say: Callable[[str], None] = lambda text: None,
    poll: float = 2.0,
) -> Tally:
    """Caption the middle frame of every clip of ``shards`` into ``out``; returns when all are done, by any process.

    Args:
        shards: tar files as video2dataset writes them (key.mp4 or key.jpg; key.txt is not looked at).
        out: folder of SHARD.captions.jsonl, and SHARD.skipped.jsonl where samples were skipped.
        made_by: what tells these captions from others (captioners.describe); kept in ``out`` and compared.
        batch: images that the model takes at once, at most.
        threads: decoding threads of this process.
        skip_share: share of a shard's samples, rounded up, that may be skipped because they cannot be read.
        parquet: write SHARD.captions.parquet too, also of shards that were captioned without.
        rank, ranks: which share this process begins with; it helps the others when it is through.
        poll: seconds between looks at shards that other processes hold.

    Raises ClipVipError for shards that are missing, damaged or share a name, samples that cannot be read beyond
    ``skip_share``, captions in ``out`` made in another way, or a folder that cannot be written or locked.
    """
    if not 0 <= skip_share < 1 or batch < 1 or threads < 1 or not 0 <= rank < ranks:
        raise ClipVipError(
            "expected a share to skip of at least 0 and below 1, a batch and threads of at least 1, and a rank below "
            f"the number of ranks, got {skip_share}, {batch}, {threads}, {rank} of {ranks}"
        )
    out = make_folder(out)
    tasks = _tasks(shards, out)
    if made_by is not None:
        files = (path for task in tasks for path in (task.out, parquet_path(task.out)))
        same_maker(out / MADE_BY, made_by, "captions", files)
    started = time.monotonic()
    tally = Tally(shards=len(tasks), found=sum(task.out.exists() for task in tasks))
    if tally.found:
        say(f"{tally.found} of {len(tasks)} shards were captioned before")
    meter = _Meter(tasks, tally, progress, f"rank {rank} of {ranks}")
    reader = _Reader(captioner.image_size, batch, threads, skip_share)
    stop = threading.Event()
    with (
        taking(tasks, lambda: not stop.wait(poll), _waiting, say, rank, ranks) as dealt,
        ahead(reader.batches(dealt), BATCHES_AHEAD, stop) as batches,
    ):
        for item in batches:
            _caption(item, captioner)
            if item.last:
                _finish(item.shard, tally, say, parquet)
            meter.show(item)
    if parquet:
        _add_parquet(tasks, rank, ranks, poll, say)
    tally.seconds = time.monotonic() - started
    return tally


def _tasks(shards: Sequence[str | Path], out: Path) -> list[ShardTask]:
    tasks = [ShardTask(Path(shard), sidecar_path(shard, "captions", out)) for shard in shards]
    if not tasks:
        raise ClipVipError("expected at least one shard, got none; check the pattern")
    first: dict[Path, Path] = {}
    for task in tasks:
        if task.out in first:
            raise ClipVipError(
                f"{first[task.out]} and {task.shard} would both write {task.out}: expected shards of different "
                "names; caption them into different folders"
            )
        first[task.out] = task.shard
    if folders := [path for task in tasks if (path := parquet_path(task.out)).is_dir()]:
        raise ClipVipError(
            f"{folders[0]} is a folder: expected a Parquet file, or nothing; move it away, or choose another --out"
        )
    if missing := [task.shard for task in tasks if not task.shard.is_file()]:
        raise ClipVipError(
            f"{len(missing)} of {len(tasks)} shards are missing, first {missing[0]}: expected tar files; check the "
            "pattern or fetch them"
        )
    return tasks


def _waiting(left: list[ShardTask]) -> str:
    return f"waiting for {counted(len(left), 'shard')} held by others, first {left[0].shard.name} ({holder(left[0])})"


def _caption(item: _Batch, captioner: ImageCaptioner) -> None:
    if not item.keys:  # nothing of it could be read
        return
    texts = captioner.caption(item.frames, batch=len(item.frames))
    if len(texts) != len(item.keys):
        raise ClipVipError(f"expected {len(item.keys)} captions of as many images, got {len(texts)}")
    item.shard.captions += zip(item.keys, texts, strict=True)


def _finish(shard: _Shard, tally: Tally, say: Callable[[str], None], parquet: bool) -> None:
    """Write a shard's files, the captions last, because they show that it is done; then the same as Parquet."""
    task = shard.held.task
    shard.skipped.write(task.out.with_name(task.shard.stem + ".skipped.jsonl"), say)
    parquet_path(task.out).unlink(missing_ok=True)  # of captions that were removed, to be made again
    tally.captions += write_sidecar(task.out, "captions", shard.captions)
    if parquet and (held := hold(_parquet(task))):
        _write_parquet(held, lambda: dict(shard.captions))
    shard.held.release()
    tally.written += 1
    tally.empty += sum(not text for _, text in shard.captions)
    tally.skipped += len(shard.skipped.rows)
    tally.absent += shard.absent


def _parquet(task: ShardTask) -> ShardTask:
    """A shard's Parquet is a task with its own lock: once the captions are there, others may write it too."""
    return ShardTask(task.shard, parquet_path(task.out))


def _write_parquet(held: Held, captions: Callable[[], dict[str, str]]) -> None:
    try:
        write_captions(held.task.out, captions())
    finally:  # also when captions cannot be read: a lock would keep this process waiting for itself
        held.release()


def _add_parquet(
    tasks: list[ShardTask], rank: int, ranks: int, poll: float, say: Callable[[str], None]
) -> None:
    """Write the Parquet of shards that were captioned without it, or by a process that died between the two, and of
    those whose captions were changed since."""
    captions = {_parquet(task): task.out for task in tasks}
    for copy, lines in captions.items():
        if copy.out.exists() and copy.out.stat().st_mtime_ns < lines.stat().st_mtime_ns:
            copy.out.unlink(missing_ok=True)
    added, never = 0, threading.Event()
    for held in hold_each(
        list(captions), rank, ranks, lambda: not never.wait(poll), lambda left: say(_waiting(left))
    ):
        _write_parquet(held, functools.partial(read_sidecar, captions[held.task], "captions"))
        added += 1
    if added:
        say(f"added the Parquet of {added} shard{'s' if added > 1 else ''} whose captions were there")


# ------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class _Reader:
    """From shards to batches of middle frames; runs in its own thread, and decodes in ``threads`` others."""

    size: int | None
    batch: int
    threads: int
    skip_share: float

    def batches(self, held: Iterator[Held]) -> Iterator[_Batch]:
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        try:
            for each in held:
                yield from self._of_shard(each, pool)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _of_shard(self, held: Held, pool: ThreadPoolExecutor) -> Iterator[_Batch]:
        path = held.task.shard
        entries = index_shard(path)
        shard = _Shard(held, Skipped(path, len(entries), self.skip_share, "skipped", "shard"))
        batches = math.ceil(shard.total / self.batch)
        ends = [shard.total * (number + 1) // batches for number in range(batches)]
        keys: list[str] = []
        frames: list[np.ndarray] = []
        for position, (key, frame) in enumerate(
            middle_frames(path, entries, pool, 4 * self.threads, self.size), 1
        ):
            if isinstance(frame, NeverFetched):
                shard.absent += 1
            elif isinstance(frame, ClipVipError):
                shard.skipped.add(key, frame)
            else:
                keys.append(key)
                frames.append(frame)
            if position == ends[0]:
                yield _Batch(shard, keys, frames, last=position == shard.total)
                keys, frames = [], []
                del ends[0]


# ------------------------------------------------------------------------------------------------ progress


class _Meter:
    """Samples done and to do by all processes, the latter estimated from the shards seen so far."""

    def __init__(self, tasks: list[ShardTask], tally: Tally, progress: Callable, name: str) -> None:
        self.todo = {task.out.name for task in tasks if not task.out.exists()}
        self.folder = tasks[0].out.parent
        self.tally, self.progress, self.name = tally, progress, name
        self.images = self.by_others = 0
        self.sizes: dict[str, int] = {}  # samples of the shards seen here
        self.done: dict[str, int] = {}  # of them dealt with
        self.looked = self.started = time.monotonic()

    def show(self, item: _Batch) -> None:
        now, name, size = time.monotonic(), item.shard.held.task.out.name, item.shard.total
        self.images += len(item.keys)
        self.sizes[name], self.done[name] = size, size if item.last else len(item.shard.captions)
        if now - self.looked > LOOK_EVERY:
            self.looked = now
            with os.scandir(self.folder) as entries:
                self.by_others = len((self.todo - self.sizes.keys()).intersection(e.name for e in entries))
        mean = sum(self.sizes.values()) / len(self.sizes)
        done = sum(self.done.values()) + round(self.by_others * mean)
        total = sum(self.sizes.values()) + round((len(self.todo) - len(self.sizes)) * mean)
        finished = self.tally.written + self.by_others
        rate = self.images / max(now - self.started, 1e-9)
        note = f"{finished} of {len(self.todo)} shards, {self.name}: {rate:.3g} images/s"
        # Not over before the last shard is: shards may be smaller than those seen so far.
        self.progress(done, max(total, done + (finished < len(self.todo))), note)
