"""Where a rank's batches come from: frame stores, any batch at any time; or streams of shards, in their order.

StoreBatches    batch number ``step`` of the whole is a function of (seed, step), a rank takes its rows of it: the
                same batches on any number of ranks
StreamBatches   what this rank's ClipStream yields next; endless, so that uneven shards keep nobody waiting
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
import torch

from clipvip_lib.data.video import uniform_indices
from clipvip_lib.distributed.ranks import Ranks
from clipvip_lib.distributed.recipes import TrainRecipe
from clipvip_lib.errors import ClipVipError
from clipvip_lib.losses import needs
from clipvip_lib.models.clip_tokenizer import ClipTokenizer
from clipvip_lib.training import Batch, Batches, Pairs, Tokens


class StoreBatches:
    """This rank's rows of ``training.Batches``: without reading the frames of the others.

    Rank r of R has rows r*B/R .. (r+1)*B/R - 1 of batch number ``step``, jitter and drawn texts included. Raises
    ClipVipError if the batch is not divisible by the ranks, is larger than the data, or lacks captions.
    """

    def __init__(self, pairs: Pairs, loss: str, recipe: TrainRecipe, seed: int, ranks: Ranks):
        self.batches = Batches(pairs, loss, recipe.frames, recipe.batch, seed)
        self.own = own_rows(recipe.batch, ranks)

    def __call__(self, step: int) -> Batch:
        whole, pairs = self.batches, self.batches.pairs
        indices = whole.sampler.indices(step)
        rng = np.random.default_rng([whole.seed, 2, step])  # as training.Batches, draw for draw
        rows = [pairs.text_rows[i][int(rng.integers(len(pairs.text_rows[i])))] for i in indices][self.own]
        for _ in range(self.own.start):  # the jitter of those before
            uniform_indices(pairs.store.frames, whole.frames, rng)
        indices = indices[self.own]
        captions = "C" in whole.needed
        masked = captions and pairs.caption_mask is not None
        return Batch(
            video=torch.from_numpy(pairs.store.take(indices, whole.frames, rng)),
            frame=torch.from_numpy(pairs.store.middle(indices)) if "F" in whole.needed else None,
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

    A clip without a caption is no positive and no negative of the terms with captions (caption_mask).
    """

    def __init__(
        self, stream: Stream, tokenizer: ClipTokenizer, loss: str, recipe: TrainRecipe, ranks: Ranks
    ):
        rows = own_rows(recipe.batch, ranks)
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
