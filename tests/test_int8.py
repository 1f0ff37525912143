"""The vision tower in 8 bits: within the bound of its rounding, refused where products lose carries, whole commands."""

import os
import shutil
import sys
from pathlib import Path

import patience
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_clip import WORDS, save_small, small_model, write_videos
from torch import nn

from clipvip_lib.errors import ClipVipError
from clipvip_lib.features.folder import Features
from clipvip_lib.models import int8
from clipvip_lib.models.int8 import Int8Linear, in_int8

pytestmark = pytest.mark.filterwarnings("error")
needs_int8 = pytest.mark.skipif(
    not int8.is_exact(), reason="this processor has no exact 8-bit products (VNNI, AMX)"
)


@needs_int8
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.tuples(*[st.integers(1, 70)] * 3),
    scales=st.tuples(*[st.floats(1e-6, 1e6)] * 2),
    bias=st.booleans(),
)
def test_a_product_is_within_the_bound_of_its_rounding(seed, sizes, scales, bias):
    random = torch.Generator().manual_seed(seed)
    tokens, inner, outer = sizes
    linear = nn.Linear(inner, outer, bias=bias).requires_grad_(False)
    linear.weight.copy_(torch.randn(outer, inner, generator=random) * scales[0])
    x = torch.randn(tokens, inner, generator=random) * scales[1]
    found, exact = Int8Linear(linear)(x).double(), linear.double()(x.double())
    x, weight = x.double().abs(), linear.weight.abs()
    of_x, of_weight = (
        x.amax(1, keepdim=True) / int8.MOST,
        weight.amax(1, keepdim=True) / 127,
    )  # a step of each
    bound = x @ (of_weight / 2).expand_as(weight).T + (of_x / 2).expand_as(x) @ weight.T
    bound += inner * (of_x / 2) @ (of_weight / 2).T
    assert ((found - exact).abs() <= 1.001 * bound + 1e-5 * exact.abs() + 1e-5).all()


@needs_int8
def test_a_token_with_large_numbers_costs_the_others_nothing():
    linear = nn.Linear(64, 32).requires_grad_(False)
    x = torch.randn(5, 64)
    alone = Int8Linear(linear)(x[:4])
    x[4] *= 1e4
    assert torch.equal(Int8Linear(linear)(x)[:4], alone)


@needs_int8
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_largest_numbers_and_nothing_at_all_stay_what_they_are(kind):
    """A scale that was rounded down must not carry the largest number into the sign; zeros have a scale too."""
    linear = nn.Linear(1, 1, bias=False).requires_grad_(False)
    linear.weight.fill_(1.0)
    x = torch.cat([torch.linspace(-4, 4, 3001), torch.zeros(1)])[:, None].to(kind)
    assert torch.allclose(Int8Linear(linear)(x), x, rtol=0.02)
    linear.weight.zero_()
    assert Int8Linear(linear)(x).eq(0).all()


@needs_int8
@pytest.mark.parametrize("attention", ["proxy", "full", "mean_pool", "sequential"])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_features_are_nearly_the_models_and_the_model_stays_as_it_was(attention, kind):
    torch.manual_seed(0)
    model = small_model(attention=attention)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = model.config.vision_config
    frames = torch.randint(
        0, 256, (3, model.config.temporal_size, *[config.image_size] * 2, 3), dtype=torch.uint8
    )
    quick = in_int8(model)
    with torch.inference_mode(), torch.autocast("cpu", kind, enabled=kind != torch.float32):
        exact, found = model.encode_video(frames).float(), quick.encode_video(frames).float()
    assert 0.999 < (exact * found).sum(-1).min() and not torch.equal(exact, found)
    assert any(isinstance(each, nn.Linear) for each in model.vision_model.encoder.modules())
    assert not any(isinstance(each, nn.Linear) for each in quick.vision_model.encoder.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert quick.text_projection.weight is model.text_projection.weight  # no second copy of the rest


def test_a_device_without_such_products_is_one_sentence(monkeypatch):
    model = small_model()
    with pytest.raises(
        ClipVipError, match="int8 expected a processor with 8-bit products .* got meta; take precision"
    ):
        in_int8(model.to("meta"))
    monkeypatch.setattr(int8, "is_exact", lambda: False)
    with pytest.raises(
        ClipVipError, match="got this processor, which has none that are exact; take precision auto"
    ):
        in_int8(small_model())


#: It takes a processor back to one without VNNI.
OLD = {"ONEDNN_MAX_CPU_ISA": "AVX2"}


def clipvip(*line: object, **variables):
    environment = os.environ | variables
    return patience.run([sys.executable, "-m", "clipvip_lib.cli", *line], env=environment)


def similarities(folder: Path) -> torch.Tensor:
    features = torch.from_numpy(Features(folder).array[:].copy())
    return features @ features.T


@needs_int8
@pytest.mark.slow
def test_embeds_and_is_searched_also_where_it_could_not_have_been_made(tmp_path):
    weights, out = save_small(tmp_path / "weights"), tmp_path / "out"
    paths = write_videos(tmp_path / "videos", 3)
    (tmp_path / "texts.txt").write_text("\n".join(WORDS))
    line = ["embed", tmp_path / "videos", "--texts", tmp_path / "texts.txt", "--weights", weights]
    assert clipvip(*line, "--out", tmp_path / "exact").returncode == 0
    quick = [*line, "--precision", "int8", "--out", out]
    assert clipvip(*quick).returncode == 0
    assert Features(out).settings["precision"] == "int8"
    # The text tower has no such products.
    assert Features(out / "texts").settings["precision"] in ("float32", "bfloat16")
    assert torch.allclose(similarities(out), similarities(tmp_path / "exact"), atol=5e-3)
    again = clipvip(*quick)
    assert again.returncode == 0 and "embed 3/3 100 %, embedded before" in again.stderr
    other = clipvip(*line, "--out", out)
    assert other.returncode == 2 and "other settings: precision was" in other.stderr
    for variables in ({}, OLD):
        found = clipvip("search", WORDS[0], "--video", paths[1], "--in", out, "--top", 1, **variables)
        assert found.returncode == 0, found.stderr
        assert found.stdout.splitlines()[-1].split()[2] == "v01"
    shutil.rmtree(out)
    refused = clipvip(*quick, **OLD)
    assert refused.returncode == 2 and not (out / "meta.json").exists()
    assert "got this processor, which has none that are exact; take precision auto" in refused.stderr
    assert "Traceback" not in refused.stderr
