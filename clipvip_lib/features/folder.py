"""A folder of features: rows of numbers and the ids that they belong to.

    features.npy     float32 or float16 [n, E], L2-normalised, to be mapped into memory
    ids.jsonl        line i tells of row i: id, path (or text), and what is known of it
    skipped.jsonl    what has no row, and why
    meta.json        how the rows were made, and checksums of both files; written last: without it nothing is read
    settings.json    what every row must have in common; another start must agree
    parts/           the same in pieces, each file whole or absent, with its rows and ids in one file

Rows and ids are never apart: a part holds both, the join (writer.py) places both by id, and a reader compares
the checksums. Parts stay: the next start (more videos, or one that was replaced) takes what is done from them.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import atomic_path, read_json, sha256, write_bytes
from clipvip_lib.streams.parquet import need_pyarrow

#: The columns of ids.jsonl by what the rows are, as Parquet's types.
COLUMNS = {
    "videos": {
        "id": "string",
        "path": "string",
        "key": "string",
        "real": "string",
        "frames": "int64",
        "start": "float64",
        "end": "float64",
        "last": "bool",
        "damage": "string",
        "stamp": "string",
    },
    "texts": {"id": "string", "text": "string", "stamp": "string"},
}

PARQUET = "features.parquet"
STORED = ("float32", "float16")
#: Up to this many bytes of features.npy are read for the checksum each time they are opened, about half a second; a
#: larger file only if its size or time is not that of meta.json (it was copied, or changed).
ALWAYS_CHECKED = 2**28


class Features:
    """A finished folder: ``array`` [n, E] mapped into memory, ``meta``, and ``row(i)``, what ids.jsonl says of row i.

    Raises ClipVipError if the folder is not finished, or its files do not belong together.
    """

    def __init__(self, folder: str | Path):
        self.folder = folder = Path(folder)
        if not (folder / "meta.json").is_file():
            if (folder / "settings.json").is_file():
                raise ClipVipError(
                    f"the features in {folder} are not finished; run the same `clipvip embed` again, it continues"
                )
            texts = " (those of texts are in texts/)" if (folder / "texts" / "meta.json").is_file() else ""
            raise ClipVipError(
                f"no features in {folder}{texts}: expected meta.json and features.npy, as `clipvip embed` writes them"
            )
        meta = read_json(folder / "meta.json")
        try:
            self.meta, self.settings = dict(meta), dict(meta["settings"])
            self.array = np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)
            self._lines, self._ends, found = _lines_of(folder / "ids.jsonl")
            shape, digest = (meta["rows"], meta["width"]), meta["ids_sha256"]
            stored, kind, _ = self.settings["stored"], self.settings["kind"], meta["features_sha256"]
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise ClipVipError(f"the features in {folder} are damaged ({error}); embed them again") from error
        if stored not in STORED or kind not in tuple(COLUMNS):
            raise ClipVipError(
                f"{folder / 'meta.json'} expected stored float32 or float16 and kind videos or texts, got {stored!r} "
                f"and {kind!r}; embed again"
            )
        if self.array.dtype != np.dtype(stored):
            raise ClipVipError(
                f"{folder / 'features.npy'} expected {stored} as meta.json says, got {self.array.dtype}; run "
                "`clipvip embed` again"
            )
        if self.array.shape != shape or len(self._ends) != shape[0] or found != digest:
            raise ClipVipError(
                f"features.npy ({list(self.array.shape)}) and ids.jsonl ({len(self._ends)} lines) in {folder} are not "
                f"those of meta.json ({list(shape)}): rows and ids may be mixed; run `clipvip embed` again"
            )
        if not is_that_of(folder / "features.npy", meta):
            raise ClipVipError(
                f"{folder / 'features.npy'} changed after it was written: expected the checksum of meta.json, got "
                "another, so rows may be mixed; run `clipvip embed` again"
            )

    def __len__(self) -> int:
        return len(self.array)

    def row(self, index: int) -> dict:
        """What ids.jsonl says of a row."""
        start = 0 if index == 0 else int(self._ends[index - 1]) + 1
        return json.loads(self._lines[start : int(self._ends[index])].tobytes())

    def chunks(self, rows: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, float32 [at most ``rows``, E]) from the first row to the last; memory holds one chunk at a time.

        Raises ClipVipError for a row that is not a unit vector: it would win or lose every search.
        """
        import torch  # which widens float16 twice as fast as numpy

        for start in range(0, len(self.array), rows):
            part = torch.from_numpy(np.array(self.array[start : start + rows])).float().numpy()
            if hasattr(mmap, "MADV_DONTNEED"):  # what was read would count as this process's memory
                self.array.base.madvise(mmap.MADV_DONTNEED)
            squares = np.einsum("ne,ne->n", part, part)
            bad = ~(np.abs(squares - 1) < 0.03)  # a length 0.01 off is written; NaN is bad too
            if bad.any():
                first = int(bad.argmax())
                raise ClipVipError(
                    f"row {start + first} of {self.folder / 'features.npy'} expected length 1, got "
                    f"{float(squares[first]) ** 0.5:g}; remove the folder and embed again"
                )
            yield start, part


