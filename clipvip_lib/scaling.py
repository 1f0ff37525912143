"""What a study at the published size would take, on paper: seconds per step on many GPUs, and what limits them.

Every quantity is a plain product of counted work (flops.py, bytes of features and gradients) and of
``Assumptions``, each with its unit and its reason. Nothing here was measured on many GPUs; read the walls (which
resource ends the scaling, and when) rather than the last digit of the hours.

The step of a cluster of R GPUs is taken as

    seconds = max( towers + gather + loss,  all-reduce,  decode,  read )

Gathering waits for the towers and the loss waits for gathering; the all-reduce of gradients runs beside the backward
pass, decoding and reading beside everything. So it is the best case: overlap is perfect and no rank is slower than
another. ``starvation`` shows what chance in a data loader adds to it.
"""

from __future__ import annotations

import dataclasses
import heapq
from dataclasses import dataclass

import numpy as np

from clipvip_lib.errors import ClipVipError, unknown
from clipvip_lib.flops import ClipSizes, clip_parameters, step_flops
from clipvip_lib.omnisource import TILE, needs, terms

GIGA = 1e9
FLOAT32 = 4  # bytes: features are gathered, and gradients averaged, in float32
GPUS = (8, 64, 256)  # one machine, a small cluster, a large one
PROMPT_TOKENS = 8  # of OFA's question, with <s> and </s>
CAPTION_PIXELS = 480  # OFA's released caption weights are asked at this size


def _assumed(value: float, unit: str, reason: str):
    return dataclasses.field(default=value, metadata={"unit": unit, "reason": reason})


MOST = 1e12  # of an assumption: sums and quotients of several stay finite


@dataclass(frozen=True)
class Assumptions:
    """What is not measured here, each with its unit and the reason for its value. All must be above 0."""

    gpu_tflops: float = _assumed(989.0, "TFLOP/s", "peak of an H100 in dense bf16, by its maker")
    gpu_share: float = _assumed(
        0.15, "share", "of that peak reached in training: B/32, batch 128, not compiled, on an H200"
    )
    caption_share: float = _assumed(
        0.085, "share", "of that peak reached by OFA-large, batch 64, measured on an H200"
    )
    loss_tflops: float = _assumed(27.0, "TFLOP/s", "the loss is float32: 0.4 of an H100's 67")
    cores_per_gpu: float = _assumed(16.0, "cores", "that decode for one GPU; hosts have 12 to 32")
    decode_ms: float = _assumed(
        95.0, "ms per core", "12 frames of a 10 s clip, 320x240: decord on an EPYC core"
    )
    middle_ms: float = _assumed(50.0, "ms per core", "the middle frame alone: half of the clip is decoded")
    clip_mb: float = _assumed(0.5, "MB", "that clip at 0.4 Mbit/s")
    packed_ms: float = _assumed(
        21.0,
        "ms per core",
        "12 frames of a pack with jitter: 3.6 to 5.5 times as fast as decord",
    )
    packed_mb: float = _assumed(0.3, "MB", "such a pack of a film; of generated textures 0.8")
    packing_ms: float = _assumed(
        310.0, "ms per core", "to make it, once: 2.6 to 4 times decord's 12 frames of the same clip"
    )
    gpus_per_machine: float = _assumed(8.0, "GPUs", "share a machine and its network")
    nvlink_gb: float = _assumed(450.0, "GB/s", "between GPUs of a machine, each way")
    network_gb: float = _assumed(50.0, "GB/s", "between machines, each way: one 400 Gbit/s card per machine")
    storage_gb: float = _assumed(20.0, "GB/s", "that the storage gives to all machines together")
    gpu_hour_price: float = _assumed(2.5, "USD", "an hour of one such GPU, rented; prices differ fourfold")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            real = isinstance(value, int | float) and not isinstance(value, bool)
            most = 1 if field.metadata["unit"] == "share" else MOST
            if not real or not 1 / MOST <= value <= most:
                top = f" and at most {most:g}" if most == 1 or (real and value > most) else ""
                raise ClipVipError(
                    f"assumption {field.name} (in {field.metadata['unit']}): expected a number above 0{top}, got "
                    f"{value!r}; change it"
                )

    def but(self, **changes: float) -> Assumptions:
        """These assumptions with some changed. Raises ClipVipError for an unknown name or a senseless value."""
        for name in changes:
            if name not in (known := [field.name for field in dataclasses.fields(self)]):
                raise unknown("assumption", name, known)
        return dataclasses.replace(self, **changes)

    def packed(self) -> Assumptions:
        """The same with clips that `clipvip pack` has made smaller."""
        return dataclasses.replace(self, decode_ms=self.packed_ms, clip_mb=self.packed_mb)

    def rows(self) -> list[dict[str, object]]:
        """{assumption, value, unit, reason} of each, for a table."""
        return [
            {"assumption": f.name, "value": float(getattr(self, f.name)), **f.metadata}
            for f in dataclasses.fields(self)
        ]


