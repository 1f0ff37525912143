"""How long one post-pretraining step takes, and how much memory: prints JSON with the machine and the versions.

    python benchmarks/train_step.py --batch 8 --threads 1
    python benchmarks/train_step.py --batch 8 --threads 1 --chunk 2
    python benchmarks/train_step.py --batch 8 --threads 1 --precision bfloat16 --chunk 2
    python benchmarks/train_step.py --batch 128 --precision bfloat16 --device cuda --repeats 5
    python benchmarks/train_step.py --batch 1024 --precision bfloat16 --chunk 128 --device cuda --repeats 5 [--compile]

The loss is V-S,C + F-C: a video, its middle frame and two texts a clip are encoded, forward and backward, then
AdamW steps. Weights and pixels are random: time and memory do not depend on their values. Peak memory is the whole
process's (Python and torch included) on a CPU, that of tensors on a GPU: one run, one figure. ``share_of_peak`` is
the useful work (three forward passes' matrix products, whatever is computed again) over the time and a matrix
product's rate, measured in the same process. On a machine that others use too, believe ``cpu_seconds`` and what is
derived from it with one thread, not ``seconds``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import resource
import statistics
import sys
import time

import torch

from clipvip_lib.models.clip_vip import ClipViP, ClipViPConfig
from clipvip_lib.precision import PRECISIONS
from clipvip_lib.training.batches import Batch, Tokens
from clipvip_lib.training.ranks import Ranks
from clipvip_lib.training.recipes import get_recipe
from clipvip_lib.training.step import Step
from clipvip_lib.workshop.machine import machine

LOSS = "V-S,C + F-C"


def random_batch(clips: int, frames: int, tokens: int, vocabulary: int, pixels: int) -> Batch:
    """Clips, middle frames and texts of the longest length."""

    def texts() -> Tokens:
        ids = torch.randint(1, vocabulary - 2, (clips, tokens))
        ids[:, -1] = vocabulary - 1
        return Tokens(ids, torch.ones_like(ids))

    shape = (pixels, pixels, 3)
    video = torch.randint(0, 256, (clips, frames, *shape), dtype=torch.uint8)
    return Batch(video, video[:, frames // 2 :][:, :1].clone(), texts(), texts(), None)


def forward_flops(config: ClipViPConfig, frames: int, tokens: int) -> float:
    """Matrix products of one clip's forward pass: its video, its middle frame, and two texts."""
    vision, text = config.vision_config, config.text_config
    patches = (vision.image_size // vision.patch_size) ** 2

    def tower(length: float, pairs: float, of) -> float:
        weights = 4 * of.hidden_size**2 + 2 * of.hidden_size * of.intermediate_size
        return of.num_hidden_layers * (2 * length * weights + 4 * pairs * of.hidden_size)

    def video(n: int) -> float:
        length = config.proxies + n * patches
        pairs = config.proxies * length + n * patches * (config.proxies + patches)
        return tower(length, pairs, vision) + 2 * n * patches * 3 * vision.patch_size**2 * vision.hidden_size

    return video(frames) + video(1) + 2 * tower(tokens, tokens**2, text)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product."""
    size, times = (8192, 30) if device.type == "cuda" else (2048, 4)
    a = torch.randn(size, size, device=device, dtype=dtype)
    a @ a
    wait(device)
    clock = fair_clock(device)
    start = clock()
    for _ in range(times):
        a @ a
    wait(device)
    return times * 2 * size**3 / (clock() - start)


def fair_clock(device: torch.device):
    """The clock that others on the machine do not disturb, where there is one."""
    return time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--chunk", type=int, default=0, help="gradient caching: clips at a time")
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--patch", type=int, default=32, choices=(16, 32), help="ViT-B/16 or B/32")
    parser.add_argument("--precision", choices=PRECISIONS[1:], default="float32")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    parser.add_argument("--repeats", type=int, default=1, help="after two steps that warm up, on a GPU")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    before = peak_mib(torch.device("cpu"))
    torch.manual_seed(0)
    config = ClipViPConfig(temporal_size=arguments.frames)
    config.vision_config.patch_size = arguments.patch
    recipe = get_recipe(
        "postpretrain", steps=1000, batch=arguments.batch, frames=arguments.frames, precision=arguments.precision,
        kept_frames=max(24, arguments.frames), chunk=arguments.chunk, checkpointing=arguments.checkpointing,
        compile=arguments.compile,
    )  # fmt: skip
    ranks, model = Ranks(device=device), ClipViP(config)
    one_step = Step(model, LOSS, recipe, ranks)
    vision, text = model.config.vision_config, model.config.text_config
    tokens = min(recipe.text_tokens, text.max_position_embeddings)
    batch = random_batch(arguments.batch, arguments.frames, tokens, text.vocab_size, vision.image_size)
    rate = matrix_rate(device, getattr(torch, arguments.precision))

    def step(number: int) -> dict:
        row = one_step(batch, number)
        wait(device)
        return row

    if device.type == "cuda":  # kernels are chosen, and memory is taken, at the first steps
        for number in range(2):
            step(number)
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    batch.video.to(device)
    wait(device)
    copying = time.perf_counter() - start
    seconds, cpu_seconds = [], []
    for number in range(arguments.repeats):
        start, cpu = time.perf_counter(), time.process_time()
        row = step(number)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu)
    useful = 3 * arguments.batch * forward_flops(model.config, arguments.frames, tokens)
    took = statistics.median(
        cpu_seconds if device.type == "cpu" and torch.get_num_threads() == 1 else seconds
    )
    print(
        json.dumps(
            {
                "what": f"one step of {LOSS}, ViT-B/{arguments.patch}, {arguments.frames} frames of 224 px",
                "batch": arguments.batch,
                "chunk": arguments.chunk,
                "dtype": arguments.precision,
                "checkpointing": arguments.checkpointing,
                "compile": arguments.compile,
                "parameters": sum(p.numel() for p in model.parameters()),
                "text_tokens": tokens,
                "seconds": [round(value, 3) for value in seconds],
                "cpu_seconds": [round(value, 3) for value in cpu_seconds],
                "seconds_of_copying_the_videos": round(copying, 3),
                "clips_per_second": round(arguments.batch / took, 3),
                "useful_tflop": round(useful / 1e12, 3),
                "matrix_product_gflop_per_second": round(rate / 1e9, 1),
                "share_of_peak": round(useful / took / rate, 3),
                "peak_memory_mib": round(peak_mib(device)),
                "memory_before_the_model_mib": round(before),
                "loss": row["loss"],
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
                "threads": torch.get_num_threads(),
                "machine": machine(),
                "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
