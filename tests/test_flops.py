"""FLOPs by arithmetic: equal to what torch counts in the running models, and to what was measured at full size."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from clipvip_lib import flops
from clipvip_lib.errors import ClipVipError
from clipvip_lib.flops import ClipSizes
from clipvip_lib.models.attentions import ATTENTIONS
from clipvip_lib.models.beam import BeamSettings, beam_search
from clipvip_lib.models.clip_vip import ClipViP, ClipViPConfig
from clipvip_lib.models.ofa import EOS, OFA, OFAConfig
from clipvip_lib.omnisource import needs

B32, B16 = ClipSizes(), ClipSizes(patch_size=16)


def small(attention: str, **changes) -> ClipViP:
    sizes = {"width": 24, "layers": 3, "heads": 2, "image_size": 24, "patch_size": 8, "embed_dim": 20}
    sizes |= {"vocab_size": 50, "context_length": 11, "text_width": 16, "text_layers": 2, "text_heads": 2}
    torch.manual_seed(0)
    return ClipViP(
        ClipViPConfig.small(attention=attention, frames=5, proxies=3, **(sizes | changes)),
    )


def counted(call) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        call()
    return counter.get_total_flops()


def ids(batch: int, tokens: int) -> torch.Tensor:
    return torch.arange(batch * tokens).view(batch, tokens) % 40 + 1


# --------------------------------------------------------------------------------------------- CLIP-ViP


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("frames", [1, 5])
@pytest.mark.parametrize("layers", [1, 3])
def test_a_videos_flops_are_those_that_torch_counts(attention, frames, layers):
    model = small(attention, layers=layers).eval()
    sizes, pixels = ClipSizes.of(model.config), torch.randn(2, frames, 3, 24, 24)
    with torch.no_grad():
        assert counted(lambda: model.encode_video(pixels)) == 2 * flops.video_flops(sizes, frames)


@pytest.mark.parametrize("tokens", [4, 11])
def test_a_texts_flops_are_those_that_torch_counts(tokens):
    model = small("proxy").eval()
    with torch.no_grad():
        found = counted(lambda: model.encode_text(ids(3, tokens)))
    assert found == 3 * flops.text_flops(ClipSizes.of(model.config), tokens)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("loss", ["V-S", "V-S,C + F-C"])
def test_a_steps_flops_are_those_that_torch_counts(attention, loss):
    model, batch = small(attention), 2
    pixels = torch.randn(batch, 5, 3, 24, 24)

    def features() -> torch.Tensor:
        given = {"V": lambda: model.encode_video(pixels), "F": lambda: model.encode_video(pixels[:, 2:3])}
        given |= dict.fromkeys("SC", lambda: model.encode_text(ids(batch, 11)))
        return sum(given[source]().sum() for source in sorted(needs(loss)))

    sizes = ClipSizes.of(model.config)
    assert counted(features) == batch * flops.forward_flops(sizes, needs(loss))
    assert counted(lambda: features().backward()) == batch * flops.step_flops(sizes, needs(loss))


def test_the_first_measurements_at_full_size():
    """facts: about 102-105 GFLOP per video of B/32, 12 frames, 418-421 of B/16, 608 with full attention."""
    assert 102e9 < flops.video_flops(B32) + _last_layer(B32) < 105e9
    assert 418e9 < flops.video_flops(B16) + _last_layer(B16) < 421e9
    full = dataclasses.replace(B16, attention="full")
    assert flops.video_flops(full) + _last_layer(full) == pytest.approx(608e9, rel=0.01)


def _last_layer(sizes: ClipSizes) -> int:
    """What a last layer of every token costs more than the one of a token that the feature needs."""
    deeper = dataclasses.replace(sizes, layers=sizes.layers + 1)
    whole = flops.video_flops(deeper) - flops.video_flops(sizes)
    one = flops.video_flops(dataclasses.replace(sizes, layers=1)) - flops.patch_flops(sizes)
    return whole - (one - 2 * sizes.width * sizes.embed_dim)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_parameters_are_the_models(attention):
    model = small(attention)
    built = sum(p.numel() for p in model.parameters())
    assert flops.clip_parameters(ClipSizes.of(model.config)) == flops.count_parameters(model) == built


def test_the_defaults_are_the_libraries_vit_b_32():
    given = ClipSizes.of(ClipViPConfig())
    assert given == B32
    plain = 151_277_313  # OpenAI's ViT-B/32
    assert flops.clip_parameters(dataclasses.replace(B32, attention="mean_pool")) == plain


def test_unknown_names_are_sentences():
    with pytest.raises(ClipVipError, match="unknown attention 'proxi'.*did you mean 'proxy'"):
        ClipSizes(attention="proxi")
    with pytest.raises(ClipVipError, match="unknown source 'X'"):
        flops.forward_flops(B32, frozenset("VX"))
    config = ClipViPConfig()
    config.vision_config.image_size = [224, 112]
    with pytest.raises(ClipVipError, match="square pictures"):
        ClipSizes.of(config)


# ------------------------------------------------------------------------------------------------- OFA


@pytest.mark.parametrize(
    ("resnet", "size", "images", "beam", "last"),
    [("resnet18", 64, 2, 3, 4), ("resnet50", 72, 1, 1, 2), ("resnet101", 48, 3, 5, 6)],
)
def test_captioning_costs_what_torch_counts(resnet, size, images, beam, last):
    config = OFAConfig(
        d_model=24, encoder_layers=2, decoder_layers=3, encoder_ffn_dim=40, decoder_ffn_dim=56,
        encoder_attention_heads=2, decoder_attention_heads=3, resnet_type=resnet, resnet_width=8, vocab_size=70,
    )  # fmt: skip
    torch.manual_seed(0)
    model, prompt = OFA(config).eval().requires_grad_(False), ids(images, 7)
    pixels = torch.randn(images, 3, size, size)
    settings = BeamSettings(beam_size=beam, max_len_b=last, min_len=last)  # no beam ends before its last step
    found = counted(lambda: beam_search(model, prompt, pixels, settings))
    assert found == flops.ofa_flops(config, size, 7, beam, last + 1, images)


def test_a_beam_that_ends_earlier_costs_less():
    config = OFAConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16,
        encoder_attention_heads=2, decoder_attention_heads=2, resnet_type="resnet18", resnet_width=8, vocab_size=30,
    )  # fmt: skip
    torch.manual_seed(0)
    model, pixels = OFA(config).eval().requires_grad_(False), torch.randn(1, 3, 32, 32)
    model.decoder.layer_norm.bias.fill_(1.0)
    model.encoder.embed_tokens.weight[EOS] = 5.0  # every state of the decoder now asks for the end
    found = counted(lambda: beam_search(model, ids(1, 5), pixels, BeamSettings(beam_size=2, max_len_b=9)))
    two, ten = (flops.ofa_flops(config, 32, 5, 2, steps) for steps in (2, 10))
    assert two < found < ten  # two steps, and the biases of positions for all ten


@pytest.mark.parametrize(
    ("attention", "pairs"), (("proxy", 33_532), ("full", 350_464), ("mean_pool", 30_000))
)
def test_pairs_are_those_counted_in_a_mask(attention, pairs):
    proxies, frames, patches = 4, 12, 49
    frame = np.r_[np.zeros(proxies), np.repeat(np.arange(1, frames + 1), patches)]
    masks = {
        "proxy": (frame[:, None] == 0) | (frame == 0) | (frame[:, None] == frame),
        "full": np.ones((len(frame), len(frame)), bool),
    }
    counted = masks[attention].sum() if attention in masks else frames * (1 + patches) ** 2
    assert flops.attention_pairs(attention, proxies, frames, patches) == counted == pairs
