"""A model's weights laid out for fast training: few large tensors in place of hundreds of small ones.

Each group of the optimiser has one flat float32 tensor (the masters), and the model's parameters are views of it. So
clipping and AdamW take a few kernels where they took hundreds. In bfloat16 a step runs through a twin of the model,
whose parameters are views of flat copies in bfloat16: nothing is cast twice, a ninth of a mini model's step on a CPU.
Against autocast the residual stream too is bfloat16. In float32 the model is its own twin.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class FlatWeights:
    """Masters and twin of a model. Attributes: model, twin, groups (for an optimiser, one flat tensor each).

    groups: parameter groups in the form that optimisers take, every parameter of the model that is trained in one.
    precision: "float32" or "bfloat16", what a step computes in.
    """

    def __init__(self, model: nn.Module, groups: list[dict], precision: str) -> None:
        kind = getattr(torch, precision)
        self.model = model
        self.twin = model if kind == torch.float32 else copy.deepcopy(model).to(kind)
        pairs = dict(zip(model.parameters(), self.twin.parameters(), strict=True))
        self.copies: list[tuple[Tensor, Tensor]] = []  # the twin's weights and gradients, flat
        self.groups = []
        for group in groups:
            flat = torch.cat([parameter.detach().flatten() for parameter in group["params"]])
            copied, gradient, start = flat.to(kind), torch.zeros_like(flat, dtype=kind), 0
            for parameter in group["params"]:
                part, shape, twin = slice(start, start + parameter.numel()), parameter.shape, pairs[parameter]
                parameter.data = flat[part].view(shape)
                twin.data, twin.grad = copied[part].view(shape), gradient[part].view(shape)
                start = part.stop
            self.copies.append((copied, gradient))
            self.groups.append(group | {"params": [nn.Parameter(flat)]})

    @property
    def masters(self) -> list[nn.Parameter]:
        """The flat float32 tensors that the optimiser steps."""
        return [group["params"][0] for group in self.groups]

    def zero_gradients(self) -> None:
        """Before the twin's backward pass, which adds to the flat gradients."""
        for _, gradient in self.copies:
            gradient.zero_()

    def gradients(self, clip_norm: float) -> Tensor:
        """Bring the twin's gradients to the masters and clip them; returns their norm before, a scalar."""
        for master, (_, gradient) in zip(self.masters, self.copies, strict=True):
            master.grad = gradient.to(master.dtype)
        return nn.utils.clip_grad_norm_(self.masters, clip_norm)

    @torch.no_grad()
    def copy_to_twin(self) -> None:
        """After a step, or when the model's weights were loaded."""
        if self.twin is not self.model:
            for master, (copied, _) in zip(self.masters, self.copies, strict=True):
                copied.copy_(master)

    def release(self) -> None:
        """Give every parameter of the model its own memory again, without a gradient."""
        for parameter in self.model.parameters():
            parameter.data, parameter.grad = parameter.data.clone(), None
