"""Scaling on paper: volumes, walls, and the simulated data loader against closed forms."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from clipvip_lib import flops, losses, scaling
from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import CHECKOUT
from clipvip_lib.losses import ocl_loss
from clipvip_lib.omnisource import LOSSES, needs, terms
from clipvip_lib.profiles import get_profile
from clipvip_lib.scaling import Assumptions, StepTime, starvation
from clipvip_lib.study import paper_plan

B32 = flops.ClipSizes()
ASSUMED = Assumptions()
LOSS = "V-S,C + F-C"


def step(batch: int = 1024, gpus: int = 8, assumed: Assumptions = ASSUMED, loss: str = LOSS) -> StepTime:
    return scaling.training_step(B32, loss, batch, gpus, assumed)


# ------------------------------------------------------------------------------------------------------ volumes


@pytest.mark.parametrize("loss", LOSSES)
def test_the_losss_flops_and_bytes_are_torchs(loss):
    B, E = 40, 12
    features = {s: torch.randn(B, E, requires_grad=True) for s in needs(loss)}
    kept: list[torch.Tensor] = []
    counter = FlopCounterMode(display=False)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t), counter:
        ocl_loss(loss, features, torch.zeros(())).backward()
    assert counter.get_total_flops() == scaling.loss_flops(loss, B, E)
    wide = [t for t in kept if t.dtype == torch.float32 and t.dim() == 2 and t.shape[1] > E]
    similarities = sum(t.numel() * t.element_size() for t in wide)
    assert scaling.loss_bytes(loss, B) <= similarities < 1.5 * scaling.loss_bytes(loss, B)


@pytest.mark.parametrize("loss", LOSSES)
def test_of_a_loss_in_tiles_too(monkeypatch, loss):
    monkeypatch.setattr(losses, "TILE", 8)
    monkeypatch.setattr(scaling, "TILE", 8)
    B, E = 40, 12
    features = {s: torch.randn(B, E, requires_grad=True) for s in needs(loss)}
    counter = FlopCounterMode(display=False)
    with counter:
        ocl_loss(loss, features, torch.zeros(())).backward()
    assert counter.get_total_flops() == scaling.loss_flops(loss, B, E)
    widest = max(len(term.negatives) for term in terms(loss))
    assert scaling.loss_bytes(loss, B) == widest * 8 * B * scaling.FLOAT32


def test_a_rank_receives_the_other_ranks_features_and_sends_its_gradients_twice():
    assert scaling.gathered_bytes(1024, 1, 4, 512) == 0
    assert scaling.gathered_bytes(1024, 8, 4, 512) == (1024 - 128) * 4 * 512 * 4
    # A ring of 4: 3 quarters of the gradient are sent to sum it up and 3 more to tell the sums.
    assert scaling.all_reduced_bytes(100, 4) == 2 * 3 * 25 * 4
    assert scaling.all_reduced_bytes(100, 1) == 0


def test_what_a_rank_receives_is_what_two_real_buffers_hold():
    ranks, batch = 4, 16
    each = [torch.randn(batch // ranks, 2, 32) for _ in range(ranks)]  # two sources of one rank
    others = sum(x.numel() * x.element_size() for x in each[1:])
    assert scaling.gathered_bytes(batch, ranks, sources=2, embed=32) == others


def test_at_the_gather_wall_both_volumes_are_equal():
    parameters = flops.clip_parameters(B32)
    batch = scaling.gather_wall(parameters, 4, 512)
    for ranks in (2, 64, 256):
        gathered = scaling.gathered_bytes(batch, ranks, 4, 512)
        assert gathered == pytest.approx(scaling.all_reduced_bytes(parameters, ranks))


@pytest.mark.parametrize("gpus", [8, 256])
def test_at_the_loss_wall_the_loss_takes_as_long_as_the_towers(gpus):
    batch = scaling.loss_wall(flops.step_flops(B32, needs(LOSS)), LOSS, 512, gpus, ASSUMED)
    below, above = step(int(batch * 0.99), gpus), step(int(batch * 1.01), gpus)
    assert below.loss < below.towers and above.loss > above.towers


# -------------------------------------------------------------------------------------------- seconds and walls


def test_a_step_by_hand():
    assumed = ASSUMED.but(
        gpu_tflops=100, gpu_share=0.5, loss_tflops=1, cores_per_gpu=4, decode_ms=10, clip_mb=2
    )
    assumed = assumed.but(nvlink_gb=1, network_gb=0.5, storage_gb=8, gpus_per_machine=4)
    work, weights = flops.step_flops(B32, ("V", "S"), 20), flops.clip_parameters(B32)
    one = scaling.training_step(B32, "V-S", 100, 4, assumed, tokens=20)
    assert one.towers == pytest.approx(100 * work / (4 * 50e12))
    assert one.gather == pytest.approx(75 * 2 * 512 * 4 / 1e9)
    assert one.loss == pytest.approx(2 * 3 * 2 * 100 * 100 * 512 / 1e12)
    assert one.all_reduce == pytest.approx(6 * weights / 1e9)
    assert one.decode == pytest.approx(100 * 0.010 / 16)
    assert one.read == pytest.approx(200e6 / 8e9)
    two = scaling.training_step(B32, "V-S", 100, 8, assumed)  # two machines: the slower network
    assert two.all_reduce == pytest.approx(7 * weights / 0.5e9) and two.decode == pytest.approx(
        one.decode / 2
    )
    assert two.read == one.read  # storage serves all


@pytest.mark.parametrize("wall", ["towers", "gather", "loss", "all-reduce", "decode", "read"])
def test_the_wall_is_what_sets_the_seconds(wall):
    field = wall.replace("-", "_")
    found = StepTime(**({f.name: 1.0 for f in dataclasses.fields(StepTime)} | {field: 9.0}))
    assert found.wall == wall
    assert found.seconds == (11.0 if wall in ("towers", "gather", "loss") else 9.0)


def test_a_chain_of_three_outweighs_one_that_is_longer_than_each():
    assert StepTime(towers=2, gather=1, loss=1, decode=3).wall == "towers"
    assert StepTime(towers=2, gather=0, loss=0, decode=3).wall == "decode"


def test_the_shares_of_a_gpu_are_those_that_the_documentation_measured():
    """Clips and images per second of the H200 in docs/, times counted work, over an H100's and H200's peak."""
    docs = CHECKOUT / "docs"
    clips = int(re.search(r"\| batch 128 \| 0\.30 \| (\d+) \|", (docs / "training.md").read_text())[1])
    images = int(
        re.search(r"OFA-large captions .*, (\d+) per second", (docs / "captioning.md").read_text())[1]
    )
    step = flops.step_flops(paper_plan.sizes_of(get_profile("paper")), frozenset("VSFC"))
    peak = ASSUMED.gpu_tflops * 1e12
    assert round(clips * step / peak, 2) == ASSUMED.gpu_share
    assert round(images * paper_plan.caption_flops() / peak, 3) == ASSUMED.caption_share


def test_more_of_what_is_the_wall_helps_until_another_is():
    fast = ASSUMED.but(gpu_share=0.4)  # so that towers leave room for a wall of another kind
    slow = step(assumed=fast)
    assert slow.wall == "decode"
    packed = step(assumed=fast.packed())
    assert packed.decode == pytest.approx(slow.decode * ASSUMED.packed_ms / ASSUMED.decode_ms)
    assert packed.read == pytest.approx(slow.read * ASSUMED.packed_mb / ASSUMED.clip_mb)
    fed = step(assumed=fast.but(decode_ms=1))
    assert fed.wall == "towers" and fed.seconds == fed.computing < packed.seconds < slow.seconds
    network = step(gpus=256, assumed=fast.but(decode_ms=1, storage_gb=1000))
    assert network.wall == "all-reduce"  # four clips per GPU do not hide a gradient
    assert step(batch=65_536, gpus=256, assumed=fast.but(decode_ms=1, storage_gb=1000)).wall == "loss"


def test_captioning_waits_for_no_other_gpu():
    free = ASSUMED.but(storage_gb=1e6)
    one, many = (scaling.caption_step(5e11, gpus, free) for gpus in (1, 256))
    assert one.seconds == many.seconds and many.gather == many.all_reduce == 0
    assert one.towers == pytest.approx(64 * 5e11 / (ASSUMED.gpu_tflops * ASSUMED.caption_share * 1e12))
    assert one.decode == pytest.approx(64 * ASSUMED.middle_ms / 1000 / ASSUMED.cores_per_gpu)


def test_assumptions_are_named_with_unit_and_reason_and_checked():
    rows = ASSUMED.rows()
    assert len(rows) == len(dataclasses.fields(Assumptions)) >= 10
    assert all(row["unit"] and row["reason"] and row["value"] > 0 for row in rows)
    assert ASSUMED.but(gpu_share=0.5).gpu_share == 0.5
    with pytest.raises(ClipVipError, match="unknown assumption 'gpu_shar'.*did you mean 'gpu_share'"):
        ASSUMED.but(gpu_shar=0.5)
    for bad in (0, -1, float("nan"), float("inf"), True, "fast"):
        with pytest.raises(ClipVipError, match="expected a number above 0"):
            ASSUMED.but(network_gb=bad)
    with pytest.raises(ClipVipError, match="gpu_share.*at most 1"):
        ASSUMED.but(gpu_share=40)
    with pytest.raises(ClipVipError, match="a batch of 4 on 8 GPUs"):
        step(batch=4)
    with pytest.raises(ClipVipError, match="0 GPUs"):
        scaling.caption_step(1e9, 0, ASSUMED)


# ------------------------------------------------------------------------------------- a data loader that starves


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9, 1.1, 3.0])
def test_without_chance_the_simulation_is_the_formula(ratio):
    found = starvation(1.0, 64 * ratio / 8, workers=8, batch=64, buffer=256, spread=0.0)
    assert found.fluid == pytest.approx(max(0.0, 1 - ratio))
    assert found.waits == pytest.approx(found.fluid, abs=0.01)


@pytest.mark.parametrize("ratio", [0.5, 0.8, 1.0, 1.25])
@pytest.mark.parametrize("buffer", [1, 3, 10])
def test_one_worker_and_random_steps_are_a_queue_with_a_closed_form(ratio, buffer):
    """Exponential times, one clip per step: an M/M/1 queue of buffer + 1 places, idle for (1-r) / (1-r^(places+1))."""
    found = starvation(
        1.0, ratio, workers=1, batch=1, buffer=buffer, steps=60_000, spread=1.0, step_spread=1.0, seed=buffer
    )
    places = buffer + 1
    idle = 1 / (places + 1) if ratio == 1.0 else (1 - ratio) / (1 - ratio ** (places + 1))
    assert found.waits == pytest.approx(idle, abs=0.015)


def test_by_hand_one_worker_two_clips_a_step():
    # Clips are ready at 1, 2, 3, ..; steps of a second begin at 2, 4, 6: the GPU waits half of the time.
    found = starvation(1.0, 1.0, workers=1, batch=2, buffer=4, spread=0.0)
    assert found.waits == pytest.approx(0.5) == found.fluid


def test_chance_adds_waiting_and_a_larger_buffer_takes_it_away():
    waits = {
        buffer: starvation(1.0, 4.2, workers=8, batch=32, buffer=buffer, steps=1500, spread=2.0).waits
        for buffer in (32, 48, 64, 256)
    }
    assert list(waits.values()) == sorted(waits.values(), reverse=True)
    assert waits[32] > 0.2 and waits[256] < 0.02
    for ratio in (0.6, 0.9, 1.0):
        found = starvation(1.0, 4 * ratio, workers=8, batch=32, buffer=64, steps=1500, spread=1.0)
        assert found.waits > found.fluid - 0.02


def test_few_places_hold_workers_back():
    found = starvation(1.0, 1.0, workers=16, batch=4, buffer=4, spread=0.0)
    assert found.fluid == 0.0  # four at a time, four per step ..
    assert found.waits == pytest.approx(0.0, abs=0.02)  # .. which are decoded while the GPU computes


def test_the_same_seed_gives_the_same_and_another_another():
    one, same, other = (starvation(1.0, 4.0, workers=8, batch=32, buffer=64, seed=s).waits for s in (0, 0, 1))
    assert one == same != other


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"buffer": 31}, "never holds a batch of 32"),
        ({"workers": 0}, "one worker"),
        ({"decode_seconds": 0.0}, "times above 0"),
        ({"step_seconds": float("nan")}, "times above 0"),
        ({"spread": -1.0}, "spreads of 0 or more"),
    ],
)
def test_what_is_no_data_loader_is_a_sentence(changes, words):
    given = {"decode_seconds": 1.0, "step_seconds": 4.0, "workers": 8, "batch": 32, "buffer": 64} | changes
    with pytest.raises(ClipVipError, match=words):
        starvation(given.pop("decode_seconds"), given.pop("step_seconds"), **given)
