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
#: Said by the processor itself: if our product were wrong, ``is_exact`` would say no, and nothing would be tested.
CPUINFO = Path("/proc/cpuinfo")
HAS = CPUINFO.is_file() and bool({"avx512_vnni", "avx_vnni", "amx_int8"} & set(CPUINFO.read_text().split()))
needs_int8 = pytest.mark.skipif(not HAS, reason="this processor has no exact 8-bit products (VNNI, AMX)")


def layer(weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Linear:
    linear = nn.Linear(*reversed(weight.shape), bias=bias is not None).requires_grad_(False)
    linear.weight.copy_(weight)
    if bias is not None:
        linear.bias.copy_(bias)
    return linear


@needs_int8
def test_a_processor_that_says_so_has_exact_products():
    state = torch.get_rng_state()
    int8.is_exact.cache_clear()
    assert int8.is_exact() and torch.equal(torch.get_rng_state(), state)


@needs_int8
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.tuples(*[st.integers(1, 70)] * 3),
    scales=st.tuples(*[st.integers(-6, 6)] * 2),
    bias=st.booleans(),
)
def test_a_product_is_within_the_bound_of_its_rounding(seed, sizes, scales, bias):
    random = torch.Generator().manual_seed(seed)
    tokens, inner, outer = sizes
    weight = torch.randn(outer, inner, generator=random) * 10.0 ** scales[0]
    x = torch.randn(tokens, inner, generator=random) * 10.0 ** scales[1]
    added = torch.randn(outer, generator=random) * 10.0 ** sum(scales) if bias else None
    linear = layer(weight, added)
    found, exact = Int8Linear(linear)(x).double(), linear.double()(x.double())
    x, weight = x.double().abs(), weight.double().abs()
    of_x, of_weight = (
        x.amax(1, keepdim=True) / int8.MOST,
        weight.amax(1, keepdim=True) / 127,
    )  # a step of each
    bound = x @ (of_weight / 2).expand_as(weight).T + (of_x / 2).expand_as(x) @ weight.T
    bound += inner * (of_x / 2) @ (of_weight / 2).T
    assert ((found - exact).abs() <= 1.001 * bound + 1e-5 * exact.abs()).all()


@needs_int8
def test_tokens_are_rounded_to_the_nearest_of_253_steps():
    assert int8.MOST >= 126
    x = torch.linspace(-1, 1, 1001)[None].repeat(1, 1)
    off = (Int8Linear(layer(torch.eye(1001)))(x) - x).abs()
    assert 0.4 / int8.MOST < off.max() <= 0.501 / int8.MOST


@needs_int8
def test_it_gives_autocasts_type_and_else_that_of_the_tokens():
    product = Int8Linear(layer(torch.randn(6, 5), torch.randn(6)))
    for kind in (torch.float32, torch.float64, torch.bfloat16):
        x = torch.randn(3, 5).to(kind)
        assert product(x).dtype == kind
        with torch.autocast("cpu", torch.bfloat16):
            assert product(x.clone()).dtype == torch.bfloat16


@needs_int8
def test_the_rest_computes_in_the_faster_one_and_other_precisions_are_the_models(monkeypatch):
    model = small_model()
    for precision in ("float32", "bfloat16", "auto"):
        assert int8.of_videos(model, precision) == (model, precision)
    quick, around = int8.of_videos(model, "int8")
    assert quick is not model and around == "auto"


@needs_int8
def test_tokens_are_turned_into_bytes_once_and_those_of_earlier_layers_are_not_kept(monkeypatch):
    quick, made = in_int8(small_model()), []
    products = [each for each in quick.modules() if isinstance(each, Int8Linear)]
    assert len({each.tokens for each in products}) == 1  # 24 of them kept gigabytes
    flat = torch.Tensor.flatten
    monkeypatch.setattr(torch.Tensor, "flatten", lambda *given: made.append(given[1:]) or flat(*given))
    with torch.inference_mode():
        quick.vision_model.encoder.layers[0](torch.randn(1, 5, 64), None)
    assert made.count((0, -2)) == 4  # of queries, keys and values together; of out, fc1, fc2


@needs_int8
def test_a_token_with_large_numbers_costs_the_others_nothing():
    linear = layer(torch.randn(32, 64))
    x = torch.randn(5, 64)
    alone = Int8Linear(linear)(x[:4])
    x[4] *= 1e4
    assert torch.equal(Int8Linear(linear)(x)[:4], alone)


@needs_int8
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_largest_numbers_and_nothing_at_all_stay_what_they_are(kind):
    """A scale that was rounded down must not carry the largest number into the sign; zeros have a scale too."""
    x = torch.cat([torch.linspace(-4, 4, 3001), torch.zeros(1)])[:, None].to(kind)
    with torch.autocast("cpu", kind, enabled=kind != torch.float32):
        assert torch.allclose(Int8Linear(layer(torch.ones(1, 1)))(x), x, rtol=0.02)
        assert Int8Linear(layer(torch.zeros(1, 1)))(x).eq(0).all()


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


@needs_int8
@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_weights_of_other_types_are_taken(kind):
    frames = torch.randint(0, 256, (2, 3, 32, 32, 3), dtype=torch.uint8)
    model = small_model().to(kind)
    with torch.inference_mode():
        exact, found = model.encode_video(frames).double(), in_int8(model).encode_video(frames).double()
    assert (exact * found).sum(-1).min() > 0.999


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
