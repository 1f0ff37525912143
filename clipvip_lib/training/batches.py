"""What a step is given: batches of clips with their texts, from frame stores or from streams of shards.

StoreBatches    batch number ``step`` of the whole is a function of (seed, step), a rank takes its rows of it: the
                same batches on any number of ranks
StreamBatches   what this rank's ClipStream yields next; endless, so that uneven shards keep nobody waiting
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from clipvip_lib.data.frames import FrameStore
from clipvip_lib.data.video import uniform_indices
from clipvip_lib.errors import ClipVipError
from clipvip_lib.models.clip_tokenizer import ClipTokenizer
from clipvip_lib.omnisource import needs
from clipvip_lib.training.ranks import Ranks


@dataclass(frozen=True)
class Tokens:
    """Token ids of many texts: ids int64 [texts, T], mask int64 [texts, T]."""

    ids: Tensor
    mask: Tensor

    @classmethod
    def of(cls, texts: Sequence[str], tokenizer: ClipTokenizer) -> Tokens:
        return cls(*tokenizer(list(texts)))

    def take(self, rows: Sequence[int] | np.ndarray | slice) -> Tokens:
        """Some rows, cut after the longest of them."""
        mask = self.mask[rows]
        length = int(mask.sum(1).max())
        return Tokens(self.ids[rows][:, :length], mask[:, :length])


@dataclass(frozen=True)
class Pairs:
    """Clips and what is said of them.

    Attributes:
        store: decoded frames.
        texts: every text (S), several per clip if there are several.
        text_rows: for each clip the rows of ``texts`` that belong to it; one is drawn at every visit.
        captions: OFA caption (C) of each clip, or None.
        group: clips that stand together (cut from one long video) and go into a batch together.
        caption_mask: bool [clips], False where OFA gave no caption, or None.
    """

    store: FrameStore
    texts: Tokens
    text_rows: Sequence[Sequence[int]]
    captions: Tokens | None = None
    caption_mask: Tensor | None = None
    group: int = 1

    @classmethod
    def of(
        cls, store: FrameStore, texts: Sequence[Sequence[str]], tokenizer: ClipTokenizer, **more: object
    ) -> Pairs:
        """Clips with all the texts of each; ``more``: further attributes."""
        ends = itertools.accumulate(map(len, texts))
        rows = [range(end - len(own), end) for end, own in zip(ends, texts, strict=True)]
        return cls(store, Tokens.of([text for own in texts for text in own], tokenizer), rows, **more)


@dataclass(frozen=True)
class Batch:
    """uint8 video [B, N, H, W, 3], uint8 middle frame [B, 1, H, W, 3], texts, captions (None where not needed)."""

    video: Tensor
    frame: Tensor | None
    texts: Tokens
    captions: Tokens | None
    caption_mask: Tensor | None


class Sampler:
    """Batches of whole groups without replacement within an epoch; batch ``step`` depends on (seed, step) alone."""

    def __init__(self, count: int, batch: int, group: int, seed: int):
        expect_batch(batch, count)
        if batch % group:
            raise ClipVipError(
                f"expected a batch that is a multiple of {group} clips, got {batch}; change it"
            )
        self.batch, self.group, self.seed = batch, group, seed
        self.groups, self.per_epoch = count // group, (count // group) // (batch // group)
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def indices(self, step: int) -> np.ndarray:
        """Clip indices [batch] of batch ``step``."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = (
                epoch,
                np.random.default_rng([self.seed, 1, epoch]).permutation(self.groups),
            )
        width = self.batch // self.group
        chosen = self._order[position * width : (position + 1) * width]
        return (chosen[:, None] * self.group + np.arange(self.group)).ravel()


class BatchSource(Protocol):
    """Where batches come from: ``source(step)`` is this rank's share of batch number ``step``."""

    def __call__(self, step: int) -> Batch: ...

    def position(self) -> object:
        """This rank's place in its data, as JSON has it."""

    def place(self, positions: list, step: int) -> None:
        """Continue where ranks with these positions stood after ``step`` steps."""

    def close(self) -> None:
        """End what was started."""


