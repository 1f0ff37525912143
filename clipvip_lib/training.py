"""One training loop for all three stages: image-text pre-training, post-pretraining, fine-tuning.

What differs between them is data: which videos (one frame or several), which texts (subtitle, OFA caption), which
loss. The loop is a pure function of its seed: batch number ``step`` is computed from (seed, step), so a run that was
killed goes on from its last checkpoint and ends with the same weights, bit for bit on one thread.
"""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipvip_lib.data.frames import FrameStore
from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import atomic_path
from clipvip_lib.flat_weights import FlatWeights
from clipvip_lib.losses import needs, ocl_loss
from clipvip_lib.models.clip_tokenizer import ClipTokenizer
from clipvip_lib.models.clip_vip import ClipViP
from clipvip_lib.precision import autocast, choose
from clipvip_lib.profiles import Recipe

MAX_LOGIT_SCALE = math.log(200.0)  # the authors' clamp: logit_scale stays in [0, ln 200]
CHECKPOINT_SECONDS = 20.0  # a kill loses at most about this much

# What torch raises for a file that is cut, empty, of another kind, or of another model.
UNREADABLE = (
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    EOFError,
    OSError,
    pickle.UnpicklingError,
)

Progress = Callable[[int, int, str], None]


# ---------------------------------------------------------------------------------------------------- batches


@dataclass(frozen=True)
class Tokens:
    """Token ids of many texts: ids int64 [texts, T], mask int64 [texts, T]."""

    ids: Tensor
    mask: Tensor

    @classmethod
    def of(cls, texts: Sequence[str], tokenizer: ClipTokenizer) -> Tokens:
        return cls(*tokenizer(list(texts)))

    def take(self, rows: Sequence[int] | np.ndarray) -> Tokens:
        """Some rows, cut after the longest of them."""
        mask = self.mask[rows]
        length = int(mask.sum(1).max())
        return Tokens(self.ids[rows][:, :length], mask[:, :length])


@dataclass(frozen=True)
class Pairs:
    """Clips and what is said of them.

    Attributes:
        store: decoded frames.
        texts: every text (S), several a clip if there are several.
        text_rows: for each clip the rows of ``texts`` that belong to it; one is drawn at every visit.
        captions: OFA caption (C) of each clip, or None.
        group: clips that stand together (cut from one long video) and go into a batch together.
        caption_mask: bool [clips], False where OFA gave no caption, or None.
    """

    store: FrameStore
    texts: Tokens
    text_rows: Sequence[Sequence[int]]
    captions: Tokens | None = None
    caption_mask: Tensor | None = None
    group: int = 1


@dataclass(frozen=True)
class Batch:
    """uint8 video [B, N, H, W, 3], uint8 middle frame [B, 1, H, W, 3], texts, captions (None where not needed)."""

    video: Tensor
    frame: Tensor | None
    texts: Tokens
    captions: Tokens | None
    caption_mask: Tensor | None


class Sampler:
    """Batches of whole groups without replacement within an epoch; batch ``step`` depends on (seed, step) alone."""

    def __init__(self, count: int, batch: int, group: int, seed: int):
        if batch % group or count < batch:
            raise ClipVipError(
                f"expected a batch that is a multiple of {group} clips and at most {count}, got {batch}; change it"
            )
        self.batch, self.group, self.seed = batch, group, seed
        self.groups, self.per_epoch = count // group, (count // group) // (batch // group)
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def indices(self, step: int) -> np.ndarray:
        """Clip indices [batch] of batch ``step``."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = (
                epoch,
                np.random.default_rng([self.seed, 1, epoch]).permutation(self.groups),
            )
        width = self.batch // self.group
        chosen = self._order[position * width : (position + 1) * width]
        return (chosen[:, None] * self.group + np.arange(self.group)).ravel()


class Batches:
    """Batch number ``step`` of ``pairs`` for a loss: ``batches(step)``."""

    def __init__(self, pairs: Pairs, loss: str, frames: int, batch: int, seed: int):
        self.pairs, self.needed, self.frames, self.seed = pairs, needs(loss), frames, seed
        if "C" in self.needed and pairs.captions is None:
            raise ClipVipError(
                f"loss {loss!r} joins captions, but these clips have none; caption the shards first"
            )
        self.sampler = Sampler(len(pairs.text_rows), batch, pairs.group, seed)

    def __call__(self, step: int) -> Batch:
        pairs, indices = self.pairs, self.sampler.indices(step)
        rng = np.random.default_rng([self.seed, 2, step])
        rows = [pairs.text_rows[i][int(rng.integers(len(pairs.text_rows[i])))] for i in indices]
        captions = "C" in self.needed
        return Batch(
            video=torch.from_numpy(pairs.store.take(indices, self.frames, rng)),
            frame=torch.from_numpy(pairs.store.middle(indices)) if "F" in self.needed else None,
            texts=pairs.texts.take(rows),
            captions=pairs.captions.take(indices) if captions else None,
            caption_mask=pairs.caption_mask[indices] if captions and pairs.caption_mask is not None else None,
        )


# ------------------------------------------------------------------------------------------------------- step


def features(model: ClipViP, batch: Batch) -> dict[str, Tensor]:
    """The L2-normalised features [B, E] of a batch's sources: V, S and, where the batch has them, F and C."""
    device = model.device
    out = {"V": model.encode_video(batch.video.to(device))}
    if batch.frame is not None:
        out["F"] = model.encode_video(batch.frame.to(device))
    sources = [batch.texts] if batch.captions is None else [batch.texts, batch.captions]
    length = max(tokens.ids.shape[1] for tokens in sources)  # all texts in one pass
    ids, mask = (
        torch.cat([F.pad(part, (0, length - part.shape[1])) for part in parts]).to(device)
        for parts in ([t.ids for t in sources], [t.mask for t in sources])
    )
    return out | dict(zip("SC", model.encode_text(ids, mask).chunk(len(sources)), strict=False))


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


