"""Features and retrieval scores of whole sets; ranks encode their share each, and all get all rows in their order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from clipvip_lib import retrieval
from clipvip_lib.data.frames import FrameStore
from clipvip_lib.data.some_clips import SomeClips
from clipvip_lib.files import atomic_path
from clipvip_lib.models.clip_vip import ClipViP
from clipvip_lib.precision import autocast
from clipvip_lib.training.batches import Pairs, Tokens
from clipvip_lib.training.ranks import Ranks, gather_dealt, share


def encode_store(
    model: ClipViP, store: FrameStore, frames: int, batch: int = 64, precision: str = "auto"
) -> np.ndarray:
    """Features of all clips of a store: float32 [clips, E], L2-normalised."""
    out = []
    with torch.no_grad():
        for rows in _spans(len(store), batch):
            video = torch.from_numpy(store.take(rows, frames)).to(model.device)
            with autocast(precision, model.device):
                out.append(model.encode_video(video).float().cpu().numpy())
    return np.concatenate(out)


def encode_tokens(model: ClipViP, tokens: Tokens, batch: int = 256, precision: str = "auto") -> np.ndarray:
    """Features of all texts: float32 [texts, E], L2-normalised."""
    out = []
    with torch.no_grad():
        for rows in _spans(len(tokens.ids), batch):
            part = tokens.take(list(rows))
            with autocast(precision, model.device):
                out.append(
                    model.encode_text(part.ids.to(model.device), part.mask.to(model.device))
                    .float()
                    .cpu()
                    .numpy()
                )
    return np.concatenate(out)


def _spans(count: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, count)) for start in range(0, count, size))


def encode_pairs(
    model: ClipViP, pairs: Pairs, frames: int, ranks: Ranks, precision: str, batch: int = 32
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Text features [Q, E], video features [C, E] (float32, on every rank) and the video of each text [Q].

    Rows are dealt out over the ranks and come back in order, whether their number is divisible or not.
    """
    order = [row for rows in pairs.text_rows for row in rows]
    owner = np.repeat(np.arange(len(pairs.text_rows)), [len(rows) for rows in pairs.text_rows])
    clips, texts = share(range(len(pairs.store)), ranks), share(order, ranks)
    width = model.config.projection_dim
    video = encode_store(model, SomeClips(pairs.store, clips), frames, batch, precision) if clips else None
    text = encode_tokens(model, pairs.texts.take(texts), 4 * batch, precision) if texts else None
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


Ranked = dict[str, retrieval.QueryRanks]


def ranked(
    text: np.ndarray, video: np.ndarray, owner: np.ndarray, scorings: Iterable[str], **bank: np.ndarray
) -> Ranked:
    """The ranks of every query by "DIRECTION/SCORING", such as "text_to_video/dsl".

    bank: ``bank_text`` and ``bank_video``, for "qb_norm". Raises what ``retrieval.retrieve`` raises.
    """
    return {
        f"{direction}/{scoring}": ranks
        for scoring in scorings
        for direction, ranks in retrieval.retrieve(text, video, owner, scoring=scoring, **bank).items()
    }


def scores(found: Ranked) -> dict[str, dict]:
    """``retrieval.metrics`` by the same names."""
    return {name: retrieval.metrics(ranks) for name, ranks in found.items()}


def write_ranks(
    folder: Path, found: Ranked, text: np.ndarray, video: np.ndarray, owner: np.ndarray | None = None
) -> None:
    """What every query gave, for comparing two runs query by query: ranks.npz ("DIRECTION/SCORING/COLUMN", the columns
    of ``retrieval.QueryRanks``) and features.npz (float16: text [Q, E], video [C, E]; owner [Q] if it is given)."""
    arrays = {f"{name}/{column}": row for name, ranks in found.items() for column, row in vars(ranks).items()}
    features = {"text": text.astype(np.float16), "video": video.astype(np.float16)}
    features |= {} if owner is None else {"owner": owner}
    for name, kept in (("ranks.npz", arrays), ("features.npz", features)):
        with atomic_path(folder / name) as partial, partial.open("wb") as stream:
            np.savez_compressed(stream, **kept)


def validation_score(text: np.ndarray, video: np.ndarray, owner: np.ndarray) -> float:
    """What a checkpoint is chosen by: R@1 from text to video, simple scoring."""
    return scores(ranked(text, video, owner, ["simple"]))["text_to_video/simple"]["R@1"]