# ---------------------------------------------------------------------------------------- bytes on the network


def gathered_bytes(batch: int, ranks: int, sources: int, embed: int) -> float:
    """Bytes that each rank receives per step: the features of all other ranks' clips, once.

    Their gradients are not sent: every rank computes the loss of the whole batch (``ranks.gather``). A loss that
    is shared out over ranks would send as many bytes again; ``loss_flops`` says what it would save.
    """
    return batch * sources * embed * FLOAT32 * (ranks - 1) / ranks


def all_reduced_bytes(parameters: int, ranks: int) -> float:
    """Bytes that each rank sends (and receives) to average its gradients in a ring, whatever the batch."""
    return 2 * parameters * FLOAT32 * (ranks - 1) / ranks


def loss_flops(loss: str, batch: int, embed: int) -> int:
    """FLOPs of a loss and its gradient on every rank: a product of B x B for each kind of negatives of a term, and once
    more where they are made in tiles."""
    return (3 if batch <= TILE else 4) * _products(loss) * 2 * batch**2 * embed


def loss_bytes(loss: str, batch: int) -> int:
    """Bytes of similarities that a rank holds at a time, at least: B x B per product, or a tile of one term's."""
    products = _products(loss) if batch <= TILE else max(len(term.negatives) for term in terms(loss))
    return products * min(batch, TILE) * batch * FLOAT32


def _products(loss: str) -> int:
    return sum(len(term.negatives) for term in terms(loss))


def gather_wall(parameters: int, sources: int, embed: int) -> float:
    """The batch at which a rank receives as many bytes of features as it sends of gradients, for any ranks."""
    return 2 * parameters / (sources * embed)


def loss_wall(clip_flops: int, loss: str, embed: int, gpus: int, assumed: Assumptions) -> float:
    """The batch from which on the loss, which every rank computes whole, takes longer than the towers."""
    towers = clip_flops / (gpus * assumed.gpu_tflops * assumed.gpu_share)

    def wall(known: int) -> float:
        return towers / (loss_flops(loss, known, embed) / known**2 / assumed.loss_tflops)

    return wall(1) if wall(1) <= TILE else max(TILE, wall(TILE + 1))


# -------------------------------------------------------------------------------------------- seconds and walls


@dataclass(frozen=True)
class StepTime:
    """Seconds that each resource needs for one step of the whole cluster; see the module's first lines."""

    towers: float
    gather: float = 0.0
    loss: float = 0.0
    all_reduce: float = 0.0
    decode: float = 0.0
    read: float = 0.0

    @property
    def computing(self) -> float:
        """Seconds of the three that wait for each other."""
        return self.towers + self.gather + self.loss

    @property
    def seconds(self) -> float:
        return max(self.computing, self.all_reduce, self.decode, self.read)

    @property
    def wall(self) -> str:
        """The resource that sets the seconds; of the three that wait for each other the longest."""
        chain = {name: getattr(self, name) for name in ("towers", "gather", "loss")}
        beside = {"all-reduce": self.all_reduce, "decode": self.decode, "read": self.read}
        walls = {max(chain, key=chain.__getitem__): self.computing} | beside
        return max(walls, key=walls.__getitem__)


def training_step(
    sizes: ClipSizes, loss: str, batch: int, gpus: int, assumed: Assumptions, tokens: int | None = None
) -> StepTime:
    """The step of a CLIP-ViP of these sizes by a loss, for a global batch on a number of GPUs.

    tokens: of a text, by default the longest.
    Raises ClipVipError if there are more GPUs than clips in the batch.
    """
    _check_gpus(gpus)
    if batch < gpus:
        raise ClipVipError(
            f"a batch of {batch} on {gpus} GPUs: expected at least one clip each; take fewer GPUs or a larger batch"
        )
    between = assumed.nvlink_gb if gpus <= assumed.gpus_per_machine else assumed.network_gb
    return StepTime(
        towers=batch
        * step_flops(sizes, needs(loss), tokens)
        / (gpus * assumed.gpu_tflops * assumed.gpu_share * 1e12),
        gather=gathered_bytes(batch, gpus, len(needs(loss)), sizes.embed_dim) / (between * GIGA),
        loss=loss_flops(loss, batch, sizes.embed_dim) / (assumed.loss_tflops * 1e12),
        all_reduce=all_reduced_bytes(clip_parameters(sizes), gpus) / (between * GIGA),
        **_feeding(batch, gpus, assumed.decode_ms, assumed),
    )


