"""A pandas frame as an accessible HTML table, as plain text, and as JSON."""

from __future__ import annotations

import html
import math
import numbers
from collections.abc import Iterable

import pandas as pd

from clipvip_lib.say import shown
from clipvip_lib.workshop.stages import plain

DASH = "–"
WRAPS_FROM = 16  # characters: longer texts are wrapped, so that the columns after them stay visible
LONG = ' class="long"'


def decimals(values: list[object]) -> int:
    """How many decimals show the largest value with at least three figures; 0 to 4."""
    sizes = [abs(v) for v in values if _is_float(v) and math.isfinite(v)]
    largest = max(sizes, default=0.0)
    return 2 if largest == 0 else min(4, max(0, 2 - math.floor(math.log10(largest))))


def cell_text(value: object, digits: int) -> str:
    """A cell for people: whole numbers with separated thousands, floats rounded, a dash for nothing."""
    if value is None or value is pd.NA or (_is_float(value) and math.isnan(value)):
        return DASH
    if isinstance(value, bool) or type(value).__name__ == "bool_":
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return f"{value:,}"
    if _is_float(value):
        text = f"{value:,.{digits}f}"
        return text.replace("-", "−", 1)
    return shown(str(value))


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
    number = [pd.api.types.is_numeric_dtype(flat.dtypes.iloc[i]) for i in range(flat.shape[1])]
    cls = [' class="number"' if n else "" for n in number]
    top = "".join(
        f'<th scope="col"{c}>{html.escape(_heading(name))}</th>'
        for name, c in zip(flat.columns, cls, strict=True)
    )
    body = []
    for row in _rows(flat, digits):
        cells = [
            f'<th scope="row">{html.escape(text)}</th>'
            if i < heads
            else f"<td{cls[i] or (LONG if len(text) > WRAPS_FROM else '')}>{html.escape(text)}</td>"
            for i, text in enumerate(row)
        ]
        body.append(f"<tr>{''.join(cells)}</tr>")
    label = html.escape(caption, quote=True)
    return (
        f'<div class="table" role="region" tabindex="0" aria-label="{label}"><table>'
        f"<caption>{html.escape(caption)}</caption>"
        f"<thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


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
