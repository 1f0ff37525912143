"""Captions as Parquet, for tools that work by columns: ``00000.captions.parquet`` with the texts key and caption.

``clipvip caption --parquet`` writes it beside the JSON lines, which stay the form that is read first. pyarrow is an
extra: it is imported only where Parquet is asked for or found.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import atomic_path
from clipvip_lib.streams.sidecars import FIELDS


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

    columns = {"key": list(captions), FIELDS["captions"]: list(captions.values())}
    # The type is named: of a shard without a caption it could not be told.
    table = pa.table({name: pa.array(texts, pa.string()) for name, texts in columns.items()})
    with atomic_path(path) as partial:
        pq.write_table(table, partial)
    return Path(path)