def _lines_of(path: Path) -> tuple[np.ndarray, np.ndarray, str]:
    """(bytes of a file, mapped into memory; where its lines end, int64 [n]; its SHA-256)."""
    ends, digest, start = [np.zeros(0, np.int64)], hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(2**24):
            digest.update(block)
            ends.append(start + np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")))
            start += len(block)
    return np.memmap(path, np.uint8, "r"), np.concatenate(ends), digest.hexdigest()


def is_that_of(path: Path, meta: Mapping[str, object]) -> bool:
    """Whether features.npy is the file that meta.json tells of: by its checksum, or a large one's size and time.

    The size is that of rows and width, which the reader of the array compares.
    """
    about = path.stat()
    if about.st_size > ALWAYS_CHECKED and about.st_mtime_ns == meta.get("features_mtime_ns"):
        return True
    return sha256(path) == meta.get("features_sha256")


def write_parquet(folder: str | Path) -> Path:
    """features.parquet of a finished folder: the columns of ids.jsonl and ``feature``, a list of E numbers.

    Raises ClipVipError if pyarrow is not installed.
    """
    need_pyarrow()
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = Features(folder)
    path = found.folder / PARQUET
    named = COLUMNS[found.settings["kind"]]
    columns = [pa.field(name, pa.type_for_alias(alias)) for name, alias in named.items()]
    kind = pa.from_numpy_dtype(found.array.dtype)
    schema = pa.schema([*columns, pa.field("feature", pa.list_(kind, found.array.shape[1]))])
    with atomic_path(path) as partial, pq.ParquetWriter(partial, schema) as writer:
        for start in range(0, len(found), 16384):
            part = np.ascontiguousarray(found.array[start : start + 16384])
            rows = [found.row(start + i) for i in range(len(part))]
            arrays = [pa.array([row.get(field.name) for row in rows], field.type) for field in columns]
            feature = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), part.shape[1])
            writer.write_table(pa.Table.from_arrays([*arrays, feature], schema=schema))
    return path


# -------------------------------------------------------------------------------------------------------- parts


def write_part(
    path: Path, features: Sequence[np.ndarray], stored: str, rows: list[dict], skipped: list[dict]
) -> None:
    """Rows [E] with what is known of each, and what was skipped, in one file, whole or not at all."""
    file = io.BytesIO()
    stacked = np.stack(features) if features else np.zeros((0, 0), stored)
    text = {"rows": lines(rows), "skipped": lines(skipped)}
    np.savez(file, features=stacked, **{name: np.frombuffer(value, np.uint8) for name, value in text.items()})
    write_bytes(path, file.getvalue())


def read_part(path: Path) -> tuple[np.ndarray, list[dict], list[dict]]:
    """(features [m, E], their m rows, skipped rows). Raises ClipVipError if the part is damaged."""
    try:
        # Opened here: numpy would leave a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as part:
            features = part["features"]
            rows, skipped = (
                [json.loads(line) for line in part[name].tobytes().splitlines()]
                for name in ("rows", "skipped")
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ClipVipError(
            f"{path} is damaged ({error}); remove it and embed again, the other parts are kept"
        ) from error
    if len(features) != len(rows):
        raise ClipVipError(
            f"{path} holds {len(features)} rows and {len(rows)} ids; remove it and embed again"
        )
    return features, rows, skipped


def lines(rows: Sequence[dict]) -> bytes:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
