"""What all readers of annotations share: strict text, JSON, CSV and lists, and one word for each fault.

A reader reports a fault by its word (``tell(code, sentence)``) and continues where it can. Loading a set refuses at the
first fault (``refuse``); `clipvip check-data` collects them all (check.py). So both say the same of one file.
"""

from __future__ import annotations

import io
import json
import math
import reprlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import UnionType

from clipvip_lib.data.csv_table import CsvTable
from clipvip_lib.errors import ClipVipError
from clipvip_lib.say import is_unicode

# Told by readers: code -> what it means. All but those in LENIENT are errors.
FAULTS = {
    "no-annotation": "an annotation file of the set is not there",
    "not-utf8": "an annotation file is in another encoding",
    "not-parsed": "an annotation file is not JSON, CSV or a pickle, or is cut short",
    "unsafe-pickle": "a pickle holds more than plain containers and strings, so it was not loaded",
    "wrong-structure": "an entry lacks a field or column, or holds another type",
    "empty-caption": "a caption is empty or blank",
    "no-sentence": "a video is listed and has no sentence",
    "no-video": "a sentence's video is in none of the set's lists",
    "listed-only": "an id of ActivityNet's lists has no captions; it is left out, as CLIP4Clip does",
    "doubled-id": "a video is listed twice in one split",
    "doubled-split": "there are two validation splits",
}
NO_JSON = (ValueError, RecursionError)  # what json.loads raises
_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxstring, _BRIEF.maxother = 3, 80, 80
LENIENT = frozenset({"no-video", "listed-only"})
Tell = Callable[[str, str], None]


def silent(code: str, sentence: str) -> None:
    """A ``Tell`` for what another reader tells."""


class Unreadable(Exception):
    """A whole file could not be read, after ``tell`` has said why; only a collecting ``tell`` gets this far."""


def refuse(code: str, sentence: str) -> None:
    """The ``tell`` of loading: raises ClipVipError with the sentence. A fault that no item depends on passes."""
    if code not in LENIENT:
        raise ClipVipError(sentence)


@dataclass(frozen=True)
class Record:
    """A video as annotated, before its file is looked for.

    names: what the file or frame folder may be called, best first; with a suffix where the annotation has one.
    sentences: as they stand, in order. seconds, frames: the length that the annotation tells, if it does; ``longer``
    if the video may be longer than ``seconds``.
    source: the longer video or film that the clip was cut from, if the annotation tells it.
    """

    video_id: str
    names: tuple[str, ...]
    sentences: tuple[str, ...]
    seconds: float | None = None
    longer: bool = False
    frames: int | None = None
    source: str | None = None


def read_text(path: Path, tell: Tell) -> str:
    """A UTF-8 file without the mark that spreadsheets put in front."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        tell("no-annotation", f"no annotation file {path}: expected it beside videos/")
    except IsADirectoryError:
        tell("no-annotation", f"no annotation file {path}: expected a file, got a folder")
    except OSError as error:
        tell("not-parsed", f"cannot read {path}: expected an annotation file, got {error.strerror}")
    except UnicodeDecodeError as error:
        tell("not-utf8", f"{path} is not UTF-8 ({error.reason} at byte {error.start}); convert it")
    raise Unreadable(path)


def read_json(path: Path, tell: Tell) -> object:
    """JSON; a name that stands twice in one object is reported, because all but the last would be lost."""

    def without_doubles(pairs: list[tuple[str, object]]) -> dict:
        found = dict(pairs)
        if len(found) < len(pairs):
            name, times = Counter(key for key, _ in pairs).most_common(1)[0]
            tell("doubled-id", f"{path}: {name!r} stands {times} times in one object; remove all but one")
        return found

    try:
        return json.loads(read_text(path, tell), object_pairs_hook=without_doubles)
    except ClipVipError:  # a ValueError, too
        raise
    except NO_JSON as error:
        line = f" line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        tell("not-parsed", f"{path}{line} is not JSON ({why_not_json(error)}); fix it or fetch it again")
    raise Unreadable(path)


def why_not_json(error: Exception) -> str:
    """What one of NO_JSON says, in a few words."""
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    deep = isinstance(error, RecursionError)
    return f"not as people write it: {'brackets too deep' if deep else 'a number of thousands of digits'}"


def brief(value: object) -> str:
    """A value of any kind for a message: short, whatever it holds (a pickle may hold a list that holds itself)."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    try:
        return _BRIEF.repr(value)[:80]
    except (ValueError, RecursionError):  # a number of thousands of digits
        return f"a {type(value).__name__} too long to show"


def lines(path: Path, tell: Tell) -> list[str]:
    """Lines ended by a newline alone: ``str.splitlines`` would also cut at signs that a caption may hold."""
    return read_text(path, tell).split("\n")


def read_list(path: Path, tell: Tell) -> list[str]:
    """The lines of a list of ids, without blank ones."""
    return [line.strip() for line in lines(path, tell) if line.strip()]


