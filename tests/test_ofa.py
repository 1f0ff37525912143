"""OFA: both key layouts, and that fast paths equal slow ones. The authors' vectors: test_goldens.py."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from equality import largest, where_large
from hypothesis import given, settings
from hypothesis import strategies as st

from clipvip_lib.errors import ClipVipError
from clipvip_lib.models.ofa import (
    OFA,
    Attention,
    DropPath,
    OFAConfig,
    image_buckets,
    image_position_ids,
    ofa_preprocess,
    ofa_state_dict,
    token_buckets,
    token_offset_buckets,
)

torch.set_num_threads(1)
SMALL = OFAConfig(
    32, 2, 3, 48, 40, 4, 2, "resnet18", 4, vocab_size=40, max_position_embeddings=40, token_bucket_size=8,
    image_bucket_size=5,
)  # fmt: skip


def small(**changes) -> OFA:
    torch.manual_seed(0)
    model = OFA(dataclasses.replace(SMALL, **changes)).eval()
    for name, value in model.named_parameters():  # zero tables would hide a wrong bucket
        if "rel_pos" in name:
            torch.nn.init.normal_(value)
    return model


# ----------------------------------------------------------------------------------------------- weights


def to_fairseq(key: str) -> str:
    """Our names -> fairseq's, written from the other side than the mapping under test."""
    parts = key.split(".")
    names = {"self_attn_mid_layer_norm": "attn_ln", "ffn_layer_norm": "ffn_layernorm"}
    if parts[0] == "decoder":
        names |= {
            "self_attn_mid_layer_norm": "self_attn_ln",
            "cross_attn_mid_layer_norm": "cross_attn_ln",
            "cross_attn_layer_norm": "encoder_attn_layer_norm",
            "cross_attn": "encoder_attn",
        }
    return ".".join(names.get(part, part) for part in parts)


def test_both_key_layouts_load_strictly():
    model = small()
    ours = model.state_dict()
    fairseq = {
        to_fairseq(key): value.half() if value.is_floating_point() else value for key, value in ours.items()
    }
    assert set(fairseq) != set(ours)
    extra = (
        "encoder.token_rp_bucket",
        "decoder.image_rp_bucket",
        "decoder.image_position_idx",
        "encoder.version",
    )
    fairseq |= dict.fromkeys(extra, torch.zeros(3))
    weights, dropped = ofa_state_dict(fairseq)
    assert set(dropped) == set(extra)
    assert all(dropped.values())
    other = small()
    other.load_state_dict(weights)
    assert ofa_state_dict(ours)[0].keys() == ours.keys()


