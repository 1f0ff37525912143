"""The ten claims of the paper as data, declared before they are tested, and the rule that judges them.

* A claim is a sentence and the contrasts that it asserts, ALL of which must hold. A contrast is a weighted
  sum of arms on the same test queries (mostly one arm minus another) and the side of zero that is claimed.
* Evidence is paired over seeds and queries (clipvip_lib/statistics/intervals.py); several contrasts are corrected by
  Holm. reproduced: every contrast lies on the claimed side, corrected; contradicted: at least one lies on the
  other side, corrected; inconclusive: neither; not run: evidence is missing, and the verdict says which.
* The effect shown is that of the deciding contrast: the weakest one, or the most contradictory.
* Nothing here knows a result. Change a row only before the run that tests it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from clipvip_lib.errors import ClipVipError, unknown
from clipvip_lib.statistics.intervals import Difference, from_interval, holm, paired_difference

ATTENTION_ARMS = ("proxy-1", "proxy-2", "proxy-4", "proxy-8", "full", "mean_pool", "sequential")
LOSS_ARMS = ("V-S", "V-S + F-C", "V-S + V-C", "V-S + V-C + F-C", "V-S,C", "V-S,C + F-C")
CORPORA = ("webvid-2.5m", "hdvila-10m", "hdvila-100m")
METHOD_ARMS = (
    "clip4clip",
    "clip-vip",
)  # mean_pool without post-pretraining; captions + proxies + V-S,C + F-C
TEXT_SOURCES = ("subtitles", "ofa captions", "alt-text", "caption pairs")
BENCHMARKS = ("msrvtt", "didemo")
VERDICTS = ("reproduced", "contradicted", "inconclusive", "not run")
GREATER, LESS = "greater", "less"
ALPHA = 0.05


class Measure(NamedTuple):
    """One measured column: which arm, where, what. ``hits_key`` of the evidence."""

    arm: str
    benchmark: str
    metric: str = "R@1"
    scoring: str = "simple"

    def __str__(self) -> str:
        extra = "" if self.scoring == "simple" else f" with {self.scoring}"
        return f"{self.arm}{extra} on {self.benchmark}"


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of measures, one (weight, measure) per row; claimed: ``greater`` or ``less`` than zero."""

    name: str
    terms: tuple[tuple[float, Measure], ...]
    direction: str = GREATER

    @property
    def sign(self) -> int:
        """+1 if more than zero is claimed, -1 if less."""
        return 1 if self.direction == GREATER else -1

    @property
    def metric(self) -> str:
        """R@1 or NMI."""
        return self.terms[0][1].metric


@dataclass(frozen=True)
class Claim:
    """A claim of the paper: all its contrasts must hold. Under ``min_seeds`` a verdict is provisional."""

    id: int
    sentence: str
    notebook: str
    contrasts: tuple[Contrast, ...]
    metric: str = "R@1"
    min_seeds: int = 3


def over(left: str, right: str, benchmark: str, metric: str = "R@1") -> Contrast:
    """``left`` beats ``right`` on a benchmark."""
    terms = ((1.0, Measure(left, benchmark, metric)), (-1.0, Measure(right, benchmark, metric)))
    return Contrast(f"{left} over {right}, {benchmark}", terms)


def checkpoint(corpus: str, which: str) -> str:
    """Name of the arm that was post-pretrained on a corpus up to its ``first`` or ``last`` checkpoint."""
    return f"{corpus}@{which}"


def longer(corpus: str, benchmark: str) -> tuple[tuple[float, Measure], ...]:
    """What post-pretraining after the first checkpoint brings: last minus first, each fine-tuned.

    The first checkpoint is fixed beforehand. The best one would not do: the largest of several noisy scores
    is above the last one by selection alone.
    """
    last, first = (Measure(checkpoint(corpus, which), benchmark) for which in ("last", "first"))
    return ((1.0, last), (-1.0, first))


