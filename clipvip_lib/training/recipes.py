"""How the authors trained, as recipes for ``clipvip train``; every value of theirs has its source.

A recipe is ``profiles.Recipe`` (steps, batch, rates) and what real corpora need besides. ``batch`` is the global
one, divided over the ranks. What the authors did not say has our default, and ``SOURCES`` has no line for it. What
only moves memory or time (``FREE``) may change between a run and its resumption, the rest may not.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from clipvip_lib.errors import ClipVipError, unknown
from clipvip_lib.precision import PRECISIONS
from clipvip_lib.profiles import Recipe


@dataclass(frozen=True)
class TrainRecipe(Recipe):
    """One training. ``steps`` = 0: ``epochs`` passes over ``samples`` clips (0: counted from the data).

    reduction: "sum" of the loss's terms (the authors') or their "mean".
    lr_added: of proxies and temporal embedding; the authors name one rate for all.
    text_tokens: longest text, start and end included. kept_frames: uniform frames of a clip that a frame store
    keeps, from which training draws ``frames`` with jitter. group: clips in a row, cut from one long video, that
    go into a batch together (frame stores only).
    evaluations: how often the validation split is scored (fine-tuning).
    chunk: clips that a rank encodes at a time, by gradient caching; 0: all at once.
    flat: weights and gradients in a few large tensors, in bfloat16 weights of that type instead of autocast: the faster
    step of a small model, on one rank.
    checkpointing: recompute layers in the backward pass. compile: torch.compile, layer by layer.
    save_minutes: between two checkpoints.
    """

    steps: int = 0
    epochs: float = 1.0
    samples: int = 0
    batch: int = 1024
    lr: float = 5e-6
    lr_added: float = 5e-6
    weight_decay: float = 0.05
    clip_norm: float = 5.0
    warmup: float = 0.01
    reduction: str = "sum"
    frames: int = 12
    text_tokens: int = 70
    antialias: bool = False
    kept_frames: int = 24
    group: int = 1
    evaluations: int = 5
    chunk: int = 0
    flat: bool = False
    checkpointing: bool = False
    compile: bool = False
    save_minutes: float = 10.0

    def for_data(self, clips: int | None) -> TrainRecipe:
        """The recipe with its number of steps, for data of ``clips`` clips per epoch (None: unknown).

        Raises ClipVipError if the number of steps cannot be told.
        """
        if self.steps:
            return self
        clips = self.samples or clips
        if not clips:
            raise ClipVipError(
                "expected the number of steps, or of clips in an epoch, which a stream does not know; "
                "add --set steps=N or --set samples=N"
            )
        return dataclasses.replace(self, steps=max(1, int(self.epochs * (clips // self.batch))))


BETAS, EPS = (0.9, 0.98), 1e-6  # AdamW's
MAX_LOGIT_SCALE = math.log(200.0)
FREE = ("chunk", "checkpointing", "compile", "save_minutes")

_FINETUNE = TrainRecipe(
    batch=128, lr=1e-6, lr_added=1e-6, weight_decay=0.2, clip_norm=1.0, text_tokens=50, epochs=20.0
)

RECIPES: dict[str, TrainRecipe] = {
    "postpretrain": TrainRecipe(epochs=1.0, samples=100_000_000),
    "postpretrain-full": TrainRecipe(epochs=3.0, samples=100_000_000),
    # a pass draws one of a clip's 20 captions, so that 5 epochs over all captions are 100 passes
    "finetune-msrvtt": dataclasses.replace(_FINETUNE, epochs=100.0),
    "finetune-didemo": _FINETUNE,
    "finetune-didemo-b16": dataclasses.replace(_FINETUNE, text_tokens=70),
    "finetune-lsmdc": dataclasses.replace(_FINETUNE, epochs=10.0),
    "finetune-activitynet": dataclasses.replace(_FINETUNE, frames=32, kept_frames=64, text_tokens=70),
}

_CONFIGS = "the authors' released configs (microsoft/XPretrain, CLIP-ViP, c37c904)"
_CODE = "the authors' code (microsoft/XPretrain, CLIP-ViP, c37c904)"

#: Where each value comes from; a field without a line is a default of this project.
SOURCES: dict[str, dict[str, str]] = {
    "both": {
        "warmup": f"{_CONFIGS}: linear over 1 % of the steps, then cosine to 0",
        "reduction": f"{_CODE}: the terms of a loss are summed",
        "antialias": f"{_CODE}: bicubic resize of the float tensor, which old torchvision does not antialias",
        "precision": f"{_CONFIGS}: mixed precision (float16 by apex there, bfloat16 here)",
        "frames": f"{_CONFIGS}: 12 uniform frames; ActivityNet 32",
    },
    "postpretrain": {
        "batch": f"{_CONFIGS}: 1024, 32 V100 with 32 each",
        "lr": f"{_CONFIGS}: peak 5e-6",
        "weight_decay": f"{_CONFIGS}: 0.05",
        "clip_norm": f"{_CONFIGS}: 5.0",
        "epochs": "the paper: 1 for the ablations, 3 for the full model",
        "samples": "the name of HD-VILA-100M; 97,656 steps per epoch",
        "text_tokens": f"{_CONFIGS}: 70",
    },
    "finetune": {
        "batch": f"{_CONFIGS}: 128, 8 GPUs with 16 each",
        "lr": f"{_CONFIGS}: peak 1e-6",
        "weight_decay": f"{_CONFIGS}: 0.2",
        "clip_norm": f"{_CONFIGS}: 1.0",
        "epochs": f"{_CONFIGS}: 5 (MSR-VTT, over all captions: 100 passes), 20 (DiDeMo, ActivityNet), 10 (LSMDC)",
        "text_tokens": f"{_CONFIGS}: 50; 70 for ActivityNet and for DiDeMo with B/16",
    },
}


#: What no recipe changes: {name: (value, source)}.
FIXED: dict[str, tuple[object, str]] = {
    "betas": (BETAS, f"{_CODE} and configs: AdamW's"),
    "eps": (EPS, f"{_CODE} and configs: AdamW's"),
    "largest logit_scale": (MAX_LOGIT_SCALE, f"{_CODE}: kept in [0, ln 200]"),
    "without weight decay": (
        "biases, LayerNorms, logit_scale, class embedding, proxies, temporal embedding",
        f"{_CODE}; LayerNorm's weights were decayed there, by a name that did not match",
    ),
}


def get_recipe(name: str, **changes: object) -> TrainRecipe:
    """A recipe by name with single fields changed: ``get_recipe("postpretrain", batch=256)``.

    Raises ClipVipError for an unknown recipe or field, a value of another type, or one that makes no sense.
    """
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    recipe = RECIPES[name]
    fields = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    for field, value in changes.items():
        if field not in fields:
            raise unknown("recipe field", field, fields)
        expect_value(f"recipe field {field!r}", field, value, fields[field])
    recipe = dataclasses.replace(recipe, **changes)
    if recipe.kept_frames < recipe.frames:
        raise ClipVipError(
            f"recipe field 'kept_frames' expected at least the {recipe.frames} frames of a clip that the model "
            f"sees, got {recipe.kept_frames}; raise it"
        )
    return recipe


def recipe_of(benchmark: str) -> str:
    """The recipe of a benchmark, also of its other splits; for a set that the authors have none for, MSR-VTT's."""
    own = f"finetune-{benchmark.partition('-')[0]}"
    return own if own in RECIPES else "finetune-msrvtt"


