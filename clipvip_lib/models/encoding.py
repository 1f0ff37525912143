"""Files and strings to features: what ``ClipViP.encode_videos`` and ``encode_texts`` do.

Frames go to the model as bytes: they are resized in the authors' way and rounded to 8 bits, so a quarter of what
floats would take moves from the decoding threads to the device. Post-pretraining and fine-tuning see the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from clipvip_lib.ahead import ahead
from clipvip_lib.data.clips import Clip, Decoded, decode_ahead
from clipvip_lib.data.windows import Windows
from clipvip_lib.errors import ClipVipError
from clipvip_lib.models.clip_tokenizer import CLIP_VOCAB, ClipTokenizer
from clipvip_lib.models.hub import TOKENIZER, local
from clipvip_lib.models.int8 import of_videos
from clipvip_lib.precision import autocast, beside_int8

TEXT_BATCH = 256


def encode_videos(
    model,
    paths: Sequence[str | Path],
    *,
    frames: int | None = None,
    antialias: bool | None = None,
    precision: str = "float32",
    batch: int | None = None,
    workers: int | None = None,
    damaged: str = "refuse",
) -> np.ndarray:
    """Videos to features, float32 [n, E], L2-normalised, in the order of ``paths``; repeats are allowed.

    Args:
        model: a ClipViP, on any device.
        paths: video files or folders of numbered pictures.
        frames: uniform frames of each video; by default as many as the model has temporal embeddings.
        antialias: resize with Pillow, as CLIP does (True), or in the authors' way; by default as ``resize_rule`` says.
        precision: float32, bfloat16 (autocast), "auto", the faster one on the model's device, or "int8" (int8.py).
        batch: videos that are encoded together; by default 2 on a CPU (a larger one falls out of its caches), else 32.
        workers: threads that decode; by default one per core.
        damaged: "refuse", or "accept" what a decoder makes up for damaged pictures.

    Raises VideoError naming a video that cannot be read; ClipVipError for no path, numbers below 1, or as ``in_int8``.
    """
    if isinstance(paths, str | Path) or not len(paths):
        raise ClipVipError(f"encode_videos expected a list of one or more paths, got {paths!r:.80}")
    clips = [Clip(str(path), str(path)) for path in paths]
    model, precision = of_videos(model, precision)
    options = {"precision": precision, "batch": batch, "workers": workers, "damaged": damaged}
    rows = []
    with contextlib.closing(
        encode_clips(model, clips, frames=frames, antialias=antialias, **options)
    ) as found:
        for clip, feature in found:
            if clip.error is not None:
                raise clip.error
            rows.append(feature)
    return np.stack(rows)


def batch_of(model, frames: int, batch: int | None) -> int:
    """How many clips are encoded at a time, by default as many as suit the device.

    Raises ClipVipError if nothing can be encoded with these numbers.
    """
    batch = (2 if model.device.type == "cpu" else 32) if batch is None else batch
    if frames < 1 or batch < 1:
        raise ClipVipError(f"expected frames and batch of at least 1, got {frames} and {batch}; raise them")
    return batch


def encode_clips(
    model,
    clips: Sequence[Clip],
    *,
    frames: int | None = None,
    antialias: bool | None = None,
    precision: str = "float32",
    batch: int | None = None,
    workers: int | None = None,
    damaged: str = "refuse",
    windows: Windows | None = None,
    wanted: Callable[[Clip, int], bool] = lambda clip, number: True,
) -> Iterator[tuple[Decoded, np.ndarray | None]]:
    """(clip without its frames, feature float32 [E]) of each clip, in order; None where the clip has an error.

    Decoding and copying to the device run beside the model, in threads of their own, two batches ahead of it at most.
    The model runs in the caller's thread. Close it if you leave it early.

    windows, wanted: of each window in its place, as ``clips.decode_ahead``.
    """
    frames = model.config.temporal_size if frames is None else frames
    batch = batch_of(model, frames, batch)
    size, antialias = image_size(model), resize_rule(model, antialias)
    decoded = decode_ahead(clips, frames, size, antialias, workers, 2 * batch, damaged, windows, wanted)
    with ahead(_batches(decoded, batch, model.device), 1, threading.Event()) as batches:
        for shown, pixels in batches:
            rows = iter(() if pixels is None else _encode(model, pixels, precision))
            for clip in shown:
                yield clip, None if clip.error is not None else next(rows)


def _batches(
    decoded: Iterator[Decoded], batch: int, device: torch.device
) -> Iterator[tuple[list[Decoded], torch.Tensor | None]]:
    """Clips without their frames, and the frames of those that have some on the device: uint8 [B, N, size, size, 3]."""
    cuda = device.type == "cuda"
    stream = torch.cuda.Stream(device) if cuda else None
    with contextlib.closing(decoded):
        while some := list(islice(decoded, batch)):
            pixels, frames = None, [clip.frames for clip in some if clip.error is None]
            some = [replace(clip, frames=None) for clip in some]
            if frames:
                pixels = torch.empty((len(frames), *frames[0].shape), dtype=torch.uint8, pin_memory=cuda)
                np.stack(frames, out=pixels.numpy())
            if frames and cuda:  # beside what the model computes
                with torch.cuda.stream(stream):
                    pixels = pixels.to(device, non_blocking=True)
                stream.synchronize()
            yield some, pixels


def _encode(model, pixels: torch.Tensor, precision: str) -> np.ndarray:
    """uint8 [B, N, size, size, 3], on the model's device -> float32 [B, E]."""
    if pixels.is_cuda:  # not to be overwritten by the next copy while the model reads it
        pixels.record_stream(torch.cuda.current_stream(pixels.device))
    with torch.inference_mode(), autocast(precision, model.device):
        return model.encode_video(pixels).float().cpu().numpy()


