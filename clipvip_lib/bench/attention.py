"""`clipvip bench attention`: one layer's attention by itself, ours beside other ways to compute it.

    ours             models/proxy_attention.py
    authors          keys and values copied to every frame, bmm, softmax written out (authors_attention.py)
    dense mask       one fused attention of all tokens with a mask: the same result, most of it thrown away
    frames apart     mean pooling's: every frame alone, with one class token
    full             all tokens to all tokens

The first three give the same numbers, which is checked before the clock runs. The share is that of a matrix product's
rate, in turns with them; FLOPs are those of the pairs that each needs (flops.attention_pairs), so the dense mask is not
credited with what it throws away.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from clipvip_lib.bench.authors_attention import authors_attention
from clipvip_lib.bench.measure import PRODUCT, about, in_turns, product, set_threads
from clipvip_lib.errors import ClipVipError
from clipvip_lib.flops import attention_pairs
from clipvip_lib.models.proxy_attention import attend, proxy_attention

WIDTH, HEADS, PROXIES = 768, 12, 4


def measure(
    repeats: int = 7, batch: int = 2, frames: int = 12, precision: str = "float32", device: str = "cpu",
    threads: int = 1,
) -> dict:  # fmt: skip
    """Rows of model (B/32, B/16), direction and form: milliseconds, times as fast as the authors', share of the
    product's rate. Raises ClipVipError if forms that must agree do not."""
    set_threads(threads)
    rows = []
    for patch in (32, 16):
        for backward in (False, True):
            rows += _of(patch, backward, repeats, batch, frames, precision, torch.device(device))
    return {
        "what": f"attention of one layer, width {WIDTH}, {HEADS} heads, {frames} frames of 224 pixels, batch {batch}",
        "precision": precision,
        "rows": rows,
        **about((), device),
    }


def _of(
    patch: int, backward: bool, repeats: int, batch: int, frames: int, precision: str, device: torch.device
) -> list[dict]:
    patches = (224 // patch) ** 2
    shape = {"frames": frames, "patches": patches, "proxies": PROXIES}
    tokens = PROXIES + frames * patches
    torch.manual_seed(0)
    dtype = getattr(torch, precision)
    q, k, v = (
        torch.randn(batch, HEADS, tokens, WIDTH // HEADS, device=device, dtype=dtype, requires_grad=backward)
        for _ in range(3)
    )
    apart = [
        x.detach()[:, :, : frames * (1 + patches)]
        for x in (torch.cat([y, y[:, :, : frames + 1]], 2) for y in (q, k, v))
    ]
    apart = [
        x.unflatten(2, (frames, 1 + patches)).flatten(1, 2).contiguous().requires_grad_(backward)
        for x in apart
    ]
    mask = _mask(frames, patches, device)
    calls: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: proxy_attention(q, k, v, **shape),
        "authors": lambda: authors_attention(q, k, v, **shape),
        "dense mask": lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
        "frames apart": lambda: attend(*apart),
        "full": lambda: attend(q, k, v),
    }
    _agree(calls)
    forms = {name: (lambda call=call: _run(call, backward)) for name, call in calls.items()}
    forms[PRODUCT], product_flops = product(device, precision)
    seconds = in_turns(forms, repeats, device)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    rate = product_flops / medians[PRODUCT]
    work = {name: (3 if backward else 1) * 4 * batch * WIDTH * pairs for name, pairs in _pairs(shape).items()}
    return [
        {
            "model": f"B/{patch}",
            "direction": "forward + backward" if backward else "forward",
            "form": name,
            "ms": round(1e3 * medians[name], 2),
            "ms_min": round(1e3 * min(seconds[name]), 2),
            "ms_max": round(1e3 * max(seconds[name]), 2),
            "times_authors": round(medians["authors"] / medians[name], 2),
            "share_of_the_product": round(work[name] / medians[name] / rate, 3),
        }
        for name in calls
    ]


def _pairs(shape: dict[str, int]) -> dict[str, int]:
    M, N, L = shape["proxies"], shape["frames"], shape["patches"]
    proxy = attention_pairs("proxy", M, N, L)
    return {
        "ours": proxy,
        "authors": proxy,
        "dense mask": proxy,
        "frames apart": attention_pairs("mean_pool", M, N, L),
        "full": attention_pairs("full", M, N, L),
    }


def _run(call: Callable[[], Tensor], backward: bool) -> None:
    if backward:
        call().sum().backward()
    else:
        with torch.inference_mode():
            call()


def _mask(frames: int, patches: int, device: torch.device) -> Tensor:
    """bool [S, S], true where a token sees another: the picture in proxy_attention.py."""
    frame = torch.arange(frames, device=device).repeat_interleave(patches)
    frame = torch.cat([torch.full((PROXIES,), -1, device=device), frame])
    return (frame[:, None] == frame) | (frame[:, None] == -1) | (frame == -1)


def _agree(calls: dict[str, Callable[[], Tensor]]) -> None:
    with torch.inference_mode():
        ours = calls["ours"]()
        limit = 0.05 if ours.dtype == torch.bfloat16 else 1e-4
        for name in ("authors", "dense mask"):
            off = (calls[name]() - ours).abs().max().item()
            if not off < limit:
                raise ClipVipError(
                    f"the form {name!r} differs by {off:.2g} from ours: expected the same attention"
                )
