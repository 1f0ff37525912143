"""A pandas frame as an accessible HTML table, as plain text, and as JSON.

The HTML says what is the same in every row once, in the caption; a number that nobody could verify is a dagger with
one footnote; numbers stand below each other by their decimal points; a long table is folded under its caption.
"""

from __future__ import annotations

import html
import math
import numbers
import re
from collections.abc import Iterable

import numpy as np
import pandas as pd

from clipvip_lib.say import shown, with_minus
from clipvip_lib.workshop.stages import plain

DASH = "–"
WRAPS_FROM = 16  # characters: longer texts are wrapped, so that the columns after them stay visible
FOLDS_FROM = 13  # rows
UNVERIFIED = "NOT VERIFIED"
VERDICTS = ("verdict", "alone")  # columns that hold verdicts, each shown with its colour and shape
_NUMBER = re.compile(r"[+−]?[\d,]+(\.\d+)?( %| pt)?")
_RANGE = re.compile(r"[+−]?[\d.,]+( to |–)[+−]?[\d.,]+")


def decimals(values: list[object]) -> int:
    """How many decimals show the largest value with at least three figures; 0 to 4."""
    sizes = [abs(v) for v in values if _is_float(v) and math.isfinite(v)]
    largest = max(sizes, default=0.0)
    return 2 if largest == 0 else min(4, max(0, 2 - math.floor(math.log10(largest))))


def cell_text(value: object, digits: int) -> str:
    """A cell for people: whole numbers with separated thousands, floats rounded, a dash for nothing."""
    if value is None or value is pd.NA or (_is_float(value) and math.isnan(value)):
        return DASH
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return f"{value:,}"
    if _is_float(value):
        return with_minus(f"{value:,.{digits}f}")
    return with_minus(shown(str(value)))


