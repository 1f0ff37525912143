"""Reads the downstream sets in their own annotation formats: MSR-VTT (as CLIP4Clip distributes it) and DiDeMo.

MSR-VTT is retrieved by single sentences: five (20 in the original) for a training clip, one for a test clip.
DiDeMo is retrieved by paragraphs: all descriptions of a video, in order, joined to one text (a paragraph set that
is scored by single sentences gives far lower numbers; users of the authors' code ran into this repeatedly).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clipvip_lib.errors import ClipVipError, unknown

BENCHMARKS = ("msrvtt", "didemo")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Item:
    """A video of a benchmark and the texts that describe it (one for a validation or test video)."""

    video_id: str
    path: Path
    texts: tuple[str, ...]


def load_benchmark(name: str, root: str | Path, split: str) -> list[Item]:
    """The items of one split, in the annotation's order.

    Args:
        name: "msrvtt" or "didemo".
        root: folder with the annotation files and videos/.
        split: "train", "val" or "test".

    Raises:
        ClipVipError: unknown name or split; an annotation file that is missing, not JSON or CSV, or lacks a
            field; an empty text; a clip that is named but not there (all missing ones are counted).
    """
    if name not in BENCHMARKS:
        raise unknown("benchmark", name, BENCHMARKS)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    root = Path(root)
    loaders: dict[str, Callable] = {"msrvtt": _load_msrvtt, "didemo": _load_didemo}
    items = loaders[name](root, split)
    if not items:
        raise ClipVipError(
            f"{name} {split}: expected at least one video in the annotations under {root}, got none"
        )
    for item in items:
        if not item.texts or not all(text.strip() for text in item.texts):
            raise ClipVipError(
                f"{name} {split}: video {item.video_id} has an empty or no text in {root}; remove or mend it"
            )
    missing = [item.video_id for item in items if not item.path.is_file()]
    if missing:
        raise ClipVipError(
            f"{name} {split}: {len(missing)} of {len(items)} videos named in the annotations are not under "
            f"{root / 'videos'}, first {missing[0]}; fetch them or take them out of the annotations"
        )
    return items


def _json(path: Path) -> object:
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise ClipVipError(
            f"{path} line {error.lineno} is not JSON ({error.msg}); mend or fetch it again"
        ) from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # spreadsheets put a mark in front
    except FileNotFoundError as error:
        raise ClipVipError(f"no annotation file {path}: expected it beside videos/") from error
    except UnicodeDecodeError as error:
        raise ClipVipError(
            f"{path} is not UTF-8 ({error.reason} at byte {error.start}); convert it"
        ) from error


def _csv(path: Path, *fields: str) -> list[dict[str, str]]:
    try:
        rows = list(csv.DictReader(_text(path).splitlines()))
    except csv.Error as error:
        raise ClipVipError(f"{path} is not CSV ({error}); mend or fetch it again") from error
    for number, row in enumerate(rows, start=2):
        if None in row:  # the rest of a text that has a comma would be lost
            raise ClipVipError(
                f"{path} line {number}: expected {len(row) - 1} columns, got {len(row[None])} more; put texts with "
                "commas into quotes"
            )
        absent = [field for field in fields if not row.get(field)]
        if absent:
            raise ClipVipError(
                f"{path} line {number}: expected the columns {', '.join(fields)}, {absent[0]} is empty"
            )
    return rows


def _field(entry: object, field: str, path: Path, number: int) -> object:
    if not isinstance(entry, dict) or field not in entry:
        raise ClipVipError(f"{path} entry {number}: expected an object with {field!r}, got {str(entry)[:80]}")
    return entry[field]


def _word(entry: object, field: str, path: Path, number: int) -> str:
    """A field that is text or a number; null is neither, and "None" would be a caption."""
    value = _field(entry, field, path, number)
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise ClipVipError(
            f"{path} entry {number}: expected text in {field!r}, got {json.dumps(value)[:80]}; remove or mend it"
        )
    return str(value)


def _load_msrvtt(root: Path, split: str) -> list[Item]:
    def item(video_id: str, texts: tuple[str, ...]) -> Item:
        return Item(video_id, root / "videos" / f"{video_id}.mp4", texts)

    if split != "train":
        path = root / {"val": "MSRVTT_val.csv", "test": "MSRVTT_JSFUSION_test.csv"}[split]
        return [item(row["video_id"], (row["sentence"],)) for row in _csv(path, "video_id", "sentence")]
    path = root / "MSRVTT_data.json"
    texts: dict[str, list[str]] = {}
    sentences = _field(_json(path), "sentences", path, 0)
    if not isinstance(sentences, list):
        raise ClipVipError(f"{path}: expected a list of sentences, got {type(sentences).__name__}; mend it")
    for number, sentence in enumerate(sentences):
        video_id = _word(sentence, "video_id", path, number)
        texts.setdefault(video_id, []).append(_word(sentence, "caption", path, number))
    rows = _csv(root / "MSRVTT_train.9k.csv", "video_id")
    return [item(row["video_id"], tuple(texts.get(row["video_id"], ()))) for row in rows]


def _load_didemo(root: Path, split: str) -> list[Item]:
    path = root / f"{split}_data.json"
    entries = _json(path)
    if not isinstance(entries, list):
        raise ClipVipError(f"{path}: expected a list of descriptions, got {type(entries).__name__}")
    sentences: dict[str, list[str]] = {}
    for number, entry in enumerate(entries):
        video = _word(entry, "video", path, number)
        sentences.setdefault(video, []).append(_word(entry, "description", path, number))
    return [
        Item(video.rsplit(".", 1)[0], root / "videos" / video, (" ".join(parts),))
        for video, parts in sentences.items()
    ]
