"""The one reader of CSV tables: strict, so that a quotation mark that is never closed does not swallow rows.

CSV lets a text in quotation marks run over several lines. A mark that is opened on one row and closed on another
therefore makes one text of several rows, and many readers say nothing. Here whatever follows a closing mark must be a
comma or the end of the line, and a text over several lines must not hold a line with as many commas as a row has.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from clipvip_lib.errors import ClipVipError


class CsvTable:
    """A table with a header, row by row: iterates over (number of the line that the row ends in, row by column).

    lines: the file's lines with their ends, opened with ``newline=""``. ``columns``: those of the header, [] for an
    empty file. A row's missing columns are None, columns too many are listed under None, as csv.DictReader has it.

    Raises ClipVipError naming the file and the line where a row begins that cannot be read, or a column that stands
    twice.
    """

    def __init__(self, lines: Iterable[str], path: str | Path) -> None:
        self.path, self._reader = path, csv.DictReader(lines, strict=True)
        try:
            self.columns = list(self._reader.fieldnames or ())
        except csv.Error as error:
            raise self._not_csv(1, str(error)) from error
        if doubled := [column for column in self.columns if self.columns.count(column) > 1]:
            raise ClipVipError(
                f"{path} has the column {doubled[0]!r} twice: expected each once; rename or remove one"
            )

    def __iter__(self) -> Iterator[tuple[int, dict]]:
        while True:
            first = self._reader.line_num + 1
            try:
                row = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise self._not_csv(first, str(error)) from error
            if self._reader.line_num > first and self._swallows_rows(row):
                raise self._not_csv(first, "a text goes on over a line that looks like a row itself")
            yield self._reader.line_num, row

    def _swallows_rows(self, row: dict) -> bool:
        commas = len(self.columns) - 1
        texts = [each for value in row.values() for each in (value if isinstance(value, list) else [value])]
        below = [line for text in texts if text for line in text.splitlines()[1:]]
        return bool(commas) and any(line.count(",") >= commas for line in below)

    def _not_csv(self, line: int, why: str) -> ClipVipError:
        return ClipVipError(
            f"{self.path} is not CSV from line {line} on ({why}); fix it (a quote may not be closed, or not be doubled "
            "within a text)"
        )
