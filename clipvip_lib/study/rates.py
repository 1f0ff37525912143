"""The learning rate of each arm's fine-tuning, chosen on validation clips from one short list for all.

``make rates`` fine-tunes every arm on msrvtt with every rate of the list (the first seed, all steps), takes the one
with the best validation score and writes rates.json, which every run reads: both benchmarks, all seeds. Two rules
keep chance from choosing: the choice has a validation split of its own size, as large as the test split, and the
profile's own rate stays unless another one is better by a standard error (one-standard-error rule: Breiman et al.,
"Classification and regression trees", 1984). The test split is not looked at. An arm that is not in the file has the
profile's own rate.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from clipvip_lib import files
from clipvip_lib.data.world import CLIPS_PER_VIDEO
from clipvip_lib.profiles import Profile

FILE = Path(__file__).with_name("rates.json")
SEED = 0


def table(profile: str) -> dict[str, dict]:
    """{arm's slug: {"chosen": rate, "validation": {rate as text: R@1}}} of a profile; empty if none was chosen."""
    return files.read_json(FILE).get(profile, {}) if FILE.is_file() else {}


def chosen(profile: Profile, slug: str) -> float:
    """The learning rate of an arm's fine-tuning."""
    return table(profile.name).get(slug, {}).get("chosen", profile.finetune.lr)


def choose(scores: dict[float, float], default: float, clips: int) -> float:
    """The rate with the best validation score (per cent of ``clips``); the default unless that one is better by more
    than a standard error of the default's score. Among equal ones, the smallest."""
    share = scores[default] / 100.0
    error = 100.0 * math.sqrt(share * (1.0 - share) / clips)
    best = max(scores.values())
    if best <= scores[default] + error:
        return default
    return min(rate for rate, score in scores.items() if score == best)


def choosing(profile: Profile) -> Profile:
    """The profile under which rates are chosen: as many validation clips as the test split has, and next to no
    test clips."""
    clips = {"val": profile.world.test, "test": CLIPS_PER_VIDEO}
    return dataclasses.replace(profile, world=dataclasses.replace(profile.world, **clips))