def schedule(step: int, recipe: Recipe) -> float:
    """Share of the peak learning rate at ``step`` (0-based): linear warm-up, then cosine to zero."""
    warm = max(1, round(recipe.warmup * recipe.steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, recipe.steps - warm)))


# ------------------------------------------------------------------------------------------------------- loop


@dataclass(frozen=True)
class Outcome:
    """What a training leaves: one row a step, one row an evaluation, and the step that was chosen."""

    history: list[dict]
    evaluations: list[dict]
    best_step: int


def train(
    model: ClipViP,
    batches: Callable[[int], Batch],
    loss: str,
    recipe: Recipe,
    *,
    seed: int,
    folder: Path,
    progress: Progress,
    evaluate: Callable[[ClipViP], float] | None = None,
    snapshots: Sequence[int] = (),
) -> Outcome:
    """Train ``model`` in place for ``recipe.steps`` steps, resuming from ``folder``/checkpoint.pt if it is there.

    Args:
        batches: batch number ``step``.
        loss: a name of ``losses.LOSSES``; terms are averaged, so that variants share one scale.
        folder: where checkpoint.pt and, for each of ``snapshots`` (numbers of steps done), step-NNNNNN.pt go.
        evaluate: a score on the VALIDATION split, larger is better; tried ``recipe.evaluations`` times at equal
            distances, and the weights of the best are the ones that the model ends with (the last, without it).

    Raises:
        ClipVipError: the loss is not finite (says the step; the last checkpoint stays), or the checkpoint in
            ``folder`` does not fit the model.
    """
    torch.manual_seed(seed)
    weights = FlatWeights(model, parameter_groups(model, recipe), choose(recipe.precision, model.device))
    groups = weights.groups
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), eps=1e-6, fused=True)
    state = _Run(model, optimizer, folder / "checkpoint.pt")
    start = state.resume()
    weights.copy_to_twin()
    evaluated = _even_steps(recipe.steps, recipe.evaluations) if evaluate else []
    saved_at = time.monotonic()
    weights.twin.train()
    for step in range(start, recipe.steps):
        share = schedule(step, recipe)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share
        state.history.append(
            {"step": step + 1, **_step(weights, optimizer, batches(step), loss, recipe, step)}
        )
        done = step + 1
        if done in evaluated:
            state.evaluated(done, _score(model, evaluate))
        if done in snapshots:
            save_state(model, folder / f"step-{done:06d}.pt")
        if time.monotonic() - saved_at > CHECKPOINT_SECONDS and done < recipe.steps:
            state.save(done)
            saved_at = time.monotonic()
        progress(done, recipe.steps, f"loss {state.history[-1]['loss']:.3f}")
    if state.best is not None:
        model.load_state_dict(state.best)
    weights.release()
    state.path.unlink(missing_ok=True)
    best_step = max(
        state.evaluations, key=lambda row: (row["score"], row["step"]), default={"step": recipe.steps}
    )
    return Outcome(state.history, state.evaluations, best_step["step"])


