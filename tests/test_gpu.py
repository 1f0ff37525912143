"""On a GPU the models, the steps and the commands give what they give on a CPU. Skipped where PyTorch finds none."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from caption_corpus import trained
from rank_checks import global_batch, gradient, relative, small_model
from small_captioner import TINY, pairs
from small_clip import save_small, write_videos
from small_runs import finish, settings, train, write_model, write_shards

from clipvip_lib.captions.captioner_training import train_captioner
from clipvip_lib.data.clips import list_clips
from clipvip_lib.features.embedding import embed_videos, load_encoder
from clipvip_lib.features.folder import Features
from clipvip_lib.models.attentions import ATTENTIONS
from clipvip_lib.models.checkpoints import adapt
from clipvip_lib.profiles import Recipe
from clipvip_lib.study import steps
from clipvip_lib.training.encoder import BatchEncoder, features
from clipvip_lib.training.ranks import Ranks
from clipvip_lib.training.weights import load_state

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here that PyTorch can use")
GPU, LOSS = "cuda", "V-S,C + F-C"
RECIPE = Recipe(steps=6, batch=8, lr=1e-3, lr_added=5e-3, precision="float32")


@pytest.fixture(autouse=True)
def full_float32(monkeypatch):
    """Convolutions take TF32 by default, three digits instead of seven."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_features_are_those_of_the_cpu(attention):
    model, batch = adapt(small_model(), attention=attention).eval(), global_batch(0)
    with torch.no_grad():
        expected = features(model, batch)
        found = features(model.to(GPU), batch)
        rough = features(model.bfloat16(), batch)
    for source, rows in expected.items():
        assert found[source].is_cuda
        torch.testing.assert_close(found[source].cpu(), rows, rtol=0, atol=1e-5)
        assert (rough[source].float().cpu() - rows).abs().max() < 0.05


@pytest.mark.parametrize("chunk", (0, 3))
def test_gradients_are_those_of_the_cpu_plain_and_cached(chunk):
    model, batch = small_model(), global_batch(1)
    value, expected = gradient(BatchEncoder(model), model, batch, LOSS, Ranks())
    model.to(GPU)
    ranks = Ranks(device=torch.device(GPU))
    other, found = gradient(BatchEncoder(model), model, batch, LOSS, ranks, chunk)
    assert other == pytest.approx(value, rel=1e-5)
    assert relative(found.cpu(), expected) < 1e-5
    _, rough = gradient(BatchEncoder(model, precision="bfloat16"), model, batch, LOSS, ranks, chunk)
    assert relative(rough.cpu(), expected) < 0.05


class Anywhere:
    """Batch number ``step``, at any time."""

    def __call__(self, step: int):
        return global_batch(step)

    def position(self) -> None:
        """The step says all."""

    def place(self, positions: list, step: int) -> None:
        """Nothing to do."""


def small_training(device: str, folder, recipe: Recipe = RECIPE, progress=lambda *_: None):
    model = small_model().to(device)
    return model, steps._train(
        model, Anywhere(), LOSS, recipe, folder, progress,
        evaluate=lambda m: -float(m.logit_scale), snapshots=(3,),
    )  # fmt: skip


def test_the_small_studys_loop_learns_the_same_and_resumes(tmp_path, monkeypatch):
    folders = {name: tmp_path / name for name in ("cpu", "gpu", "again", "bfloat16")}
    for folder in folders.values():
        folder.mkdir()
    _, on_cpu = small_training("cpu", folders["cpu"])
    model, on_gpu = small_training(GPU, folders["gpu"])
    for key in ("loss", "grad_norm"):
        losses = [[row[key] for row in outcome.history] for outcome in (on_cpu, on_gpu)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    on_a_cpu = small_model()
    load_state(on_a_cpu, folders["gpu"] / "step-000003.pt")  # what a GPU wrote, read without one
    assert not next(on_a_cpu.parameters()).is_cuda

    def stop(done, total, note):
        if done == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(steps, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        small_training(GPU, folders["again"], progress=stop)
    resumed, outcome = small_training(GPU, folders["again"])
    assert [row["step"] for row in outcome.history] == list(range(1, 7))
    for ours, theirs in zip(resumed.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    _, rough = small_training(GPU, folders["bfloat16"], dataclasses.replace(RECIPE, precision="bfloat16"))
    assert rough.history[-1]["loss"] == pytest.approx(on_cpu.history[-1]["loss"], rel=0.1)


def test_captions_are_those_of_the_cpu_and_a_captioner_learns_there():
    captioner = trained()
    images, said = pairs(8)
    expected = captioner.caption(images)
    captioner.model.to(GPU)
    assert captioner.caption(images) == expected == [text.rstrip(".") for text in said]
    size = dataclasses.replace(TINY, stem_steps=10, steps=80)
    assert train_captioner(*pairs(32), size, seed=0, device=GPU)[0].caption(images) == expected


def test_clips_are_embedded_as_on_the_cpu(tmp_path):
    weights, videos = save_small(tmp_path / "weights"), write_videos(tmp_path / "videos", 5)
    found = {}
    for device in ("cpu", GPU):
        encoder = load_encoder(weights, device=device)
        embed_videos(encoder, list_clips([videos[0].parent]), tmp_path / device)
        found[device] = Features(tmp_path / device).array
    assert np.abs(np.asarray(found["cpu"]) - np.asarray(found[GPU])).max() < 1e-4


@pytest.mark.slow
def test_clipvip_train_under_torchrun_learns_there_what_it_learns_on_a_cpu(tmp_path, monkeypatch):
    """One rank: nccl, a stream of shards, gradient caching, DistributedDataParallel."""
    weights, shards = write_model(tmp_path / "weights"), write_shards(tmp_path / "shards")
    losses = {}
    for device in (GPU, "cpu"):
        if device == "cpu":
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        out = tmp_path / device
        command = ["--stage", "postpretrain", "--shards", shards, "--weights", weights, "--out", out]
        finish(train(1, *command, "--loss", LOSS, *settings(chunk=3)))
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses[device] = [row["loss"] for row in rows]
    assert len(losses[GPU]) == 6 and losses[GPU] == pytest.approx(losses["cpu"], rel=5e-3)
