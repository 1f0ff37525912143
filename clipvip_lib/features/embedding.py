"""Videos and texts to folders of features (`clipvip embed`): any weights, any number of files, resumed after a kill.

A folder of features knows the weights that made it by a checksum over the model itself (weights, configuration,
vocabulary). So rows of two models never stand in one folder, and a query is encoded by the same model or not at all.
A plain CLIP has no trained proxies: unless told otherwise it is taken as "mean_pool", its frames seen apart, because
proxies drawn at random would only blur it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from clipvip_lib import __version__
from clipvip_lib.data.clips import Clip, workers_of
from clipvip_lib.data.video import VideoError
from clipvip_lib.data.windows import Windows, expect_ids
from clipvip_lib.errors import ClipVipError, first_line
from clipvip_lib.features.query_settings import weights_of
from clipvip_lib.features.writer import PART, FeatureWriter
from clipvip_lib.files import kind_of
from clipvip_lib.models.checkpoints import load_clip_vip
from clipvip_lib.models.clip_tokenizer import ClipTokenizer
from clipvip_lib.models.clip_vip import ClipViP
from clipvip_lib.models.encoding import (
    TEXT_BATCH,
    batch_of,
    encode_clips,
    encode_texts,
    fingerprint,
    image_size,
    resize_rule,
    tokenizer_of,
)
from clipvip_lib.models.int8 import of_videos
from clipvip_lib.models.load_report import LoadReport
from clipvip_lib.precision import INT8, beside_int8, choose
from clipvip_lib.progress import ProgressCallback
from clipvip_lib.say import counted, is_unicode

MOST_FRAMES = 4096  # of a video: more would only fill the memory
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Embedder:
    """A model with its tokenizer (None: none fits, and texts are refused), its checksum, and where it came from."""

    model: ClipViP
    tokenizer: ClipTokenizer | None
    checksum: str
    weights: str
    pretrained_tag: str | None
    report: LoadReport

    @property
    def untrained(self) -> list[str]:
        """Names of weights that the source did not have."""
        return sorted(self.report.added)

    def texts(self, texts: Sequence[str], **options):
        """Features of texts, as ``encoding.encode_texts``. Raises ClipVipError if there is no tokenizer."""
        if self.tokenizer is None:
            tokenizer_of(self.model, self.weights)  # says what is missing
        return encode_texts(self.model, texts, tokenizer=self.tokenizer, **options)


def load_encoder(
    weights: str | Path,
    pretrained_tag: str | None = None,
    attention: str | None = None,
    device: str | torch.device = "auto",
) -> Embedder:
    """Weights of any kind that ``checkpoints.load_clip_vip`` takes, ready to encode.

    attention: by default the checkpoint's, and "mean_pool" for a CLIP without trained proxies.
    device: "auto" is a GPU if there is one, else the CPU.

    Raises ClipVipError as ``load_clip_vip`` does, or for a device that is not there.
    """
    place = device_of(device)
    model, report = load_clip_vip(weights, attention=attention, pretrained_tag=pretrained_tag)
    if attention is None and report.added:
        model, report = load_clip_vip(weights, attention="mean_pool", pretrained_tag=pretrained_tag)
    try:
        tokenizer = tokenizer_of(model, weights)
    except ClipVipError:
        tokenizer = None
    checksum = fingerprint(model, tokenizer)
    named = Path(weights).absolute() if kind_of(weights) else weights
    return Embedder(model.to(place).eval(), tokenizer, checksum, str(named), pretrained_tag, report)


def device_of(name: str | torch.device) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in DEVICES:  # "meta" computes nothing, and says so only later
            raise RuntimeError(f"it is not {' or '.join(DEVICES)}")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch's word for a torch without CUDA is an assertion
        raise ClipVipError(
            f"device {name!r} cannot be used ({first_line(error):.120}); expected cpu, cuda or cuda:1"
        ) from error
    return device


# -------------------------------------------------------------------------------------------------------- videos


def embed_videos(
    encoder: Embedder,
    clips: Sequence[Clip],
    out: str | Path,
    *,
    frames: int | None = None,
    antialias: bool | None = None,
    precision: str = "float32",
    stored: str = "float32",
    batch: int | None = None,
    workers: int | None = None,
    part: int = PART,
    skip_bad: int = 0,
    damaged: str = "refuse",
    windows: Windows | None = None,
    progress: ProgressCallback = lambda done, total, note: None,
) -> dict:
    """Write the features of clips (data/clips.py) to the folder ``out`` (features/folder.py); returns its meta.json.

    What is done is skipped: a clip is done again only if its file changed. A row is {"id", "path", "frames"}, "key" in
    a shard, "real" where links lead to another path; frames: how many the video shows; "damage" where a damaged video
    was accepted. With windows there is a row for each window of a clip, with "start" and "end" in seconds, and "last"
    at a video's last one.

    Args:
        frames: uniform frames of each video; by default as many as the model has temporal embeddings.
        antialias: how frames are resized; by default as ``encoding.resize_rule`` says.
        precision: of the model, float32, bfloat16, "auto", the faster one on its device, or "int8" (models/int8.py).
        stored: type of the features on disk, "float32" or "float16".
        part: videos in a part, the most that a kill can cost.
        skip_bad: how many videos may be unreadable; they are listed in skipped.jsonl and have no row.
        damaged: "refuse" (then such a video is unreadable), or "accept" what a decoder makes up for damaged pictures;
            what was left out before is then tried again.
        windows: long videos are cut into these (data/windows.py); each finished one is kept.

    Raises VideoError naming the first unreadable video too many; ClipVipError if ``out`` was made with other weights or
    settings, or nothing is left to write.
    """
    if skip_bad < 0:
        raise ClipVipError(f"expected skip_bad of 0 or more, got {skip_bad}; 0 stops at the first bad video")
    frames = encoder.model.config.temporal_size if frames is None else frames
    if frames > MOST_FRAMES:
        raise ClipVipError(
            f"expected at most {MOST_FRAMES} frames of each video, got {frames}; choose another number"
        )
    # Before the folder is begun, which would hold every later start to a number that nothing can be made with.
    model, around = of_videos(encoder.model, precision)
    around = choose(around, model.device)
    precision = INT8 if precision == INT8 else around
    batch, workers = batch_of(encoder.model, frames, batch), workers_of(workers)
    antialias = resize_rule(encoder.model, antialias)
    settings = _settings(encoder, "videos", precision, stored) | {
        "frames": frames,
        "size": image_size(encoder.model),
        "antialias": antialias,
    }
    if windows is not None:
        settings |= {"window": float(windows.length), "stride": float(windows.stride)}
        expect_ids(clip.id for clip in clips)
    with FeatureWriter(out, settings, part) as writer, contextlib.ExitStack() as stack:
        before = {clip.id: _ids_before(writer, clip, windows) for clip in clips}
        bad = [clip.id for clip in clips if before[clip.id] == [clip.id] and writer.skipped([clip.id])]
        if damaged == "accept":  # what was refused before may be what is accepted now
            before |= dict.fromkeys(bad)
            bad = []
        todo = [clip for clip in clips if before[clip.id] is None]
        done, skipped = len(clips) - len(todo), len(bad)
        if skipped > skip_bad:
            raise ClipVipError(
                f"{counted(skipped, 'video')} could not be read before (see {Path(out) / 'skipped.jsonl'}): expected "
                f"at most {skip_bad}; fix them, or allow them with --skip-bad {skipped}"
            )

        def wanted(clip: Clip, number: int) -> bool:
            return not writer.has(windows.id(clip.id, number), clip.stamp)

        progress(done, len(clips), "embedded before" if not todo else "")
        options = {"precision": around, "batch": batch, "workers": workers, "damaged": damaged}
        options |= {"frames": frames, "antialias": antialias, "windows": windows, "wanted": wanted}
        seconds = ""
        found = stack.enter_context(contextlib.closing(encode_clips(model, todo, **options)))
        for clip, feature in found:
            ended = True
            if clip.error is None:
                row = _row(clip.clip) | {"frames": clip.total}
                if (window := clip.window) is not None:
                    row["id"] = windows.id(clip.clip.id, window.number)
                    row |= {"start": window.start, "end": window.end}
                    row |= {"last": True} if window.last else {}
                    ended, seconds = (
                        window.last,
                        "" if window.last else f"{clip.clip.id} at {window.end:.0f} s",
                    )
                writer.add(row | ({"damage": clip.damage} if clip.damage else {}), clip.clip.stamp, feature)
            else:
                skipped += 1
                if skipped > skip_bad:
                    raise VideoError(
                        f"{clip.error} (--skip-bad {skipped} would leave it out)"
                    ) from clip.error
                writer.skip(_row(clip.clip), clip.clip.stamp, str(clip.error))
            done += ended
            progress(
                done,
                len(clips),
                ", ".join([f"{skipped} skipped"] * bool(skipped) + [seconds] * bool(seconds)),
            )
        writer.flush()
        ids = [id for clip in clips for id in before[clip.id] or _ids_before(writer, clip, windows) or ()]
        return writer.join(ids, _versions())


def _row(clip: Clip) -> dict:
    real = os.path.realpath(clip.path)
    row = {"id": clip.id, "path": clip.path} | ({"key": clip.key} if clip.key else {})
    # Where links lead: who shows the video later shows that file or none.
    return row | ({"real": real} if real != os.path.abspath(clip.path) else {})  # noqa: PTH100


def _ids_before(writer: FeatureWriter, clip: Clip, windows: Windows | None) -> list[str] | None:
    """The ids of a clip's rows, if all are there (or it was skipped); else None."""
    ids: list[str] = []
    while windows is not None and writer.has(id := windows.id(clip.id, len(ids)), clip.stamp):
        ids.append(id)
        if writer.is_last(id):
            return ids
    return [clip.id] if writer.has(clip.id, clip.stamp) else None