class StoreBatches:
    """This rank's rows of batch number ``step`` of ``pairs``, without reading the frames of the others.

    Rank r of R has rows r*B/R .. (r+1)*B/R - 1; jitter and drawn texts do not depend on R. Raises ClipVipError if the
    batch is not divisible by the ranks, is larger than the data, or lacks captions that the loss joins.
    """

    def __init__(
        self, pairs: Pairs, loss: str, frames: int, batch: int, seed: int, ranks: Ranks | None = None
    ):
        self.pairs, self.needed, self.frames, self.seed = pairs, needs(loss), frames, seed
        if "C" in self.needed and pairs.captions is None:
            raise ClipVipError(
                f"loss {loss!r} joins captions, but these clips have none; caption the shards first"
            )
        self.sampler = Sampler(len(pairs.text_rows), batch, pairs.group, seed)
        self.own = own_rows(batch, ranks or Ranks())

    def __call__(self, step: int) -> Batch:
        pairs, indices = self.pairs, self.sampler.indices(step)
        rng = np.random.default_rng([self.seed, 2, step])
        rows = [pairs.text_rows[i][int(rng.integers(len(pairs.text_rows[i])))] for i in indices][self.own]
        for _ in range(self.own.start):  # the jitter of the ranks before this one
            uniform_indices(pairs.store.frames, self.frames, rng)
        indices = indices[self.own]
        captions = "C" in self.needed
        masked = captions and pairs.caption_mask is not None
        return Batch(
            video=torch.from_numpy(pairs.store.take(indices, self.frames, rng)),
            frame=torch.from_numpy(pairs.store.middle(indices)) if "F" in self.needed else None,
            texts=pairs.texts.take(rows),
            captions=pairs.captions.take(indices) if captions else None,
            caption_mask=pairs.caption_mask[indices] if masked else None,
        )

    def position(self) -> None:
        """The step says all."""

    def place(self, positions: list, step: int) -> None:
        """Nothing to do, on any number of ranks."""

    def close(self) -> None:
        """Nothing to end."""


class Stream(Protocol):
    """What is needed of streams/stream.py's ClipStream."""

    def __iter__(self) -> Iterator: ...
    def state_dict(self) -> dict: ...
    def load_state_dict(self, state: object) -> None: ...
    def close(self) -> None: ...


class StreamBatches:
    """The next clips of this rank's stream as a batch. ``place`` must come before the first batch.

    A clip without a caption is neither a positive nor a negative of the terms with captions (caption_mask).
    """

    def __init__(self, stream: Stream, tokenizer: ClipTokenizer, loss: str, batch: int, ranks: Ranks):
        rows = own_rows(batch, ranks)
        self.stream, self.tokenizer, self.needed = stream, tokenizer, needs(loss)
        self.count, self._clips = rows.stop - rows.start, None

    def __call__(self, step: int) -> Batch:
        if self._clips is None:
            self._clips = iter(self.stream)
        clips = [next(self._clips) for _ in range(self.count)]
        captions, mask = None, None
        if "C" in self.needed:
            captions = Tokens.of([clip.caption or "" for clip in clips], self.tokenizer)
            mask = torch.tensor([bool(clip.caption) for clip in clips])
        return Batch(
            video=_stack(clip.video for clip in clips),
            frame=_stack(clip.frame for clip in clips) if "F" in self.needed else None,
            texts=Tokens.of([clip.text for clip in clips], self.tokenizer),
            captions=captions,
            caption_mask=mask,
        )

    def position(self) -> dict:
        return self.stream.state_dict()

    def place(self, positions: list, step: int) -> None:
        self.stream.load_state_dict(positions)

    def close(self) -> None:
        """End the stream's workers."""
        self.stream.close()


def expect_batch(batch: int, count: int) -> None:
    """Raises ClipVipError for a batch of more clips than there are."""
    if batch > count:
        raise ClipVipError(
            f"expected a batch of at most {count} clips, all that there are, got {batch}; add --set batch=N"
        )


def _stack(parts: Iterable[np.ndarray | torch.Tensor]) -> torch.Tensor:
    return torch.stack([torch.as_tensor(part) for part in parts])


def own_rows(batch: int, ranks: Ranks) -> slice:
    """This rank's rows of a global batch. Raises ClipVipError if the batch is not divisible by the ranks."""
    if batch % ranks.size or batch < ranks.size:
        raise ClipVipError(
            f"expected a batch that is a multiple of {ranks.size} ranks, got {batch}; add --set batch=N"
        )
    size = batch // ranks.size
    return slice(ranks.rank * size, (ranks.rank + 1) * size)
