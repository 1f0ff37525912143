"""`clipvip bench train`: one post-pretraining step: seconds, memory, share of a matrix product's rate.

The loss is V-S,C + F-C: a video, its middle frame and two texts a clip are encoded, forward and backward, then AdamW
steps. Weights and pixels are random: time and memory do not depend on their values. Peak memory is the whole process's
(Python and torch included) on a CPU, that of tensors on a GPU: one run, one figure. The share counts the work that a
step needs (flops.step_flops), whatever gradient caching and checkpointing compute again.
"""

from __future__ import annotations

import statistics

import torch

from clipvip_lib.bench.measure import about, fair_clock, product_rate, seconds_of, set_threads, wait
from clipvip_lib.flops import ClipSizes, count_parameters, step_flops
from clipvip_lib.models.clip_vip import ClipViP, ClipViPConfig
from clipvip_lib.omnisource import RELEASED, needs
from clipvip_lib.training.batches import Batch, Tokens
from clipvip_lib.training.ranks import Ranks
from clipvip_lib.training.recipes import get_recipe
from clipvip_lib.training.step import Step
from clipvip_lib.workshop.machine import peak_memory_mib, reset_peak_memory


def measure(
    repeats: int = 1, batch: int = 8, frames: int = 12, patch: int = 32, precision: str = "float32",
    device: str = "cpu", threads: int = 1, chunk: int = 0, checkpointing: bool = False, compile: bool = False,
    config: ClipViPConfig | None = None,
) -> dict:  # fmt: skip
    """One row; ``repeats`` steps after two that warm up on a GPU. chunk: clips at a time in gradient caching, 0: none.
    ``config``: of another size than the released one."""
    set_threads(threads)
    place = torch.device(device)
    before = peak_memory_mib()
    torch.manual_seed(0)
    config = config or ClipViPConfig(vision_config={"patch_size": patch}, temporal_size=frames)
    recipe = get_recipe(
        "postpretrain", steps=1000, batch=batch, frames=frames, precision=precision,
        kept_frames=max(24, frames), chunk=chunk, checkpointing=checkpointing, compile=compile,
    )  # fmt: skip
    model = ClipViP(config)
    one_step = Step(model, RELEASED, recipe, Ranks(device=place))
    tokens = min(recipe.text_tokens, config.text_config.max_position_embeddings)
    clips = random_batch(
        batch, frames, tokens, config.text_config.vocab_size, config.vision_config.image_size
    )
    rate = product_rate(place, precision)
    cuda = place.type == "cuda"
    for number in range(2 * cuda):  # kernels are chosen, and memory is taken, at the first steps
        one_step(clips, number)
    if cuda:
        torch.cuda.reset_peak_memory_stats(place)
    reset_peak_memory()
    clock, started = fair_clock(place), fair_clock(place)()
    clips.video.to(place)
    wait(place)
    copying = clock() - started
    seconds = [seconds_of(lambda number=number: one_step(clips, number), place) for number in range(repeats)]
    took = statistics.median(seconds)
    useful = batch * step_flops(ClipSizes.of(config), needs(RELEASED), tokens)
    peak = torch.cuda.max_memory_allocated(place) / 2**20 if cuda else peak_memory_mib()
    row = {
        "batch": batch,
        "chunk": chunk,
        "precision": precision,
        "checkpointing": checkpointing,
        "compile": compile,
        "seconds": round(took, 3),
        "seconds_min": round(min(seconds), 3),
        "seconds_max": round(max(seconds), 3),
        "clips_a_second": round(batch / took, 3),
        "share_of_the_product": round(useful / took / rate, 3),
        "peak_MiB": round(peak),
    }
    return {
        "what": f"one step of {RELEASED}, ViT-B/{config.vision_config.patch_size}, {frames} frames",
        "parameters": count_parameters(model),
        "text_tokens": tokens,
        "seconds_of_copying_the_videos": round(copying, 3),
        "useful_tflop": round(useful / 1e12, 3),
        "gflop_per_second_of_the_product": round(rate / 1e9, 1),
        "memory_before_the_model_MiB": round(before),
        "rows": [row],
        **about(("transformers",), device),
    }


def random_batch(clips: int, frames: int, tokens: int, vocabulary: int, pixels: int) -> Batch:
    """Clips, middle frames and texts of the longest length."""

    def texts() -> Tokens:
        ids = torch.randint(1, vocabulary - 2, (clips, tokens))
        ids[:, -1] = vocabulary - 1
        return Tokens(ids, torch.ones_like(ids))

    shape = (pixels, pixels, 3)
    video = torch.randint(0, 256, (clips, frames, *shape), dtype=torch.uint8)
    return Batch(video, video[:, frames // 2 :][:, :1].clone(), texts(), texts(), None)
