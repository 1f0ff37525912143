"""Weights into a CLIP-ViP, whole or not at all.

Four kinds of source, one function, ``load_clip_vip``:

    a folder            written by save_pretrained, ours or Hugging Face's CLIP
    a file              the authors' pretrain_clipvip_base_{32,16}.pt, or .safetensors with the same names
    an open_clip name   "ViT-B-32" with a tag ("laion2b_s34b_b79k") or a weights file; names and qkv are
    converted a model in memory   ``adapt``: an image-text trained CLIP-ViP gets another attention

Every weight of the model must come from the source or be one that CLIP-ViP adds to CLIP, every weight of the
source must go somewhere or be dropped by name with a reason, shapes must agree, values must be finite. If
not: one sentence, and no model. What happened is in the ``LoadReport``. The authors' loader logged a line and
went on (R@1 = 0). Temporal embedding and patch positions are interpolated only when asked for.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.initialization import no_init_weights

from clipvip_lib.errors import ClipVipError
from clipvip_lib.models.clip_vip import ClipViP, ClipViPConfig, is_added
from clipvip_lib.models.open_clip_weights import from_open_clip
from clipvip_lib.models.weight_files import read_folder, read_weights

State = Mapping[str, Tensor]
TEMPORAL = "vision_model.embeddings.temporal_embedding"
PROXIES = "vision_model.embeddings.added_cls"
POSITIONS = "vision_model.embeddings.position_embedding.weight"
PATCHES = "vision_model.embeddings.patch_embedding.weight"

#: All released CLIPs have heads of this width; a bare state dict does not tell.
HEAD_WIDTH = 64


@dataclass
class LoadReport:
    """What became of every weight: names loaded; names added, dropped or changed, each with how or why."""

    source: str
    loaded: list[str] = field(default_factory=list)
    added: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.loaded)} weights loaded"]
        for title in ("added", "dropped", "changed"):
            lines += [f"  {title} {name}: {why}" for name, why in getattr(self, title).items()]
        return "\n".join(lines)


def load_clip_vip(
    source: str | Path,
    *,
    attention: str = "proxy",
    proxies: int | None = None,
    frames: int | None = None,
    pretrained_tag: str | Path | None = None,
    config: ClipViPConfig | None = None,
    interpolate: bool = False,
    seed: int = 0,
) -> tuple[ClipViP, LoadReport]:
    """A CLIP-ViP with the weights of a folder, a file, or an open_clip model, and the report.

    attention, proxies, frames: of the model to build; the last two default to the source's, else 4 and 12.
    pretrained_tag: for an open_clip name, the tag or a file.
    config: for a bare file, when its shapes do not tell all (heads of another width than 64, not QuickGELU).
    interpolate: resize the temporal embedding and the patch positions where the model has others.
    seed: of the added weights.

    Returns the model in evaluation mode, float32. Raises ClipVipError, in one sentence, for a source that is
    none of these, a file that is damaged or is something else, or weights that do not fit.
    """
    path = Path(source)
    if path.is_dir():
        base, state = _folder(path)
    elif path.is_file():
        state = read_weights(path)
        base = copy.deepcopy(config) or infer_config(tidy(state, str(path))[0], str(path))
    else:
        base, state = _read_open_clip(str(source), pretrained_tag)
    if config is not None and not path.is_file():
        raise ClipVipError(
            f"{source} brings its own configuration, leave config= out or give a file of weights"
        )
    base.attention = attention
    if proxies is not None:
        base.proxies = proxies
    if frames is not None:
        base.temporal_size = frames
    model = build(base, seed)
    report = load_weights(
        model,
        state,
        source=str(source),
        allow_added=True,
        allow_dropped=True,
        interpolate=interpolate,
        own=True,
    )
    return model.eval(), report


def adapt(
    clip: ClipViP, *, attention: str, proxies: int | None = None, frames: int | None = None, seed: int = 0
) -> ClipViP:
    """The same CLIP under another attention; what it adds to CLIP is new, deterministic by the seed.

    As in the authors' code proxy 1 is CLIP's class embedding, the others are drawn from a standard normal and
    the temporal embedding is zero. "sequential" starts from the text tower's layers and positions where the
    widths agree, as in CLIP4Clip. Weights that ``clip`` has already and that fit are kept. Raises
    ClipVipError for unknown names, numbers below 1, or added weights of another shape.
    """
    config = copy.deepcopy(clip.config)
    changes = {"attention": attention, "proxies": proxies, "temporal_size": frames}
    model = build(_with(config, **{k: v for k, v in changes.items() if v is not None}), seed)
    load_weights(model, clip.state_dict(), source="the given model", allow_added=True, allow_dropped=True)
    first = next(clip.parameters())
    return model.to(first.device, first.dtype).train(clip.training)


def build(config: ClipViPConfig, seed: int = 0) -> ClipViP:
    """A model whose added weights are initialised by the seed, and whose other weights wait to be loaded.

    The caller's random state is left alone.
    """
    config = _with(config)
    # Drawing 150 million numbers that are overwritten at once takes longer than reading them.
    skip = contextlib.nullcontext() if config.attention == "sequential" else no_init_weights()
    with torch.random.fork_rng(devices=[]), skip:
        torch.manual_seed(seed)
        model = ClipViP(config)
    return model


def load_weights(
    model: ClipViP,
    state: State,
    *,
    source: str = "the given weights",
    allow_added: bool = False,
    allow_dropped: bool = False,
    interpolate: bool = False,
    own: bool = False,
) -> LoadReport:
    """Load a state dict strictly; the model is untouched if anything is wrong.

    Names may carry the authors' ``clipmodel.`` prefix.
    allow_added: the weights that CLIP-ViP adds to CLIP may be missing, all of them (they keep their values).
    allow_dropped: the source may have added weights that this attention does not know.
    interpolate: resize the temporal embedding and the patch positions to the model's.
    own: the tensors are nobody else's and may become the model's without a copy.

    Raises ClipVipError naming the keys that are missing, left over, of another shape or not finite.
    """
    state, report = tidy(state, source)
    wanted = model.state_dict()
    for name in [n for n in state if n not in wanted and allow_dropped and is_added(n)]:
        report.dropped[name] = f"attention {model.config.attention!r} has no such weight"
        del state[name]
    if interpolate:
        _interpolate(state, wanted, report)
    # All or none: a source that has some of them is a CLIP-ViP that lost the others.
    plain = allow_added and not any(is_added(n) for n in state if n in wanted)
    missing = [n for n in wanted if n not in state and not (plain and is_added(n))]
    _refuse_unequal(source, state, wanted, missing)
    for name, value in state.items():
        if value.dtype != wanted[name].dtype:
            report.changed[name] = f"{value.dtype} to {wanted[name].dtype}".replace("torch.", "")
            state[name] = value.to(wanted[name].dtype)
    report.added = {n: _how_added(n) for n in wanted if n not in state}
    report.loaded = sorted(state)
    model.load_state_dict(state, strict=False, assign=own)
    _start_frame_transformer(model, report)
    return report


def tidy(state: State, source: str) -> tuple[dict[str, Tensor], LoadReport]:
    """Names as in the model: without the authors' prefix and old transformers' ``position_ids``.

    Raises ClipVipError for the names of other models, saying which model it looks like.
    """
    report = LoadReport(source)
    looks_like = {
        "module.": "saved from inside DistributedDataParallel; save model.module.state_dict(), or strip "
        "the prefix",
        "clip.": "a CLIP4Clip checkpoint, another model; start from the CLIP that it was made from",
        "visual.": "an open_clip or OpenAI state dict; give the open_clip name as source and the file as "
        "pretrained_tag",
    }
    for prefix, what in looks_like.items():
        if any(name.startswith(prefix) for name in state):
            raise ClipVipError(
                f"{source} expected Hugging Face's CLIP names, got names that start with {prefix!r}: {what}"
            )
    tidied = {}
    for name, value in state.items():
        name = name.removeprefix("clipmodel.")
        if name.endswith("embeddings.position_ids"):
            report.dropped[name] = "a constant 0, 1, 2, .. that old versions of transformers stored"
        else:
            tidied[name] = value
    return tidied, report


def infer_config(state: State, source: str) -> ClipViPConfig:
    """The configuration of a bare state dict with Hugging Face's CLIP names, read off its shapes.

    Heads are 64 wide and the activation is QuickGELU, as in all of OpenAI's CLIPs and the authors'
    checkpoints. Raises ClipVipError if a weight that tells a size is missing.
    """
    text_tokens, text_positions = (
        f"text_model.embeddings.{n}_embedding.weight" for n in ("token", "position")
    )
    telling = (PATCHES, POSITIONS, text_tokens, text_positions, "visual_projection.weight")
    missing = [name for name in telling if name not in state]
    if missing:
        raise ClipVipError(
            f"{source} expected the weights of a CLIP-ViP, {', '.join(missing)} is missing among its "
            f"{len(state)} names ({', '.join(list(state)[:3])}, ..); give a CLIP-ViP or CLIP checkpoint"
        )
    width, _, patch, _ = state[PATCHES].shape
    side = round((len(state[POSITIONS]) - 1) ** 0.5)
    vocab_size, text_width = state[text_tokens].shape

    def tower(prefix: str, width: int) -> dict[str, int]:
        numbers = [name.split(".")[3] for name in state if name.startswith(f"{prefix}.encoder.layers.")]
        hidden = state.get(f"{prefix}.encoder.layers.0.mlp.fc1.bias")
        return {
            "hidden_size": width,
            "intermediate_size": 4 * width if hidden is None else len(hidden),
            "num_hidden_layers": 1 + max(map(int, numbers), default=-1),
            "num_attention_heads": max(1, width // HEAD_WIDTH),
        }

    embed_dim = len(state["visual_projection.weight"])
    ids = {"bos_token_id": vocab_size - 2, "eos_token_id": vocab_size - 1, "pad_token_id": 0}
    return ClipViPConfig(
        vision_config=tower("vision_model", width)
        | {"image_size": side * patch, "patch_size": patch, "projection_dim": embed_dim},
        text_config=tower("text_model", text_width)
        | {"vocab_size": vocab_size, "max_position_embeddings": len(state[text_positions])}
        | {"projection_dim": embed_dim, **ids},
        projection_dim=embed_dim,
        # One proxy is CLIP's class embedding alone; a plain CLIP, without a temporal embedding, gets four.
        proxies=1 + len(state[PROXIES]) if PROXIES in state else 1 if TEMPORAL in state else 4,
        temporal_size=state[TEMPORAL].shape[1] if TEMPORAL in state else 12,
    )


def _with(config: ClipViPConfig, **changes) -> ClipViPConfig:
    """A checked copy of a configuration with some fields changed."""
    fields = {k: v for k, v in config.to_dict().items() if k not in ("model_type", "architectures")}
    return ClipViPConfig(**(fields | changes))


def _interpolate(state: dict[str, Tensor], wanted: State, report: LoadReport) -> None:
    """Resize the temporal embedding (linear) and the patch positions (bicubic, square to square) in place."""
    old, new = state.get(TEMPORAL), wanted.get(TEMPORAL)
    if old is not None and new is not None and old.shape[1] != new.shape[1]:
        resized = F.interpolate(old.float().transpose(1, 2), size=new.shape[1], mode="linear").transpose(1, 2)
        state[TEMPORAL] = resized.to(old.dtype)
        report.changed[TEMPORAL] = f"interpolated from {old.shape[1]} to {new.shape[1]} frames"
    old, new = state.get(POSITIONS), wanted[POSITIONS]
    if old is not None and len(old) != len(new):
        sides = [round((len(table) - 1) ** 0.5) for table in (old, new)]
        if any(side**2 + 1 != len(table) for side, table in zip(sides, (old, new), strict=True)):
            return
        grid = old[1:].float().T.unflatten(1, (sides[0], sides[0]))[None]
        resized = F.interpolate(grid, size=(sides[1], sides[1]), mode="bicubic")[0].flatten(1).T
        state[POSITIONS] = torch.cat([old[:1], resized.to(old.dtype)])
        report.changed[POSITIONS] = (
            f"interpolated from {sides[0]} x {sides[0]} to {sides[1]} x {sides[1]} patches"
        )


def _refuse_unequal(source: str, state: State, wanted: State, missing: list[str]) -> None:
    """Raise one sentence if names, shapes or values are not as they must be."""
    extra = [name for name in state if name not in wanted]
    shapes = [
        f"{name} {list(state[name].shape)} instead of {list(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    if missing or extra or shapes:
        near = [
            f"{n} (nearest: {c[0]})" if (c := difflib.get_close_matches(n, missing, 1)) else n for n in extra
        ]
        faults = [
            f"{len(found)} {what}: {', '.join(found[:3])}{', ..' if len(found) > 3 else ''}"
            for what, found in (("missing", missing), ("left over", near), ("of another shape", shapes))
            if found
        ]
        raise ClipVipError(
            f"{source} does not fit the model ({'; '.join(faults)}), nothing was loaded; choose the "
            "configuration "
            "that the weights were made with, or interpolate=True where only frames or image size differ"
        )
    bad = [name for name, value in state.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise ClipVipError(
            f"{source} holds values that are not finite in {len(bad)} weights ({', '.join(bad[:3])}), "
            "nothing was "
            "loaded; take an earlier checkpoint"
        )


def _how_added(name: str) -> str:
    if name == TEMPORAL:
        return "zero, so that it starts as CLIP"
    return "standard normal" if name == PROXIES else "as CLIP's layers are initialised"


@torch.no_grad()
def _start_frame_transformer(model: ClipViP, report: LoadReport) -> None:
    """CLIP4Clip's start of "sequential": the text tower's layers and positions, where the shapes agree."""
    weights = model.state_dict()
    for name in report.added:
        if name == "frame_transformer.positions":
            start = weights["text_model.embeddings.position_embedding.weight"][: len(weights[name])]
        elif name.startswith("frame_transformer."):
            start = weights.get(name.replace("frame_transformer.", "text_model."))
        else:
            continue
        if start is not None and start.shape == weights[name].shape:
            weights[name].copy_(start)
            report.added[name] = "copied from the text tower, as in CLIP4Clip"


def _folder(path: Path) -> tuple[ClipViPConfig, State]:
    """Configuration and weights of a folder written by save_pretrained, ours or Hugging Face's CLIP."""
    fields, state = read_folder(path)
    kind = fields.pop("model_type", None)
    if kind not in ("clip", "clip_vip"):
        raise ClipVipError(f"{path} expected a model of type clip or clip_vip, its config.json says {kind!r}")
    fields.pop("architectures", None)
    return ClipViPConfig(**fields), state


