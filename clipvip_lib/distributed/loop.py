"""The training loop for many devices: one step of the global batch, whatever the number of ranks.

The same conventions as training.py, which trains the small study on one device (features, parameter groups, schedule,
clamp), with what real runs need: DistributedDataParallel, gradient caching, checkpointing, autocast, a stop at a
signal, a checkpoint of all ranks. On one rank and in float32 both give the same weights up to rounding (a test).
"""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from clipvip_lib.distributed import grad_cache
from clipvip_lib.distributed.ranks import Ranks, noticing_loss, together
from clipvip_lib.distributed.recipes import BETAS, EPS, TrainRecipe
from clipvip_lib.distributed.run_folder import RunFolder
from clipvip_lib.distributed.stop_signals import StoppedBetweenSteps, StopSignals
from clipvip_lib.errors import ClipVipError
from clipvip_lib.models.clip_vip import ClipViP
from clipvip_lib.training import MAX_LOGIT_SCALE, Batch, parameter_groups, schedule

Progress = Callable[[int, int, str], None]


class Source(Protocol):
    """Where batches come from: ``source(step)`` is this rank's share of batch number ``step``."""

    def __call__(self, step: int) -> Batch: ...

    def position(self) -> object:
        """This rank's place in its data, as JSON has it."""

    def place(self, positions: list, step: int) -> None:
        """Go on where ranks with these positions stood after ``step`` steps."""

    def close(self) -> None:
        """End what was started."""


def train(
    model: ClipViP,
    source: Source,
    loss: str,
    recipe: TrainRecipe,
    *,
    run: RunFolder,
    progress: Progress,
    evaluate: Callable[[ClipViP], float] | None = None,
    snapshot: Callable[[int], None] | None = None,
    snapshots: Sequence[int] = (),
    report: Callable[[dict], None] | None = None,
) -> None:
    """Train ``model`` in place for ``recipe.steps`` steps, going on from the run's checkpoint if there is one.

    source: every rank's own; loss: a name of ``losses.LOSSES``.
    evaluate: a score on the VALIDATION split, larger is better, the same on every rank; asked
        ``recipe.evaluations`` times at equal distances. The model ends with the weights of the best one.
    snapshot: called on every rank at ``snapshots`` (numbers of steps done).
    report: called on the main rank with each row of metrics.jsonl.

    Raises:
        ClipVipError: the loss or gradient is not finite (on all ranks alike), memory is too small, data fail.
        RankLost: another rank is gone. The last checkpoint stays in all these cases.
        StoppedBetweenSteps(128 + number): a rank got SIGTERM or SIGINT; all finished the step and wrote a checkpoint.
    """
    ranks = run.ranks
    prepare(model, recipe, ranks)
    encoder = wrap(model, recipe, ranks)
    groups = parameter_groups(model, recipe)
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=BETAS, eps=EPS, fused=True)
    start = run.resume(model, optimizer, source.place)
    run.cut_metrics(start)
    evaluated = even_steps(recipe.steps, recipe.evaluations) if evaluate else []

    def save(done: int) -> None:
        run.save(done, model, optimizer, source.position(), torch.get_rng_state())

    saved_at = time.monotonic()
    with (
        StopSignals(patient=ranks.store is not None) as stop,
        run.metrics.open("a") if ranks.main else contextlib.nullcontext() as rows,
    ):
        for step in range(start, recipe.steps):
            due = ranks.main and time.monotonic() - saved_at > 60 * recipe.save_minutes
            number, due = ranks.largest(stop.number, due)
            # Before the first step too: who stops a run is told of a checkpoint.
            if (step > start and (number or due)) or (number and step == 0):
                save(step)
                saved_at = time.monotonic()
            if number:
                raise StoppedBetweenSteps(128 + int(number))
            began = time.monotonic()
            with together(ranks):
                batch = source(step)
            fetched = time.monotonic()
            row = {
                "step": step + 1,
                **one_step(encoder, model, optimizer, batch, loss, recipe, ranks, step),
            }
            seconds = time.monotonic() - began
            row |= {
                "seconds": round(seconds, 4),
                "waited": round(fetched - began, 4),  # for data
                "clips_per_second": round(recipe.batch / seconds, 2),
            }
            if rows:
                rows.write(json.dumps(row) + "\n")
                rows.flush()
            if report and ranks.main:
                report(row)
            done = step + 1
            if done in snapshots and snapshot:
                snapshot(done)
            if done in evaluated:
                run.evaluated(done, _score(model, evaluate), model)
                save(done)
                saved_at = time.monotonic()
            if ranks.main:
                progress(done, recipe.steps, f"loss {row['loss']:.3f}")
    run.load_best(model)
    model.eval()


def prepare(model: ClipViP, recipe: TrainRecipe, ranks: Ranks) -> None:
    """Move the model to its device, in training mode, with the switches that the recipe has on."""
    model.to(ranks.device).train()
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
    encoder = grad_cache.Encoder(model, recipe.precision)
    if ranks.store is None:
        return encoder
    ddp = nn.parallel.DistributedDataParallel
    # CLIP's buffers are constants; newer torch has another name for leaving them alone.
    known = inspect.signature(ddp.__init__).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    with noticing_loss(ranks):
        return ddp(encoder, gradient_as_bucket_view=True, **{buffers: False})


def one_step(
    encoder: nn.Module,
    model: ClipViP,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    loss: str,
    recipe: TrainRecipe,
    ranks: Ranks,
    step: int,
) -> dict:
    """One step of the optimiser on the global batch; returns loss, gradient norm, rate and logit_scale."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * schedule(step, recipe)
    optimizer.zero_grad(set_to_none=True)
    try:
        with noticing_loss(ranks):
            value = grad_cache.backward(
                encoder, batch, loss, ranks, chunk=recipe.chunk, reduction=recipe.reduction
            )
    except torch.OutOfMemoryError as error:
        raise ClipVipError(
            f"the memory of {ranks.device} is too small for {recipe.chunk or len(batch.video)} clips at a time; add "
            "--set chunk=N with a smaller N, or --set checkpointing=true"
        ) from error
    _require_finite("loss", value, step, recipe)
    norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
    _require_finite("gradient", norm, step, recipe)
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0.0, MAX_LOGIT_SCALE)
    return {
        "loss": round(value.item(), 6),
        "grad_norm": round(norm.item(), 6),
        "lr": optimizer.param_groups[0]["lr"],
        "logit_scale": round(model.logit_scale.item(), 6),
    }


def even_steps(steps: int, count: int) -> list[int]:
    """``count`` numbers of steps at equal distances, the last one ``steps``."""
    return sorted({max(1, round(steps * (i + 1) / count)) for i in range(count)})


def _require_finite(what: str, value: Tensor, step: int, recipe: TrainRecipe) -> None:
    """Loss and gradient are those of the global batch, so that every rank stops at the same step."""
    if not math.isfinite(value.item()):
        raise ClipVipError(
            f"the {what} became {value.item()} at step {step + 1}: expected a finite number; lower the learning rate "
            f"({recipe.lr:g}) or take precision float32; the last checkpoint is kept"
        )


def _score(model: ClipViP, evaluate: Callable[[ClipViP], float]) -> float:
    model.eval()
    with torch.no_grad():
        score = evaluate(model)
    model.train()
    return score
