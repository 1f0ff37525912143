"""The losses of omnisource cross-modal learning, computed: every term of a loss (omnisource.py) is one cross-entropy.

    term(query, positive, negatives)_i = -log  exp(s q_i.p_i) / ( exp(s q_i.p_i) + sum over X in negatives,
                                                                    j != i of exp(s q_i.x_j) )

with s = exp(logit_scale). For the ordinary InfoNCE of a pair the negatives are the positive's own source. In
"V-S,C" a video has two positives, its subtitle and its caption. Each stands in its own term against ALL other
subtitles and captions, and the video's other positive is left out of the denominator.

Source: CLIP-ViP (arXiv 2209.06430), section 4 and table 5; the authors' loss classes, which SUM the terms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clipvip_lib.errors import ClipVipError, unknown
from clipvip_lib.omnisource import SOURCES, TILE, Term, needs, terms


def ocl_loss(
    name: str,
    features: Mapping[str, Tensor],
    logit_scale: Tensor,
    reduction: str = "mean",
    caption_mask: Tensor | None = None,
) -> Tensor:
    """A loss of the table for one batch, a scalar.

    features: {"V": [B, E], "S": ..., "F": ..., "C": ...}, L2-normalised, row i of each from the same clip;
    more than the loss needs is allowed. On several devices pass the features gathered from all ranks, with
    gradient: negatives come from the global batch.
    logit_scale: [], the logarithm of s.
    reduction: "mean" of the terms (variants then share one scale, also under gradient clipping), or their
    "sum" (the authors' code).
    caption_mask: bool [B], False where a clip has no caption: that caption is neither a positive nor a
    negative, and a term is the mean over its remaining rows. None: every clip has one.

    Computed in float32 or wider whatever the autocast; in tiles if B > ``TILE``. Raises ClipVipError for an
    unknown loss or reduction, a missing source, or features of different shapes.
    """
    if reduction not in ("mean", "sum"):
        raise unknown("reduction", reduction, ("mean", "sum"))
    sources = sorted(needs(name))
    _check(name, features, sources, caption_mask)
    with torch.autocast(logit_scale.device.type, enabled=False):
        wide = {s: features[s].to(torch.promote_types(features[s].dtype, torch.float32)) for s in sources}
        present = {"C": caption_mask} if caption_mask is not None else {}
        scale = logit_scale.to(wide["V"].dtype).exp()
        values = torch.stack([_cross_entropy(term, wide, scale, present) for term in terms(name)])
        return values.mean() if reduction == "mean" else values.sum()


def _cross_entropy(
    term: Term, features: Mapping[str, Tensor], scale: Tensor, present: Mapping[str, Tensor]
) -> Tensor:
    """One term, a scalar; zero if no row has both its query and its positive."""
    query, positive = scale * features[term.query], features[term.positive]
    negatives = [features[source] for source in term.negatives]
    absent = [~present[source] if source in present else None for source in term.negatives]
    if len(query) <= TILE:
        rows = _row_losses(query, positive, negatives, absent, 0)
    else:
        tiles = zip(query.split(TILE), positive.split(TILE), range(0, len(query), TILE), strict=True)
        rows = torch.cat(
            [
                checkpoint(_row_losses, q, p, negatives, absent, first, use_reentrant=False)
                for q, p, first in tiles
            ]
        )
    masks = [present[source] for source in (term.query, term.positive) if source in present]
    if not masks:
        return rows.mean()
    mask = torch.stack(masks).all(0)
    return rows.masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)


def _row_losses(
    query: Tensor, positive: Tensor, negatives: Sequence[Tensor], absent: Sequence[Tensor | None], first: int
) -> Tensor:
    """Cross-entropies [rows] of scaled queries [rows, E], which are those from number ``first`` of the batch.

    negatives: all clips' features [B, E] of each source. absent: which of them are not there, bool [B]; None: none.
    """
    numbers = torch.arange(len(negatives[0]), device=query.device)
    own = numbers[first : first + len(query), None] == numbers
    positives = (query * positive).sum(-1)
    columns = [positives[:, None]]
    for feature, gone in zip(negatives, absent, strict=True):
        barred = own if gone is None else own | gone
        columns.append((query @ feature.T).masked_fill(barred, float("-inf")))
    return torch.cat(columns, dim=1).logsumexp(1) - positives


def _check(
    name: str, features: Mapping[str, Tensor], sources: list[str], caption_mask: Tensor | None
) -> None:
    missing = [f"{s} ({SOURCES[s]})" for s in sources if s not in features]
    if missing:
        raise ClipVipError(
            f"the loss {name!r} expected features of {', '.join(sources)}, {', '.join(missing)} is missing; "
            "give that source or choose a loss without it"
        )
    shapes = {s: tuple(features[s].shape) for s in sources}
    if len(set(shapes.values())) > 1 or len(shapes["V"]) != 2 or 0 in shapes["V"]:
        raise ClipVipError(
            f"the loss expected features of one shape [B, E] for all sources, got {shapes}; "
            "pass rows of the same clips"
        )
    if caption_mask is not None and (
        caption_mask.dtype != torch.bool or caption_mask.shape != shapes["V"][:1]
    ):
        raise ClipVipError(
            f"the caption mask expected bool [{shapes['V'][0]}], got {caption_mask.dtype} "
            f"{list(caption_mask.shape)}; give one truth value for each clip"
        )