def _read_open_clip(name: str, tag: str | Path | None) -> tuple[ClipViPConfig, State]:
    import open_clip  # here and not above: it costs seconds, and few need it

    if name not in open_clip.list_models():
        near = difflib.get_close_matches(name, open_clip.list_models(), 1)
        raise ClipVipError(
            f"no folder, file or open_clip model {name!r}: expected one of these"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )
    if tag is None:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none, give a file"
        raise ClipVipError(f"open_clip model {name} expected pretrained_tag, its weights; tags: {tags}")
    if Path(tag).is_file():
        # Read here: open_clip would resize the positions of another image size without a word.
        state, model = read_weights(tag), open_clip.create_model(name, load_weights=False)
        try:
            model.load_state_dict({k.removeprefix("module."): v for k, v in state.items()}, strict=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ClipVipError(
                f"{tag} does not fit open_clip model {name} ({reason:.300}); give the name it has"
            ) from error
        return from_open_clip(model)
    try:
        model = open_clip.create_model(name, pretrained=str(tag), precision="fp32", weights_only=True)
    except (OSError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise ClipVipError(
            f"open_clip could not make {name} with the weights {tag!s}: {str(error).splitlines()[0]:.200}; "
            "give one "
            "of its tags or a file of that model"
        ) from error
    return from_open_clip(model)
