"""Video proxies: how CLIP-ViP lets an image model see a video. THE idea, read first.

A video is one sequence of S = M + N*L tokens: M learned *proxies*, then the L patches of frame 1, .. frame N.

* A patch attends to the M proxies and to the L patches of its own frame: what CLIP's image encoder does, with
  M class tokens in place of one. It never looks at another frame.
* A proxy attends to every token. All exchange between frames goes through the proxies, and the video's
  feature is proxy 1, which starts from CLIP's class token.

        proxies  frame 1  frame 2
      [  x x x    x x x    x x x  ]  proxies     With M = N = 1 this IS CLIP's attention, so CLIP's weights
      [  x x x    x x x    . . .  ]  frame 1     keep their meaning and post-pretraining starts from CLIP.
      [  x x x    . . .    x x x  ]  frame 2

Cost: the query-key pairs grow linearly with N, M*S + N*L*(M+L), not as S*S: 33.5 thousand against 350
thousand for 12 frames of ViT-B/32, 0.48 against 5.55 million for B/16. The picture above is never built: it
is two attentions without a mask, and a test holds them equal to the masked one.

Source: CLIP-ViP (arXiv 2209.06430), section 4 "Video proxy mechanism"; the authors' code
``modeling/CLIP_ViP.py`` (class CLIPAttention), microsoft/XPretrain at c37c904.

Legend: B batch, H heads, K head width, M proxies, N frames, L patches per frame, S = M + N*L tokens.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from clipvip_lib.errors import ClipVipError

#: The name under which ``attention_interface`` is plugged into transformers (see clip_vip.py).
NAME = "clip_vip"

#: Up to this many scores per head, training on a CPU is faster with explicit attention: they stay in the cache.
EXPLICIT_SCORES = 512 * 512


def proxy_attention(q: Tensor, k: Tensor, v: Tensor, frames: int, patches: int, proxies: int) -> Tensor:
    """Attention of M proxies to all tokens, of each frame's patches to the proxies and their own frame.

    q, k, v: [B, H, S, K], S = M + N*L tokens in the order proxies, frame 1's patches, .. frame N's.
    Returns [B, H, S, K]. Raises ClipVipError if S is not ``proxies + frames * patches``.
    """
    B, H, S, K = q.shape
    if min(proxies, frames, patches) < 1:
        raise ClipVipError(
            f"proxy attention expected at least one proxy, frame and patch, got {proxies}, {frames} and {patches}; "
            "a still image is a video of one frame"
        )
    if proxies + frames * patches != S:
        raise ClipVipError(
            f"proxy attention expected {proxies} proxies + {frames} frames x {patches} patches = "
            f"{proxies + frames * patches} tokens, got {S}; pass the shape that the tokens were made with"
        )
    # Split, not sliced: the gradient of a split is one copy, that of two slices two whole arrays of zeros and a sum.
    asked_by_proxies, asked_by_patches = q.split([proxies, frames * patches], dim=2)
    of_proxies = attend(asked_by_proxies, k, v)
    # Frames are laid out as further heads, so that every kernel sees the four dimensions that it knows.
    of_patches = attend(
        asked_by_patches.unflatten(2, (frames, patches)).flatten(1, 2),
        by_frame(k, frames, patches, proxies),
        by_frame(v, frames, patches, proxies),
    )
    return torch.cat([of_proxies, of_patches.reshape(B, H, frames * patches, K)], dim=2)


def by_frame(x: Tensor, frames: int, patches: int, proxies: int) -> Tensor:
    """What a frame may look at, [B, H, S, K] -> [B, H*N, M+L, K]: the proxies, then its own patches."""
    B, H, _, K = x.shape
    shared, own = x.split([proxies, frames * patches], dim=2)
    shared = shared[:, :, None].expand(B, H, frames, proxies, K)
    return torch.cat([shared, own.unflatten(2, (frames, patches))], dim=3).flatten(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, seen: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(K)) v for q [B, H, Q, K] and k, v [B, H, T, K]; causal: token t sees 1..t only;
    seen: bool, broadcast to [B, H, Q, T]: which tokens each query sees.

    The one place where the kernel is chosen: the fused one, except for training on short sequences on a CPU.
    Its backward pass is slow there, above all in bfloat16 (forward + backward of 256 x 68 tokens of width 24
    on one thread: 53 to 85 ms, the three steps written out 9 to 11 ms).
    """
    training = torch.is_grad_enabled() and q.requires_grad
    if q.device.type != "cpu" or not training or q.shape[-2] * k.shape[-2] > EXPLICIT_SCORES:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=causal)
    scale, keys = q.shape[-1] ** -0.5, k.transpose(-1, -2)
    # A power of two, as in all released CLIPs, is exact wherever it is applied: then to K numbers a query, not T.
    exact = math.frexp(scale)[0] == 0.5
    scores = (q * scale) @ keys if exact else (q @ keys) * scale
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    if seen is not None:
        scores = scores.masked_fill(~seen, float("-inf"))
    # The softmax in float32 at least: it is exact enough for bfloat16, and the faster one too.
    return scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(v.dtype) @ v


def attention_interface(module, query, key, value, attention_mask=None, **kwargs) -> tuple[Tensor, None]:
    """``attend`` and ``proxy_attention`` in the form that transformers calls, for both towers of CLIP.

    query, key, value: [B, H, S, K]; returns ([B, S, H, K], None). With ``proxies``, ``frames`` and
    ``patches`` in kwargs: proxy attention; with ``is_causal`` (transformers' text tower passes it): causal;
    else full attention. transformers builds no mask for a plugged-in function, so a mask is a mistake and raises
    ClipVipError.
    """
    if attention_mask is not None:
        raise ClipVipError(
            "CLIP-ViP's attention expected no mask, got one; leave it out, padding stands to a text's right"
        )
    if kwargs.get("proxies") is not None:
        shape = {name: kwargs[name] for name in ("frames", "patches", "proxies")}
        out = proxy_attention(query, key, value, **shape)
    else:
        out = attend(query, key, value, causal=bool(kwargs.get("is_causal")))
    return out.transpose(1, 2), None
