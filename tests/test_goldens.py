"""Vectors made by running the authors' code, reproduced.

Cases are the folders in ``goldens/clip_vip``, or in ``clip_vip`` of the folder that CLIPVIP_GOLDENS names. A
case is built from its case.json alone, so cases of any size run unchanged; one that lacks a key fails, as
does an empty folder.
"""

import functools
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clipvip_lib.losses import LOSSES, ocl_loss
from clipvip_lib.models.checkpoints import build, load_weights
from clipvip_lib.models.clip_vip import ClipViPConfig

FOLDER = Path(os.environ.get("CLIPVIP_GOLDENS") or Path(__file__).parent / "goldens") / "clip_vip"
CASES = sorted(p.name for p in FOLDER.iterdir() if p.is_dir()) if FOLDER.is_dir() else []

FEATURES = {
    "video": ("video_embeds", "pixel_values"),
    "frame": ("frame_embeds", "frame_pixel_values"),
    "subtitle": ("subtitle_embeds", "subtitle"),
    "caption": ("caption_embeds", "caption"),
    "last hidden state": ("vision_last_hidden_state", "pixel_values"),
}
LOSS_INPUTS = {"V": "loss_video", "S": "loss_subtitle", "F": "loss_frame", "C": "loss_caption"}


@functools.cache
def load(name):
    """The model of a case, its description and its vectors."""
    case = json.loads((FOLDER / name / "case.json").read_text(encoding="utf-8"))
    text = {k: v for k, v in case["text_config"].items() if k != "end_of_text"}
    vocab = text["vocab_size"]
    config = ClipViPConfig(
        vision_config=case["vision_config"],
        text_config=text | {"bos_token_id": vocab - 2, "eos_token_id": vocab - 1, "pad_token_id": 0},
        projection_dim=case["projection_dim"],
        proxies=case["proxies"],
        temporal_size=case["temporal_size"],
    )
    model = build(config)
    report = load_weights(model, load_file(FOLDER / name / "weights.safetensors"), source=name)
    assert not report.added and all("position_ids" in key for key in report.dropped)
    return model.eval(), case, load_file(FOLDER / name / "vectors.safetensors")


def largest(ours, theirs):
    """The largest difference, relative where the numbers are large."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1))


def test_there_are_cases():
    assert CASES, f"no case in {FOLDER}: expected folders with case.json, weights and vectors"


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("quantity", FEATURES)
@pytest.mark.parametrize("name", CASES)
def test_features(name, quantity, training, record_property):
    model, case, vectors = load(name)
    key, source = FEATURES[quantity]
    with torch.set_grad_enabled(training):
        if source in ("subtitle", "caption"):
            ours = model.encode_text(vectors[f"{source}_input_ids"], vectors[f"{source}_attention_mask"])
        elif quantity == "last hidden state":
            ours = model.video_states(vectors[source])
        else:
            ours = model.encode_video(vectors[source])
    if quantity == "video":
        assert vectors[source].shape[:2] == (case["batch"], case["frames"])
    difference = largest(ours.detach(), vectors[key])
    record_property("largest difference", difference)
    assert difference < 1e-5


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", CASES)
def test_losses_and_their_gradients(name, loss, record_property):
    _, case, vectors = load(name)
    features = {source: vectors[key].clone().requires_grad_() for source, key in LOSS_INPUTS.items()}
    scale = torch.tensor(case["loss_logit_scale_log"], dtype=torch.float64)
    ours = ocl_loss(loss, features, scale, reduction="sum")
    expected = case["losses_sum_of_cross_entropies"][loss]
    relative = abs(float(ours.detach()) - expected) / abs(expected)
    (gradient,) = torch.autograd.grad(ours, features["V"])
    theirs = vectors[f"grad_video/{loss}"]
    of_gradient = float((gradient - theirs).abs().max() / theirs.abs().max())
    record_property("largest relative difference", max(relative, of_gradient))
    assert relative < 1e-9 and of_gradient < 1e-9