def test_unknown_keys_are_kept_for_strict_loading_to_name():
    weights, _ = ofa_state_dict({**small().state_dict(), "encoder.surprise": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r"encoder\.surprise"):
        small().load_state_dict(weights)


# ------------------------------------------------------------------------------------- fast equals slow


@st.composite
def shapes(draw):
    """Sizes of a small OFA, encoder and decoder drawn apart."""
    sides = {}
    for side in ("encoder", "decoder"):
        sides[f"{side}_attention_heads"] = draw(st.sampled_from([1, 2, 4]))
        sides[f"{side}_layers"] = draw(st.integers(1, 3))
        sides[f"{side}_ffn_dim"] = draw(st.sampled_from([8, 24, 40]))
    widths = {"d_model": draw(st.sampled_from([8, 16, 24])), "token_bucket_size": draw(st.integers(2, 9))}
    return sides | widths


def prompts(images: int, length: int, rng: torch.Generator) -> torch.Tensor:
    """Prompt ids of different lengths, padded on the right; the first is not padded."""
    ids = torch.randint(4, 40, (images, length), generator=rng)
    lengths = torch.randint(1, length + 1, (images, 1), generator=rng)
    lengths[0] = length
    return ids.masked_fill(torch.arange(length) >= lengths, 1)


def test_cached_decoding_equals_the_full_pass(equals):
    @settings(max_examples=15, deadline=None)
    @given(
        shape=shapes(),
        images=st.integers(1, 3),
        beam=st.integers(1, 3),
        steps=st.integers(1, 6),
        prompt=st.integers(1, 5),
        seed=st.integers(0, 999),
    )
    def check(shape, images, beam, steps, prompt, seed):
        model, rng = small(**shape).double(), torch.Generator().manual_seed(seed)
        ids = prompts(images, prompt, rng)
        pixels = torch.randn(images, 3, 33, 64, generator=rng, dtype=torch.float64)
        tokens = torch.randint(4, 40, (images, beam, steps), generator=rng)
        tokens[:, :, 0] = 0
        with torch.no_grad():
            encoded = model.encode(ids, pixels)
            state = model.start_decoding(encoded, beam, steps)
            for t in range(steps):
                one = state.step(tokens[:, :, t])
                full = [model.decode(tokens[:, k, : t + 1], encoded)[:, -1] for k in range(beam)]
                against = "all tokens again at every step, float64"
                difference = where_large(one, torch.stack(full, dim=1))
                equals("logits of cached decoding", against, difference, 1e-12)
                # Continue other hypotheses than before: the cache must follow.
                parents = torch.randint(0, beam, (images, beam), generator=rng)
                state.reorder((parents + beam * torch.arange(images)[:, None]).flatten())
                before = tokens[:, :, : t + 1].gather(1, parents[..., None].expand(-1, -1, t + 1))
                tokens = torch.cat([before, tokens[:, :, t + 1 :]], dim=2)

    check()


def test_fewer_images_go_on_decoding():
    model = small()
    ids, images = torch.tensor([[0, 5, 2], [0, 2, 1]]), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        encoded = model.encode(ids, images)
        state = model.start_decoding(encoded, 2, 3)
        state.step(torch.zeros(2, 2, dtype=torch.long))
        state.reorder(torch.tensor([2, 3]), torch.tensor([1]))
        one = state.step(torch.tensor([[7, 8]]))[0, 1]
        full = model.decode(torch.tensor([[0, 5], [0, 8]]), encoded)[1, -1]
    torch.testing.assert_close(one, full, rtol=0, atol=2e-5)


def test_fused_attention_equals_the_explicit_one(equals):
    @settings(max_examples=15, deadline=None)
    @given(
        heads=st.sampled_from([1, 2, 4]), B=st.integers(1, 3), Q=st.integers(1, 7), K=st.integers(1, 7),
        seed=st.integers(0, 999),
    )  # fmt: skip
    def check(heads, B, Q, K, seed):
        torch.manual_seed(seed)
        attention = Attention(16, heads, 0.0).double()
        torch.nn.init.uniform_(attention.c_attn, 0.5, 1.5)
        x, memory, bias = (torch.randn(*s).double() for s in ((B, Q, 16), (B, K, 16), (1, heads, Q, K)))
        keys, values = attention.keys_values(memory)
        with torch.no_grad():
            fused, explicit = (attention(x, keys, values, bias, fused=which) for which in (True, False))
        equals("OFA's attention, fused kernel", "written out, float64", largest(fused, explicit), 1e-12)

    check()


def test_padding_of_the_prompt_changes_nothing(equals):
    @settings(max_examples=15, deadline=None)
    @given(shape=shapes(), prompt=st.integers(1, 6), padding=st.integers(1, 4), seed=st.integers(0, 999))
    def check(shape, prompt, padding, seed):
        model, rng = small(**shape).double(), torch.Generator().manual_seed(seed)
        ids, decoder_ids = prompts(2, prompt, rng), torch.tensor([[0, 9, 7]]).expand(2, -1)
        images = torch.randn(2, 3, 48, 32, generator=rng, dtype=torch.float64)
        with torch.no_grad():
            plain = model(ids, images, decoder_ids)
            padded = model(torch.nn.functional.pad(ids, (0, padding), value=1), images, decoder_ids)
        against = "the prompt without padding, float64"
        equals("OFA's logits of a padded prompt", against, where_large(padded, plain), 1e-12)

    check()


def test_the_decoder_does_not_look_ahead():
    model = small()
    ids, images = torch.tensor([[0, 5, 2]]), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        first = model(ids, images, torch.tensor([[0, 9, 7, 11]]))
        other = model(ids, images, torch.tensor([[0, 9, 8, 12]]))
    assert first[:, :2].equal(other[:, :2])
    assert not first[:, 2].equal(other[:, 2])


def test_training_works_after_captioning_made_the_tables():
    token_offset_buckets.__wrapped__(8)
    model = small(vocab_size=41, token_bucket_size=16)
    ids, images = torch.tensor([[0, 5, 2]]), torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        model(ids, images, torch.tensor([[0, 9, 7, 11]]))
    model(ids, images, torch.tensor([[0, 9, 7, 11]])).sum().backward()
    assert model.encoder.token_rel_pos_table_list[0].weight.grad is not None


def test_drop_path_drops_whole_samples():
    torch.manual_seed(0)
    out = DropPath(0.5)(torch.ones(64, 3, 5))
    kept = out.flatten(1).unique(dim=1)
    assert kept.shape[1] == 1
    assert set(kept.flatten().tolist()) == {0.0, 2.0}
    rates = [layer.drop_path.rate for layer in small(decoder_drop_path_rate=0.2).decoder.layers]
    assert rates == pytest.approx([0, 0.1, 0.2])


# ------------------------------------------------------------------------------------------- tables


@given(bucket=st.sampled_from([8, 32, 256]), length=st.integers(1, 300))
@settings(max_examples=20, deadline=None)
def test_token_buckets_are_antisymmetric_and_in_range(bucket, length):
    buckets = token_buckets(length, bucket)
    assert (buckets + buckets.T == 2 * bucket - 2).all()
    assert buckets.min() >= 0
    assert buckets.max() <= 2 * bucket - 2


@given(st.integers(2, 8), st.data())
@settings(max_examples=20, deadline=None)
def test_image_buckets_depend_on_the_difference_alone(side, data):
    rows, columns = data.draw(st.integers(1, side)), data.draw(st.integers(1, side))
    ids = image_position_ids(rows, columns, side)
    buckets = image_buckets(ids, side)
    cells = [(r, c) for r in range(rows) for c in range(columns)]
    seen: dict[tuple[int, int], int] = {}
    for i, (r, c) in enumerate(cells):
        for j, (q, d) in enumerate(cells):
            assert seen.setdefault((r - q, c - d), int(buckets[i, j])) == int(buckets[i, j])
    assert len(set(seen.values())) == len(seen)


# ------------------------------------------------------------------------------------------- images


def test_preprocessing_maps_black_and_white_to_the_ends():
    pixels = ofa_preprocess([np.zeros((5, 9, 3), np.uint8), np.full((7, 4, 3), 255, np.uint8)], 16)
    assert pixels.shape == (2, 3, 16, 16)
    assert pixels[0].unique().tolist() == [-1.0]
    assert pixels[1].unique().tolist() == [1.0]


# --------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resnet_type": "resnet51"}, "did you mean 'resnet50'"),
        ({"d_model": 30}, "multiple of encoder_attention_heads"),
        ({"decoder_layers": 0}, "decoder_layers"),
        ({"dropout": 1.5}, "below 1"),
    ],
)
def test_bad_sizes_are_refused(changes, words):
    with pytest.raises(ClipVipError, match=words):
        dataclasses.replace(SMALL, **changes)


