"""The vision tower's products in 8-bit integers, to encode videos on a processor that multiplies those faster.

Each output of a weight has a scale of its own, and so has each token, found as it comes: one token with large numbers
costs the others nothing. Attention, normalisation and activation compute as before. PyTorch's own way to 8 bits keeps
them in float32, where they take half of the time; here they stay in bfloat16 where that is the faster one.

A processor without VNNI or AMX loses carries in such products, so there int8 is refused.
"""

from __future__ import annotations

import copy
import functools
import itertools

import torch
from torch import Tensor, nn

from clipvip_lib.errors import ClipVipError
from clipvip_lib.precision import INT8, beside_int8

ZERO = 128  # what 0 is among unsigned bytes, which oneDNN takes for activations
#: The largest number of a token. 127 times a scale that was rounded to bfloat16 may be above 127.5.
MOST = 126


def in_int8(model):
    """A ClipViP for ``encode_video`` whose vision layers multiply in 8 bits; all other weights are ``model``'s own.

    Raises ClipVipError if it is not on a CPU, or on one that has no such products.
    """
    if model.device.type != "cpu" or not is_exact():
        where = (
            "this processor, which has none that are exact" if model.device.type == "cpu" else model.device
        )
        raise ClipVipError(
            f"precision int8 expected a processor with 8-bit products (VNNI or AMX), got {where}; take precision auto"
        )
    shared = {id(each): each for each in itertools.chain(model.parameters(), model.buffers())}
    model = copy.deepcopy(model, shared)
    tokens = _Tokens()
    for layer in model.vision_model.encoder.layers:
        for block in (layer.self_attn, layer.mlp):
            for name, part in block.named_children():
                if isinstance(part, nn.Linear):
                    setattr(block, name, Int8Linear(part, tokens))
    return model


def of_videos(model, precision: str) -> tuple:
    """The model, and the precision around it, that encode videos in ``precision``. Raises as ``in_int8``."""
    return in_int8(model) if precision == INT8 else model, beside_int8(precision)


class Int8Linear(nn.Module):
    """``linear`` of tokens [..., I] -> [..., O], in 8 bits; in autocast's type or, without it, that of the tokens."""

    def __init__(self, linear: nn.Linear, tokens: _Tokens | None = None):
        super().__init__()
        weight = linear.weight.detach().float()
        self.tokens = _Tokens() if tokens is None else tokens
        self.scale = weight.abs().amax(1).clamp_(min=1e-30) / 127
        whole = (weight / self.scale[:, None]).round_().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(whole, None)
        self.bias = torch.zeros(len(weight)) if linear.bias is None else linear.bias.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        whole, scale = self.tokens(x)
        found = _product(whole, self.weight, self.scale, scale.dtype).unflatten(0, x.shape[:-1])
        found = torch.addcmul(self.bias.to(scale.dtype), found, scale)
        return found if torch.is_autocast_enabled("cpu") else found.to(x.dtype)


class _Tokens:
    """Tokens [..., I] to unsigned bytes [n, I] and scales [..., 1]. The last ones are remembered, because queries, keys
    and values are products of the same; one for a whole model, which would else keep what every layer saw."""

    def __init__(self) -> None:
        self.last: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, given: Tensor) -> tuple[Tensor, Tensor]:
        last = self.last
        if last is None or last[0] is not given:
            x = given.to(
                torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
            )
            scale = x.abs().amax(-1, keepdim=True).clamp_(min=1e-30).div_(MOST)
            whole = (x / scale).round_().add_(ZERO).to(torch.uint8)
            last = self.last = given, whole.flatten(0, -2), scale
        return last[1:]


def _product(tokens: Tensor, weight: Tensor, scale: Tensor, kind: torch.dtype) -> Tensor:
    """Bytes [n, I] around ZERO times packed weights, and the scale of each output: [n, O]."""
    zero = torch.zeros(len(scale), dtype=torch.int64)
    return torch.ops.onednn.qlinear_pointwise(
        tokens, 1.0, ZERO, weight, scale, zero, None, 1.0, 0, kind, "none", [], ""
    )


@functools.cache
def is_exact() -> bool:
    """Whether this processor multiplies 8-bit integers exactly: the largest ones lose carries on one without VNNI."""
    if not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return False
    tokens, weight = (torch.full((64, 64), value) for value in (MOST + ZERO, 127))
    packed = torch.ops.onednn.qlinear_prepack(weight.to(torch.int8), None)
    found = _product(tokens.to(torch.uint8), packed, torch.ones(64), torch.float32)
    return bool((found == 64 * 127 * MOST).all())
