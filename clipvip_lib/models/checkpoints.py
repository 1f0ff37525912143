"""Weights into a CLIP-ViP or an OFA, whole or not at all.

One function for every source, ``load_checkpoint``; ``load_clip_vip`` and ``load_ofa`` for those who know which
model they want:

    a folder            written by save_pretrained, ours or Hugging Face's CLIP; a Hugging Face OFA
    a file              the authors' pretrain_clipvip_base_{32,16}.pt, fairseq's caption_large_best_clean.pt, or
                        .safetensors with the same names
    an open_clip name   "ViT-B-32" with a tag ("laion2b_s34b_b79k") or a weights file; names and qkv are converted
    a name of the Hub   "openai/clip-vit-base-patch32", "hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K" (hub.py)
    a model in memory   ``adapt``: an image-text trained CLIP-ViP gets another attention

Every weight of the model must come from the source or be one that CLIP-ViP adds to CLIP. Every weight of the source
must go somewhere or be dropped by name with a reason. Shapes must agree and values must be finite. If not, loading
fails with one sentence. The ``LoadReport`` says what happened. Temporal embedding and patch positions are
interpolated only when asked for.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.initialization import no_init_weights

from clipvip_lib.errors import ClipVipError, first_line, unknown
from clipvip_lib.files import read_json
from clipvip_lib.models.attentions import JOINT
from clipvip_lib.models.clip_vip import ClipViP, ClipViPConfig, is_added
from clipvip_lib.models.hub import OPEN_CLIP, OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, local
from clipvip_lib.models.load_report import LoadReport, State, fit, one_sentence, put
from clipvip_lib.models.ofa import OFA
from clipvip_lib.models.ofa_weights import SIGN_OF_OFA, config_of_folder, ofa_from_state
from clipvip_lib.models.open_clip_weights import from_open_clip
from clipvip_lib.models.weight_files import read_folder, read_weights, refuse_prefixes
from clipvip_lib.models.weight_names import CLIP_TYPES, expect_weights, not_a_clip, unknown_tag

TEMPORAL = "vision_model.embeddings.temporal_embedding"
PROXIES = "vision_model.embeddings.added_cls"
POSITIONS = "vision_model.embeddings.position_embedding.weight"
PATCHES = "vision_model.embeddings.patch_embedding.weight"
POSITION_IDS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")

#: What DistributedDataParallel and torch.compile put before names.
WRAPPED = re.compile(r"^(?:module\.|_orig_mod\.)+")
#: Numbers that a model may have beyond twice its source's: what CLIP-ViP adds, interpolated tables, small models.
ADDED_AT_MOST = 100_000_000
#: All released CLIPs have heads of this width; a bare state dict does not say.
HEAD_WIDTH = 64


#: Options of load_checkpoint: those of load_clip_vip.
OPTIONS = {"attention", "proxies", "frames", "image_size", "config", "interpolate", "seed"}


class Weights(NamedTuple):
    """Weights that were read: where from, the configuration beside them (None: a bare file), the weights, and what is
    assumed of them."""

    name: str
    config: dict | ClipViPConfig | None
    state: State
    assumed: Mapping[str, str] = MappingProxyType({})


def load_checkpoint(
    source: str | Path, *, pretrained_tag: str | Path | None = None, **options
) -> tuple[ClipViP | OFA, LoadReport]:
    """The model whose weights ``source`` holds, a ClipViP or an OFA, and the report.

    source, pretrained_tag, options: as for ``load_clip_vip``; an OFA takes ``config`` alone. The names of the weights
    tell which model it is. Raises ClipVipError as ``load_clip_vip`` and ``load_ofa``.
    """
    if others := sorted(set(options) - OPTIONS):
        raise unknown("option of load_checkpoint", others[0], OPTIONS)
    with one_sentence(source):
        found = _read(source, pretrained_tag)
        if SIGN_OF_OFA not in found.state:
            return _clip_vip(found, **options)
        if others := sorted(set(options) - {"config"}):
            raise ClipVipError(
                f"{source} holds an OFA, which takes config= alone, got {', '.join(others)}; leave it out"
            )
        config = options.get("config") or config_of_folder(found.config)
        return ofa_from_state(found.state, found.name, config)


def load_clip_vip(
    source: str | Path,
    *,
    attention: str | None = None,
    proxies: int | None = None,
    frames: int | None = None,
    image_size: int | None = None,
    pretrained_tag: str | Path | None = None,
    config: ClipViPConfig | None = None,
    interpolate: bool = False,
    seed: int = 0,
) -> tuple[ClipViP, LoadReport]:
    """A CLIP-ViP with the weights of a folder, a file, an open_clip model or a name of the Hub, and the report.

    attention, proxies, frames, image_size: of the model to build; each defaults to the source's, or to "proxy", 4
    and 12 where the source has none.
    pretrained_tag: for an open_clip name, the tag or a file. A file does not say its activation, the name does
    ("ViT-B-32-quickgelu" for OpenAI's and other QuickGELU weights).
    config: for a bare file, when its shapes do not tell all (heads of another width than 64, not QuickGELU).
    interpolate: resize the temporal embedding and the patch positions where the model has others.
    seed: of the added weights.

    Returns the model in evaluation mode, float32. Raises ClipVipError, in one sentence, for a source that is
    none of these, a file that is damaged or is something else, or weights that do not fit.
    """
    with one_sentence(source):
        return _clip_vip(
            _read(source, pretrained_tag),
            attention=attention,
            proxies=proxies,
            frames=frames,
            image_size=image_size,
            config=config,
            interpolate=interpolate,
            seed=seed,
        )


def _read(source: str | Path, pretrained_tag: str | Path | None) -> Weights:
    expect_weights(source, pretrained_tag)
    path = local(source)
    if not path.exists():
        return Weights(f"{source}, {pretrained_tag}", *_read_open_clip(str(source), pretrained_tag))
    if str(source).startswith(OPEN_CLIP) or (
        (path / OPEN_CLIP_CONFIG).is_file() and not (path / "config.json").is_file()
    ):
        return Weights(str(source), *_read_open_clip_folder(path))
    config, state = read_folder(path) if path.is_dir() else (None, read_weights(path))
    return Weights(str(source), config, state)


def _clip_vip(
    source: Weights,
    *,
    attention: str | None = None,
    proxies: int | None = None,
    frames: int | None = None,
    image_size: int | None = None,
    config: ClipViPConfig | None = None,
    interpolate: bool = False,
    seed: int = 0,
) -> tuple[ClipViP, LoadReport]:
    if config is not None and source.config is not None:
        raise ClipVipError(
            f"{source.name} brings its own configuration, leave config= out or give a file of weights"
        )
    if config is not None and not isinstance(config, ClipViPConfig):
        raise ClipVipError(f"config= expected a ClipViPConfig, got {type(config).__name__}; make one")
    assumed = dict(source.assumed)
    if isinstance(source.config, dict):
        base = _config_of_folder(source)
    elif config or source.config:
        base = copy.deepcopy(config or source.config)
    else:
        base = infer_config(tidy(source.state, source.name)[0], source.name)
        towers = (base.vision_config, base.text_config)
        assumed["heads"] = f"{HEAD_WIDTH} wide: {' and '.join(str(t.num_attention_heads) for t in towers)}"
        assumed["activation"] = "QuickGELU, as in all of OpenAI's CLIPs and the authors' checkpoints"
        assumed["proxies"] = f"{base.proxies if proxies is None else proxies}, by the weights there are"
    changes = {"attention": attention, "proxies": proxies, "temporal_size": frames}
    for name, value in changes.items():
        if value is not None:
            setattr(base, name, value)
    if image_size is not None:
        sizes = base.vision_config.image_size, base.vision_config.patch_size
        square = all(isinstance(size, int) for size in sizes)
        if not isinstance(image_size, int) or not square or image_size < base.vision_config.patch_size:
            raise ClipVipError(
                f"image_size= expected the side of a square image of at least one patch, for a model of square images "
                f"({sizes[0]}, patches of {sizes[1]}), got {image_size!r}; give config= for others"
            )
        base.vision_config.image_size = image_size
    held = sum(value.numel() for value in source.state.values())
    if base.weights > 2 * held + ADDED_AT_MOST:
        raise ClipVipError(
            f"{source.name} holds {held:,} numbers, and a model of its configuration and these options would hold "
            "about "
            f"{base.weights:,}: expected about as many; correct config.json, or ask for fewer frames and proxies"
        )
    model = build(base, seed)
    report = load_weights(
        model,
        source.state,
        source=source.name,
        allow_added=True,
        allow_dropped=True,
        interpolate=interpolate,
        own=True,
    )
    report.assumed = assumed
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
    unknown = [n for n in state if n not in wanted and allow_dropped and is_added(n)]
    if model.config.attention in JOINT:  # having fewer proxies is not a reason to drop trained ones
        unknown = [n for n in unknown if n.startswith("frame_transformer.")]
    for name in unknown:
        report.dropped[name] = f"attention {model.config.attention!r} has no such weight"
        del state[name]
    if interpolate:
        _interpolate(state, wanted, report)
    # All or none: a source that has some of them is a CLIP-ViP that lost the others.
    plain = allow_added and not any(is_added(n) for n in state if n in wanted)
    missing = [n for n in wanted if n not in state and not (plain and is_added(n))]
    advice = (
        "choose the configuration that the weights were made with, or interpolate=True where only frames or "
        "image size differ"
    )
    fit(source, state, wanted, missing, advice, report)
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
    refuse_prefixes(state, source)
    looks_like = {
        "clip.": "a CLIP4Clip checkpoint, another model; start from the CLIP that it was made from",
        "encoder.": "an OFA checkpoint; load it with load_ofa",
        "visual.": "an open_clip or OpenAI state dict; give the open_clip name as source and the file as "
        "pretrained_tag",
    }
    for prefix, what in looks_like.items():
        if any(name.startswith(prefix) for name in state):
            raise ClipVipError(
                f"{source} expected Hugging Face's CLIP names, got names that start with {prefix!r}: {what}"
            )
    tidied: dict[str, Tensor] = {}
    for name, value in state.items():
        name = name.removeprefix("clipmodel.")
        if name in POSITION_IDS and _counts(value):
            report.dropped[name] = "a constant 0, 1, 2, .. that old versions of transformers stored"
        elif name == PROXIES and value.numel() == 0:
            report.dropped[name] = "empty, as the added proxies are where there is one"
        else:
            put(tidied, name, value, source)
    return tidied, report


def _counts(value: Tensor) -> bool:
    """Whether a tensor holds 0, 1, 2, .. and nothing else."""
    return torch.equal(value.flatten().double(), torch.arange(value.numel(), dtype=torch.float64))


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
    if width % HEAD_WIDTH or text_width % HEAD_WIDTH or side**2 + 1 != len(state[POSITIONS]):
        raise ClipVipError(
            f"{source} has towers {width} and {text_width} wide and {len(state[POSITIONS])} positions: a bare file "
            f"tells its sizes only where heads are {HEAD_WIDTH} wide and images square; give config="
        )

    def tower(prefix: str, width: int) -> dict[str, int]:
        numbers = [name.split(".")[3] for name in state if name.startswith(f"{prefix}.encoder.layers.")]
        hidden = state.get(f"{prefix}.encoder.layers.0.mlp.fc1.bias")
        return {
            "hidden_size": width,
            "intermediate_size": 4 * width if hidden is None else len(hidden),
            "num_hidden_layers": 1 + max(map(int, numbers), default=-1),
            "num_attention_heads": width // HEAD_WIDTH,
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


def _config_of_folder(source: Weights) -> ClipViPConfig:
    """The configuration of a folder written by save_pretrained, ours or Hugging Face's CLIP."""
    fields = dict(source.config)
    kind = fields.pop("model_type", None)
    if kind not in CLIP_TYPES:
        raise not_a_clip(source.name, kind)
    fields.pop("architectures", None)
    config = ClipViPConfig(**fields)
    text = config.text_config
    if text.eos_token_id not in (2, text.vocab_size - 1):
        raise ClipVipError(
            f"{source.name} ends its texts with token {text.eos_token_id}: expected CLIP's rule, the largest id of a "
            f"text (eos_token_id 2 or {text.vocab_size - 1}), the only one written here; take another CLIP"
        )
    return config


def _read_open_clip(name: str, tag: str | Path | None) -> tuple[ClipViPConfig, State, dict[str, str]]:
    """An open_clip model by name, with the weights of one of its tags (downloaded once by open_clip) or of a file.

    The file is read and loaded here: open_clip's own loader resizes positions and takes the other GELU with no
    more than a warning.
    """
    import open_clip  # here and not above: it costs seconds, and few need it

    _refuse_other_text_tower(name, open_clip.get_model_config(name))
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag is None:
        raise unknown_tag(name, tag, tags)
    file, options = Path(tag), {}
    if not file.is_file():
        about = open_clip.get_pretrained_cfg(name, str(tag))
        if not about:
            raise unknown_tag(name, tag, tags)
        options["force_quick_gelu"] = bool(about.get("quick_gelu"))
        file = _download(open_clip, about, name, str(tag))
    config, weights = _open_clip_model(open_clip, name, file, **options)
    if options:  # a tag's activation is known
        return config, weights, {}
    act = "QuickGELU" if config.vision_config.hidden_act == "quick_gelu" else "GELU"
    other = name.removesuffix("-quickgelu") if act == "QuickGELU" else f"{name}-quickgelu"
    return (
        config,
        weights,
        {"activation": f"{act}, by the name {name}; a file does not tell, {other} has the other one"},
    )


def _read_open_clip_folder(folder: Path) -> tuple[ClipViPConfig, State]:
    """An open_clip model whose configuration lies beside its weights, as on the Hub."""
    import open_clip

    about = read_json(folder / OPEN_CLIP_CONFIG)
    config = about.get("model_cfg") if isinstance(about, dict) else None
    if not isinstance(config, dict):
        raise ClipVipError(
            f"{folder / OPEN_CLIP_CONFIG} expected a model_cfg, got none; fetch the folder again"
        )
    _refuse_other_text_tower(str(folder), config)
    for name in OPEN_CLIP_WEIGHTS:
        if (folder / name).is_file():
            return _open_clip_model(open_clip, f"local-dir:{folder}", folder / name)
    raise ClipVipError(f"{folder} expected {OPEN_CLIP_WEIGHTS[0]} beside {OPEN_CLIP_CONFIG}; fetch it again")


def _refuse_other_text_tower(name: str, config: dict) -> None:
    if "hf_model_name" in config.get("text_cfg", {}):
        raise ClipVipError(
            f"open_clip model {name} has another text tower than CLIP's; take a plain ViT (ViT-B-32, ..)"
        )


def _open_clip_model(open_clip, name: str, file: Path, **options) -> tuple[ClipViPConfig, State]:
    with torch.device("meta"), _without_alarm():
        model = open_clip.create_model(name, load_weights=False, device="meta", **options)
    state: dict[str, Tensor] = {}
    for key, value in read_weights(file).items():
        put(state, WRAPPED.sub("", key), value, str(file))
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ClipVipError(
            f"{file} does not fit open_clip model {name} ({reason:.300}); give the name it has"
        ) from error
    return from_open_clip(model)


@contextlib.contextmanager
def _without_alarm() -> Iterator[None]:
    """open_clip warns of a model without weights; they are loaded next."""
    root = logging.getLogger()
    root.addFilter(_is_no_alarm)
    try:
        yield
    finally:
        root.removeFilter(_is_no_alarm)


def _is_no_alarm(record: logging.LogRecord) -> bool:
    return "No pretrained weights loaded" not in record.getMessage()


def _download(open_clip, about: dict, name: str, tag: str) -> Path:
    quick = name if name.endswith("-quickgelu") else f"{name}-quickgelu"
    try:
        return Path(open_clip.pretrained.download_pretrained(about))
    except (OSError, RuntimeError, ValueError) as error:
        raise ClipVipError(
            f"the weights {tag} of open_clip model {name} could not be downloaded ({first_line(error)}); give "
            "their file, with --tag (in Python pretrained_tag=)"
            + (
                f", with the name {quick!r}: they were trained with QuickGELU"
                if about.get("quick_gelu")
                else ""
            )
        ) from error
