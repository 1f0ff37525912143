"""CLIP-ViP is CLIP where it must be: against transformers' CLIP, slow passes, and properties of the
features."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from equality import largest, where_large
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel, CLIPConfig, CLIPModel

from clipvip_lib.data.transform import normalize
from clipvip_lib.errors import ClipVipError
from clipvip_lib.models.attentions import ATTENTIONS, JOINT
from clipvip_lib.models.checkpoints import adapt
from clipvip_lib.models.clip_vip import ClipViP, ClipViPConfig, last_layer_of_one_token

SMALL = {
    "width": 32,
    "layers": 2,
    "heads": 4,
    "image_size": 16,
    "patch_size": 8,
    "vocab_size": 40,
    "context_length": 12,
    "embed_dim": 16,
}


def make(seed=0, shake=True, dtype=torch.float64, **changes):
    """A small model; shaken, so that no embedding is zero and no two proxies are alike."""
    torch.manual_seed(seed)
    model = ClipViP(ClipViPConfig.small(**(SMALL | changes))).to(dtype).eval()
    if shake:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def clips(B=2, N=4, size=16, seed=1):
    return torch.randn(
        B, N, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


IDS = torch.tensor([[38, 3, 7, 9, 39, 0], [38, 5, 39, 0, 0, 0]])
MASK = (torch.arange(6) < torch.tensor([[5], [3]])).long()


def huggingface_clip(model):
    """transformers' own CLIP with the same weights, its own (sdpa) attention."""
    own = {"added_cls", "temporal_embedding", "frame_transformer"}
    fields = model.config.to_dict()
    config = CLIPConfig(**{k: fields[k] for k in ("text_config", "vision_config", "projection_dim")})
    clip = CLIPModel(config).double().eval()
    weights = {k: v for k, v in model.state_dict().items() if not own & set(k.split("."))}
    assert not clip.load_state_dict(weights, strict=True).missing_keys
    return clip


def normalised(output):
    return F.normalize(output.pooler_output, dim=-1)


HUGGING_FACE, EXACT = "Hugging Face's CLIP, float64", 1e-12
examples = settings(max_examples=8, deadline=None)


@st.composite
def shapes(draw, rectangular=False):
    """Sizes of a small CLIP, the towers' drawn apart; Hugging Face's has square frames only."""
    towers = {}
    for prefix in ("", "text_"):
        heads = draw(st.integers(1, 4))
        towers |= {f"{prefix}heads": heads, f"{prefix}width": heads * draw(st.sampled_from([4, 6, 8]))}
        towers[f"{prefix}layers"] = draw(st.integers(1, 3))
    patch, grid = draw(st.integers(2, 5)), draw(st.integers(1, 3))
    frame = patch * grid
    if rectangular:
        patch = [patch, draw(st.integers(2, 5))]
        frame = [frame, patch[1] * draw(st.integers(1, 3))]
    return towers | {
        "patch_size": patch,
        "image_size": frame,
        "embed_dim": draw(st.sampled_from([8, 12, 16])),
        "context_length": draw(st.integers(6, 14)),
        "hidden_act": draw(st.sampled_from(["gelu", "quick_gelu"])),
        "seed": draw(st.integers(0, 99)),
    }


def some_frames(shape, B, N):
    """Frames for a model of the shape."""
    size = shape["image_size"]
    pixels = torch.Generator().manual_seed(shape["seed"])
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(B, N, 3, height, width, generator=pixels, dtype=torch.float64)


def test_text_equals_huggingface(equals):
    @examples
    @given(shape=shapes())
    def check(shape):
        model = make(**shape)
        theirs = normalised(huggingface_clip(model).get_text_features(IDS, MASK))
        equals("text feature", HUGGING_FACE, largest(model.encode_text(IDS, MASK), theirs), EXACT)

    check()


def test_one_proxy_and_one_frame_equals_huggingface(equals):
    @examples
    @given(shape=shapes(), B=st.integers(1, 3), T=st.integers(1, 4))
    def check(shape, B, T):
        model, x = make(proxies=1, frames=T, **shape), some_frames(shape, B, 1)
        with torch.no_grad():
            model.vision_model.embeddings.temporal_embedding.zero_()
        theirs = normalised(huggingface_clip(model).get_image_features(x[:, 0]))
        quantity = "video feature of one proxy and one frame"
        equals(quantity, HUGGING_FACE, largest(model.encode_video(x), theirs), EXACT)

    check()