# --------------------------------------------------------------------------------------------------------- texts


def embed_texts(
    encoder: Embedder,
    texts: Sequence[tuple[str, str]],
    out: str | Path,
    *,
    precision: str = "float32",
    stored: str = "float32",
    part: int = 16 * TEXT_BATCH,
    progress: ProgressCallback = lambda done, total, note: None,
) -> dict:
    """Write the features of (id, text) pairs to the folder ``out``, as ``embed_videos``; a row is {"id", "text"}.
    meta.json tells how many texts were longer than the model's context, and so were "cut", and how many have words
    that are "unknown" to its vocabulary.

    Raises ClipVipError if an id stands twice, the weights have no tokenizer, or ``out`` was made otherwise.
    """
    precision = choose(beside_int8(precision), encoder.model.device)
    seen: set[str] = set()
    for id, text in texts:
        if not is_unicode(id) or not is_unicode(text):
            raise ClipVipError(
                f"the text {id!a} expected Unicode, got half a character ({text[:60]!a}); fix it"
            )
        if id in seen:
            raise ClipVipError(
                f"two texts have the id {id!r}: expected one each; number them, or leave ids out"
            )
        seen.add(id)
    with FeatureWriter(out, _settings(encoder, "texts", precision, stored), part) as writer:
        stamps = {id: hashlib.sha256(text.encode()).hexdigest()[:16] for id, text in texts}
        todo = [(id, text) for id, text in texts if not writer.has(id, stamps[id])]
        done = len(texts) - len(todo)
        progress(done, len(texts), "embedded before" if not todo else "")
        for start in range(0, len(todo), TEXT_BATCH):
            group = todo[start : start + TEXT_BATCH]
            features = encoder.texts([text for _, text in group], precision=precision)
            for (id, text), feature in zip(group, features, strict=True):
                writer.add({"id": id, "text": text}, stamps[id], feature)
            done += len(group)
            progress(done, len(texts), "")
        count = {"cut": 0, "unknown": 0}
        if encoder.tokenizer is not None:
            count["cut"] = sum(encoder.tokenizer.is_cut(text) for _, text in texts)
            count["unknown"] = sum(bool(encoder.tokenizer.unknown(text)) for _, text in texts)
        about = count | {"context_length": encoder.model.config.text_config.max_position_embeddings}
        return writer.join([id for id, _ in texts], _versions() | about)


