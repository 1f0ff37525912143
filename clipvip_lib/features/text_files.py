"""Texts with ids from a file that a person wrote or a benchmark brings: lines, JSON lines or CSV."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from clipvip_lib.data.csv_table import CsvTable
from clipvip_lib.errors import ClipVipError
from clipvip_lib.say import is_unicode

#: Names that a column of a .csv, or a field of a .jsonl, may have; the first that is there counts.
ID_FIELDS, TEXT_FIELDS = ("id", "video_id"), ("text", "sentence", "caption")


def read_texts(path: str | Path) -> list[tuple[str, str]]:
    """(id, text) pairs of a file: .jsonl (id, text), .csv (columns id, text), or any other with one text per line.

    A field may also be called as benchmarks do, video_id and sentence or caption; without an id it is the line's
    number from 1. Raises ClipVipError naming file and line for what is not UTF-8, JSON or CSV, or an empty text.
    """
    path = Path(path)
    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ClipVipError(f"cannot read texts {path}: expected a file, got {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ClipVipError(
            f"{path} is not UTF-8 ({error.reason} at byte {error.start}); convert it"
        ) from error
    suffix = path.suffix.lower()
    if suffix == ".csv":
        rows = _csv(path, content)
    elif suffix in (".jsonl", ".json"):
        rows = ((number, _json(path, number, line)) for number, line in _lines(content))
    else:
        rows = ((number, {"text": line}) for number, line in _lines(content))
    pairs = [_pair(path, number, row) for number, row in rows]
    if not pairs:
        raise ClipVipError(f"{path} holds no text: expected one or more; check the file")
    return pairs


def _lines(content: str) -> Iterable[tuple[int, str]]:
    """Numbered lines; only an end of line ends one (a text may hold Unicode's other separators)."""
    lines = content.replace("\r\n", "\n").split("\n")
    return enumerate(lines[:-1] if lines and not lines[-1] else lines, 1)


def _csv(path: Path, content: str) -> Iterable[tuple[int, dict]]:
    """Rows with the number of the line that each ends in."""
    table = CsvTable(io.StringIO(content, newline=""), path)
    if not set(TEXT_FIELDS) & set(table.columns):
        raise ClipVipError(
            f"{path} expected a first line with the columns id and text, got {', '.join(table.columns)[:80]}"
        )
    return table


def _json(path: Path, number: int, line: str) -> dict:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ClipVipError(f"line {number} of {path} is not JSON ({error.msg}); fix it") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets in brackets
        raise ClipVipError(
            f"line {number} of {path}: expected an object with id and text, got a number too long or brackets too "
            "deep; leave that field out"
        ) from error
    if not isinstance(row, dict):
        raise ClipVipError(f"line {number} of {path}: expected an object with id and text, got {line[:60]}")
    return row


def _pair(path: Path, number: int, row: dict) -> tuple[str, str]:
    text = next((row[name] for name in TEXT_FIELDS if name in row), None)
    if None in row or not isinstance(text, str) or not text.strip():  # None: csv's name for columns too many
        raise ClipVipError(
            f"line {number} of {path}: expected a text, got {str(row.get(None, text))[:60]!r}; fix "
            "or remove it (in .csv a text with commas stands in quotes)"
        )
    id = str(next((row[name] for name in ID_FIELDS if row.get(name) is not None), number))
    if not is_unicode(id) or not is_unicode(text):
        raise ClipVipError(
            f"line {number} of {path}: expected Unicode, got half a character ({id[:30]!a}, {text[:30]!a}); fix it"
        )
    return id, text.strip()


def check_asked(texts: Sequence[str], videos: Sequence[str | Path]) -> None:
    """Raises ClipVipError for nothing, or nothing but spaces, or what is not Unicode."""
    if not len(texts) and not len(videos):
        raise ClipVipError("search expected a text or a video to look for, got neither")
    for asked in map(str, [*texts, *videos]):
        if not asked.strip():
            raise ClipVipError(f"search expected a text or a video to look for, got {asked!r}; name one")
        if not is_unicode(asked):
            raise ClipVipError(f"search expected Unicode to look for, got {asked[:60]!a}; write it as UTF-8")