def loses_more(smaller: str, larger: str, benchmark: str) -> Contrast:
    """Longer post-pretraining brings less on the smaller corpus: a difference of differences."""
    back = tuple((-weight, measure) for weight, measure in longer(larger, benchmark))
    return Contrast(f"loss on {smaller} over {larger}, {benchmark}", longer(smaller, benchmark) + back, LESS)


def nearer_to_best(loss: str, benchmark: str) -> Contrast:
    """A loss with captions lies nearer to the claimed best than to subtitles alone: above their midpoint.

    "Near each other" needs a yardstick; this one is the gain of captions itself, not a margin that we choose.
    """
    best, plain = Measure("V-S,C + F-C", benchmark), Measure("V-S", benchmark)
    terms = ((1.0, Measure(loss, benchmark)), (-0.5, best), (-0.5, plain))
    return Contrast(f"{loss} nearer to V-S,C + F-C than to V-S, {benchmark}", terms)


def dsl_over_simple(arm: str, benchmark: str) -> Contrast:
    """DSL raises an arm's score."""
    terms = ((1.0, Measure(arm, benchmark, scoring="dsl")), (-1.0, Measure(arm, benchmark)))
    return Contrast(f"{arm}: DSL over simple, {benchmark}", terms)


SMALL, MIDDLE, LARGE = CORPORA
WITH_CAPTIONS = LOSS_ARMS[1:]
BEST_LOSS = "V-S,C + F-C"

CLAIMS = (
    Claim(
        1,
        "Longer post-pretraining on a small corpus lowers fine-tuned retrieval (over-fitting).",
        "01_data_size",
        (Contrast(f"last over first checkpoint on {SMALL}, msrvtt", longer(SMALL, "msrvtt"), LESS),),
    ),
    Claim(
        2,
        "The smaller the corpus the larger the loss.",
        "01_data_size",
        (loses_more(SMALL, MIDDLE, "msrvtt"), loses_more(MIDDLE, LARGE, "msrvtt")),
    ),
    Claim(
        3,
        "The largest, most diverse corpus is the best to post-pretrain on.",
        "01_data_size",
        tuple(over(checkpoint(LARGE, "last"), checkpoint(c, "last"), "msrvtt") for c in (SMALL, MIDDLE)),
    ),
    Claim(
        4,
        "Subtitles are further (NMI) from downstream captions than other sources.",
        "02_language_gap",
        tuple(
            over("subtitles", other, b, "NMI") for other in ("alt-text", "caption pairs") for b in BENCHMARKS
        ),
        metric="NMI",
    ),
    Claim(
        5,
        "OFA captions close that gap.",
        "03_ofa_captions",
        tuple(over("subtitles", "ofa captions", b, "NMI") for b in BENCHMARKS),
        metric="NMI",
    ),
    Claim(
        6,
        "Proxy attention beats full attention, on both benchmarks.",
        "04_video_proxy",
        tuple(over("proxy-4", "full", b) for b in BENCHMARKS),
    ),
    Claim(
        7,
        "Proxy attention beats mean pooling; M proxies beat one.",
        "04_video_proxy",
        tuple(over("proxy-4", other, b) for other in ("mean_pool", "proxy-1") for b in BENCHMARKS),
    ),
    Claim(
        8,
        "Every loss with captions beats subtitles alone.",
        "05_ocl_losses",
        tuple(over(loss, "V-S", b) for loss in WITH_CAPTIONS for b in BENCHMARKS),
    ),
    Claim(
        9,
        "V-S,C + F-C is the best loss; the ones with captions are near each other.",
        "05_ocl_losses",
        tuple(over(BEST_LOSS, loss, b) for loss in LOSS_ARMS if loss != BEST_LOSS for b in BENCHMARKS)
        + tuple(nearer_to_best(loss, b) for loss in WITH_CAPTIONS if loss != BEST_LOSS for b in BENCHMARKS),
    ),
    Claim(
        10,
        "CLIP-ViP beats the CLIP4Clip baseline on every benchmark; DSL adds to it.",
        "06_clip_vip",
        tuple(over("clip-vip", "clip4clip", b) for b in BENCHMARKS)
        + tuple(dsl_over_simple("clip-vip", b) for b in BENCHMARKS),
    ),
)


