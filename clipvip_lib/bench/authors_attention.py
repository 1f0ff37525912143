"""The authors' own formulation of proxy attention, for comparison: keys and values copied to every frame, bmm, softmax.

Written after ``CLIPAttention.forward`` of modeling/CLIP_ViP.py (microsoft/XPretrain at c37c904), with this project's
legend: B batch, H heads, K head width, M proxies, N frames, L patches per frame, S = M + N*L tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AttentionInterface

NAME = "clip_vip_authors"


def authors_attention(q: Tensor, k: Tensor, v: Tensor, frames: int, patches: int, proxies: int) -> Tensor:
    """``proxy_attention`` of q, k, v [B, H, S, K], as the authors compute it. Returns [B, H, S, K]."""
    B, H, S, K = q.shape
    M, N, L = proxies, frames, patches
    q, k, v = (x.reshape(B * H, S, K) for x in (q * K**-0.5, k, v))
    of_proxies = torch.bmm(torch.bmm(q[:, :M], k.transpose(1, 2)).softmax(-1), v)

    def frame_by_frame(x: Tensor) -> Tensor:
        shared = x[:, :M].unsqueeze(1).repeat(1, N, 1, 1)
        return torch.cat([shared, x[:, M:].view(-1, N, L, K)], dim=2).view(-1, M + L, K)

    scores = torch.bmm(q[:, M:].reshape(-1, L, K), frame_by_frame(k).transpose(1, 2))
    of_patches = torch.bmm(scores.softmax(-1), frame_by_frame(v)).view(B * H, N * L, K)
    return torch.cat([of_proxies, of_patches], dim=1).view(B, H, S, K)


def _interface(module, query, key, value, attention_mask=None, **layout) -> tuple[Tensor, None]:
    shape = {name: layout[name] for name in ("frames", "patches", "proxies")}
    return authors_attention(query, key, value, **shape).transpose(1, 2), None


AttentionInterface.register(NAME, _interface)
