"""`clipvip bench study`: how long the mini study's training steps take on one thread, and which share of a product's
rate they reach, float32 beside another precision.

Weights, pixels and texts (16 tokens) are random: time does not depend on their values. FLOPs are those of matrix
products and convolutions, counted by PyTorch; the rate is a matrix product's in the same precision, in turns with the
steps.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from clipvip_lib.bench.measure import PRODUCT, about, in_turns, product, set_threads
from clipvip_lib.captions import captioner_training
from clipvip_lib.models.clip_vip import ClipViP
from clipvip_lib.models.ofa import OFA
from clipvip_lib.omnisource import needs
from clipvip_lib.profiles import Profile, get_profile
from clipvip_lib.study.steps import _clip_config
from clipvip_lib.training.batches import Batch, Tokens
from clipvip_lib.training.ranks import Ranks
from clipvip_lib.training.recipes import TrainRecipe
from clipvip_lib.training.step import Step
from clipvip_lib.workshop.machine import peak_memory_mib

VOCABULARY, TOKENS = 350, 16


def clip_step(
    profile: Profile, recipe, attention: str, frames: int, loss: str, precision: str
) -> Callable[[], object]:
    """A step of one of CLIP's trainings."""
    torch.manual_seed(0)
    size = profile.model
    rng = np.random.default_rng(0)

    def texts() -> Tokens:
        ids = torch.from_numpy(rng.integers(1, VOCABULARY - 2, (recipe.batch, TOKENS)))
        ids[:, -1] = VOCABULARY - 1
        return Tokens(ids, torch.ones_like(ids))

    pixels = (recipe.batch, frames, size.image_size, size.image_size, 3)
    video = torch.from_numpy(rng.integers(0, 256, pixels, dtype=np.uint8))
    whole = "C" in needs(loss)
    batch = Batch(video, video[:, :1].clone() if whole else None, texts(), texts() if whole else None, None)
    model = ClipViP(_clip_config(size, VOCABULARY, attention, size.proxies, size.frames))
    step = Step(model, loss, TrainRecipe(**dataclasses.asdict(recipe), flat=True), Ranks())
    return lambda: step(batch, 0)


def captioner_step(profile: Profile, phase: str, precision: str) -> Callable[[], object]:
    """A step of the captioner: of its ResNet alone ("stem"), or of captions."""
    torch.manual_seed(0)
    size = profile.captioner
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(
        rng.integers(0, 256, (4 * size.batch, size.image_size, size.image_size, 3), dtype=np.uint8)
    )
    tokens = torch.from_numpy(rng.integers(4, size.vocab_size, (4 * size.batch, TOKENS)))
    model = OFA(captioner_training.small_config(size, size.vocab_size))
    data = captioner_training._Pairs(pixels, tokens, tokens[:1, :8])
    run = captioner_training._Training(model, data, size, 0, 0.1, precision)
    run.step = 0 if phase == "stem" else size.stem_steps
    model.train()
    return run.one_step


def kinds(profile: Profile, precision: str) -> dict[str, Callable[[], object]]:
    frames = profile.model.frames

    def in_it(recipe):
        return dataclasses.replace(recipe, precision=precision)

    post, pre = in_it(profile.postpretrain), in_it(profile.pretrain)
    return {
        "image-text": clip_step(profile, pre, "mean_pool", 1, "V-S", precision),
        "video, proxies, V-S": clip_step(profile, post, "proxy", frames, "V-S", precision),
        "video, proxies, V-S,C + F-C": clip_step(profile, post, "proxy", frames, "V-S,C + F-C", precision),
        "video, mean pooling, V-S": clip_step(profile, post, "mean_pool", frames, "V-S", precision),
        "captioner's ResNet": captioner_step(profile, "stem", precision),
        "captioner": captioner_step(profile, "captions", precision),
    }


def measure(repeats: int = 11, precision: str = "float32", profile: str = "mini") -> dict:
    """Rows of step and precision (float32, and the one asked for): seconds, share of the product's rate."""
    set_threads(1)
    chosen = get_profile(profile)
    precisions = sorted({"float32", precision}, reverse=True)
    steps = {name: kinds(chosen, name) for name in precisions}
    rows = []
    for kind in steps["float32"]:
        work, forms = {}, {}
        for name in precisions:
            with FlopCounterMode(display=False) as counter:
                steps[name][kind]()
            work[name] = counter.get_total_flops()
            forms[name] = steps[name][kind]
            forms[f"{PRODUCT} {name}"], product_flops = product("cpu", name)
        seconds = in_turns(forms, repeats)
        for name in precisions:
            took = statistics.median(seconds[name])
            rate = product_flops / statistics.median(seconds[f"{PRODUCT} {name}"])
            rows.append(
                {
                    "step": kind,
                    "precision": name,
                    "seconds": round(took, 4),
                    "seconds_min": round(min(seconds[name]), 4),
                    "seconds_max": round(max(seconds[name]), 4),
                    "gflop": round(work[name] / 1e9, 2),
                    "share_of_the_product": round(work[name] / took / rate, 3),
                }
            )
    return {
        "what": f"training steps of the profile {profile}",
        "peak_memory_MiB": round(peak_memory_mib()),
        "rows": rows,
        **about(("transformers",)),
    }
