"""The world's card: every constant of the embedded world with its value, how it was set, and its reason.

Nothing is typed twice. Values come from the modules that use them, reasons from the comments beside them in the
source. Tables of words have no such comments, so their reasons are below. A constant without a reason is an error, so
the card cannot lose one.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from types import ModuleType

from clipvip_lib.data import corpora, language, world
from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import read_json

PARTS = {"what is drawn": world, "what is written and said": language, "what makes up the corpora": corpora}

CHOSEN = "chosen"
BY_PROBE = "calibrated: still images"
BY_ORDER = "calibrated: order"
BY_MOTION_PROBE = "calibrated: motion probe"
BY_CAPTIONER = "calibrated: captioner"
BY_BASELINE = "calibrated: baseline"
CALIBRATED = {
    "LANES": BY_PROBE,
    "FRAMES": BY_MOTION_PROBE,
    "ONE_THING": BY_BASELINE,
    "TWO_THINGS": BY_BASELINE,
    "TELLS_ORDER": BY_ORDER,
    "MOTION": BY_ORDER,
    "SLIDE": BY_ORDER,
    "SMALL": BY_ORDER,
    "LARGE": BY_ORDER,
    "CLIPS_PER_VIDEO": BY_ORDER,
    "STILL_PASSING": BY_CAPTIONER,
    "STILL_FADING": BY_CAPTIONER,
    "STILL_SIZES": BY_CAPTIONER,
    "TELLS_BACKGROUND": BY_BASELINE,
    "CLIPS_IN_SPLIT": BY_BASELINE,
}

REASONS = {
    "SHAPES": "with the colours 64 things, so that a scene of two or three is seldom seen twice",
    "COLOURS": "far apart, and before muted backgrounds",
    "BACKGROUNDS": "textured, so that a mean colour does not tell the scene",
    "MOTIONS": "four pairs of opposites: the frames tell the pair, only their order tells which of the two",
    "OPPOSITE": "the same motion run backwards; follows from the pairs",
    "SHAPE": "synonyms, as several annotators of one video choose other words",
    "COLOUR": "synonyms, as several annotators of one video choose other words",
    "MOTION": "one phrase each: see TELLS_ORDER",
    "BACKGROUND": "two ways to name each",
    "COLUMN": "where a thing rests, by its lane; the two middle lanes share a word",
    "ROW": "where a thing rests, by its lane; the two middle lanes share a word",
    "SPOKEN_MOTION": "spoken, as SPOKEN_SHAPE",
    "CHATTER": "what speech recognition hears when the talk is not about the picture",
    "FILLER": "how a spoken mention begins",
    "ALT_TAIL": "how a stock-footage site's keywords end",
    "RELATIVE_SIZES": "the real corpora's proportion (WebVid-2.5M, HD-VILA-10M, HD-VILA-100M)",
}


def world_card() -> dict[str, list[dict[str, str]]]:
    """Rows (constant, value, reason, how set) of each part of the world, in the order of the source.

    Raises ClipVipError for a constant that has no reason.
    """
    return {title: _rows(module) for title, module in PARTS.items()}


def _rows(module: ModuleType) -> list[dict[str, str]]:
    source = inspect.getsource(module)
    rows = []
    for name, first, last in _constants(source):
        reason = REASONS.get(name) or comment_of(source.splitlines(), first, last)
        if not reason:
            raise ClipVipError(
                f"{module.__name__}.{name} has no reason: expected a comment beside it; write one"
            )
        value = short(getattr(module, name))
        rows.append(
            {"constant": name, "value": value, "reason": reason, "how set": CALIBRATED.get(name, CHOSEN)}
        )
    return rows


def _constants(source: str) -> list[tuple[str, int, int]]:
    """(name, first line, last line) of every assignment to an upper-case name at the top level."""
    found = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            targets = node.targets[0].elts if isinstance(node.targets[0], ast.Tuple) else node.targets
            names = [target.id for target in targets if isinstance(target, ast.Name) and target.id.isupper()]
            found += [(name, node.lineno, node.end_lineno) for name in names]
    return found


def comment_of(lines: list[str], first: int, last: int) -> str:
    """The comment on a statement (lines count from 1): beside it, with its continuation lines, or else above it.

    A comment line of its own that begins with a small letter continues the comment above it. One that begins with a
    capital starts a comment on what follows.
    """
    beside = [found[1] for line in lines[first - 1 : last] if (found := re.search(r"\s#\s(.*)$", line))]
    if beside:
        after = last
        while after < len(lines) and re.match(r"# [^A-Z-]", lines[after]):
            beside.append(lines[after][2:])
            after += 1
        return " ".join(beside)
    above = first - 2
    while above >= 0 and re.match(r"# [^-]", lines[above]):
        beside.insert(0, lines[above][2:])
        if lines[above][2].isupper():
            return " ".join(beside)
        above -= 1
    return ""


def short(value: object) -> str:
    """A constant as people read it: long tables by their size and first entries."""
    if isinstance(value, dict):
        entries = [f"{key}: {_plain(entry)}" for key, entry in value.items()]
        parts = entries if len(entries) <= 4 else [entries[0], "…"]
        return f"{len(value)} entries ({'; '.join(parts)})"
    if isinstance(value, tuple) and value and isinstance(value[0], str):
        shown = value if sum(map(len, value)) <= 80 else value[:2]
        return f"{len(value)}: " + ", ".join(shown) + (", …" if len(shown) < len(value) else "")
    return _plain(value)


def _plain(value: object) -> str:
    if isinstance(value, range):
        return f"{value.start}–{value.stop - 1}"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(value)


def calibrations() -> dict[str, tuple[str, list[dict]]]:
    """What was tried when the trainings' recipes were set: {what: (what was measured, one row per trial)}."""
    found = read_json(Path(__file__).with_name("calibration.json"))
    return {what: (table["measured"], table["rows"]) for what, table in found.items()}
