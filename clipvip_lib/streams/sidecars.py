"""Texts that stand beside a tar shard, by key, so that a shard of many gigabytes is never written again.

``00000.captions.jsonl`` holds what OFA says of the middle frames, ``00000.texts.jsonl`` subtitles or alt-texts where
the shard has none (HD-VILA's shards have none): JSON lines {"key", "caption"} and {"key", "text"}.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import json_line, write_bytes
from clipvip_lib.streams import parquet

FIELDS = {"captions": "caption", "texts": "text"}  # kind of sidecar -> its field


def sidecar_path(shard: str | Path, kind: str, folder: str | Path | None = None) -> Path:
    """Where a shard's sidecar stands: beside it, or in ``folder``. ``00000.tar`` -> ``00000.captions.jsonl``."""
    path = Path(shard).with_suffix(f".{kind}.jsonl")
    return path if folder is None else Path(folder) / path.name


def find_sidecar(shard: str | Path, kind: str, folder: str | Path | None = None) -> Path:
    """``sidecar_path``, or captions as Parquet where only these are there.

    Raises ClipVipError if that is so and pyarrow is not installed.
    """
    path = sidecar_path(shard, kind, folder)
    if kind != "captions" or path.is_file() or not parquet.parquet_path(path).is_file():
        return path
    parquet.need_pyarrow(parquet.parquet_path(path))  # said when files are looked for, not when they are read
    return parquet.parquet_path(path)


def read_sidecar(path: str | Path, kind: str) -> dict[str, str]:
    """Texts by key. ``kind``: "captions" or "texts". Captions may also be Parquet, by the name's end.

    Raises ClipVipError naming the file, and the line where there is one, if it cannot be read, a line is not a JSON
    object with text under key and caption (text), or a key is there twice.
    """
    if Path(path).suffix == ".parquet":
        return parquet.read_captions(Path(path))
    field = FIELDS[kind]
    texts: dict[str, str] = {}
    try:
        content = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ClipVipError(f"cannot read {kind} {path} ({error}); write them again") from error
    for number, line in enumerate(content.removesuffix("\n").split("\n") if content else [], 1):
        try:
            row = json.loads(line)
            key, text = row["key"], row[field]
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise ClipVipError(
                f"line {number} of {path} is not a JSON object with key and {field}; remove the file and write it again"
            ) from error
        if not isinstance(key, str) or not isinstance(text, str):
            raise ClipVipError(f"line {number} of {path}: expected text as key and {field}; write it again")
        if key in texts:
            raise ClipVipError(f"line {number} of {path} names the key {key} a second time; write it again")
        texts[key] = text
    return texts


def write_sidecar(path: str | Path, kind: str, texts: Iterable[tuple[str, str]]) -> int:
    """Write (key, text) pairs as JSON lines, whole or not at all. Returns their number.

    Raises ClipVipError for a text that UTF-8 cannot hold, naming its key.
    """
    lines = [_line(path, key, FIELDS[kind], text) for key, text in texts]
    write_bytes(path, b"".join(lines))
    return len(lines)


def _line(path: str | Path, key: str, field: str, text: str) -> bytes:
    try:
        f"{key}{text}".encode()
    except UnicodeEncodeError as error:  # JSON's "\ud800" without its other half
        raise ClipVipError(
            f"cannot write {path}: the {field} of {key!a} holds half a character "
            f"({error.object[error.start]!a}), expected text that UTF-8 can hold; correct it where it comes from"
        ) from error
    return json_line({"key": key, field: text})
