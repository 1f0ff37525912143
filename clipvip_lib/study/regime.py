"""How far the study is from the paper, in numbers of the recipe and in effects: two tables without units.

Ratios, because a model of 750,000 parameters shares no unit with CLIP. Two recipes that look alike need
not act alike, so the table of effects counts for more; notebook 00 prints both, and says what follows for the claims.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clipvip_lib import paper
from clipvip_lib.data.corpora import RELATIVE_SIZES
from clipvip_lib.profiles import Profile
from clipvip_lib.statistics.claims import R1, RECALL
from clipvip_lib.study import evidence, experiments
from clipvip_lib.study.experiments import BASELINE, METHOD, Arm

if TYPE_CHECKING:
    import pandas as pd

ON = "msrvtt"  # the benchmark that both are compared on


def recipe(profile: Profile) -> pd.DataFrame:
    """Ratios of the recipe: columns what, paper, here."""
    import pandas as pd

    pretrain, post, tune = profile.pretrain, profile.postpretrain, profile.finetune
    smallest, seen = min(RELATIVE_SIZES.values()), post.steps * post.batch
    passes = seen * max(RELATIVE_SIZES.values()) / smallest / profile.world.corpus_clips
    here = {
        "clips of the large, medium and small corpus": " : ".join(
            f"{size / smallest:.3g}" for size in sorted(RELATIVE_SIZES.values(), reverse=True)
        ),
        "passes over the smallest corpus": f"{passes:.3g}",
        "pairs seen in fine-tuning / in post-pretraining": f"{tune.steps * tune.batch / seen:.3g}",
        "pairs seen by CLIP / in post-pretraining": f"{pretrain.steps * pretrain.batch / seen:.3g}",
        "peak rate of fine-tuning / of post-pretraining": f"{tune.lr / post.lr:.3g}",
        "peak rate of post-pretraining / of CLIP's own training": f"{post.lr / pretrain.lr:.3g}",
        "rate of new parameters / of CLIP's, in post-pretraining": f"{post.lr_added / post.lr:.3g}",
    }
    return pd.DataFrame(
        [{"what": what, "paper": paper.REGIME[what], "here": text} for what, text in here.items()]
    )


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
            "post-pretraining on the largest corpus with subtitles, mean pooling, fine-tuned",
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