def caption_step(image_flops: float, gpus: int, assumed: Assumptions, batch: int = 64) -> StepTime:
    """A batch of captions on every GPU: no rank waits for another. image_flops: ``flops.ofa_flops`` per image."""
    _check_gpus(gpus)
    towers = batch * image_flops / (assumed.gpu_tflops * assumed.caption_share * 1e12)
    return StepTime(towers, **_feeding(batch * gpus, gpus, assumed.middle_ms, assumed))


def _feeding(clips: int, gpus: int, milliseconds: float, assumed: Assumptions) -> dict[str, float]:
    return {
        "decode": clips * milliseconds / 1000 / (gpus * assumed.cores_per_gpu),
        "read": clips * assumed.clip_mb * 1e6 / (assumed.storage_gb * GIGA),
    }


def _check_gpus(gpus: int) -> None:
    if gpus < 1:
        raise ClipVipError(f"{gpus} GPUs: expected one or more; change it")


# ------------------------------------------------------------------------------------- a data loader that starves


@dataclass(frozen=True)
class Starvation:
    """waits: share of the time that the GPU has no batch. fluid: the same if nothing were random."""

    waits: float
    fluid: float


def starvation(
    decode_seconds: float,
    step_seconds: float,
    *,
    workers: int,
    batch: int,
    buffer: int,
    steps: int = 400,
    spread: float = 1.0,
    step_spread: float = 0.0,
    seed: int = 0,
) -> Starvation:
    """Simulate a data loader: workers decode clips for random times into a bounded buffer, a GPU takes batches.

    decode_seconds, step_seconds: means of a clip on a worker and of a step. buffer: clips that are decoded or being
    decoded and not yet taken; a worker waits while it is full. The GPU takes a batch at the start of a step, in the
    order in which clips are ready. spread, step_spread: standard deviation over mean of the two times, gamma
    distributed (1: exponential, 0: none). A tenth of the steps warms up and is not counted.

    The formula to compare with: 1 - min(1, decoded per second / consumed per second). Chance can only add to it.
    Raises ClipVipError for a time, number or spread that no data loader can have, or a buffer below a batch.
    """
    if not (decode_seconds > 0 and step_seconds > 0 and min(workers, batch, steps) >= 1):
        raise ClipVipError(
            f"expected times above 0 and one worker, clip and step or more, got {decode_seconds} s, {step_seconds} s, "
            f"{workers} workers, batch {batch}, {steps} steps"
        )
    if buffer < batch:
        raise ClipVipError(
            f"a buffer of {buffer} clips never holds a batch of {batch}; make it at least as large"
        )
    if not (spread >= 0 and step_spread >= 0):
        raise ClipVipError(f"expected spreads of 0 or more, got {spread} and {step_spread}")
    rng = np.random.default_rng(seed)
    computing = _times(rng, step_seconds, step_spread, steps)
    decoding = iter(_times(rng, decode_seconds, spread, steps * batch + buffer))
    flying: list[float] = []  # a heap of when the clips on workers will be decoded
    idle, ready = workers, 0  # workers without a clip; decoded clips

    def fill(clock: float) -> None:
        nonlocal idle
        while idle and ready + len(flying) < buffer:
            heapq.heappush(flying, clock + next(decoding))
            idle -= 1

    fill(0.0)
    free = waited = start = 0.0  # when the GPU is free; how long it waited since the warm-up's end
    for step in range(steps):
        if step == steps // 10:
            waited, start = 0.0, free
        begin = free
        while flying and (flying[0] <= free or ready < batch):
            clock = heapq.heappop(flying)
            begin = max(free, clock)
            ready, idle = ready + 1, idle + 1
            fill(clock)
        waited += begin - free
        ready -= batch
        fill(begin)
        free = begin + computing[step]
    rate = min(workers, buffer) / decode_seconds
    return Starvation(float(waited / (free - start)), 1.0 - min(1.0, rate * step_seconds / batch))


def _times(rng: np.random.Generator, mean: float, spread: float, count: int) -> list[float]:
    """Gamma-distributed times with a standard deviation of ``spread`` means; all alike for 0.

    Their mean is exact, so that what differs from the formula is what chance does, not how these times fell out.
    """
    if spread == 0:
        return [mean] * count
    times = rng.gamma(spread**-2, spread**2, count)
    return (times * mean / times.mean()).tolist()
