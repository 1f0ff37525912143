"""Omnisource cross-modal learning (OCL): which pairs of sources the contrastive loss joins.

Four sources: V video, S subtitle (or the caption that people wrote, when fine-tuning), F middle frame, C the caption
that OFA gave that frame. Every loss of the paper is a row of ``LOSSES``, a tuple of terms; losses.py computes them.

Source: CLIP-ViP (arXiv 2209.06430), section 4 and table 5.
"""

from __future__ import annotations

from dataclasses import dataclass

from clipvip_lib.errors import unknown


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

RELEASED = "V-S,C + F-C"  # the authors' default

#: What the keys stand for, in error messages.
SOURCES = {"V": "video", "S": "subtitle", "F": "frame", "C": "caption"}


#: Queries that are compared with the whole batch at once. A larger batch is compared in tiles, so that memory grows
#: with the batch and not with its square; the similarities of a tile are computed again in the backward pass.
TILE = 2048


def terms(name: str) -> tuple[Term, ...]:
    """The terms of a loss. Raises ClipVipError for an unknown name, with the nearest known one."""
    if name not in LOSSES:
        raise unknown("loss", name, LOSSES)
    return LOSSES[name]


def needs(name: str) -> frozenset[str]:
    """The features that a loss needs, a subset of {"V", "S", "F", "C"}. Raises ClipVipError for an unknown
    name."""
    return frozenset(source for term in terms(name) for source in (term.query, *term.negatives))
