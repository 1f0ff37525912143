"""The fast attention is the picture in the module's docstring: a masked softmax, written plainly here."""

from pathlib import Path

import pytest
import torch
from equality import largest, where_large
from hypothesis import given, settings
from hypothesis import strategies as st

from clipvip_lib.errors import ClipVipError
from clipvip_lib.models import proxy_attention as module
from clipvip_lib.models.proxy_attention import attend, attention_interface, proxy_attention

sizes = st.integers(1, 4)


def picture(frames, patches, proxies):
    """The mask, [S, S]: who may look at whom, by each token's frame; -1 for a proxy."""
    frame = torch.tensor([-1] * proxies + [n for n in range(frames) for _ in range(patches)])
    return (frame[:, None] == frame) | (frame[:, None] == -1) | (frame == -1)


def masked_softmax(q, k, v, mask):
    scores = torch.einsum("bhqk,bhtk->bhqt", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("bhqt,bhtk->bhqk", scores.masked_fill(~mask, float("-inf")).softmax(-1), v)


def draw_qkv(shape, seed, dtype=torch.float64, count=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for _ in range(count)]


@pytest.mark.parametrize("explicit_scores", [0, 10**9], ids=["fused", "explicit"])
def test_equals_the_masked_softmax_forward_and_gradient(explicit_scores, equals, monkeypatch):
    monkeypatch.setattr(module, "EXPLICIT_SCORES", explicit_scores)
    against = "a softmax under the dense mask, float64"

    @settings(max_examples=25, deadline=None)
    @given(
        B=sizes, H=sizes, N=sizes, L=st.integers(1, 6), M=sizes, K=st.integers(1, 8), seed=st.integers(0, 99)
    )
    def check(B, H, N, L, M, K, seed):
        *qkv, weight = draw_qkv((B, H, M + N * L, K), seed, count=4)
        fast, slow = proxy_attention(*qkv, N, L, M), masked_softmax(*qkv, picture(N, L, M))
        equals("proxy attention", against, largest(fast, slow), 1e-12)
        gradients = [torch.autograd.grad((out * weight).sum(), qkv) for out in (fast, slow)]
        worst = max(where_large(a, b) for a, b in zip(*gradients, strict=True))
        equals("proxy attention, gradients for q, k and v", against, worst, 1e-10)

    check()


def test_a_patch_sees_its_frame_and_the_proxies_and_a_proxy_sees_all():
    N, L, M = 3, 2, 2
    q, k, v = draw_qkv((1, 1, M + N * L, 4), 0)
    out = proxy_attention(q, k, v, N, L, M)
    seen = torch.stack(
        [torch.autograd.grad(out[0, 0, s].sum(), v, retain_graph=True)[0][0, 0, :, 0] != 0 for s in range(8)]
    )
    drawn = """
        1 1  1 1  1 1  1 1
        1 1  1 1  1 1  1 1
        1 1  1 1  0 0  0 0
        1 1  1 1  0 0  0 0
        1 1  0 0  1 1  0 0
        1 1  0 0  1 1  0 0
        1 1  0 0  0 0  1 1
        1 1  0 0  0 0  1 1
    """
    assert seen.int().tolist() == [[int(x) for x in row.split()] for row in drawn.strip().splitlines()]


def test_one_proxy_and_one_frame_is_plain_attention(equals):
    @settings(max_examples=15, deadline=None)
    @given(B=sizes, H=sizes, L=st.integers(1, 9), K=st.integers(1, 8), seed=st.integers(0, 99))
    def check(B, H, L, K, seed):
        qkv = draw_qkv((B, H, 1 + L, K), seed)
        everyone = torch.ones(1 + L, 1 + L, dtype=torch.bool)
        difference = largest(proxy_attention(*qkv, 1, L, 1), masked_softmax(*qkv, everyone))
        equals("proxy attention with one proxy and one frame", "plain attention, float64", difference, 1e-12)

    check()


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_causal_attention_sees_the_past_only(training, equals):
    @settings(max_examples=15, deadline=None)
    @given(B=sizes, H=sizes, T=st.integers(1, 9), K=st.integers(1, 8), seed=st.integers(0, 99))
    def check(B, H, T, K, seed):
        qkv = draw_qkv((B, H, T, K), seed)
        with torch.set_grad_enabled(training):
            ours = attend(*qkv, causal=True)
        expected = masked_softmax(*qkv, torch.ones(T, T, dtype=torch.bool).tril())
        against = "a softmax under the causal mask, float64"
        equals("causal attention of the text tower", against, largest(ours, expected), 1e-12)

    check()


def test_bfloat16_stays_near_float64():
    qkv = draw_qkv((2, 4, 4 + 3 * 9, 16), 3)
    half = [x.detach().bfloat16().requires_grad_() for x in qkv]
    assert (proxy_attention(*half, 3, 9, 4).double() - proxy_attention(*qkv, 3, 9, 4)).abs().max() < 0.03


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_scale_of_released_models_is_exact_in_either_place(dtype):
    """Heads of 64: queries divided by 8, or scores, the same bits."""
    q, k, v = draw_qkv((2, 3, 20, 64), 5, dtype)
    scores = (q @ k.transpose(-1, -2)) * 64**-0.5
    assert torch.equal(attend(q, k, v), scores.softmax(-1, dtype=torch.float32).to(dtype) @ v)


def test_a_shape_that_does_not_add_up_is_refused():
    with pytest.raises(ClipVipError, match=r"4 proxies \+ 2 frames x 3 patches = 10 tokens, got 11"):
        proxy_attention(*draw_qkv((1, 1, 11, 2), 0), 2, 3, 4)


def test_the_interface_refuses_a_mask_that_it_would_ignore():
    qkv = draw_qkv((1, 1, 3, 2), 0)
    with pytest.raises(ClipVipError, match="expected no mask"):
        attention_interface(None, *qkv, torch.ones(1, 1, 3, 3))


def test_the_idea_fits_its_budget():
    lines = Path(module.__file__).read_text(encoding="utf-8").splitlines()
    assert len(lines) < 150


@pytest.mark.parametrize(("frames", "patches", "proxies"), [(2, 3, 0), (0, 3, 4), (-1, 3, 4), (2, 0, 4)])
def test_fewer_than_one_proxy_frame_or_patch_is_refused(frames, patches, proxies):
    q = torch.zeros(1, 1, max(1, proxies + frames * patches), 4)
    with pytest.raises(ClipVipError, match="at least one proxy, frame and patch"):
        proxy_attention(q, q, q, frames, patches, proxies)
