"""Retrieval as it is measured: exact, in chunks, fair to ties, both directions; simple, DSL and QB-Norm.

* A rank is three numbers per query (``QueryRanks``): candidates strictly better than its best positive, negatives
  tied with it, and positives at that score. R@K of a tied query is the *expected* success over a random order
  of the ties; the authors' rule (each tie is one more row of the table) is available by name.
* The whole score matrix is never needed: queries come in chunks, and DSL's softmax, which wants all queries
  at once, is gathered in a first pass over the same chunks. ``ranks_of_scores`` is the plain full-matrix
  form.
* DSL's softmax runs over the QUERIES of a direction: over texts for text-to-video, over videos for
  video-to-text. The authors' code (utils/metrics.py, run_video_retrieval.py) takes it over texts for both;
  for video-to-text that multiplies a video's row by a growing function of its own scores, so wherever
  scores are positive it changes no rank at all. ``dsl_authors`` is their rule by name.
* DSL is transductive (it sees all test queries at once); QB-Norm (Bogolin et al., CVPR 2022) is not: its
  query bank is TRAINING queries. ``SCORINGS`` says which is which.

Shapes: Q queries, C candidates, E embedding, B bank queries. Scores are float64: in float32 exp(100 x)
underflows over the range of cosines and would create ties that do not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from clipvip_lib.errors import ClipVipError, unknown

DIRECTIONS = ("text_to_video", "video_to_text")
TIE_RULES = ("fair", "authors")
RECALLS = (1, 5, 10)
DSL_TEMPERATURE = 100.0  # the authors' np_softmax(sim_matrix * 100)
QB_NORM_BETA = 20.0  # inverse temperature, and
QB_NORM_TOP = 1  # size of a bank query's list: the defaults of the method's released code
TIE = (
    1e-9  # scores nearer than this are tied: 1e6 times the rounding of a float64 product, 1/100 of float32's
)
CHUNK_SCORES = 4_000_000  # scores in memory at once (32 MB)


@dataclass(frozen=True)
class Scoring:
    """How a query's candidates are scored; ``transductive`` if a score depends on the other test queries."""

    name: str
    label: str
    transductive: bool
    note: str


SCORINGS = {
    scoring.name: scoring
    for scoring in (
        Scoring("simple", "simple", False, "cosine similarity"),
        Scoring(
            "dsl", "DSL", True, "similarity x softmax over the direction's queries; needs all test queries"
        ),
        Scoring("dsl_authors", "DSL (authors' axis)", True, "the softmax runs over texts in both directions"),
        Scoring("qb_norm", "QB-Norm", False, "dynamic inverted softmax with a bank of training queries"),
    )
}


# ------------------------------------------------------------------------------------------------- similarity