def claim(number: int) -> Claim:
    """The claim with this id (1 to 10). Raises ClipVipError for another."""
    found = {str(c.id): c for c in CLAIMS}
    if str(number) not in found:
        raise unknown("claim", number, found)
    return found[str(number)]


# --------------------------------------------------------------------------------------------------- evidence

Evidence = Mapping[Contrast, "np.ndarray | Difference | tuple[float, float, float]"]


def evidence_from_hits(hits: Mapping[Measure | tuple[str, ...], np.ndarray]) -> dict[Contrast, np.ndarray]:
    """Evidence for each contrast whose measures are all there: paired values in POINTS, [seeds, queries].

    hits: per-query hits (0 to 1, ``QueryRanks.hits``) as [seeds, queries] (or [queries]: one seed) by Measure, or
    by a plain tuple (arm, benchmark, metric, scoring). Seeds and queries must stand in the same order in all
    arms. A contrast that lacks a measure is left out, and its claim will be "not run". Raises ClipVipError if
    the arms of a contrast differ in shape.
    """
    tables = {Measure(*key): np.atleast_2d(np.asarray(table, float)) for key, table in hits.items()}
    evidence = {}
    for contrast in (c for each in CLAIMS for c in each.contrasts):
        if any(measure not in tables for _, measure in contrast.terms):
            continue
        shapes = {tables[measure].shape for _, measure in contrast.terms}
        if len(shapes) > 1:
            raise ClipVipError(
                f"{contrast.name}: expected arms of the same seeds and queries, got {sorted(shapes)}; "
                "evaluate all arms on the same seeds and test split"
            )
        evidence[contrast] = 100.0 * sum(weight * tables[measure] for weight, measure in contrast.terms)
    return evidence


def difference(value: np.ndarray | Difference | tuple[float, float, float]) -> Difference:
    """Evidence in any form as a Difference: paired values [S, Q], (effect, low, high), or itself."""
    if isinstance(value, Difference):
        return value
    if isinstance(value, tuple):
        return from_interval(*value)
    return paired_difference(value)


# ---------------------------------------------------------------------------------------------------- verdict


@dataclass(frozen=True)
class ContrastResult:
    """One contrast judged. low, high: plain 95 % interval; p: two-sided; holm: corrected in its claim."""

    name: str
    verdict: str
    effect: float
    low: float
    high: float
    p: float
    holm: float
    seeds: int
    queries: int


@dataclass(frozen=True)
class Verdict:
    """A claim judged. effect, low, high: the deciding contrast, at the level at which Holm tests it.

    Points for R@1, NMI (0 to 1) for NMI; None if not run. seeds: the seeds' numbers; queries: of the deciding
    contrast. provisional: fewer seeds than the claim asks for. note: what is missing, or what decided.
    """

    id: int
    claim: str
    verdict: str
    effect: float | None
    low: float | None
    high: float | None
    seeds: tuple[int, ...]
    queries: int
    metric: str
    notebook: str
    provisional: bool = False
    note: str = ""
    contrasts: tuple[ContrastResult, ...] = ()

    def row(self) -> dict[str, object]:
        """The row of claims.json."""
        keys = ("id", "claim", "verdict", "effect", "low", "high", "seeds", "queries", "metric", "notebook")
        return {key: getattr(self, key) for key in keys} | {"seeds": list(self.seeds)}

    def __str__(self) -> str:
        if self.effect is None:
            return f"claim {self.id}: {self.verdict} ({self.note})"
        digits, unit = (3, "NMI") if self.metric == "NMI" else (1, f"points of {self.metric}")
        numbers = f"{self.effect:+.{digits}f} [{self.low:+.{digits}f}, {self.high:+.{digits}f}] {unit}"
        return f"claim {self.id}: {self.verdict}, {numbers}; {self.note}"


