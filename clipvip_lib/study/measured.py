"""The rate at which a training ran, from the folder that ``clipvip train`` left: what a plan can count with."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import NamedTuple

from clipvip_lib import files, flops
from clipvip_lib.errors import ClipVipError
from clipvip_lib.models.clip_vip import ClipViPConfig
from clipvip_lib.omnisource import needs
from clipvip_lib.training.run_folder import read_metrics

FIRST_STEPS = 3  # left out: caches are cold, kernels are chosen


class Rate(NamedTuple):
    """tflops: TFLOP/s of a rank while it computed, waiting for data left out. words: where they were measured."""

    tflops: float
    words: str


def rate(run: Path) -> Rate:
    """The median over steps of FLOPs by seconds, as a plan counts them: texts at full length, nothing computed twice
    (so gradient caching and checkpointing show as a lower rate).

    Raises ClipVipError if ``run`` is not a finished training, or has too few steps.
    """
    try:
        written = files.read_json(run / "result.json")
        loss, ranks = written["about"]["loss"], written["result"]["ranks"]
        batch = written["result"]["clips_a_step"]
        config = ClipViPConfig.from_pretrained(run / "model")
    except (ClipVipError, OSError, KeyError, TypeError) as error:
        gone = [name for name in ("result.json", "model") if not (run / name).exists()]
        lacks = (
            f"{' and '.join(gone)} is missing"
            if gone
            else f"their contents are not its ({' '.join(str(error).split()):.160})"
        )
        raise ClipVipError(
            f"--set measured={run}: expected the folder of a finished `clipvip train`, with result.json and model/, "
            f"{lacks}; name another"
        ) from error
    rows = read_metrics(run / "metrics.jsonl")[FIRST_STEPS:]
    if not rows:
        raise ClipVipError(
            f"--set measured={run}: expected more than {FIRST_STEPS} steps in metrics.jsonl, got none after them; "
            "train longer"
        )
    seconds = statistics.median(row["seconds"] - row["waited"] for row in rows)
    work = batch * flops.step_flops(flops.ClipSizes.of(config), needs(loss))
    tflops = work / ranks / seconds / 1e12
    return Rate(tflops, f"measured: {run}, {len(rows)} steps of {batch} clips on {ranks} ranks")
