"""OFA's released weights, in both key layouts, are loaded whole or not at all."""

import argparse
import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from clipvip_lib.errors import ClipVipError
from clipvip_lib.models.checkpoints import load_checkpoint, load_clip_vip
from clipvip_lib.models.clip_vip import ClipViP, ClipViPConfig
from clipvip_lib.models.ofa import OFA, OFA_SIZES, OFAConfig, ofa_state_dict
from clipvip_lib.models.ofa_weights import EMBEDDING, TIED, infer_ofa_config, load_ofa

SMALL = OFAConfig(
    d_model=32, encoder_layers=3, decoder_layers=2, encoder_ffn_dim=48, decoder_ffn_dim=64,
    encoder_attention_heads=4, decoder_attention_heads=2, resnet_type="resnet50", resnet_width=8,
    vocab_size=60, max_position_embeddings=40, token_bucket_size=8, image_bucket_size=6,
)  # fmt: skip
IDS, IMAGES = (
    torch.tensor([[0, 9, 7, 2]]),
    torch.randn(1, 3, 64, 48, generator=torch.Generator().manual_seed(0)),
)
CAPTION = torch.tensor([[0, 11, 12]])


def small(seed=0):
    torch.manual_seed(seed)
    return OFA(SMALL).eval()


def buffers():
    """What the authors store beside the weights and compute from the configuration."""
    shapes = {"token_rp_bucket": (40, 40), "image_rp_bucket": (37, 37)}
    sides = {
        f"{side}.{name}": torch.zeros(shape)
        for side in ("encoder", "decoder")
        for name, shape in shapes.items()
    }
    return sides | {"decoder.image_position_idx": torch.zeros(26)}


def hugging_face(model):
    return {name: value.clone() for name, value in model.state_dict().items()} | buffers()


def fairseq(model):
    """The same weights under fairseq's names, in half precision, with its format versions."""
    renamed = {}
    for name, value in hugging_face(model).items():
        name = name.replace("ffn_layer_norm", "ffn_layernorm")
        if name.startswith("encoder"):
            name = name.replace("self_attn_mid_layer_norm", "attn_ln")
        else:
            name = name.replace("cross_attn_mid_layer_norm", "cross_attn_ln")
            name = name.replace("self_attn_mid_layer_norm", "self_attn_ln")
            name = name.replace("cross_attn_layer_norm", "encoder_attn_layer_norm")
            name = re.sub(r"\bcross_attn\.", "encoder_attn.", name)
        renamed[name] = value.half() if value.is_floating_point() else value
    return renamed | {"encoder.version": torch.tensor([3.0])}


def fairseq_file(model, path):
    """A checkpoint as fairseq's trainer writes it: a Namespace in its configuration, numpy scores beside it."""
    torch.save(
        {
            "args": None,
            "cfg": {"_name": None, "model": argparse.Namespace(arch="ofa_large", encoder_layers=3)},
            "model": fairseq(model),
            "criterion": None,
            "optimizer_history": [{"num_updates": 500, "criterion_name": "Criterion"}],
            "task_state": {},
            "extra_state": {"epoch": 2, "best": np.float64(138.2), "ema": {"encoder.version": torch.ones(1)}},
            "last_optimizer_state": None,
        },
        path,
    )


def logits(model):
    with torch.no_grad():
        return model(IDS, IMAGES, CAPTION)


def test_fairseqs_checkpoint_needs_no_configuration(tmp_path):
    model = small()
    fairseq_file(model, tmp_path / "caption_large_best_clean.pt")
    loaded, report = load_ofa(tmp_path / "caption_large_best_clean.pt")
    halves = model.half().float()
    assert torch.equal(logits(loaded), logits(halves))
    assert dataclasses.replace(loaded.config) == SMALL
    assert set(report.dropped) == {*buffers(), "encoder.version"} and all(report.dropped.values())
    assert report.changed[EMBEDDING] == "float16 to float32"
    assert sorted(report.loaded) == sorted(model.state_dict()) and not report.added
    assert not loaded.training and all(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize("kind", ["folder", "bin", "safetensors"])
def test_the_hugging_face_layout(kind, tmp_path):
    model, path = small(), tmp_path / f"pytorch_model.{kind}"
    if kind == "safetensors":  # which stores a shared tensor once
        save_file({k: v for k, v in hugging_face(model).items() if k not in TIED}, path)
    else:
        path = tmp_path / "pytorch_model.bin"
        torch.save(hugging_face(model), path)
    if kind == "folder":
        config = SMALL.to_dict() | {"architectures": ["OFAModel"], "use_cache": True, "code_image_size": 128}
        (tmp_path / "config.json").write_text(json.dumps(config))
        path = tmp_path
    loaded, report = load_ofa(path)
    assert torch.equal(logits(loaded), logits(model))
    assert set(report.added) == (set(TIED) if kind == "safetensors" else set())


def test_the_token_embedding_is_one_parameter(tmp_path):
    fairseq_file(small(), tmp_path / "x.pt")
    loaded, _ = load_ofa(tmp_path / "x.pt")
    assert loaded.decoder.output_projection.weight is loaded.encoder.embed_tokens.weight
    assert loaded.decoder.embed_tokens is loaded.encoder.embed_tokens
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in small().parameters())


