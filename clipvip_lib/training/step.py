"""One step of the optimiser on the global batch, the same on one device and on many.

Its switches are the recipe's: gradient caching (``chunk``), activation checkpointing, torch.compile, flat weights; and
the ranks': DistributedDataParallel where there is more than one.
"""

from __future__ import annotations

import inspect
import math

import torch
from torch import nn

from clipvip_lib.errors import ClipVipError
from clipvip_lib.models.clip_vip import ClipViP
from clipvip_lib.profiles import Recipe
from clipvip_lib.training import grad_cache
from clipvip_lib.training.batches import Batch
from clipvip_lib.training.encoder import BatchEncoder
from clipvip_lib.training.flat_weights import FlatWeights
from clipvip_lib.training.ranks import Ranks, noticing_loss
from clipvip_lib.training.recipes import BETAS, EPS, MAX_LOGIT_SCALE, TrainRecipe


class Step:
    """``step(batch, number)`` trains ``model`` in place; returns loss, gradient norm, rate and logit_scale.

    Attributes: optimizer, whose state a checkpoint keeps; call ``loaded`` after model and optimizer were loaded, and
    ``release`` after the last step. Raises ClipVipError for flat weights on more than one rank.
    """

    def __init__(self, model: ClipViP, loss: str, recipe: TrainRecipe, ranks: Ranks) -> None:
        self.model, self.loss, self.recipe, self.ranks, self.flat = model, loss, recipe, ranks, None
        expect_switches(recipe, ranks)
        for part in (model.text_model, model.text_projection) if recipe.frozen_text else ():
            part.requires_grad_(False)
        if recipe.flat:
            self.flat = FlatWeights(model.to(ranks.device), parameter_groups(model, recipe), recipe.precision)
            prepare(self.flat.twin, recipe, ranks)  # a copy of a prepared model would not be compiled
            groups, self.encoder = self.flat.groups, BatchEncoder(self.flat.twin)
        else:
            prepare(model, recipe, ranks)
            groups, self.encoder = parameter_groups(model, recipe), wrap(model, recipe, ranks)
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=BETAS, eps=EPS, fused=True)

    def __call__(self, batch: Batch, step: int) -> dict:
        recipe, optimizer, scale = self.recipe, self.optimizer, self.model.logit_scale
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * schedule(step, recipe.steps, recipe.warmup)
        if self.flat:
            self.flat.zero_gradients()
        else:
            optimizer.zero_grad(set_to_none=True)
        if recipe.patch_drop:
            torch.manual_seed(step)  # a run that is resumed drops the same patches
        try:
            with noticing_loss(self.ranks):
                value = grad_cache.backward(
                    self.encoder, batch, self.loss, self.ranks, chunk=recipe.chunk, reduction=recipe.reduction
                )
        except torch.OutOfMemoryError as error:
            raise ClipVipError(
                f"the memory of {self.ranks.device} is too small for {recipe.chunk or len(batch.video)} clips at a "
                "time; add --set chunk=N with a smaller N, or --set checkpointing=true"
            ) from error
        if self.flat:
            norm = self.flat.gradients(recipe.clip_norm)
        else:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        # Read together, before the weights move: each reading waits until a GPU has done what it was given.
        value, norm = torch.stack([value.detach().double(), norm.detach().double()]).tolist()
        _require_finite({"loss": value, "gradient": norm}, step, recipe)
        optimizer.step()
        with torch.no_grad():
            scale.clamp_(0.0, MAX_LOGIT_SCALE)
        self.loaded()
        return {
            "loss": round(value, 6),
            "grad_norm": round(norm, 6),
            "lr": optimizer.param_groups[0]["lr"],
            "logit_scale": round(scale.item(), 6),
        }

    def loaded(self) -> None:
        """The model's weights have changed."""
        if self.flat:
            self.flat.copy_to_twin()

    def release(self) -> None:
        """Leave the model as it was made: parameters with their own memory."""
        if self.flat:
            self.flat.release()


def parameter_groups(model: ClipViP, recipe: Recipe) -> list[dict]:
    """AdamW groups: biases, LayerNorms, logit_scale and the class embedding without weight decay (the authors
    decayed LayerNorm weights by a name mismatch); parameters that CLIP does not have at ``lr_added``."""
    added = {id(p) for p in model.added_parameters()}
    groups: dict[tuple[bool, bool], list] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault((id(parameter) in added, parameter.ndim >= 2), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": recipe.weight_decay if matrix and not new else 0.0,
            "peak_lr": recipe.lr_added if new else recipe.lr,
        }
        for (new, matrix), parameters in sorted(groups.items())
    ]


def schedule(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate at ``step`` (0-based) of ``steps``: linear over the share ``warmup`` of them,
    then cosine to zero."""
    warm = max(1, round(warmup * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def expect_switches(recipe: TrainRecipe, ranks: Ranks) -> None:
    """Raises ClipVipError for flat weights on several ranks: nothing averages their gradients. And for dropped patches
    with gradient caching, whose two passes would drop different ones."""
    if recipe.patch_drop and recipe.chunk:
        raise ClipVipError(
            f"patch_drop {recipe.patch_drop:g} expected no gradient caching, got chunk {recipe.chunk}; leave one out"
        )
    if recipe.flat and ranks.size > 1:
        raise ClipVipError(f"flat weights expected one rank, got {ranks.size}; leave --set flat=true out")


def prepare(model: ClipViP, recipe: TrainRecipe, ranks: Ranks) -> None:
    """Move the model to its device, in training mode, with the switches that the recipe has on."""
    model.to(ranks.device).train()
    model.patch_drop = recipe.patch_drop
    if recipe.checkpointing:
        # Not the reentrant kind: it runs the first pass without gradients, where attention may take another kernel.
        name = "activation_checkpointing_enable"  # transformers' newer name
        enable = getattr(model, name, None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if recipe.compile:
        # Layer by layer: compiled once for all layers of a tower, and the names of the weights stay. Videos, frames and
        # texts, with and without gradients, are versions of one function: more than torch makes before it gives up.
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        for tower in (model.vision_model, model.text_model):
            for layer in tower.encoder.layers:
                layer.compile()


def wrap(model: ClipViP, recipe: TrainRecipe, ranks: Ranks) -> nn.Module:
    """The encoder of a model, under DistributedDataParallel if there are other ranks."""
    encoder = BatchEncoder(model, recipe.precision)
    if ranks.store is None:
        return encoder
    ddp = nn.parallel.DistributedDataParallel
    # CLIP's buffers are constants; newer torch has another name for leaving them alone.
    known = inspect.signature(ddp.__init__).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    with noticing_loss(ranks):
        return ddp(encoder, gradient_as_bucket_view=True, **{buffers: False})


def _require_finite(found: dict[str, float], step: int, recipe: TrainRecipe) -> None:
    """Loss and gradient are those of the global batch, so that every rank stops at the same step."""
    for what, value in found.items():
        if not math.isfinite(value):
            raise ClipVipError(
                f"the {what} became {value} at step {step + 1}: expected a finite number; lower the learning rate "
                f"({recipe.lr:g}) or take precision float32; the last checkpoint is kept"
            )
