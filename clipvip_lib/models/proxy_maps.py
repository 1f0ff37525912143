"""Where the proxies look: the attention that each pays to each patch of each frame, for pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from clipvip_lib.errors import ClipVipError
from clipvip_lib.models.clip_vip import ClipViP


@torch.no_grad()
def proxy_maps(model: ClipViP, pixels: Tensor, layer: int = -1, *, heads: bool = False) -> Tensor:
    """Attention of every proxy in one layer, the mean over heads.

    pixels: frames [B, N, 3, H, W]. layer: which of the vision tower's, the last without it. heads: each head by itself.
    Returns [B, M, N, rows, columns], or with heads [B, heads, M, N, rows, columns]: each proxy's share of attention on
    each patch; the rest, up to a sum of one, goes to the proxies themselves. Raises ClipVipError for a model without
    proxies or without that layer.
    """
    if model.config.attention != "proxy":
        raise ClipVipError(
            f"maps of proxies expected attention 'proxy', got {model.config.attention!r}; give a model with proxies"
        )
    layers = model.vision_model.encoder.layers
    if not -len(layers) <= layer < len(layers):
        raise ClipVipError(f"layer expected one of the {len(layers)} layers, got {layer}; count from 0")
    seen: list[Tensor] = []
    hook = layers[layer].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        model.video_states(pixels)
    finally:
        hook.remove()
    attention, M = layers[layer].self_attn, model.config.proxies
    normed = layers[layer].layer_norm1(seen[0])
    q, k = (
        projection(x).unflatten(-1, (attention.num_heads, attention.head_dim)).transpose(1, 2)
        for projection, x in ((attention.q_proj, normed[:, :M]), (attention.k_proj, normed))
    )
    share = ((q @ k.transpose(-1, -2)) * attention.head_dim**-0.5).softmax(-1)
    share = share if heads else share.mean(1)
    height, _ = model.vision_model.embeddings.patch_embedding.kernel_size
    rows = pixels.shape[3] // height
    return share[..., M:].unflatten(-1, (pixels.shape[1], rows, -1))