@pytest.mark.parametrize("attention", ["proxy", "full"])
def test_all_tokens_equal_huggingfaces_encoder_under_the_dense_mask(attention, equals):
    @examples
    @given(shape=shapes(), B=st.integers(1, 2), N=st.integers(1, 4), M=st.integers(1, 4), T=st.integers(1, 4))
    def check(shape, B, N, M, T):
        model, x = make(attention=attention, proxies=M, frames=T, **shape), some_frames(shape, B, N)
        vision = huggingface_clip(model).vision_model
        tokens = vision.pre_layrnorm(model.vision_model.embeddings(x))
        frame = torch.tensor([-1] * M + [n for n in range(N) for _ in range((tokens.shape[1] - M) // N)])
        seen = (frame[:, None] == frame) | (frame[:, None] == -1) | (frame == -1) | (attention == "full")
        mask = torch.zeros(seen.shape, dtype=x.dtype).masked_fill(~seen, float("-inf"))
        theirs = vision.encoder(tokens, attention_mask=mask.expand(B, 1, -1, -1)).last_hidden_state
        against = "Hugging Face's CLIP encoder under the dense mask, float64"
        difference = where_large(model.video_states(x), theirs)
        equals(f"last hidden state of {attention}", against, difference, EXACT)

    check()


def test_mean_pool_is_huggingface_frame_by_frame_then_averaged(equals):
    @examples
    @given(shape=shapes(), B=st.integers(1, 3), N=st.integers(1, 5))
    def check(shape, B, N):
        model, x = make(attention="mean_pool", **shape), some_frames(shape, B, N)
        clip = huggingface_clip(model)
        frames = torch.stack([normalised(clip.get_image_features(x[:, n])) for n in range(N)])
        theirs = F.normalize(frames.mean(0), dim=-1)
        against = f"{HUGGING_FACE}, frame by frame, then averaged"
        equals("video feature of mean_pool", against, largest(model.encode_video(x), theirs), EXACT)

    check()


def by_hand(model, frames):
    """CLIP4Clip's seqTransf and the mean over frames, step by step: projected frames [B, N, E] -> [B, E]."""
    hidden = frames + model.frame_transformer.positions[: frames.shape[1]]
    for layer in model.frame_transformer.encoder.layers:
        normed, attention = layer.layer_norm1(hidden), layer.self_attn
        q, k, v = (
            p(normed).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        seen = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
        hidden = hidden + attention.out_proj(seen.transpose(1, 2).flatten(2))
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
    return F.normalize(F.normalize(frames + hidden, dim=-1).mean(1), dim=-1)


def test_sequential_is_clip4clips(equals):
    @examples
    @given(shape=shapes(), B=st.integers(1, 3), N=st.integers(1, 5))
    def check(shape, B, N):
        model, x = make(attention="sequential", frames=5, **shape), some_frames(shape, B, N)
        clip = huggingface_clip(model)
        frames = torch.stack([clip.get_image_features(x[:, n]).pooler_output for n in range(N)], dim=1)
        difference = largest(model.encode_video(x), by_hand(model, frames))
        equals(
            "video feature of sequential", f"{HUGGING_FACE}, then CLIP4Clip's seqTransf", difference, EXACT
        )

    check()


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_last_layers_shortcut_is_exact(attention, equals):
    @examples
    @given(shape=shapes(rectangular=True), B=st.integers(1, 3), N=st.integers(1, 4), M=st.integers(1, 3))
    def check(shape, B, N, M):
        model, x = make(attention=attention, proxies=M, **shape), some_frames(shape, B, N)
        states = model.vision_model.post_layernorm(model.video_states(x)[:, 0])
        slow = model.visual_projection(states)
        slow = (
            F.normalize(slow, dim=-1)
            if attention in JOINT
            else model._mean_of_frames(slow.unflatten(0, (B, N)))
        )
        fast, against = model.encode_video(x), "the full last layer, float64"
        equals(f"video feature of {attention}", against, largest(fast, slow), EXACT)
        parameters = list(model.vision_model.parameters())
        weight = torch.arange(fast.numel(), dtype=fast.dtype).view_as(fast).cos()
        gradients = [torch.autograd.grad((out * weight).sum(), parameters) for out in (fast, slow)]
        worst = max(where_large(a, b) for a, b in zip(*gradients, strict=True))
        equals(f"gradients of the vision tower, {attention}", against, worst, 1e-10)

    check()


def test_the_last_layer_is_a_layer():
    model = make()
    layer, hidden = model.vision_model.encoder.layers[0], torch.randn(2, 9, 32, dtype=torch.float64)
    torch.testing.assert_close(last_layer_of_one_token(layer, hidden), layer(hidden, None)[:, 0])


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_clip_does_not_depend_on_its_batch(attention, equals):
    @examples
    @given(shape=shapes(rectangular=True), B=st.integers(1, 4), N=st.integers(1, 4), M=st.integers(1, 3))
    def check(shape, B, N, M):
        model, x = make(attention=attention, proxies=M, **shape), some_frames(shape, B, N)
        alone = torch.cat([model.encode_video(clip[None]) for clip in x])
        difference = largest(model.encode_video(x), alone)
        equals(f"video features of a batch, {attention}", "each clip alone, float64", difference, EXACT)
        torch.testing.assert_close(alone.norm(dim=-1), torch.ones(B, dtype=torch.float64))

    check()


def test_a_text_does_not_depend_on_its_padding(equals):
    @examples
    @given(shape=shapes(), length=st.integers(0, 4), padding=st.integers(1, 40), filled=st.integers(0, 39))
    def check(shape, length, padding, filled):
        model, room = make(**shape), shape["context_length"]
        words = torch.randint(1, 38, (1, length), generator=torch.Generator().manual_seed(shape["seed"]))
        ids = torch.cat([torch.tensor([[38]]), words, torch.tensor([[39]])], dim=1)
        alone = model.encode_text(ids)
        longer = F.pad(ids, (0, min(padding, room - ids.shape[1])), value=filled)
        mask = (torch.arange(longer.shape[1]) < ids.shape[1]).long()[None]
        against = "the text without padding, float64"
        equals(
            "text feature, padding masked", against, largest(model.encode_text(longer, mask), alone), EXACT
        )
        # Without a mask too: the end of the text is the first largest id. Hugging Face pads with it.
        equals("text feature, padding not masked", against, largest(model.encode_text(longer), alone), EXACT)

    check()


def temporal_table(model):
    """What tells a frame's place, [1, T, width]."""
    if model.config.attention == "sequential":
        return model.frame_transformer.positions[None]
    return model.vision_model.embeddings.temporal_embedding


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_order_of_frames_enters_through_the_temporal_embedding_only(attention, equals):
    if attention != "mean_pool":  # so the property below is not one of a model that is blind to order
        model, x = make(attention=attention), clips()
        assert (model.encode_video(x[:, [2, 0, 3, 1]]) - model.encode_video(x)).abs().max() > 1e-4

    @examples
    @given(
        shape=shapes(rectangular=True), order=st.integers(1, 5).flatmap(lambda n: st.permutations(range(n)))
    )
    def check(shape, order):
        model = make(attention=attention, frames=len(order), **shape)
        x = some_frames(shape, 2, len(order))
        before = model.encode_video(x)
        if attention != "mean_pool":
            table = temporal_table(model)
            with torch.no_grad():
                table.copy_(table[:, order].clone())
        quantity = f"video feature of turned frames with their temporal embeddings, {attention}"
        against = "the frames in their order, float64"
        equals(quantity, against, largest(model.encode_video(x[:, order]), before), EXACT)

    check()


def test_the_temporal_embedding_is_interpolated_to_other_numbers_of_frames():
    embeddings = make(frames=4).vision_model.embeddings
    table = embeddings.temporal_embedding[0]
    torch.testing.assert_close(embeddings.temporal(4)[:, 0], table)
    torch.testing.assert_close(
        embeddings.temporal(2)[:, 0], torch.stack([table[:2].mean(0), table[2:].mean(0)])
    )
    torch.testing.assert_close(embeddings.temporal(1)[0, 0], table[1:3].mean(0))
    assert embeddings.temporal(9).shape == (9, 1, 32)


def test_tokens_are_proxies_then_frames_row_by_row():
    embeddings, x = make(proxies=2, frames=3).vision_model.embeddings, clips(B=1, N=3)
    tokens, position = embeddings(x)[0], embeddings.position_embedding.weight
    torch.testing.assert_close(tokens[0], embeddings.class_embedding + position[0])
    torch.testing.assert_close(tokens[1], embeddings.added_cls[0] + position[0])
    for n in range(3):
        grid = embeddings.patch_embedding(x[0, n : n + 1])[0]  # the convolution that holds the weights
        for p, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
            expected = grid[:, row, column] + position[1 + p] + embeddings.temporal_embedding[0, n]
            torch.testing.assert_close(tokens[2 + n * 4 + p], expected)


def test_rectangular_frames():
    config = ClipViPConfig.small(**SMALL)
    config.vision_config.image_size = [16, 24]
    model = ClipViP(config).double()
    assert model.encode_video(torch.randn(1, 2, 3, 16, 24, dtype=torch.float64)).shape == (1, 16)
    assert model.vision_model.embeddings.position_embedding.weight.shape == (7, 32)
    with pytest.raises(ClipVipError, match=r"16 pixels high and 24 wide, got \[24, 16\]"):
        model.encode_video(torch.zeros(1, 2, 3, 24, 16, dtype=torch.float64))  # as many patches, turned


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_save_and_load_whole(attention, tmp_path):
    model = make(attention=attention, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert (tmp_path / "config.json").stat().st_size < 2000
    assert json.loads((tmp_path / "config.json").read_text())["attention"] == attention
    x = clips().float()
    for again in (ClipViP.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert type(again) is ClipViP
        assert torch.equal(again.encode_video(x), model.encode_video(x))
        assert torch.equal(again.encode_text(IDS, MASK), model.encode_text(IDS, MASK))
    assert AutoConfig.from_pretrained(tmp_path).proxies == 4


def test_from_pretrained_is_strict(tmp_path):
    huggingface_clip(make()).save_pretrained(tmp_path)
    with pytest.raises(ClipVipError, match=r"added_cls.*load_clip_vip"):
        ClipViP.from_pretrained(tmp_path, config=ClipViPConfig.small(**SMALL))


def test_transformers_forward_gives_its_contrastive_loss():
    model, x = make(), clips()
    out = model(input_ids=IDS, pixel_values=x, attention_mask=MASK, return_loss=True)
    logits = model.logit_scale.exp() * model.encode_text(IDS, MASK) @ model.encode_video(x).T
    expected = (F.cross_entropy(logits, torch.arange(2)) + F.cross_entropy(logits.T, torch.arange(2))) / 2
    torch.testing.assert_close(out.loss, expected)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_same_seed_gives_the_same_model(attention):
    a, b, other = (make(seed, shake=False, attention=attention).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], other[k]) for k in a)
    assert all(torch.isfinite(value).all() for value in a.values())


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_bfloat16_autocast_stays_near_float32(attention):
    model, x = make(attention=attention, shake=False, dtype=torch.float32), clips().float()
    with torch.autocast("cpu", torch.bfloat16):
        video, text = model.encode_video(x), model.encode_text(IDS, MASK)
    assert video.dtype == text.dtype == torch.float32
    assert (1 - (video * model.encode_video(x)).sum(-1)).abs().max() < 1e-3
    assert (1 - (text * model.encode_text(IDS, MASK)).sum(-1)).abs().max() < 1e-3


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_parameter_learns_and_the_added_ones_are_listed(attention):
    model = make(attention=attention)
    (model.encode_video(clips()) @ model.encode_text(IDS, MASK).T * model.logit_scale)[0, 0].backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    added = {id(p) for p in model.added_parameters()}
    names = {
        n.split(".")[0] if "frame_" in n else n.split(".")[-1]
        for n, p in model.named_parameters()
        if id(p) in added
    }
    # "sequential" starts from the text tower
    assert names == ({"added_cls", "temporal_embedding"} if attention in JOINT else set())


def test_gradient_checkpointing_changes_nothing():
    model, x = make().train(), clips()
    plain = torch.autograd.grad(model.encode_video(x).sum(), model.visual_projection.weight)[0]
    model.activation_checkpointing_enable()
    again = torch.autograd.grad(model.encode_video(x).sum(), model.visual_projection.weight)[0]
    torch.testing.assert_close(again, plain)


def test_a_copy_is_a_model_of_its_own():
    model = make()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.vision_model.embeddings.class_embedding.add_(1)
    assert not torch.equal(model.encode_video(clips()), other.encode_video(clips()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "proxi"}, "unknown attention 'proxi'.*did you mean 'proxy'"),
        ({"proxies": 0}, "proxies expected a whole number from 1, got 0"),
        ({"frames": 0}, "temporal_size expected a whole number from 1, got 0"),
    ],
)
def test_a_bad_configuration_is_one_sentence(changes, message):
    with pytest.raises(ClipVipError, match=message):
        ClipViPConfig.small(**(SMALL | changes))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda m: m.encode_video(torch.zeros(2, 3, 16, 16)), r"expected frames \[batch, frames, 3"),
        (lambda m: m.encode_video(torch.zeros(2, 0, 3, 16, 16)), "one frame or more"),
        (
            lambda m: m.encode_video(torch.zeros(2, 1, 3, 32, 32)),
            "expected frames 16 pixels high and 16 wide",
        ),
        (lambda m: m.encode_text(torch.zeros(2, 13, dtype=torch.long)), r"expected ids \[batch, 1 to 12\]"),
        (lambda m: m.encode_text(torch.tensor([[1, 40]])), "expected ids from 0 to 39, got 1 to 40"),
        (lambda m: m.set_attn_implementation("sdpa"), "attention is part of the model"),
        (
            lambda m: adapt(m, attention="sequential", frames=2).encode_video(torch.zeros(1, 3, 3, 16, 16)),
            "at most 2 frames, got 3",
        ),
    ],
)
def test_bad_input_is_one_sentence(act, message):
    with pytest.raises(ClipVipError, match=message) as caught:
        act(make(dtype=torch.float32))
    assert "\n" not in str(caught.value)