def verdict(claim: Claim, evidence: Evidence, seeds: Sequence[int] | None = None) -> Verdict:
    """Judge a claim by the rule in this module's docstring.

    evidence: by contrast, paired values [seeds, queries] in points, an (effect, low, high), or a Difference;
    effects are in the contrast's own orientation. seeds: the seeds' numbers for the report (default 0, 1,
    ...).
    """
    missing = [contrast.name for contrast in claim.contrasts if contrast not in evidence]
    if missing:
        note = f"no evidence for {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        return blank(claim, note)
    found = [difference(evidence[contrast]) for contrast in claim.contrasts]
    p_values = [d.p_value for d in found]
    adjusted = holm(p_values)
    toward = [contrast.sign * np.sign(d.effect) for contrast, d in zip(claim.contrasts, found, strict=True)]
    words = [contrast_verdict(*pair) for pair in zip(toward, adjusted, strict=True)]
    outcome = next((word for word in ("contradicted", "inconclusive") if word in words), "reproduced")
    place = deciding(claim, found, words, outcome)
    low, high = found[place].interval(1 - ALPHA / holm_step(p_values, adjusted, place))
    count = min(d.seeds for d in found)
    seeds = tuple(range(count)) if seeds is None else tuple(seeds)
    results = tuple(
        ContrastResult(c.name, word, d.effect, d.low, d.high, d.p_value, float(p), d.seeds, d.queries)
        for c, word, d, p in zip(claim.contrasts, words, found, adjusted, strict=True)
    )
    return Verdict(
        claim.id,
        claim.sentence,
        outcome,
        found[place].effect,
        float(low),
        float(high),
        seeds,
        found[place].queries,
        claim.metric,
        claim.notebook,
        provisional=count < claim.min_seeds,
        note=explain(claim, found[place], words, place, count),
        contrasts=results,
    )


def verdicts(evidence: Evidence, seeds: Sequence[int] | None = None) -> list[Verdict]:
    """All ten claims judged on one body of evidence."""
    return [verdict(each, evidence, seeds) for each in CLAIMS]


def blank(claim: Claim, note: str) -> Verdict:
    """The verdict "not run"."""
    return Verdict(
        claim.id, claim.sentence, "not run", None, None, None, (), 0, claim.metric, claim.notebook, note=note
    )


def contrast_verdict(toward: float, adjusted: float) -> str:
    """Which side of zero a contrast lies on, corrected: ``toward`` is +1 on the claimed side."""
    if adjusted > ALPHA:
        return "inconclusive"
    return "reproduced" if toward > 0 else "contradicted"


def deciding(claim: Claim, found: Sequence[Difference], words: Sequence[str], outcome: str) -> int:
    """The deciding contrast: of those with the claim's outcome the least favourable, in standard errors."""

    def standing(place: int) -> float:
        d = found[place]
        oriented = claim.contrasts[place].sign * d.effect
        error = d.below if d.effect > 0 else d.above
        if error > 0 or oriented == 0:
            return oriented / error if oriented else 0.0
        return np.copysign(np.inf, oriented)

    return min((place for place, word in enumerate(words) if word == outcome), key=standing)


def holm_step(p_values: Sequence[float], adjusted: np.ndarray, place: int) -> int:
    """By how much Holm divides alpha for a contrast: m, m - 1, ... 1; from where it stops, the same."""
    order = np.argsort(p_values, kind="stable")
    rank = int(np.flatnonzero(order == place)[0])
    stopped = np.flatnonzero(adjusted[order] > ALPHA)
    return len(order) - min(rank, int(stopped[0]) if stopped.size else rank)


def explain(claim: Claim, d: Difference, words: Sequence[str], place: int, count: int) -> str:
    """One line under a verdict: the deciding contrast, how many hold, and what the interval covers."""
    several = f" ({words.count('reproduced')} of {len(words)} contrasts hold)" if len(words) > 1 else ""
    line = f"decided by {claim.contrasts[place].name}{several}; interval over {d.basis}"
    if count < claim.min_seeds:
        line += f"; provisional: {count} of {claim.min_seeds} seeds"
    return line
