"""A captioner: what it says, and that a saved one says the same."""

from __future__ import annotations

import json

import pytest
import torch
from small_captioner import TINY, pairs, weights_equal

from clipvip_lib.captions.captioner import Captioner, postprocess
from clipvip_lib.captions.captioner_training import train_captioner
from clipvip_lib.errors import ClipVipError

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tiny() -> Captioner:
    return train_captioner(*pairs(32), TINY, seed=0)[0]


def test_captions_lose_punctuation_and_outer_spaces():
    assert postprocess(" a man's well-known dog, sitting. ") == "a mans wellknown dog sitting"


def test_a_saved_captioner_says_the_same(tiny, tmp_path):
    images = pairs(6)[0]
    loaded = Captioner.load(tiny.save(tmp_path / "ofa"))
    assert weights_equal(tiny, loaded)
    assert loaded.beam == tiny.beam
    assert loaded.caption(images) == tiny.caption(images)
    assert loaded.caption(images, batch=4) == tiny.caption(images)
    assert tiny.caption([]) == []


@pytest.mark.bad_input(
    "captioner: cut weights, another shape, or half a configuration",
    says="`damaged or cut short`, `of another shape` or `not a whole captioner`",
)
def test_a_folder_that_is_no_captioner_is_refused(tiny, tmp_path):
    with pytest.raises(ClipVipError, match="no file"):
        Captioner.load(tmp_path)
    folder = tiny.save(tmp_path / "ofa")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ClipVipError, match="damaged or cut short"):
        Captioner.load(folder)
    (folder / "model.safetensors").write_bytes(whole)
    config = json.loads((folder / "config.json").read_text())
    config["ofa"]["d_model"] = 32
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ClipVipError, match="of another shape"):
        Captioner.load(folder)
    del config["ofa"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ClipVipError, match="not a whole captioner"):
        Captioner.load(folder)
