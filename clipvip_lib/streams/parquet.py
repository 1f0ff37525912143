"""Captions as Parquet, for tools that work by columns: ``00000.captions.parquet`` with the texts key and caption.

``clipvip caption --parquet`` writes it beside the JSON lines, which are read first. Captions of other tools, which may
exist as Parquet alone, are read in their place (sidecars.py). pyarrow is an extra: it is imported only where Parquet is
asked for or found.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import atomic_path

COLUMNS = ("key", "caption")


def need_pyarrow(what: str | Path = "Parquet") -> None:
    """Raises ClipVipError, saying what needs it, if pyarrow is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ClipVipError(
            f"{what} expected pyarrow, it is not installed; run pip install pyarrow"
        ) from error


def parquet_path(sidecar: str | Path) -> Path:
    """Where the same captions stand as Parquet: ``00000.captions.jsonl`` -> ``00000.captions.parquet``."""
    return Path(sidecar).with_suffix(".parquet")


def write_captions(path: str | Path, captions: Mapping[str, str]) -> Path:
    """Write captions by key, in their order, whole or not at all. Raises ClipVipError if pyarrow is not installed."""
    need_pyarrow(path)
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = dict(zip(COLUMNS, (list(captions), list(captions.values())), strict=True))
    try:  # The type is named: a shard without a caption would not show it.
        table = pa.table({name: pa.array(texts, pa.string()) for name, texts in columns.items()})
    except (ValueError, pa.ArrowException) as error:  # JSON can hold half a character, UTF-8 cannot
        raise ClipVipError(
            f"cannot write {path} ({error}): expected whole characters; correct or remove the JSON lines beside it"
        ) from error
    with atomic_path(path) as partial:
        pq.write_table(table, partial)
    return Path(path)


def read_captions(path: Path) -> dict[str, str]:
    """Captions by key. Raises ClipVipError naming the row, where there is one, if the file cannot be read, lacks a
    column, has anything but text in one, or a key twice; and if pyarrow is not installed."""
    need_pyarrow(path)
    import pyarrow as pa
    import pyarrow.parquet as pq

    expected = f"expected Parquet with the columns {' and '.join(COLUMNS)}"
    try:
        # Opened here: from a path's name pyarrow would take columns (a=b/) or another file system (s3:).
        with path.open("rb") as file, pq.ParquetFile(file) as found:
            names = found.schema_arrow.names
            whole = all(names.count(name) == 1 for name in COLUMNS)
            table = found.read(list(COLUMNS), use_threads=False) if whole else None
            keys, texts = (table.column(name).to_pylist() if whole else [] for name in COLUMNS)
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise ClipVipError(f"cannot read captions {path} ({reason}): {expected}; write it again") from error
    if not whole:
        raise ClipVipError(f"{path}: {expected}, each once, got {', '.join(names) or 'none'}; write it again")
    captions: dict[str, str] = {}
    for number, (key, text) in enumerate(zip(keys, texts, strict=True), 1):
        if not isinstance(key, str) or not isinstance(text, str):
            raise ClipVipError(
                f"row {number} of {path}: expected text as {' and '.join(COLUMNS)}, got {key!r:.40} and {text!r:.40}; "
                "write it again"
            )
        if key in captions:
            raise ClipVipError(f"row {number} of {path} names the key {key} a second time; write it again")
        captions[key] = text
    return captions