def unit_rows(features: object, name: str = "features") -> np.ndarray:
    """Rows of length 1 in float64, from a numpy array or a torch tensor [n, E].

    Raises ClipVipError if the shape is not [n, E], n or E is 0, or a row is not finite or all zeros.
    """
    if hasattr(features, "detach"):  # a torch tensor, without importing torch; bfloat16 has no numpy type
        features = features.detach().cpu().double().numpy()
    array = np.asarray(features, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ClipVipError(
            f"{name}: expected an array [rows, embedding], got shape {list(array.shape)}; stack them"
        )
    length = np.linalg.norm(array, axis=1)
    bad = np.flatnonzero(~(np.isfinite(length) & (length > 0)))
    if bad.size:
        raise ClipVipError(
            f"{name}: expected finite rows that are not all zeros, row {bad[0]} is not (one of {bad.size}); "
            "look for a NaN in training or an unreadable video"
        )
    return array / length[:, None]


def similarity(queries: object, candidates: object) -> np.ndarray:
    """Cosine similarity [Q, C] in float64 of features [Q, E] and [C, E]; the whole matrix, so for small sets.

    Raises ClipVipError as ``unit_rows`` does, or if the embeddings differ in width.
    """
    return np.concatenate([chunk for _, chunk in similarity_chunks(queries, candidates)])


def similarity_chunks(
    queries: object, candidates: object, chunk: int | None = None
) -> Iterator[tuple[slice, np.ndarray]]:
    """``similarity`` a chunk of rows at a time: pairs (rows, scores [rows, C]); ``chunk`` is rows per chunk."""
    queries, candidates = unit_rows(queries, "queries"), unit_rows(candidates, "candidates")
    if queries.shape[1] != candidates.shape[1]:
        raise ClipVipError(
            f"expected queries and candidates of one width, got {queries.shape[1]}, {candidates.shape[1]}; "
            "embed both with the same model"
        )
    if chunk is not None and chunk < 1:
        raise ClipVipError(f"expected a chunk of at least 1 row, got {chunk}; leave it out for the default")
    rows = chunk or max(1, CHUNK_SCORES // len(candidates))
    for start in range(0, len(queries), rows):
        part = slice(start, min(start + rows, len(queries)))
        yield part, queries[part] @ candidates.T


# ------------------------------------------------------------------------------------------------------ ranks


@dataclass(frozen=True)
class QueryRanks:
    """Where each query's best positive stands; integer arrays [Q].

    better: candidates scored strictly higher; tied: negatives at its score; positives: positives at its
    score, itself included (several when a video has several sentences that score alike).
    """

    better: np.ndarray
    tied: np.ndarray
    positives: np.ndarray

    def __len__(self) -> int:
        return len(self.better)

    def hits(self, k: int) -> np.ndarray:
        """Chance [Q] (0 to 1) that a positive is among the first ``k``, over a random order of the ties.

        With m = k - better places left for t tied negatives and p tied positives it is
        1 - C(t, m) / C(t + p, m), and 0 if m < 1. The mean over queries is R@k.
        """
        if k < 1:
            raise ClipVipError(f"R@K: expected K of at least 1, got {k}; use 1, 5 or 10")
        places = np.maximum(k - self.better, 0)
        # C(t, m) / C(t + p, m) as a product of p factors: exact where factorials would overflow
        miss = np.ones(len(self))
        for j in range(1, int(self.positives.max(initial=0)) + 1):
            factor = np.clip((self.tied + j - places) / (self.tied + j), 0, None)
            miss *= np.where(j <= self.positives, factor, 1.0)
        return 1.0 - miss

    def expected(self) -> np.ndarray:
        """Expected rank [Q] of the best positive, from 1, over a random order of the ties."""
        return self.better + (self.tied + self.positives + 1) / (self.positives + 1)

    def authors_rows(self) -> np.ndarray:
        """The authors' list of ranks from 1: a query stands in it once for every candidate at its score.

        So 1,000 queries with 8 ties make 1,008 rows, all of which count (their compute_metrics).
        """
        copies = self.tied + self.positives
        within = np.arange(copies.sum()) - np.repeat(np.cumsum(copies) - copies, copies)
        return np.repeat(self.better, copies) + within + 1


def join_ranks(parts: Iterable[QueryRanks]) -> QueryRanks:
    """Ranks of chunks of queries as the ranks of all, in order."""
    parts = list(parts)
    columns = ("better", "tied", "positives")
    return QueryRanks(*(np.concatenate([getattr(part, column) for part in parts]) for column in columns))


def positive_lists(targets: object, queries: int, candidates: int) -> tuple[np.ndarray, np.ndarray]:
    """Positives of each query in one flat array: (indices [n], where each query's begin [Q]).

    ``targets``: an int array [Q] (one positive per query), a boolean array [Q, C], or Q lists of indices.
    Raises ClipVipError if a query has no positive, an index is outside, or the number of queries differs.
    """
    if hasattr(targets, "detach"):
        targets = targets.detach().cpu().numpy()
    try:
        array = np.asarray(targets)
    except ValueError:  # lists of several lengths
        array = np.empty(0, dtype=object)
    if array.dtype == bool and array.shape == (queries, candidates):
        rows, flat = np.nonzero(array)
        counts = np.bincount(rows, minlength=queries)
    elif array.ndim == 1 and array.dtype.kind in "iu":
        flat, counts = array.astype(np.int64), np.ones(len(array), dtype=np.int64)
    else:
        lists = [np.unique(np.asarray(row, dtype=np.int64)) for row in targets]
        flat = np.concatenate([*lists, np.empty(0, np.int64)])
        counts = np.array([len(row) for row in lists], dtype=np.int64)
    if len(counts) != queries:
        raise ClipVipError(
            f"targets: expected one entry for each of {queries} queries, got {len(counts)}; align them"
        )
    if queries and counts.min() < 1:
        raise ClipVipError(
            f"targets: query {int(counts.argmin())} has no positive; give it one or leave it out"
        )
    if flat.size and not (flat.min() >= 0 and flat.max() < candidates):
        raise ClipVipError(
            f"targets: expected indices 0 to {candidates - 1}, got {int(flat.min())} to {int(flat.max())}; "
            "index the candidates as they are given"
        )
    return flat, np.cumsum(counts) - counts


def ranks_of_scores(scores: np.ndarray, targets: object, relative: bool = False) -> QueryRanks:
    """Ranks from a full score matrix [Q, C]; ``targets`` as in ``positive_lists``.

    Scores within TIE of the best positive's are tied with it; ``relative``: within TIE times its size (DSL's
    products span a hundred orders of magnitude). Raises ClipVipError on a score that is NaN or infinite.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores).all(axis=1))[0])
        raise ClipVipError(f"scores: expected finite numbers, query {row} has others; look at its features")
    flat, starts = positive_lists(targets, *scores.shape)
    owner = np.repeat(np.arange(len(scores)), np.diff(np.append(starts, len(flat))))
    at_positives = scores[owner, flat]
    best = np.maximum.reduceat(at_positives, starts)
    margin = TIE * np.abs(best) if relative else np.full(len(scores), TIE)
    better = (scores > (best + margin)[:, None]).sum(axis=1)
    level = (scores >= (best - margin)[:, None]).sum(axis=1) - better
    positives = np.add.reduceat((at_positives >= (best - margin)[owner]).astype(np.int64), starts)
    return QueryRanks(better, level - positives, positives)


def ranks(
    queries: object,
    candidates: object,
    targets: object,
    *,
    scoring: str = "simple",
    direction: str = "text_to_video",
    bank: object | None = None,
    chunk: int | None = None,
) -> QueryRanks:
    """Ranks of one direction, ``chunk`` queries at a time; equals ``ranks_of_scores`` of the full matrix.

    queries [Q, E], candidates [C, E]: features (scaled to length 1 here); ``targets`` as in
    ``positive_lists``; ``bank`` [B, E]: training queries, for QB-Norm only. ``direction`` matters to
    ``dsl_authors`` alone. Raises ClipVipError on unknown names, shapes that do not fit, or a missing bank.
    """
    queries, candidates = unit_rows(queries, "queries"), unit_rows(candidates, "candidates")
    flat, starts = positive_lists(targets, len(queries), len(candidates))
    ends = np.append(starts[1:], len(flat))
    score = scorer(scoring, direction, queries, candidates, bank, chunk)
    parts = []
    for part, similarities in similarity_chunks(queries, candidates, chunk):
        lists = [flat[a:b] for a, b in zip(starts[part], ends[part], strict=True)]
        parts.append(ranks_of_scores(score(similarities), lists, relative=scoring.startswith("dsl")))
    return join_ranks(parts)


def retrieve(
    text: object,
    video: object,
    video_of_text: object,
    *,
    scoring: str = "simple",
    bank_text: object | None = None,
    bank_video: object | None = None,
    chunk: int | None = None,
) -> dict[str, QueryRanks]:
    """Ranks of both directions, {"text_to_video": [Q texts], "video_to_text": [videos that have a text]}.

    text [Q, E], video [C, E]; video_of_text: int [Q], the one video of each text. A video's positives are all
    its texts; a video without any is a candidate but not a query. ``bank_text`` and ``bank_video``: training
    features for QB-Norm. Example: ``metrics(retrieve(text, video,
    np.arange(1000))["text_to_video"])["R@1"]``.
    """
    text, video = unit_rows(text, "text"), unit_rows(video, "video")
    of_text, _ = positive_lists(video_of_text, len(text), len(video))
    if len(of_text) != len(text):
        raise ClipVipError(
            "video_of_text: expected one video for each text, got several; repeat the text instead"
        )
    asked, owner = np.unique(of_text, return_inverse=True)
    texts_of_video = np.split(np.argsort(owner, kind="stable"), np.cumsum(np.bincount(owner))[:-1])
    options = {"scoring": scoring, "chunk": chunk}
    return {
        "text_to_video": ranks(text, video, of_text, direction="text_to_video", bank=bank_text, **options),
        "video_to_text": ranks(
            video[asked], text, texts_of_video, direction="video_to_text", bank=bank_video, **options
        ),
    }


def metrics(ranks: QueryRanks, ties: str = "fair") -> dict[str, float]:
    """R@1, R@5, R@10 (per cent), MdR and MnR (ranks from 1), and the number of queries (``queries``).

    ties: "fair" is the expectation over a random order of ties; "authors" counts each tie as a further row,
    as their published numbers do. Raises ClipVipError on another name or without queries.
    """
    if ties not in TIE_RULES:
        raise unknown("tie rule", ties, TIE_RULES)
    if not len(ranks):
        raise ClipVipError(
            "metrics: expected at least one query, got none; check the split's annotation file"
        )
    if ties == "fair":
        place, recall = ranks.expected(), {k: ranks.hits(k).mean() for k in RECALLS}
    else:
        place = ranks.authors_rows()
        recall = {k: (place <= k).mean() for k in RECALLS}
    return {
        **{f"R@{k}": 100.0 * float(value) for k, value in recall.items()},
        "MdR": float(np.median(place)),
        "MnR": float(place.mean()),
        "queries": len(ranks),
    }


def top_k(
    queries: object, candidates: object, k: int, chunk: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest candidates of each query, best first: (indices [Q, k], cosine similarities [Q, k]).

    Equal scores come in the candidates' order. k is cut to the number of candidates.
    """
    if k < 1:
        raise ClipVipError(f"top_k: expected k of at least 1, got {k}; ask for one video or more")
    indices, scores = [], []
    for _, part in similarity_chunks(queries, candidates, chunk):
        order = np.argsort(-part, axis=1, kind="stable")[:, :k]
        indices.append(order)
        scores.append(np.take_along_axis(part, order, axis=1))
    return np.concatenate(indices), np.concatenate(scores)


# ---------------------------------------------------------------------------------------------------- scoring


def scorer(
    scoring: str,
    direction: str,
    queries: np.ndarray,
    candidates: np.ndarray,
    bank: object | None = None,
    chunk: int | None = None,
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from similarities [rows, C] to scores [rows, C], after the first pass that it needs."""
    if scoring not in SCORINGS:
        raise unknown("scoring", scoring, SCORINGS)
    if direction not in DIRECTIONS:
        raise unknown("direction", direction, DIRECTIONS)
    if scoring == "simple":
        return lambda similarities: similarities
    if scoring == "dsl_authors" and direction == "video_to_text":
        return dsl_over_candidates
    if scoring.startswith("dsl"):
        normaliser = log_sum_exp(
            (part for _, part in similarity_chunks(queries, candidates, chunk)), DSL_TEMPERATURE
        )
        return lambda similarities: similarities * np.exp(DSL_TEMPERATURE * similarities - normaliser)
    if bank is None:
        raise ClipVipError(
            "qb_norm: expected a bank of training queries, got none; embed the training split's"
        )
    return qb_norm(bank, candidates, chunk)


def dsl(similarities: np.ndarray, temperature: float = DSL_TEMPERATURE) -> np.ndarray:
    """Dual softmax of a full matrix [Q, C]: similarity x softmax over the queries (axis 0) of T x similarity.

    Pass the matrix of the direction that is asked: texts x videos, or videos x texts. Transductive.
    Source: CAMoE (Cheng et al. 2021); T = 100 as in the authors' run_video_retrieval.py.
    """
    similarities = np.asarray(similarities, dtype=np.float64)
    return similarities * np.exp(temperature * similarities - log_sum_exp([similarities], temperature))


def dsl_over_candidates(similarities: np.ndarray, temperature: float = DSL_TEMPERATURE) -> np.ndarray:
    """The authors' video-to-text DSL: the softmax runs over a query's own candidates (axis 1)."""
    return dsl(np.asarray(similarities).T, temperature).T


def log_sum_exp(chunks: Iterable[np.ndarray], temperature: float) -> np.ndarray:
    """log of the sum over rows of exp(T x score) for each column: [C] from chunks [rows, C], in one pass."""
    total = None
    for chunk in chunks:
        scaled = temperature * chunk
        peak = scaled.max(axis=0)
        part = peak + np.log(np.exp(scaled - peak).sum(axis=0))
        total = part if total is None else np.logaddexp(total, part)
    return total


def qb_norm(
    bank: object,
    candidates: object,
    chunk: int | None = None,
    beta: float = QB_NORM_BETA,
    top: int = QB_NORM_TOP,
) -> Callable[[np.ndarray], np.ndarray]:
    """QB-Norm's dynamic inverted softmax: a function from similarities [rows, C] to scores [rows, C].

    bank [B, E]: TRAINING queries of the direction (texts for text-to-video), so it is not transductive. A
    candidate is a hub if it is among the ``top`` of any bank query. A query whose nearest candidate is a hub
    is scored exp(beta s) / sum over the bank of exp(beta s_bank), here as a logarithm, which keeps the order;
    every other query keeps its similarities. Source: Bogolin et al., CVPR 2022, section 3.3.
    """
    normaliser, hub = None, None
    for _, part in similarity_chunks(bank, candidates, chunk):
        nearest = np.argsort(-part, axis=1, kind="stable")[:, :top]
        summed = log_sum_exp([part], beta)
        hub = np.zeros(part.shape[1], dtype=bool) if hub is None else hub
        hub[nearest] = True
        normaliser = summed if normaliser is None else np.logaddexp(normaliser, summed)

    def score(similarities: np.ndarray) -> np.ndarray:
        activated = hub[similarities.argmax(axis=1)]
        return np.where(activated[:, None], beta * similarities - normaliser, similarities)

    return score