def test_released_configs_are_read_and_other_computations_refused():
    raw = {
        "hidden_size": 64,
        "num_attention_heads": 2,
        "decoder_attention_heads": 4,
        "use_cache": False,
        "novel": 1,
    }
    config = OFAConfig.from_dict(raw)
    assert (config.d_model, config.encoder_attention_heads) == (64, 2)
    assert OFAConfig.from_dict(SMALL.to_dict()) == SMALL
    with pytest.raises(ClipVipError, match="normformer"):
        OFAConfig.from_dict({"normformer": False})


def test_shapes_that_do_not_fit_are_one_sentence():
    model, ids = small(), torch.tensor([[0, 5, 2]])
    with pytest.raises(ClipVipError, match="image grids up to 5 x 5"):
        model.encode(ids, torch.zeros(1, 3, 32, 96))
    with pytest.raises(ClipVipError, match="1 to 40 tokens"):
        model.encode(torch.zeros(1, 41, dtype=torch.long), None)
    with pytest.raises(ClipVipError, match=r"images \[1, 3, h, w\]"):
        model.encode(ids, torch.zeros(2, 3, 32, 32))
    with pytest.raises(ClipVipError, match="prompt ids"):
        model.encode(ids[0], None)
    with pytest.raises(ClipVipError, match="caption ids"):
        model.decode(torch.zeros(2, 3, dtype=torch.long), model.encode(ids, None))
    with pytest.raises(ClipVipError, match="uint8"):
        ofa_preprocess([np.zeros((4, 4, 3), np.float32)], 8)


def test_every_layer_norm_has_the_authors_epsilon():
    """Where its input is large, the epsilon is far below any tolerance on outputs."""
    norms = {module.eps for module in small().modules() if isinstance(module, torch.nn.LayerNorm)}
    assert norms == {1e-5}
