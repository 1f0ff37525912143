"""`clipvip bench ranks`: the training step of several processes on this machine, predicted by the plan and measured.

The prediction is that of ``clipvip reproduce --plan`` (scaling.training_step): FLOPs at the rate that one process
reaches, bytes of features and gradients at the rate at which so many processes add up a tensor of the gradients' size.
What is measured is the study's own step, DistributedDataParallel over gloo, one thread per process, by the clock: leave
the machine alone meanwhile. The plan is a best case, in which the all-reduce costs the towers nothing. On a CPU it
needs the towers' cores, so the sum of both is told beside it. More processes than cores share the cores.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from clipvip_lib import files
from clipvip_lib.bench.measure import about, product_rate, set_threads
from clipvip_lib.bench.train import random_batch
from clipvip_lib.cores import cores
from clipvip_lib.errors import ClipVipError
from clipvip_lib.flops import ClipSizes, count_parameters, step_flops
from clipvip_lib.models.clip_vip import ClipViP, ClipViPConfig
from clipvip_lib.omnisource import RELEASED, needs
from clipvip_lib.scaling import Assumptions, all_reduced_bytes, training_step
from clipvip_lib.training import ranks as distributed
from clipvip_lib.training.recipes import get_recipe
from clipvip_lib.training.step import Step

NOTHING = 1e-9  # of what the plan counts and this leaves out: reading and decoding


def measure(
    repeats: int = 3, batch: int = 8, frames: int = 2, patch: int = 32, processes: int = 4,
    config: ClipViPConfig | None = None,
) -> dict:  # fmt: skip
    """A row for 1, 2, 4 .. ``processes``, each with the same ``batch`` of all together: seconds of a step measured
    and predicted. Raises ClipVipError for a batch that they cannot share, and if a run of them fails."""
    counts = [1 << i for i in range(processes.bit_length())]
    if batch % counts[-1]:
        raise ClipVipError(
            f"expected a batch that {counts[-1]} processes can share, got {batch}; change --batch"
        )
    set_threads(1)
    config = config or ClipViPConfig(vision_config={"patch_size": patch}, temporal_size=frames)
    sizes, rows, assumed = ClipSizes.of(config), [], Assumptions(decode_ms=NOTHING, clip_mb=NOTHING)
    for count in counts:
        told = _run(count, {"config": config.to_dict(), "batch": batch, "frames": frames, "repeats": repeats})
        if count == 1:
            work = batch * step_flops(sizes, needs(RELEASED), told["text_tokens"])
            assumed = assumed.but(
                gpu_tflops=work / told["seconds"] / 1e12,
                gpu_share=1.0,
                loss_tflops=product_rate("cpu", "float32") / 1e12,
            )
        else:
            speed = all_reduced_bytes(told["parameters"], count) / told["all_reduce_seconds"] / 1e9
            assumed = assumed.but(nvlink_gb=speed, network_gb=speed)
        step = training_step(sizes, RELEASED, batch, count, assumed, told["text_tokens"])
        step = dataclasses.replace(step, towers=step.towers * max(1.0, count / cores()))
        together = step.computing + step.all_reduce
        rows.append(
            {
                "processes": count,
                "seconds": round(told["seconds"], 4),
                "seconds_min": round(told["seconds_min"], 4),
                "seconds_max": round(told["seconds_max"], 4),
                "all_reduce": round(step.all_reduce, 4),
                "predicted": round(step.seconds, 4),
                "error_percent": round(100 * (step.seconds / told["seconds"] - 1), 1),
                "predicted_sum": round(together, 4),
                "error_of_sum_percent": round(100 * (together / told["seconds"] - 1), 1),
            }
        )
    return {
        "what": f"one step of {RELEASED}, ViT-B/{config.vision_config.patch_size}, {frames} frames, {batch} clips in "
        "all",
        "cores": cores(),
        "rows": rows,
        **about(("transformers",)),
    }


def _run(count: int, job: dict) -> dict:
    """What so many processes, each with its share of the batch, tell of their steps."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        files.write_json(path, job)
        torchrun = (
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={count}",
        )
        done = subprocess.run(
            [*torchrun, "-m", __name__, str(path)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ClipVipError(
                f"{count} processes could not run their steps ({done.stderr.strip()[-300:]}): expected memory for as "
                "many models; choose fewer --processes"
            )
        return files.read_json(path)


def _one_of_them(path: Path) -> None:
    """What each process does; the first one writes what they found over the job."""
    set_threads(1)
    job = files.read_json(path)
    ranks = distributed.start()
    torch.manual_seed(0)
    config = ClipViPConfig.from_dict(job["config"])
    share = job["batch"] // ranks.size
    recipe = get_recipe(
        "postpretrain", steps=1000, batch=share, frames=job["frames"], precision="float32",
        kept_frames=max(24, job["frames"]),
    )  # fmt: skip
    model = ClipViP(config)
    tokens = min(recipe.text_tokens, config.text_config.max_position_embeddings)
    clips = random_batch(
        share, job["frames"], tokens, config.text_config.vocab_size, config.vision_config.image_size
    )
    step = Step(model, RELEASED, recipe, ranks)
    parameters = count_parameters(model)
    gradients = torch.zeros(parameters)

    def seconds_of(work) -> float:
        """By the clock, of the slowest."""
        dist.barrier()
        started = time.perf_counter()
        work()
        return ranks.largest(time.perf_counter() - started)[0]

    step(clips, 0)
    seconds = [
        seconds_of(lambda number=number: step(clips, number)) for number in range(1, 1 + job["repeats"])
    ]
    adding = min(seconds_of(lambda: dist.all_reduce(gradients)) for _ in range(3))
    if ranks.main:
        found = {
            "seconds": statistics.median(seconds),
            "seconds_min": min(seconds),
            "seconds_max": max(seconds),
        }
        found |= {"all_reduce_seconds": adding, "parameters": parameters, "text_tokens": tokens}
        path.write_text(json.dumps(found), encoding="utf-8")
    distributed.stop()


if __name__ == "__main__":
    _one_of_them(Path(sys.argv[1]))
