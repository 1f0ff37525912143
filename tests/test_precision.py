"""The precision follows what the device multiplies fast, and a user who asks for the slow one is told."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from clipvip_lib import precision
from clipvip_lib.errors import ClipVipError
from clipvip_lib.models.clip_vip import ClipViP
from clipvip_lib.profiles import ModelSize, get_profile, in_precision
from clipvip_lib.study import experiments
from clipvip_lib.study.steps import _clip_config
from clipvip_lib.training.batches import Batch, Tokens
from clipvip_lib.training.ranks import Ranks
from clipvip_lib.training.recipes import TrainRecipe
from clipvip_lib.training.step import Step
from clipvip_lib.workshop import machine
from clipvip_lib.workshop.stages import closure

TWICE = {"float32": 50.0, "bfloat16": 100.0}
IMITATED = {"float32": 50.0, "bfloat16": 1.0}
#: They take a processor with AVX-512 BF16 or AMX back to one without.
OLD = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


@pytest.mark.parametrize(("rates", "chosen"), [(TWICE, "bfloat16"), (IMITATED, "float32")])
def test_auto_is_the_faster_one_and_a_name_is_itself(rates, chosen):
    assert precision.choose("auto", "cpu", lambda: rates) == chosen
    assert [precision.choose(name, "cpu", lambda: rates) for name in ("float32", "bfloat16")] == [
        "float32",
        "bfloat16",
    ]


def test_a_little_faster_is_not_worth_other_numbers():
    assert precision.choose("auto", "cpu", lambda: {"float32": 50.0, "bfloat16": 55.0}) == "float32"


def test_an_unknown_word_is_one_sentence():
    with pytest.raises(
        ClipVipError, match="unknown precision 'bf16': expected one of auto, float32, bfloat16"
    ):
        precision.choose("bf16")


def test_timing_leaves_threads_and_random_numbers_alone():
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    precision.product_rates.cache_clear()
    rates = precision.product_rates()
    assert set(rates) == {"float32", "bfloat16"} and min(rates.values()) > 0
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads


@pytest.mark.parametrize(("name", "kind"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_forward_pass_runs_in_it(name, kind):
    with precision.autocast(name, torch.device("cpu")):
        assert torch.nn.Linear(4, 4)(torch.ones(2, 4)).dtype == kind


def test_words_say_why_and_by_how_much(monkeypatch):
    assert precision.in_words("auto", "cpu", lambda: TWICE) == (
        "bfloat16 (this processor multiplies bfloat16 2.0 times as fast as float32)"
    )
    assert precision.in_words("auto", "cpu", lambda: IMITATED) == (
        "float32 (this processor multiplies bfloat16 50 times slower than float32)"
    )
    monkeypatch.setattr(precision, "product_rates", lambda: IMITATED)
    assert "bfloat16 50 times slower than float32; take precision float32" in precision.slower("bfloat16")
    assert precision.slower("float32") is None and precision.slower("auto") is None
    monkeypatch.setattr(precision, "product_rates", lambda: TWICE)
    assert precision.slower("bfloat16") is None


def test_a_cache_remembers_what_was_timed(tmp_path, monkeypatch):
    times = []
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(precision, "product_rates", lambda: times.append(1) or TWICE)
    assert machine.product_rates(tmp_path) == machine.product_rates(tmp_path) == TWICE
    assert len(times) == 1
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")  # another processor, as far as PyTorch can tell
    machine.product_rates(tmp_path)
    assert len(times) == 2 and len(json.loads((tmp_path / "precision.json").read_text())) == 2


def step_seconds() -> dict[str, float]:
    """Processor seconds of a mini training step in each precision: the best of three, in turns."""
    size, steps = ModelSize(), {}
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 300, (32, 16), generator=generator)
    ids[:, -1] = 349
    video = torch.randint(0, 256, (32, 4, 48, 48, 3), generator=generator, dtype=torch.uint8)
    batch = Batch(video, None, Tokens(ids, torch.ones_like(ids)), None, None)
    for name in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model = ClipViP(_clip_config(size, 350, "proxy", 4, 4))
        steps[name] = Step(model, "V-S", TrainRecipe(steps=500, batch=32, precision=name, flat=True), Ranks())
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(3):
        for name, step in steps.items():
            started = time.process_time()
            step(batch, 0)
            seconds[name].append(time.process_time() - started)
    return {name: min(taken) for name, taken in seconds.items()}


def expect_the_better_one() -> str:
    seconds, chosen = step_seconds(), precision.choose("auto")
    assert seconds[chosen] <= 1.2 * min(seconds.values()), (seconds, precision.product_rates())
    return chosen


def test_a_mini_step_never_takes_much_more_than_in_the_better_precision():
    expect_the_better_one()


@pytest.mark.slow
@pytest.mark.thorough
def test_nor_on_a_processor_without_bfloat16():
    code = "import test_precision as t; print(t.precision.product_rates(), t.expect_the_better_one())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | OLD, cwd=Path(__file__).parent
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # They do take a new processor back: bfloat16 is imitated there.
    assert done.stdout.strip().endswith("float32"), done.stdout


def test_a_study_names_its_precision_in_the_keys_of_what_is_computed_in_it():
    keys = {}
    for name in ("float32", "bfloat16"):
        profile = in_precision(get_profile("smoke"), name)
        assert repr(profile) == repr(get_profile("smoke"))  # the same study
        stages = experiments.stages_for("06_clip_vip", profile, [0])
        stages += [experiments.captioner(profile), experiments.cost(profile)]
        stages += [experiments.language_gap(profile, 0), experiments.order_probes(profile, 0)]
        keys[name] = {stage.name: stage.key for stage in closure(stages)}
    same = {name for name, key in keys["float32"].items() if key == keys["bfloat16"][name]}
    files = {name for name in keys["float32"] if name.startswith(("world/", "frames/"))}
    assert same == files != set()