def test_one_function_loads_either_model(tmp_path):
    fairseq_file(small(), tmp_path / "ofa.pt")
    loaded, report = load_checkpoint(tmp_path / "ofa.pt")
    assert isinstance(loaded, OFA) and report.source.endswith("ofa.pt")
    with pytest.raises(ClipVipError, match="holds an OFA, which takes config= alone, got proxies"):
        load_checkpoint(tmp_path / "ofa.pt", proxies=2)
    sizes = {"width": 64, "layers": 1, "heads": 1, "image_size": 16, "patch_size": 8, "embed_dim": 16}
    clip = ClipViP(ClipViPConfig.small(**sizes, vocab_size=40, context_length=12))
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    loaded, _ = load_checkpoint(tmp_path / "clip.pt", attention="mean_pool")
    assert isinstance(loaded, ClipViP) and loaded.config.attention == "mean_pool"


def test_each_model_refuses_the_others_weights(tmp_path):
    fairseq_file(small(), tmp_path / "ofa.pt")
    with pytest.raises(ClipVipError, match="an OFA checkpoint; load it with load_ofa"):
        load_clip_vip(tmp_path / "ofa.pt")
    torch.save({"text_model.x": torch.ones(2)}, tmp_path / "clip.pt")
    with pytest.raises(ClipVipError, match="expected the weights of an OFA"):
        load_ofa(tmp_path / "clip.pt")
    (tmp_path / "config.json").write_text('{"model_type": "bart"}')
    torch.save(hugging_face(small()), tmp_path / "pytorch_model.bin")
    with pytest.raises(ClipVipError, match=r"expected the folder of an OFA, its config.json says 'bart'"):
        load_ofa(tmp_path)


LAYER = "decoder.layers.1.cross_attn_mid_layer_norm.weight"
FAULTS = {
    "missing": (lambda s: s.pop(LAYER), rf"1 missing: {LAYER}"),
    "left over": (
        lambda s: s.update({"encoder.pos_lm.bias": torch.ones(32)}),
        r"1 left over: encoder.pos_lm.bias \(nearest: encoder.pos_ln.bias\)",
    ),
    "shape": (lambda s: s.update({LAYER: torch.ones(8)}), r"1 of another shape: .* \[8\] instead of \[32\]"),
    "not finite": (lambda s: s[LAYER][3:4].fill_(float("nan")), rf"not finite in 1 weights \({LAYER}\)"),
    "untied": (
        lambda s: s["decoder.output_projection.weight"].add_(1e-3),
        "stores a decoder.output_projection.weight other than encoder.embed_tokens.weight",
    ),
    "no sizes": (
        lambda s: s.pop("encoder.embed_positions.weight"),
        "expected the weights of an OFA, encoder.embed_positions.weight is missing",
    ),
    "twice": (
        lambda s: s.update({"encoder.layers.0.ffn_layernorm.weight": torch.ones(48)}),
        "encoder.layers.0.ffn_layer_norm.weight twice, under two spellings",
    ),
    "NaN in the tied one": (
        lambda s: [s[name].view(-1)[:1].fill_(float("nan")) for name in (EMBEDDING, *TIED)],
        r"not finite in 1 weights \(encoder.embed_tokens.weight\)",
    ),
    "a version of something": (lambda s: s.update({"x.version": torch.ones(1)}), "1 left over: x.version"),
    "a 0-d size": (lambda s: s.update({"decoder.layers.0.self_attn.c_attn": torch.tensor(1.0)}), "could not be loaded"),
    "another ResNet": (
        lambda s: [s.pop(k) for k in list(s) if k.startswith("encoder.embed_images.layer3.5.")],
        r"a ResNet with \(3, 4, 5\) blocks: expected one of",
    ),
}  # fmt: skip


@pytest.mark.bad_input(
    "OFA's weights: missing, left over, doubled, of another shape or not finite", says="which ones"
)
@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_one_sentence(fault, tmp_path):
    edit, message = FAULTS[fault]
    state = hugging_face(small())
    edit(state)
    torch.save(state, tmp_path / "ofa.pt")
    with pytest.raises(ClipVipError, match=message) as caught:
        load_ofa(tmp_path / "ofa.pt")
    assert "\n" not in str(caught.value)


def test_weights_of_another_size_than_the_configuration_given(tmp_path):
    torch.save(hugging_face(small()), tmp_path / "ofa.pt")
    with pytest.raises(ClipVipError, match=r"of another shape: .*encoder"):
        load_ofa(tmp_path / "ofa.pt", config=dataclasses.replace(SMALL, d_model=64))


@pytest.mark.parametrize("size", OFA_SIZES)
def test_the_released_sizes_are_read_off_the_shapes(size):
    with torch.device("meta"):
        state = OFA(OFA_SIZES[size]).state_dict()
    assert infer_ofa_config(ofa_state_dict(state)[0]) == OFA_SIZES[size]


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import pathlib

        return pathlib.Path.touch, (self.path,)


@pytest.mark.bad_input(
    "OFA's weights: a pickle that would run code", says="`would run code, and were not run`; it is not run"
)
def test_plain_data_is_read_and_code_is_not(tmp_path):
    """The classes that fairseq's files need are let in by name; everything else stays out."""
    content = {"cfg": argparse.Namespace(model=Bomb(tmp_path / "exploded")), "model": fairseq(small())}
    torch.save(content, tmp_path / "bad.pt")
    with pytest.raises(ClipVipError, match="would run code, and were not run"):
        load_ofa(tmp_path / "bad.pt")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.bad_input("OFA's configuration: sizes that nothing could build", says="`must be at most`")
@pytest.mark.parametrize(
    "field", ("encoder_layers", "decoder_layers", "image_bucket_size", "vocab_size", "d_model")
)
def test_sizes_that_nothing_could_build_are_refused(field):
    with pytest.raises(
        ClipVipError, match=rf"OFA's {field} must be at most [0-9]+, got 4000000000; correct config"
    ):
        OFAConfig(**{field: 4_000_000_000})
