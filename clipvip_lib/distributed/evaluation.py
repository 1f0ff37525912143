"""Retrieval scores of a split that the ranks encode together: every rank its share, all rows in their order."""

from __future__ import annotations

import numpy as np
import torch

from clipvip_lib import retrieval
from clipvip_lib.data.frames import FrameStore
from clipvip_lib.distributed.ranks import Ranks, gather_dealt, share
from clipvip_lib.models.clip_vip import ClipViP
from clipvip_lib.training import Pairs, encode_clips, encode_texts


class _Share:
    """Some clips of a store, as a store."""

    def __init__(self, store: FrameStore, rows: list[int]):
        self.store, self.rows = store, rows

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices, frames: int) -> np.ndarray:
        return self.store.take([self.rows[i] for i in indices], frames)


def encode_pairs(
    model: ClipViP, pairs: Pairs, frames: int, ranks: Ranks, bfloat16: bool, batch: int = 32
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Text features [Q, E], video features [C, E] (float32, on every rank) and the video of each text [Q].

    Rows are dealt out over the ranks and come back in order, whether their number is divisible or not.
    """
    order = [row for rows in pairs.text_rows for row in rows]
    owner = np.repeat(np.arange(len(pairs.text_rows)), [len(rows) for rows in pairs.text_rows])
    clips, texts = share(range(len(pairs.store)), ranks), share(order, ranks)
    width = model.config.projection_dim
    video = encode_clips(model, _Share(pairs.store, clips), frames, batch, bfloat16) if clips else None
    text = encode_texts(model, pairs.texts.take(texts), 4 * batch, bfloat16) if texts else None
    together = [
        gather_dealt(
            torch.zeros(0, width, device=ranks.device)
            if rows is None
            else torch.from_numpy(rows).to(ranks.device),
            ranks,
            count,
        )
        .cpu()
        .numpy()
        for rows, count in ((text, len(order)), (video, len(pairs.store)))
    ]
    return together[0], together[1], owner


def scores(text: np.ndarray, video: np.ndarray, owner: np.ndarray) -> dict[str, dict]:
    """{"simple": .., "dsl (transductive)": ..}, each {"text_to_video": metrics, "video_to_text": metrics}."""
    found = {}
    for scoring in ("simple", "dsl"):
        label = scoring + " (transductive)" * retrieval.SCORINGS[scoring].transductive
        both = retrieval.retrieve(text, video, owner, scoring=scoring)
        found[label] = {direction: retrieval.metrics(ranks) for direction, ranks in both.items()}
    return found
