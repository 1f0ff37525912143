"""How far the study is from the paper, in numbers of the recipe and in effects: two tables without units.

Ratios, because a model of 750,000 parameters shares no unit with CLIP. A recipe that looks alike need not act alike
(facts of the effects table count more); notebook 00 prints both, and says what follows for the claims.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clipvip_lib import paper
from clipvip_lib.data.corpora import CORPORA
from clipvip_lib.profiles import Profile
from clipvip_lib.statistics.claims import R1, RECALL
from clipvip_lib.study import evidence, experiments, rates
from clipvip_lib.study.experiments import BASELINE, LARGEST, METHOD, Arm

if TYPE_CHECKING:
    import pandas as pd

ON = "msrvtt"  # the benchmark that both are compared on


def recipe(profile: Profile) -> pd.DataFrame:
    """Ratios of the recipe: columns what, paper, here."""
    import pandas as pd

    pretrain, post, tune = profile.pretrain, profile.postpretrain, profile.finetune
    tuning = {rates.chosen(profile, arm.slug) for arm in (BASELINE, Arm(), METHOD)}
    smallest = min(CORPORA.values())
    passes = post.steps * post.batch * max(CORPORA.values()) / smallest / profile.world.corpus_clips
    here = {
        "clips of the large, medium and small corpus": " : ".join(
            f"{size / smallest:.3g}" for size in sorted(CORPORA.values(), reverse=True)
        ),
        "passes over the smallest corpus": f"{passes:.3g}",
        "pairs seen in fine-tuning / in post-pretraining": _ratio(
            [tune.steps * tune.batch], post.steps * post.batch
        ),
        "pairs seen by CLIP / in post-pretraining": _ratio(
            [pretrain.steps * pretrain.batch], post.steps * post.batch
        ),
        "peak rate of fine-tuning / of post-pretraining": _ratio(tuning, post.lr),
        "peak rate of post-pretraining / of CLIP's own training": _ratio([post.lr], pretrain.lr),
        "rate of new parameters / of CLIP's, in post-pretraining": _ratio([post.lr_added], post.lr),
    }
    return pd.DataFrame(
        [{"what": what, "paper": paper.REGIME[what], "here": text} for what, text in here.items()]
    )


def _ratio(numbers: Sequence[float] | set[float], base: float) -> str:
    """One ratio, or several: "1 or 2.5"."""
    return " or ".join(f"{number / base:.3g}" for number in sorted(numbers))


def effects(profile: Profile, seeds: Sequence[int], home: Path | None = None) -> pd.DataFrame:
    """The same changes as the paper's, on the miniature of MSR-VTT, mean over the seeds: columns effect, metric,
    paper, here."""
    import pandas as pd

    def of(arm: Arm, tuned: bool = True, metric: str = R1) -> float:
        make = experiments.finetuned if tuned else experiments.zero_shot
        return 100.0 * float(
            np.mean(evidence.hits([make(profile, arm, ON, seed) for seed in seeds], metric, home))
        )

    untuned, tuned = of(BASELINE, tuned=False), of(BASELINE)
    rows = (
        ("CLIP, zero-shot to fine-tuned (mean pooling)", R1, untuned, tuned),
        ("zero-shot, CLIP to CLIP-ViP", R1, untuned, of(METHOD, tuned=False)),
        ("fine-tuned, CLIP4Clip to CLIP-ViP", R1, tuned, of(METHOD)),
        (
            f"post-pretraining on {LARGEST} with subtitles, mean pooling, fine-tuned",
            RECALL,
            of(BASELINE, metric=RECALL),
            of(Arm(), metric=RECALL),
        ),
    )
    return pd.DataFrame(
        [
            {
                "effect": name,
                "metric": metric,
                "paper": _change(*paper.EFFECTS[name]),
                "here": _change(before, after),
            }
            for name, metric, before, after in rows
        ]
    )


def _change(before: float, after: float) -> str:
    return f"{before:.1f} to {after:.1f} ({evidence.signed(after - before, 1)})"
