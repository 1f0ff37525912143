"""Omnisource cross-modal learning (OCL): which pairs of sources the contrastive loss joins.

Four sources: V video, S subtitle (or the caption that people wrote, when fine-tuning), F middle frame, C the
caption that OFA gave that frame. Every loss of the paper is a row of ``LOSSES``, a tuple of terms, and every
term is one cross-entropy over the batch:

    term(query, positive, negatives)_i = -log  exp(s q_i.p_i) / ( exp(s q_i.p_i) + sum over X in negatives,
                                                                    j != i of exp(s q_i.x_j) )

with s = exp(logit_scale). For the ordinary InfoNCE of a pair the negatives are the positive's own source. In
"V-S,C" a video has two positives, its subtitle and its caption. Each stands in its own term against ALL other
subtitles and captions, and the video's other positive is left out of the denominator.

Source: CLIP-ViP (arXiv 2209.06430), section 4 and table 5; the authors' loss classes, which SUM the terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clipvip_lib.errors import ClipVipError, unknown

if TYPE_CHECKING:
    from torch import Tensor  # commands know the names of losses before torch is imported


@dataclass(frozen=True)
class Term:
    """One cross-entropy: queries of one source, their positives, and the sources that the negatives come
    from."""

    query: str
    positive: str
    negatives: tuple[str, ...]


def pair(a: str, b: str) -> tuple[Term, Term]:
    """InfoNCE both ways between two sources."""
    return Term(a, b, (b,)), Term(b, a, (a,))


#: V against S and C at once: two positives per video; from text to video two ordinary terms.
V_SC = (
    Term("V", "S", ("S", "C")),
    Term("V", "C", ("S", "C")),
    Term("S", "V", ("V",)),
    Term("C", "V", ("V",)),
)

LOSSES: dict[str, tuple[Term, ...]] = {
    "V-S": pair("V", "S"),
    "V-S + F-C": pair("V", "S") + pair("F", "C"),
    "V-S + V-C": pair("V", "S") + pair("V", "C"),
    "V-S + V-C + F-C": pair("V", "S") + pair("V", "C") + pair("F", "C"),
    "V-S,C": V_SC,
    "V-S,C + F-C": V_SC + pair("F", "C"),
    "V-C + F-C": pair("V", "C") + pair("F", "C"),  # for the ablation of post-pretraining data: captions alone
}

#: What the keys stand for, in error messages.
SOURCES = {"V": "video", "S": "subtitle", "F": "frame", "C": "caption"}


def terms(name: str) -> tuple[Term, ...]:
    """The terms of a loss. Raises ClipVipError for an unknown name, with the nearest known one."""
    if name not in LOSSES:
        raise unknown("loss", name, LOSSES)
    return LOSSES[name]


def needs(name: str) -> frozenset[str]:
    """The features that a loss needs, a subset of {"V", "S", "F", "C"}. Raises ClipVipError for an unknown
    name."""
    return frozenset(source for term in terms(name) for source in (term.query, *term.negatives))


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

    Computed in float32 or wider whatever the autocast. Raises ClipVipError for an unknown loss or reduction,
    a missing source, or features of different shapes.
    """
    import torch

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
    import torch

    query = scale * features[term.query]
    positive = (query * features[term.positive]).sum(-1)
    own = torch.eye(len(query), dtype=torch.bool, device=query.device)
    columns = [positive[:, None]]
    for source in term.negatives:
        barred = own if source not in present else own | ~present[source]
        columns.append((query @ features[source].T).masked_fill(barred, float("-inf")))
    rows = torch.cat(columns, dim=1).logsumexp(1) - positive
    masks = [present[source] for source in (term.query, term.positive) if source in present]
    if not masks:
        return rows.mean()
    mask = torch.stack(masks).all(0)
    return rows.masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)


def _check(
    name: str, features: Mapping[str, Tensor], sources: list[str], caption_mask: Tensor | None
) -> None:
    import torch

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
