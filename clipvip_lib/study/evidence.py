"""From finished stages to the evidence that claims are judged on: per-query hits, paired over seeds and queries.

Notebooks 01 to 06 and 08 read the same few functions, so a number means the same thing on every page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from clipvip_lib import claims, intervals
from clipvip_lib.claims import Claim, Contrast, Measure, Verdict
from clipvip_lib.data.benchmarks import BENCHMARKS
from clipvip_lib.files import read_json
from clipvip_lib.profiles import Profile
from clipvip_lib.retrieval import Ranks
from clipvip_lib.study import experiments
from clipvip_lib.study.stages import Stage

TEXT_TO_VIDEO, VIDEO_TO_TEXT = "text_to_video", "video_to_text"


def ranks(stage: Stage, direction: str = TEXT_TO_VIDEO, scoring: str = "simple", home: Path | None = None) -> Ranks:
    """The ranks of every test query of a scored arm."""
    with np.load(stage.folder(home) / "ranks.npz") as arrays:
        return Ranks(*(arrays[f"{direction}/{scoring}/{column}"] for column in ("better", "tied", "positives")))


def hits(stages: Sequence[Stage], k: int = 1, home: Path | None = None, **which: str) -> np.ndarray:
    """Expected hits at ``k`` of one arm, a stage a seed: float64 [seeds, queries], 0 to 1."""
    return np.stack([ranks(stage, home=home, **which).hits(k) for stage in stages])


def tells_order(profile: Profile, benchmark: str, home: Path | None = None) -> np.ndarray:
    """For each test query of a benchmark, in order, whether its text tells the events: bool [queries]."""
    truth = read_json(experiments.benchmark(profile, benchmark).folder(home) / "truth.json")
    return np.array([row["tells_order"] for row in truth.values() if row["split"] == "test"])


def stages_of(profile: Profile, arm: str, benchmark: str, seeds: Sequence[int]) -> list[Stage]:
    """The fine-tuned stages behind a claim's arm name, a seed each. Raises KeyError for a name of no arm."""
    which, step = experiments.scored_arms(profile)[arm, benchmark]
    return [experiments.finetuned(profile, which, benchmark, seed, step) for seed in seeds]


def evidence(profile: Profile, seeds: Sequence[int], home: Path | None = None) -> dict[Contrast, object]:
    """Evidence for every contrast whose stages have all run."""
    tables: dict[Measure, np.ndarray] = {}
    for arm, benchmark in experiments.scored_arms(profile):
        stages = stages_of(profile, arm, benchmark, seeds)
        if all(stage.done(home) for stage in stages):
            tables[Measure(arm, benchmark)] = hits(stages, home=home)
            if arm == "clip-vip":
                tables[Measure(arm, benchmark, scoring="dsl")] = hits(stages, home=home, scoring="dsl")
    return claims.evidence_from_hits(tables) | _gap_evidence(profile, seeds, home)


def _gap_evidence(profile: Profile, seeds: Sequence[int], home: Path | None) -> Mapping[Contrast, object]:
    """Differences of NMI (subtitles minus another source), pooled over the seeds' text encoders."""
    stages = [experiments.language_gap(profile, seed) for seed in seeds]
    if not all(stage.done(home) for stage in stages):
        return {}
    found = {}
    rows = [row for stage in stages for row in stage.result(home)["differences"]]
    for source in ("alt-text", "caption pairs", "ofa captions"):
        for benchmark in BENCHMARKS:
            chosen = [row for row in rows if (row["source"], row["benchmark"]) == (source, benchmark)]
            each = [
                intervals.from_interval(row["effect"], row["low"], row["high"], queries=row["queries"]) for row in chosen
            ]
            found[claims.over("subtitles", source, benchmark, "NMI")] = intervals.pool_seeds(each)
    return found


def verdicts(
    profile: Profile, seeds: Sequence[int], notebook: str | None = None, home: Path | None = None
) -> list[Verdict]:
    """The verdicts on the claims of one notebook, or on all ten."""
    chosen: list[Claim] = [claim for claim in claims.CLAIMS if notebook in (None, claim.notebook)]
    found = evidence(profile, seeds, home)
    return [claims.verdict(claim, found, seeds) for claim in chosen]