def test_a_text_ends_at_its_first_largest_id():
    """Also where that is not the vocabulary's last: the authors' rule looks for no token in particular."""
    model = make()
    ids = torch.tensor([[3, 7, 30, 9, 30, 2]])
    states = model.text_model(input_ids=ids).last_hidden_state
    assert torch.equal(
        model.text_model(input_ids=ids).pooler_output, states[:, 2]
    )  # for callers of the tower itself
    expected = torch.nn.functional.normalize(model.text_projection(states[:, 2]), dim=-1)
    torch.testing.assert_close(model.encode_text(ids), expected)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_bytes_are_normalised_on_the_way(attention):
    model = make(attention=attention)
    frames = torch.randint(0, 256, (2, 3, 16, 16, 3), dtype=torch.uint8)
    expected = model.encode_video(normalize(frames).double())
    # ``normalize`` works in float32
    torch.testing.assert_close(model.encode_video(frames), expected, atol=1e-6, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert (model.float().encode_video(frames) - expected).abs().max() < 0.05
    with pytest.raises(ClipVipError, match="frames 16 pixels high and 16 wide, got .12, 16."):
        model.encode_video(frames[:, :, :12])


@pytest.mark.parametrize(
    "mask",
    [
        [[0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]],  # padding to the left
        [[0, 0, 0, 0, 0, -9], [0, 0, 0, -9, -9, -9]],  # to be added
        [[0] * 6, [0] * 6],
        [[1, 0, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]],
    ],
)
def test_a_mask_that_would_be_read_wrongly_is_refused(mask):
    with pytest.raises(ClipVipError, match="expected 1 for every token and 0 for the padding to their right"):
        make().encode_text(IDS, torch.tensor(mask))
    with pytest.raises(ClipVipError, match="as the ids, got"):
        make().encode_text(IDS, MASK[0])


def test_what_the_padding_holds_is_of_no_matter():
    model = make()
    strange = IDS.masked_fill(MASK == 0, -100)
    assert torch.equal(model.encode_text(strange, MASK), model.encode_text(IDS, MASK))


def test_pixels_and_ids_of_another_kind_are_refused():
    model = make()
    with pytest.raises(ClipVipError, match="3 channels as the third axis"):
        model.encode_video(torch.randn(1, 2, 4, 16, 16))
    with pytest.raises(ClipVipError, match="3 channels as the last axis"):
        model.encode_video(torch.zeros(1, 2, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ClipVipError, match=r"whole numbers as ids, got torch.float64"):
        model.encode_text(IDS.double())
    with pytest.raises(ClipVipError, match="attention_dropout expected 0"):
        config = ClipViPConfig.small(**SMALL)
        config.vision_config.attention_dropout = 0.1
        ClipViP(config)


def test_full_attention_sees_a_share_of_the_patches_in_training_only():
    model, pixels = make(attention="full"), clips()
    seen = []
    handle = model.vision_model.encoder.layers[0].register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    whole = model.encode_video(pixels)
    model.patch_drop = 0.75
    assert torch.equal(model.encode_video(pixels), whole)  # not in training: nothing is dropped
    model.train()
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model.encode_video(pixels)
    handle.remove()
    M = model.config.proxies
    patches = seen[0].shape[1] - M
    every, _, *drawn = seen
    for tokens in drawn:
        assert tokens.shape[1] == M + patches // 4 and torch.equal(tokens[:, :M], every[:, :M])
        for clip, kept in zip(
            every[:, M:], tokens[:, M:], strict=True
        ):  # some of the clip's own, in their order
            places = [int((clip == token).all(1).nonzero()[0]) for token in kept]
            assert places == sorted(set(places))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_other_attentions_drop_no_patch():
    for attention in ("proxy", "mean_pool"):
        model = make(attention=attention)
        whole = model.encode_video(clips())
        model.patch_drop = 0.75
        assert torch.equal(model.train().encode_video(clips()), whole)