def encode_texts(
    model,
    texts: Sequence[str],
    *,
    tokenizer: ClipTokenizer | None = None,
    precision: str = "float32",
    batch: int = TEXT_BATCH,
) -> np.ndarray:
    """Texts to features, float32 [n, E], L2-normalised. Longer texts than the model's context are cut.

    tokenizer: by default ``tokenizer_of(model)``. Raises ClipVipError as that does, for no text, or a text that is not
    a string.
    """
    precision = beside_int8(precision)
    tokenizer = tokenizer_of(model) if tokenizer is None else tokenizer
    tokenizer(texts if isinstance(texts, str) else texts[:1])  # refuses all but a list of strings
    rows = []
    for start in range(0, len(texts), batch):
        ids, mask = tokenizer(texts[start : start + batch])
        with torch.inference_mode(), autocast(precision, model.device):
            features = model.encode_text(ids.to(model.device), mask.to(model.device))
        rows.append(features.float().cpu().numpy())
    return np.concatenate(rows)


def image_size(model) -> int:
    """The side of the square frames that a model takes. Raises ClipVipError if they are not square."""
    size = model.config.vision_config.image_size
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ClipVipError(
            f"the model takes frames of {size} pixels: expected square ones; call encode_video with resized frames"
        )
    return sides.pop()


def resize_rule(model, antialias: bool | None = None) -> bool:
    """Whether frames are resized with antialiasing: as asked, else as in the model's training (its configuration says
    so), else in the authors' way, without."""
    given = model.config.antialias if antialias is None else antialias
    return bool(given)


# ---------------------------------------------------------------------------------------------------- tokenizer


def tokenizer_of(model, beside: str | Path | None = None) -> ClipTokenizer:
    """The tokenizer that was saved beside a model's weights (clip_tokenizer.json), else CLIP's own.

    beside: the folder or file of the weights, or their name on the Hub; by default where ``from_pretrained`` found
    them, a folder or a repository of the Hub. Raises ClipVipError if the tokenizer has another vocabulary than the
    model.
    """
    text = model.config.text_config
    found = _saved_tokenizer(model, beside)
    if found is not None:
        tokenizer, where = ClipTokenizer.load(found), str(found)
    elif text.vocab_size == CLIP_VOCAB:
        return ClipTokenizer(text.max_position_embeddings)
    else:
        raise ClipVipError(
            f"the model knows {text.vocab_size} tokens, CLIP's tokenizer {CLIP_VOCAB}: expected {TOKENIZER} beside the "
            "weights; copy it there, or pass tokenizer="
        )
    if tokenizer.vocab_size != text.vocab_size or tokenizer.context_length > text.max_position_embeddings:
        raise ClipVipError(
            f"{where} has {tokenizer.vocab_size} tokens and texts of {tokenizer.context_length}, the model "
            f"{text.vocab_size} and {text.max_position_embeddings}: expected the one of its training; copy it there"
        )
    return tokenizer


def _saved_tokenizer(model, beside: str | Path | None) -> Path | None:
    name = str(beside or model.name_or_path or "")
    if not name:
        return None
    path = Path(name) if beside is None else local(name)
    folder = path if path.is_dir() else path.parent if path.is_file() else None
    if folder is not None:
        return folder / TOKENIZER if (folder / TOKENIZER).is_file() else None
    if beside is not None:  # an open_clip name: CLIP's own
        return None
    from transformers.utils import cached_file

    # If anything keeps it from being found (no network, a folder that is gone by now), CLIP's own is checked instead.
    quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
    try:
        found = cached_file(name, TOKENIZER, revision=getattr(model.config, "_commit_hash", None), **quiet)
    except (OSError, ValueError):
        return None
    return None if found is None else Path(found)


# -------------------------------------------------------------------------------------------------- fingerprint


def fingerprint(model, tokenizer: ClipTokenizer | None) -> str:
    """SHA-256 of all that decides a feature: weights, configuration and vocabulary; wherever the file lies."""
    config = model.config
    towers = [
        {name: getattr(tower, name, None) for name in TELLING}
        for tower in (config.vision_config, config.text_config)
    ]
    about = [config.attention, config.proxies, config.temporal_size, config.sequence_layers, towers]
    words = None if tokenizer is None else [tokenizer.context_length, tokenizer.vocabulary]
    digest = hashlib.sha256(json.dumps([about, words], sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


#: What a tower's weights do not tell.
TELLING = ("num_attention_heads", "hidden_act", "layer_norm_eps", "image_size", "patch_size")
