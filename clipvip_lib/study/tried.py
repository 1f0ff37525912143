"""What we tried where a claim was not reproduced: the same contrasts under another condition.

A verdict stands as it was declared; a trial only looks for its cause. Each row of ``TRIALS`` changes the profile, or
looks before fine-tuning, and measures contrasts that the claim itself names, on the same test queries. ``make tried``
runs them and writes ``reports/reference/tried.json``, which notebook 08 shows; nothing else reads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clipvip_lib import files
from clipvip_lib.profiles import Profile
from clipvip_lib.statistics import claims, intervals
from clipvip_lib.statistics.claims import Contrast, Measure
from clipvip_lib.study import evidence, experiments
from clipvip_lib.workshop.stages import Stage

FILE = files.CHECKOUT / "reports" / "reference" / "tried.json"
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Trial:
    """A question about a claim's verdict: what is changed (profile fields), and the contrasts to look at."""

    claim: int
    question: str
    contrasts: tuple[Contrast, ...]
    changes: Mapping[str, object] = field(default_factory=dict)
    zero_shot: bool = False

    @property
    def condition(self) -> str:
        """What is changed, in words."""
        changed = [f"{name} = {value:g}" for name, value in self.changes.items()]
        return ", ".join(changed + ["not fine-tuned"] * self.zero_shot)


def _of(number: int, *names: str) -> tuple[Contrast, ...]:
    """Contrasts of a claim, by their names."""
    known = {contrast.name: contrast for contrast in claims.claim(number).contrasts}
    return tuple(known[name] for name in names)


LONGER = {"postpretrain.steps": 1500}  # three epochs of the largest corpus, 120 of the smallest
LONG = {"finetune.steps": 720}  # twice as long: every arm far past the moment at which it learns order
TRIALS = (
    Trial(
        1, "Does the small corpus over-fit in three times as many steps?", claims.claim(1).contrasts, LONGER
    ),
    Trial(2, "Do smaller corpora lose more in three times as many steps?", claims.claim(2).contrasts, LONGER),
    Trial(3, "Is the largest corpus the best after three epochs?", claims.claim(3).contrasts, LONGER),
    Trial(6, "Does full attention catch up?", _of(6, "proxy-4 over full, msrvtt"), LONG),
    Trial(7, "Do four proxies leave one behind?", _of(7, "proxy-4 over proxy-1, msrvtt"), LONG),
    Trial(
        8,
        "Do captions help before fine-tuning levels the losses?",
        _of(8, "V-S,C + F-C over V-S, msrvtt", "V-S,C + F-C over V-S, didemo"),
        zero_shot=True,
    ),
    Trial(
        9,
        "Is the whole loss ahead of the others before fine-tuning levels them?",
        _of(9, *(f"V-S,C + F-C over {loss}, msrvtt" for loss in claims.LOSS_ARMS[1:-1])),
        zero_shot=True,
    ),
    Trial(
        10,
        "Does DSL add before fine-tuning?",
        _of(10, "clip-vip: DSL over simple, msrvtt", "clip-vip: DSL over simple, didemo"),
        zero_shot=True,
    ),
)


def stages(trial: Trial, profile: Profile, seeds: Sequence[int]) -> dict[Measure, list[Stage]]:
    """The scored stages behind each measure of a trial's contrasts, one per seed."""
    found = {}
    for measure in dict.fromkeys(measure for contrast in trial.contrasts for _, measure in contrast.terms):
        if trial.zero_shot:
            arm, _ = experiments.scored_arms(profile)[measure.arm, measure.benchmark]
            found[measure] = [experiments.zero_shot(profile, arm, measure.benchmark, seed) for seed in seeds]
        else:
            found[measure] = evidence.stages_of(profile, measure.arm, measure.benchmark, seeds)
    return found


def measured(trial: Trial, profile: Profile, seeds: Sequence[int], home: Path | None = None) -> list[dict]:
    """One row per contrast: claim, question, condition, contrast, claimed direction, effect, low, high, seeds,
    queries."""
    hits = {
        measure: evidence.hits(found, home=home, scoring=measure.scoring)
        for measure, found in stages(trial, profile, seeds).items()
    }
    rows = []
    for contrast in trial.contrasts:
        table = 100.0 * sum(weight * hits[measure] for weight, measure in contrast.terms)
        found = intervals.paired_difference(table)
        row = {"claim": trial.claim, "question": trial.question, "condition": trial.condition}
        row |= {"contrast": contrast.name, "claimed": contrast.direction}
        row |= {"effect": found.effect, "low": found.low, "high": found.high}
        rows.append(row | {"seeds": list(seeds), "queries": found.queries})
    return rows


def read(path: Path = FILE) -> list[dict]:
    """The rows that ``make tried`` wrote; none if it was not run."""
    return files.read_json(path)["rows"] if path.is_file() else []


def measured_at(path: Path = FILE) -> str:
    """Which commit's recipe the trials ran under, when and on which machine, as a sentence."""
    origin = files.read_json(path)["from"]
    return f"Measured at commit {origin['commit']} ({origin['time'][:10]}) on {origin['machine']}."


def in_words(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """One sentence per row: the question, and what its interval says."""
    found = []
    for row in rows:
        low, high = row["low"], row["high"]
        if row["claimed"] == claims.LESS:
            low, high = -high, -low
        answer = "as claimed" if low > 0 else "against the claim" if high < 0 else "no difference is shown"
        found.append(f"Claim {row['claim']}: {row['question']} {row['contrast']}: {answer}.")
    return found