def read_csv(path: Path, fields: tuple[str, ...], tell: Tell) -> list[dict[str, str]]:
    """Rows of a CSV file with a header; every one of ``fields`` must be there and filled."""
    text = read_text(path, tell)
    try:
        rows = list(CsvTable(io.StringIO(text, newline=""), path))
    except ClipVipError as error:
        tell("not-parsed", str(error))
        raise Unreadable(path) from error
    whole = []
    for number, row in rows:
        if None in row:  # the rest of a text that has a comma would be lost
            tell(
                "wrong-structure",
                f"{path} line {number}: expected {len(row) - 1} columns, got {len(row[None])} more; put texts with "
                "commas into quotes",
            )
            continue
        absent = [field for field in fields if not row.get(field)]
        if absent:
            code = "empty-caption" if absent == ["sentence"] and "sentence" in row else "wrong-structure"
            tell(
                code,
                f"{path} line {number}: expected the columns {', '.join(fields)}, {absent[0]} is empty",
            )
            continue
        whole.append(row)
    return whole


def listed(value: object, what: str, path: Path, tell: Tell) -> list:
    """A value that must be a list."""
    if isinstance(value, list):
        return value
    tell("wrong-structure", f"{path}: expected a list of {what}, got {type(value).__name__}; fix it")
    raise Unreadable(path)


def mapping(value: object, what: str, path: Path, tell: Tell) -> dict:
    """A value that must be an object."""
    if isinstance(value, dict):
        return value
    tell("wrong-structure", f"{path}: expected an object of {what}, got {type(value).__name__}; fix it")
    raise Unreadable(path)


def field(entry: object, name: str, path: Path, place: object, tell: Tell) -> object:
    """A field that must be there; None, once reported, where it is not."""
    if isinstance(entry, dict) and name in entry:
        return entry[name]
    tell(
        "wrong-structure",
        f"{path} entry {place}: expected an object with {name!r}, got {brief(entry)}",
    )
    return None


def sentence(entry: object, name: str, path: Path, place: object, tell: Tell) -> str | None:
    """A field that is text; a number is not a sentence, and null would be the caption "None"."""
    return word(entry, name, path, place, tell, str)


def word(
    entry: object, name: str, path: Path, place: object, tell: Tell, kinds: UnionType | type = str | int
) -> str | None:
    """A field that is text or a number, such as an id."""
    value = field(entry, name, path, place, tell)
    if isinstance(value, kinds) and not isinstance(value, bool):
        return str(value)
    if isinstance(entry, dict) and name in entry:
        tell(
            "wrong-structure",
            f"{path} entry {place}: expected text in {name!r}, got {brief(value)}; remove or fix it",
        )
    return None


def plain_id(value: object) -> str:
    """An id of a list: text or a number as it is; anything else by its looks, so that it is in no other list."""
    return str(value) if isinstance(value, str | float | bool) else brief(value)


def words(value: object, path: Path, place: object, tell: Tell) -> tuple[str, ...]:
    """A text or a list of texts, as a tuple; what is not text is reported and left out."""
    values = value if isinstance(value, list) else [value]
    wrong = [each for each in values if not isinstance(each, str)]
    if wrong:
        tell(
            "wrong-structure",
            f"{path} entry {place}: expected text or a list of texts, got {brief(wrong[0])}; "
            "remove or fix it",
        )
    return tuple(each for each in values if isinstance(each, str))


def number(value: object) -> float | None:
    """A length in seconds, or None for anything else."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        seconds = float(value)
    except OverflowError:
        return None
    return seconds if 0 < seconds < math.inf else None


def span(start: object, end: object) -> float | None:
    """The length between two times in seconds, or None where they tell none."""
    both = [-1.0 if time == 0 and not isinstance(time, bool) else number(time) for time in (start, end)]
    return None if None in both else number(max(both[1], 0.0) - max(both[0], 0.0))


def checked(records: list[Record], where: str, tell: Tell) -> list[Record]:
    """The records that can be written and printed: a half of a character, or a line end in an id, is told."""
    whole = []
    for record in records:
        if not is_unicode("".join((record.video_id, *record.names, *record.sentences))):
            tell(
                "wrong-structure",
                f"{where}: video {record.video_id} has half a character in its id or texts: expected Unicode; fix it",
            )
        elif not record.video_id.strip() or any(
            unicodedata.category(sign) == "Cc" for sign in record.video_id
        ):
            tell(
                "wrong-structure",
                f"{where}: the id {record.video_id!r} expected letters, got none or control characters; fix it",
            )
        else:
            whole.append(record)
    return whole


def distinct(ids: Iterable[str], path: Path, tell: Tell) -> list[str]:
    """Ids without repetitions; each repetition is reported."""
    counts = Counter(ids)
    for video_id, times in counts.items():
        if times > 1:
            tell("doubled-id", f"{path}: video {video_id} is listed {times} times; remove all but one")
    return list(counts)