def _even_steps(steps: int, count: int) -> list[int]:
    """``count`` numbers of steps at equal distances, the last one ``steps``."""
    return sorted({round(steps * (i + 1) / count) for i in range(count)})


def _step(
    weights: FlatWeights, optimizer: torch.optim.Optimizer, batch: Batch, loss: str, recipe: Recipe, step: int
) -> dict:
    logit_scale = weights.model.logit_scale
    found = features(weights.twin, batch)
    mask = None if batch.caption_mask is None else batch.caption_mask.to(weights.model.device)
    value = ocl_loss(loss, found, weights.twin.logit_scale, caption_mask=mask)
    _require_finite("loss", value, step, recipe)
    weights.zero_gradients()
    value.backward()
    norm = weights.gradients(recipe.clip_norm)
    _require_finite("gradient", norm, step, recipe)
    optimizer.step()
    with torch.no_grad():
        logit_scale.clamp_(0.0, MAX_LOGIT_SCALE)
    weights.copy_to_twin()
    return {
        "loss": round(value.item(), 6),
        "grad_norm": round(norm.item(), 6),
        "lr": optimizer.param_groups[0]["lr"],
        "logit_scale": round(logit_scale.item(), 6),
    }


def _require_finite(what: str, value: Tensor, step: int, recipe: Recipe) -> None:
    if not torch.isfinite(value):
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


class _Run:
    """What must survive a kill: weights, optimiser, step, random state, rows, best weights so far."""

    def __init__(self, model: ClipViP, optimizer: torch.optim.Optimizer, path: Path):
        self.model, self.optimizer, self.path = model, optimizer, path
        self.history: list[dict] = []
        self.evaluations: list[dict] = []
        self.best: dict[str, Tensor] | None = None

    def evaluated(self, step: int, score: float) -> None:
        if self.best is None or score >= max(row["score"] for row in self.evaluations):
            self.best = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.evaluations.append({"step": step, "score": score})

    def save(self, step: int) -> None:
        state = {
            "step": step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "history": self.history,
            "evaluations": self.evaluations,
            "best": self.best,
        }
        with atomic_path(self.path) as partial:
            torch.save(state, partial)

    def resume(self) -> int:
        """Load the checkpoint if there is one. Returns the number of steps done."""
        if not self.path.exists():
            return 0
        try:
            state = torch.load(self.path, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except UNREADABLE as error:
            raise ClipVipError(
                f"cannot resume from {self.path}: it does not fit this model ({_reason(error)}); "
                "remove it to start anew"
            ) from error
        torch.set_rng_state(state["rng"])
        self.history, self.evaluations, self.best = state["history"], state["evaluations"], state["best"]
        return int(state["step"])


# ---------------------------------------------------------------------------------------- weights and features


def save_state(model: ClipViP, path: Path) -> None:
    """Write a model's weights (a state dict) whole or not at all."""
    with atomic_path(path) as partial:
        torch.save(model.state_dict(), partial)


def load_state(model: ClipViP, path: Path) -> None:
    """Load weights that ``save_state`` wrote. Raises ClipVipError if they are missing or do not fit the model."""
    try:
        model.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    except UNREADABLE as error:
        raise ClipVipError(
            f"the weights {path} do not fit this model ({_reason(error)}); train that stage again"
        ) from error


def _reason(error: Exception) -> str:
    """What torch says of a file that it cannot load, without its advice to load it unsafely."""
    if isinstance(error, pickle.UnpicklingError):
        return "it is no file of weights"
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def encode_store(
    model: ClipViP, store: FrameStore, frames: int, batch: int = 64, precision: str = "auto"
) -> np.ndarray:
    """Features of all clips of a store: float32 [clips, E], L2-normalised."""
    out = []
    with torch.no_grad():
        for rows in _spans(len(store), batch):
            video = torch.from_numpy(store.take(rows, frames)).to(model.device)
            with autocast(precision, model.device):
                out.append(model.encode_video(video).float().cpu().numpy())
    return np.concatenate(out)


def encode_tokens(model: ClipViP, tokens: Tokens, batch: int = 256, precision: str = "auto") -> np.ndarray:
    """Features of all texts: float32 [texts, E], L2-normalised."""
    out = []
    with torch.no_grad():
        for rows in _spans(len(tokens.ids), batch):
            part = tokens.take(list(rows))
            with autocast(precision, model.device):
                out.append(
                    model.encode_text(part.ids.to(model.device), part.mask.to(model.device))
                    .float()
                    .cpu()
                    .numpy()
                )
    return np.concatenate(out)


def _spans(count: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, count)) for start in range(0, count, size))
