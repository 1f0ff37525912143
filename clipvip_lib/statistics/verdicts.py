"""The rule that judges a statement: where the intervals of its contrasts lie, and nothing else.

    contradicted   one interval lies wholly below zero
    reproduced     every interval lies above zero
    no difference  every interval lies within the margin of zero
    open           none of these
    not judged     fewer than three seeds: the spread between seeds is not known
    not run        evidence is missing

A statement that things are level is reproduced if every interval lies within the margin, and contradicted if one lies
wholly outside. An interval within the margin is two one-sided tests of equivalence (Schuirmann 1987).

Intervals are at 95 %. Where a statement has more than two contrasts they are wider (Bonferroni), so that the chance
of contradicting a statement by one unlucky interval stays below one in twenty. Error rates of all four verdicts are
simulated in tests/test_verdicts.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clipvip_lib.errors import ClipVipError
from clipvip_lib.statistics.claims import (
    CLAIMS,
    CONTRASTS,
    STATEMENTS,
    Claim,
    Contrast,
    Measure,
    Statement,
    claim,
)
from clipvip_lib.statistics.intervals import Difference, from_interval, paired_difference

REPRODUCED, CONTRADICTED, NO_DIFFERENCE, OPEN = "reproduced", "contradicted", "no difference", "open"
NOT_JUDGED, NOT_RUN = "not judged", "not run"
IN_FULL = "not run in full"  # of a claim, some of whose statements are
VERDICTS = (REPRODUCED, CONTRADICTED, NO_DIFFERENCE, OPEN, NOT_JUDGED, NOT_RUN)
DECIDED = (REPRODUCED, CONTRADICTED, NO_DIFFERENCE)
MIN_SEEDS = 3

PairedValues = Mapping[Contrast, np.ndarray]  # [seeds, queries], in points
Evidence = Mapping[Contrast, "np.ndarray | Difference | tuple[float, float, float]"]


def evidence_from_hits(hits: Mapping[Measure, np.ndarray]) -> dict[Contrast, np.ndarray]:
    """Evidence for each contrast whose measures are both there: paired values in POINTS, [seeds, queries].

    hits: per-query hits (0 to 1, such as ``QueryRanks.hits``) as [seeds, queries] (or [queries]: one seed). Seeds and
    queries must stand in the same order in all arms. A contrast that lacks a measure is left out, and its statement
    will be "not run". Raises ClipVipError if the arms of a contrast differ in shape.
    """
    tables = {Measure(*key): np.atleast_2d(np.asarray(table, float)) for key, table in hits.items()}
    evidence = {}
    for contrast in CONTRASTS:
        if contrast.more not in tables or contrast.less not in tables:
            continue
        more, less = tables[contrast.more], tables[contrast.less]
        if more.shape != less.shape:
            raise ClipVipError(
                f"{contrast.name}: expected arms of the same seeds and queries, got {list(more.shape)} and "
                f"{list(less.shape)}; evaluate all arms on the same seeds and test split"
            )
        evidence[contrast] = 100.0 * (more - less)
    return evidence


def difference(value: np.ndarray | Difference | tuple[float, float, float]) -> Difference:
    """Evidence in any form as a Difference: paired values [S, Q], (effect, low, high), or itself."""
    if isinstance(value, Difference):
        return value
    if isinstance(value, tuple):
        return from_interval(*value)
    return paired_difference(value)


def confidence(statement: Statement) -> float:
    """The level of a statement's intervals: 0.95 for one or two contrasts, more for more."""
    return 1 - 0.1 / max(2, len(statement.contrasts))


