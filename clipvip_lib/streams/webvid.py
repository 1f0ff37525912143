"""WebVid's table: videoid, contentUrl, duration, page_dir, name; the last is the alt-text.

Shards that video2dataset made with ``--caption_col name`` hold the text already; the table is needed for shards
without. WebVid was withdrawn by its makers in 2024 (docs/corpora.md).
"""

from __future__ import annotations

from pathlib import Path

from clipvip_lib.data.csv_table import CsvTable
from clipvip_lib.errors import ClipVipError


def read_texts_csv(path: str | Path, id_column: str = "videoid", text_column: str = "name") -> dict[str, str]:
    """Texts by id; about 200 bytes of memory per row.

    Raises ClipVipError naming the file, and the line where there is one: it cannot be read, lacks a column, is not
    CSV (a quotation mark is not closed), a row has more fields than columns (a text with a comma and no quotes), or an
    id is there twice with different texts.
    """
    texts: dict[str, str] = {}
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            table = CsvTable(file, path)
            lacking = [column for column in (id_column, text_column) if column not in table.columns]
            if lacking:
                raise ClipVipError(
                    f"{path} has no column {lacking[0]}: expected {id_column} and {text_column}, got "
                    f"{', '.join(table.columns)[:200] or 'an empty file'}; name the columns"
                )
            for line, row in table:
                key, text = row[id_column], row[text_column]
                if None in row or None in (key, text):
                    raise ClipVipError(
                        f"{path} line {line}: expected {len(table.columns)} columns, as the first line has; put texts "
                        "with commas into quotes"
                    )
                if texts.setdefault(key, text) != text:
                    raise ClipVipError(f"{path} line {line}: {key} has a second, other text; remove one")
    except (OSError, UnicodeDecodeError) as error:
        raise ClipVipError(f"cannot read {path} ({error}); expected a CSV table in UTF-8") from error
    return texts