def expect_value(said: str, field: str, value: object, old: object) -> None:
    """Raises ClipVipError, beginning with ``said``, unless a recipe's field may have this value in place of ``old``."""
    if type(value) is not type(old) and not (isinstance(old, float) and type(value) is int):
        raise ClipVipError(f"{said} expected {type(old).__name__} like {old!r}, got {value!r}; change it")
    if isinstance(value, float) and not math.isfinite(value):  # NaN passes every comparison below
        raise ClipVipError(f"{said} expected a finite number, got {value!r}; change it")
    positive = field in ("batch", "frames", "kept_frames", "group", "epochs", "clip_norm")
    if isinstance(value, int | float) and (value < 0 or (positive and not value)):
        least = "above 0" if positive else "of 0 or more"
        raise ClipVipError(f"{said} expected a number {least}, got {value!r}; change it")
    shares = {"warmup": "the steps", "patch_drop": "the patches"}
    if field in shares and value > 1:
        raise ClipVipError(f"{said} expected a share of {shares[field]}, at most 1, got {value!r}; change it")
    if field == "precision" and value not in PRECISIONS:
        raise unknown("precision", value, PRECISIONS)
    if field == "reduction" and value not in ("sum", "mean"):
        raise unknown("reduction", value, ("sum", "mean"))


def source(recipe: str, field: str) -> str:
    """Where a recipe's value comes from."""
    stage = "postpretrain" if recipe.startswith("postpretrain") else "finetune"
    return SOURCES[stage].get(field) or SOURCES["both"].get(field) or "this project's default"


def even_steps(steps: int, count: int) -> list[int]:
    """Up to ``count`` numbers of steps at equal distances, the last one ``steps``."""
    return sorted({max(1, round(steps * (i + 1) / count)) for i in range(count)})