@dataclass(frozen=True)
class ContrastResult:
    """One contrast judged: effect and interval at the statement's level, in points or NMI; by_seed: each seed's own
    effect, and r1_by_seed the same in R@1, where it is known."""

    name: str
    verdict: str
    effect: float
    low: float
    high: float
    seeds: int
    queries: int
    by_seed: tuple[float, ...] = ()
    r1_by_seed: tuple[float, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """A statement judged.

    effect, low, high: those of the contrast on which the verdict hangs, at the level ``confidence`` (points or NMI;
    None if not run). seeds: their numbers. note: what decided, or what is missing.
    """

    statement: Statement
    verdict: str
    effect: float | None
    low: float | None
    high: float | None
    seeds: tuple[int, ...]
    queries: int
    note: str
    contrasts: tuple[ContrastResult, ...] = ()

    @property
    def id(self) -> str:
        """The statement's id, such as "7a"."""
        return self.statement.id

    def row(self) -> dict[str, object]:
        """The row of claims.json."""
        return {
            "id": self.id,
            "claim": self.statement.claim,
            "statement": self.statement.sentence,
            "verdict": self.verdict,
            "effect": self.effect,
            "low": self.low,
            "high": self.high,
            "confidence": confidence(self.statement),
            "seeds": list(self.seeds),
            "queries": self.queries,
            "metric": self.statement.metric,
            "note": self.note,
            "contrasts": [
                dataclasses.asdict(c) | {"by_seed": [*c.by_seed], "r1_by_seed": [*c.r1_by_seed]}
                for c in self.contrasts
            ],
        }


def verdict(
    statement: Statement,
    evidence: Evidence,
    seeds: Sequence[int] | None = None,
    r1: PairedValues | None = None,
) -> Verdict:
    """Judge a statement by the rule in this module's docstring.

    evidence: by contrast, paired values [seeds, queries] in points, an (effect, low, high), or a Difference. seeds:
    the seeds' numbers for the report (default 0, 1, ...). r1: the same evidence in R@1, to be told beside.
    """
    missing = [contrast.name for contrast in statement.contrasts if contrast not in evidence]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        return blank(statement, f"no evidence for {missing[0]}{more}")
    results = []
    for contrast in statement.contrasts:
        found = difference(evidence[contrast])
        low, high = map(float, found.interval(confidence(statement)))
        word = word_of(low, high, statement.margin, statement.level)
        results.append(
            ContrastResult(
                contrast.name,
                word,
                found.effect,
                low,
                high,
                found.seeds,
                found.queries,
                found.by_seed,
                _by_seed(r1, contrast),
            )
        )
    count = min(result.seeds for result in results)
    within = all(-statement.margin < result.low and result.high < statement.margin for result in results)
    together = combined([result.verdict for result in results], within)
    shown = _decider(statement, results, together)
    return Verdict(
        statement,
        NOT_JUDGED if count < MIN_SEEDS else together,
        shown.effect,
        shown.low,
        shown.high,
        tuple(range(count)) if seeds is None else tuple(seeds),
        shown.queries,
        _note(results, shown, count),
        tuple(results),
    )


def _by_seed(r1: PairedValues | None, contrast: Contrast) -> tuple[float, ...]:
    return tuple(r1[contrast].mean(axis=1).tolist()) if r1 and contrast in r1 else ()


def word_of(low: float, high: float, margin: float, level: bool = False) -> str:
    """The verdict on one contrast by its interval; level: that it lies within the margin is what is claimed."""
    within = -margin < low and high < margin
    if level:
        outside = low >= margin or high <= -margin
        return REPRODUCED if within else CONTRADICTED if outside else OPEN
    if low > 0 or high < 0:
        return REPRODUCED if low > 0 else CONTRADICTED
    return NO_DIFFERENCE if within else OPEN


def combined(words: Iterable[str], within: bool = False) -> str:
    """One verdict of the verdicts on all contrasts of a statement. within: whether all intervals lie within the
    margin. Reproduced on one benchmark and no difference on the other is open: neither word is true of both."""
    words = set(words)
    if CONTRADICTED in words or words == {REPRODUCED}:
        return CONTRADICTED if CONTRADICTED in words else REPRODUCED
    return NO_DIFFERENCE if within else OPEN


def _decider(statement: Statement, results: Sequence[ContrastResult], together: str) -> ContrastResult:
    """The contrast on which the verdict hangs: of those with its word the least favourable to the statement."""

    def favour(result: ContrastResult) -> float:
        return -max(abs(result.low), abs(result.high)) if statement.level else result.low

    own = [result for result in results if result.verdict == together]
    return min(own or [result for result in results if result.verdict != REPRODUCED], key=favour)


def _note(results: Sequence[ContrastResult], shown: ContrastResult, count: int) -> str:
    """What decided, in words."""
    if count < MIN_SEEDS:
        return f"{count} of {MIN_SEEDS} seeds that a verdict needs"
    if len(results) == 1:
        return shown.name
    by_word = {
        word: [result.name for result in results if result.verdict == word]
        for word in (REPRODUCED, NO_DIFFERENCE, OPEN, CONTRADICTED)
    }
    parts = [f"{word} in {len(names)} of {len(results)}" for word, names in by_word.items() if names]
    return f"{'; '.join(parts)}; hangs on {shown.name}"


def blank(statement: Statement, note: str, word: str = NOT_RUN) -> Verdict:
    """A verdict without evidence."""
    return Verdict(statement, word, None, None, None, (), 0, note)


def verdicts(
    evidence: Evidence,
    seeds: Sequence[int] | None = None,
    statements: Sequence[Statement] = STATEMENTS,
    r1: PairedValues | None = None,
) -> list[Verdict]:
    """All statements judged on one body of evidence. Contrasts that several statements share are measured once."""
    asked = {contrast for statement in statements for contrast in statement.contrasts}
    measured = {contrast: difference(value) for contrast, value in evidence.items() if contrast in asked}
    return [verdict(each, measured, seeds, r1) for each in statements]


def sum_up(claim: Claim, found: Iterable[Verdict | Mapping[str, object]]) -> str:
    """What the statements of a claim come to: "holds", "holds in part (2 of 3)", "does not hold", "open", "not
    judged", "not run in full (1 of 3 reproduced)" or "not run". found: verdicts on any statements, or their rows."""
    rows = [each if isinstance(each, Mapping) else each.row() for each in found]
    words = [row["verdict"] for row in rows if row["claim"] == claim.id]
    held = words.count(REPRODUCED)
    if all(word == NOT_RUN for word in words):
        return NOT_RUN
    if NOT_RUN in words:
        return f"{IN_FULL} ({held} of {len(words)} reproduced)"
    if NOT_JUDGED in words:
        return NOT_JUDGED
    if held == len(words):
        return "holds"
    if held:
        against = f", {count} contradicted" if (count := words.count(CONTRADICTED)) else ""
        return f"holds in part ({held} of {len(words)}{against})"
    if OPEN in words:
        return (
            f"{OPEN} ({against} of {len(words)} contradicted)"
            if (against := words.count(CONTRADICTED))
            else OPEN
        )
    return "does not hold"


def kind(word: str) -> str:
    """What ``sum_up`` said, without its numbers: "holds in part"."""
    return word.partition(" (")[0]


def claims_of(statements: Iterable[Verdict | Mapping[str, object]]) -> list[Claim]:
    """The claims that some verdicts belong to, in order."""
    rows = [each if isinstance(each, Mapping) else each.row() for each in statements]
    numbers = {row["claim"] for row in rows}
    return [claim(each.id) for each in CLAIMS if each.id in numbers]