def in_short(numbers: Iterable[int], form: str = "{}", dash: str = DASH, gap: str = ", ") -> str:
    """Whole numbers in ascending order; runs of three or more are shown by their ends: "0–4, 7, 9"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    said = [[form.format(number) for number in run] for run in runs]
    return gap.join(f"{run[0]}{dash}{run[-1]}" if len(run) > 2 else gap.join(run) for run in said)


def _is_float(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral)


def _flat(frame: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """The frame with its index as leading columns (unless it is a plain count), and how many these are."""
    if isinstance(frame.index, pd.RangeIndex) and frame.index.name is None:
        return frame, 0
    return frame.reset_index(), frame.index.nlevels


def _heading(name: object) -> str:
    return " ".join(str(part) for part in name if part != "") if isinstance(name, tuple) else str(name)


def _rows(frame: pd.DataFrame, digits: int | None) -> list[list[str]]:
    columns = []
    for i in range(frame.shape[1]):
        values = frame.iloc[:, i].tolist()
        places = decimals(values) if digits is None else digits
        columns.append([cell_text(value, places) for value in values])
    return [list(row) for row in zip(*columns, strict=True)]


def table_html(frame: pd.DataFrame, caption: str, digits: int | None = None) -> str:
    """``<table>`` with a caption and headings that screen readers can name, in a frame that scrolls by itself."""
    flat, heads = _flat(frame)
    names = [_heading(name) for name in flat.columns]
    rows = _rows(flat, digits)
    columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in names]
    same = _same_in_every_row(names, columns, heads)
    shown_at = [i for i in range(len(names)) if i not in same]
    kinds = {i: _kind(flat.iloc[:, i], columns[i], names[i]) for i in shown_at}
    places = {i: max(map(_places, columns[i]), default=0) for i in shown_at}
    top = "".join(f'<th scope="col"{_class(kinds[i])}>{html.escape(names[i])}</th>' for i in shown_at)
    body = []
    for row in rows:
        cells = [_cell(row[i], kinds[i], places[i], head=i < heads, first=i == shown_at[0]) for i in shown_at]
        body.append(f"<tr>{''.join(cells)}</tr>")
    label = html.escape(caption, quote=True)
    note = any(UNVERIFIED in column for column in columns)
    table = (
        f'<div class="table" role="region" tabindex="0" aria-label="{label}"><table>'
        f"<caption>{html.escape(caption)}{_constants(names, columns, same)}</caption>"
        f"<thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        + ('<p class="footnote">† could not be verified</p>' if note else "")
    )
    if len(rows) < FOLDS_FROM or VERDICTS[0] in names:  # verdicts are what a reader came to see
        return table
    what = html.escape(f"{caption}: {len(rows)} rows")
    return f'<details class="fold"><summary>{what}</summary>{table}</details>'


def _same_in_every_row(names: list[str], columns: list[list[str]], heads: int) -> list[int]:
    """The columns that the caption can say once: the same in all of three or more rows, and two others stay."""
    if not columns or len(columns[0]) < 3:
        return []
    same = [
        i
        for i, column in enumerate(columns)
        if i >= max(heads, 1) and names[i] not in VERDICTS and len(set(column)) == 1 and column[0] != DASH
    ]
    return same if len(names) - len(same) >= 2 else []


def _constants(names: list[str], columns: list[list[str]], same: list[int]) -> str:
    said = [f'{html.escape(names[i])}: <span data-column="{i}">{_value(columns[i][0])}</span>' for i in same]
    return f'<span class="same">In every row: {", ".join(said)}</span>' if said else ""


def _kind(values: pd.Series, texts: list[str], name: str) -> str:
    """How a column is set: "number", "range", "verdict" or "" for words."""
    if name in VERDICTS:
        return "verdict"
    if pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype):
        return "number"
    told = [text for text in texts if text not in (DASH, UNVERIFIED)]
    numbers = [_NUMBER.fullmatch(text) for text in told]
    if told and all(numbers) and len({number[2] for number in numbers}) == 1:
        return "number"
    one_each = [number or _RANGE.fullmatch(text) for number, text in zip(numbers, told, strict=True)]
    return "range" if told and all(one_each) else ""


def _class(*names: str) -> str:
    kept = " ".join(name for name in names if name)
    return f' class="{kept}"' if kept else ""


def _places(text: str) -> int:
    """Decimals of a number in words; -1 for a whole one, whose point takes room beside numbers with decimals."""
    found = _NUMBER.fullmatch(text)
    return len(found[1]) - 1 if found and found[1] else -1


def _value(text: str) -> str:
    return f"{DASH}<sup>†</sup>" if text == UNVERIFIED else html.escape(text)


def _cell(text: str, kind: str, places: int, *, head: bool, first: bool) -> str:
    short = "short" if first and not kind and len(text) <= WRAPS_FROM else ""
    if head:
        return f'<th scope="row"{_class(kind, short)}>{_value(text)}</th>'
    if kind == "verdict":
        return f'<td class="verdict"><span data-verdict="{html.escape(text, quote=True)}">{_value(text)}</span></td>'
    if kind == "number" and places > 0 and _NUMBER.fullmatch(text) and (lacks := places - _places(text)):
        width = lacks if _places(text) > 0 else places + 0.35  # a point is about a third of a digit
        pad = f'<span class="pad" style="width:{width:g}ch"></span>'
        unit = _NUMBER.fullmatch(text)[2] or ""
        return f"<td{_class(kind)}>{_value(text.removesuffix(unit))}{pad}{unit}</td>"
    long = "long" if not kind and len(text) > WRAPS_FROM else ""
    return f"<td{_class(kind, short or long)}>{_value(text)}</td>"


def table_text(frame: pd.DataFrame, digits: int | None = None) -> str:
    """The same cells in columns of plain text."""
    flat, _ = _flat(frame)
    rows = [[_heading(name) for name in flat.columns], *_rows(flat, digits)]
    widths = [max(len(row[i]) for row in rows) for i in range(flat.shape[1])]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def table_json(frame: pd.DataFrame, where: str) -> dict[str, object]:
    """``{"columns": [...], "rows": [[...], ...]}`` with unrounded numbers; a missing one is null."""
    flat, _ = _flat(frame)
    rows = [
        [None if cell is pd.NA or (_is_float(cell) and math.isnan(cell)) else cell for cell in row]
        for row in flat.astype(object).to_numpy().tolist()
    ]
    return {"columns": [_heading(name) for name in flat.columns], "rows": plain(rows, f"table {where!r}")}