# ------------------------------------------------------------------------------------------------------ settings


def _settings(encoder: Embedder, kind: str, precision: str, stored: str) -> dict:
    return {
        "kind": kind,
        "weights": encoder.weights,
        "pretrained_tag": encoder.pretrained_tag,
        "checksum": encoder.checksum,
        "attention": encoder.model.config.attention,
        "precision": precision,
        "stored": stored,
    }


def _versions() -> dict:
    libraries = {name: version(name) for name in ("torch", "transformers", "av")}
    return {"made_by": {"clipvip_lib": __version__} | libraries}


def encoder_of(
    settings: dict, weights: str | None = None, pretrained_tag: str | None = None, device: str = "auto"
) -> Embedder:
    """The encoder that made some features, by their settings; ``weights`` says where it lies now, if it moved.

    Raises ClipVipError if the weights are gone, or are not those that the features were made with, or the settings
    do not say how.
    """
    weights, pretrained_tag = weights_of(settings, weights, pretrained_tag)
    encoder = load_encoder(weights, pretrained_tag, settings["attention"], device)
    if encoder.checksum != settings["checksum"]:
        raise ClipVipError(
            f"the weights {weights} are not those that made these features (checksum {encoder.checksum[:12]}.. and "
            f"{settings['checksum'][:12]}..): they or the tokenizer beside them changed; name the right ones with "
            "--weights, or embed again"
        )
    return encoder
