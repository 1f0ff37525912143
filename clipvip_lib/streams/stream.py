"""Clips from tar shards, decoded and shuffled, for training on corpora that no memory holds.

Every sample comes once per epoch over all ranks. The order depends on the seed and the ranks, never on the number of
workers. A position is a few kilobytes of JSON and is found again exactly, in the middle of the shuffle buffer too. A
sample that cannot be read is counted, named in a log and left out, up to a stated share; then the run stops. Unlike
in the authors' code, no sample is ever replaced by another one.

shard_order.py is the order, data/shards.py the addresses inside a tar, decode_pool.py the decoding, skips.py the
books.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipvip_lib.data.clips import MOST_ASKED
from clipvip_lib.data.video import DAMAGED
from clipvip_lib.errors import ClipVipError, unknown
from clipvip_lib.streams.decode_pool import DecodePool, Reply, Task, View
from clipvip_lib.streams.shard_order import Drawn, Order
from clipvip_lib.streams.shard_set import ShardSet
from clipvip_lib.streams.skips import Books

__all__ = ["ClipStream", "StreamedClip"]

PREFETCH = 16  # clips under way for each worker: 32 MB at 12 frames of 224 pixels


@dataclass(frozen=True)
class StreamedClip:
    """video: uint8 [frames, size, size, 3]; frame: the middle one, uint8 [1, size, size, 3]; both RGB.

    caption: None unless captions are read; empty where the captioner found no word.
    """

    key: str
    video: np.ndarray
    frame: np.ndarray
    text: str
    caption: str | None


class ClipStream:
    """Endless epochs of `StreamedClip`: an iterator, to be closed (or used in ``with``) when it has workers.

    Args:
        shards: tar files, as `data.shards.expand` gives them.
        frames: frames of a clip, uniform; with ``jitter`` both ends move inwards by up to one interval.
        size: side of a frame in pixels; ``antialias`` as in `transform.resize`.
        rank, ranks: this process and how many there are; each sees its own part of every epoch.
        workers: decoding processes; 0 decodes in this one. ``prefetch``: clips under way, by default 16 per worker.
        shuffle: samples in the shuffle buffer (addresses, not videos, so a large one costs little); below 2 the
            samples of a shard keep their order. Shards are always shuffled, by (seed, epoch).
        skip_share: share of an epoch's samples, on this rank, that may be skipped because they cannot be read;
            judged from the 100th sample on and at the epoch's end. 0: the first one stops the run.
        skip_log: file that gets a JSON line {"shard", "key", "reason", "rank"} for each; ranks may share it.
        damaged: "refuse" damaged videos (then they are skipped, as far as that is allowed), or "accept" what their
            decoder makes up; those are counted and get a line {"shard", "key", "damage", "rank"} in the log.
        captions, texts: take captions, or texts instead of key.txt, from the sidecars beside the shards or in
            ``captions_dir``, ``texts_dir`` (sidecars.py).
        epoch_samples: clips that each rank gets in an epoch. None: its share of the corpus, exactly once; shares
            differ as shards do, and by what is skipped, so ranks enter the next epoch at different steps (and
            none waits, because epochs are endless). A number: all ranks enter the next epoch after that many clips;
            what is left of a share waits for a later epoch; if it ends early the corpus is dealt out again.

    Samples that video2dataset wrote without media because it could not fetch them are counted apart ("absent").

    Raises ClipVipError for shards that are missing, doubled or none, sidecars that are missing, or a bad number;
    while iterating, for too many skipped samples, a rank without any, and a worker that died.
    """

    def __init__(
        self,
        shards: Sequence[str | Path],
        *,
        frames: int,
        size: int,
        antialias: bool = False,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        workers: int = 0,
        shuffle: int = 1000,
        skip_share: float = 0.0,
        skip_log: str | Path | None = None,
        damaged: str = "refuse",
        captions: bool = False,
        jitter: bool = True,
        captions_dir: str | Path | None = None,
        texts: bool = False,
        texts_dir: str | Path | None = None,
        epoch_samples: int | None = None,
        prefetch: int | None = None,
    ) -> None:
        _check(frames=(frames, 1), size=(size, 1), ranks=(ranks, 1), workers=(workers, 0))
        _check(shuffle=(shuffle, 0), epoch_samples=(epoch_samples, 1), prefetch=(prefetch, 1))
        if workers > MOST_ASKED:
            raise ClipVipError(f"expected at most {MOST_ASKED} workers, got {workers}; choose one per core")
        if not 0 <= rank < ranks:
            raise ClipVipError(f"expected a rank from 0 to {ranks - 1}, got {rank}; ranks is their number")
        sidecars = {}
        if captions or captions_dir is not None:
            sidecars["captions"] = captions_dir
        if texts or texts_dir is not None:
            sidecars["texts"] = texts_dir
        self.shards = ShardSet(shards, sidecars)
        self.rank, self.ranks, self.seed, self.epoch_samples = rank, ranks, seed, epoch_samples
        self._books = Books(rank, skip_share, skip_log)
        if damaged not in DAMAGED:
            raise unknown("way with damaged videos", damaged, DAMAGED)
        self._view = View(frames, size, antialias, jitter, damaged)
        self._workers, self._window = workers, (prefetch or PREFETCH * workers) if workers else 1
        rounds = epoch_samples is not None
        self._order = Order(len(self.shards), self.shards.open, seed, rank, ranks, shuffle, rounds)
        self._redo: deque[Drawn] = deque()  # drawn before, but delivered to nobody
        self._under_way: deque[tuple[int, Drawn]] = deque()
        self._submitted = 0
        self._pool: DecodePool | None = None

    # ------------------------------------------------------------------------------------------ iterating

    def __iter__(self) -> ClipStream:
        return self

    def __next__(self) -> StreamedClip:
        if self._pool is None:
            self._pool = DecodePool(self._view, self._workers, self._window)
            weakref.finalize(self, self._pool.close)
        while True:
            while len(self._under_way) < self._window:
                self._submit(self._redo.popleft() if self._redo else next(self._order))
            number, drawn = self._under_way[0]
            result, frames = self._pool.take(number)
            self._under_way.popleft()
            clip = self._count(drawn, result, frames)
            if clip is not None:
                return clip

    def _submit(self, drawn: Drawn) -> None:
        entry, text, _ = drawn.item
        seed = (self.seed, drawn.epoch, drawn.round, drawn.shard, drawn.sample)
        task = Task(str(self.shards.paths[drawn.shard]), entry, text, seed)
        self._pool.submit(self._submitted, task)
        self._under_way.append((self._submitted, drawn))
        self._submitted += 1

    def _count(self, drawn: Drawn, reply: Reply, frames: np.ndarray | None) -> StreamedClip | None:
        """Keep the books on one sample; returns its clip, or None if there is none."""
        books, (entry, _, caption), clip = self._books, drawn.item, None
        if reply.status == "bad":
            books.skip(drawn.epoch, self.shards.paths[drawn.shard], entry.key, reply.reason)
        elif reply.status == "absent":
            books.count("absent")
        else:
            books.count("samples")
            if reply.reason:
                books.accept(self.shards.paths[drawn.shard], entry.key, reply.reason)
            clip = StreamedClip(entry.key, frames[:-1], frames[-1:], reply.text, caption)
        if drawn.last:
            books.end_round(drawn.epoch)
        if self.epoch_samples is None:
            if drawn.last:
                books.end_epoch(drawn.epoch)
        elif books.epoch["samples"] >= self.epoch_samples:
            books.end_epoch(drawn.epoch)
            self._forget()
            self._order.start_epoch(drawn.epoch + 1)
        return clip

    def _forget(self) -> None:
        """Drop what was drawn but not delivered; its slots become free."""
        while self._under_way:
            self._pool.take(self._under_way.popleft()[0])
        self._redo.clear()
        self._books.round = 0

    # ------------------------------------------------------------------------------------------ positions

    @property
    def counts(self) -> dict[str, int]:
        """Of this rank since the beginning: "samples" delivered, "damaged" ones of them, "skipped", "absent", whole
        "epochs"."""
        return dict(self._books.total)

    def state_dict(self) -> dict:
        """The position behind the last clip that was delivered, as JSON: 12 kB with a buffer of 1000."""
        pending = [drawn for _, drawn in self._under_way] + list(self._redo)
        return {
            **self._same(),
            "epoch_samples": self.epoch_samples,
            "rank": self.rank,
            "ranks": self.ranks,
            "order": self._order.state(),
            "pending": [[d.epoch, d.round, d.shard, d.sample, d.last] for d in pending],
            "books": self._books.state(),
        }

    def _same(self) -> dict:
        """What must be the same when a position is resumed."""
        return {"shards": self.shards.identity(), "seed": self.seed, "shuffle": self._order.shuffle}

    def load_state_dict(self, state: dict | Sequence[dict]) -> None:
        """Go to a position: this rank's own, or a list of the positions of all ranks.

        On as many ranks as before, every rank continues exactly. On another number (which needs the list), what no
        rank had got of the current epoch is dealt out to the new ranks: no sample is lost and none comes twice, in
        another order, and then the next epoch begins as usual. Counts of the old ranks are summed up on rank 0. With
        ``epoch_samples`` the epoch continues where the old ranks were, on average.

        Raises ClipVipError for other shards (by file name), another seed or shuffle, or a list that lacks ranks.
        """
        states = [state] if isinstance(state, dict) else sorted(state, key=lambda each: each["rank"])
        for each in states:
            for what, value in self._same().items():
                if each[what] != value:
                    raise ClipVipError(
                        f"the position was taken with {what} {each[what]}, this stream has {value}: expected the same; "
                        "start the stream as it was started before"
                    )
        have = [each["rank"] for each in states]
        own = next(
            (each for each in states if (each["rank"], each["ranks"]) == (self.rank, self.ranks)), None
        )
        if own is None and (not states or have != list(range(states[0]["ranks"]))):
            raise ClipVipError(
                f"expected the position of rank {self.rank} of {self.ranks}, or those of all ranks, got those of "
                f"{have}; pass the list of all ranks' state_dict()"
            )
        self._forget()
        self._carry(states) if own is None else self._load(own)

    def _load(self, own: dict) -> None:
        if own["epoch_samples"] != self.epoch_samples:
            raise ClipVipError(
                f"the position was taken with epoch_samples {own['epoch_samples']}, this stream has "
                f"{self.epoch_samples}: expected the same; start the stream as it was started before"
            )
        self._order.load(own["order"])
        items = self._order.find([place[2:4] for place in own["pending"]])
        for (epoch, round_, shard, sample, last), item in zip(own["pending"], items, strict=True):
            self._redo.append(Drawn(epoch, round_, shard, sample, item, last))
        self._books.load(own["books"])

    def _carry(self, states: Sequence[dict]) -> None:
        pending = [[(place[0], *place[2:4]) for place in each["pending"]] for each in states]
        self._order.carry([each["order"] for each in states], pending)
        self._books.carry([each["books"] for each in states], self.ranks)

    def close(self) -> None:
        """End the workers. Iterating again starts new ones and continues where it was."""
        if self._pool is not None:
            self._redo.extendleft(drawn for _, drawn in reversed(self._under_way))
            self._under_way.clear()
            self._pool.close()
            self._pool = None

    def __enter__(self) -> ClipStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check(**numbers: tuple[int | None, int]) -> None:
    for name, (value, least) in numbers.items():
        if value is not None and value < least:
            raise ClipVipError(f"expected {name} of at least {least}, got {value}; choose a larger one")
