"""`clipvip bench search`: seconds a query, recall and memory of `clipvip search` among many rows, exact and by FAISS.

The rows stand in for features: unit vectors of 512 numbers around some thousand centres, with a cosine of about 0.7 to
their centre, as clips of one kind have; queries are rows, disturbed. So recall is that of clustered data. Random
directions, which have no neighbours, would give FAISS less, and real features may give it more or less.
"""

from __future__ import annotations

import hashlib
import importlib.util
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from clipvip_lib.bench.measure import about, set_threads
from clipvip_lib.features.folder import Features
from clipvip_lib.features.search import INDEX, PROBES, faiss_search, search
from clipvip_lib.files import write_json
from clipvip_lib.workshop.machine import peak_memory_mib, reset_peak_memory

WIDTH, TOP, PART = 512, 10, 65_536
CENTRES, NEAR = 4_000, 1.0  # length of the noise beside a centre of length 1: a cosine of 0.7


def measure(
    rows: int = 200_000, queries: int = 8, probes: int = PROBES, threads: int = 1, index: bool = True
) -> dict:
    """Rows of way: seconds a query when ``queries`` are asked together and when one is, recall of the ten nearest, peak
    memory of the process, bytes on disk. index: build and measure FAISS's too, where it is installed."""
    set_threads(threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asked = _write(folder, rows, queries)
        features = Features(folder)
        right, row = _timed("exact", lambda some: search(features, some, TOP), asked)
        found = [
            {**row, "recall_at_10": 1.0, "MB_on_disk": round(rows * WIDTH * 2 / 1e6), "building_s": None}
        ]
        if index and importlib.util.find_spec("faiss"):
            _faiss_threads(threads)
            started = time.perf_counter()
            faiss_search(features, asked[:1], TOP, probes)  # builds the index
            building = time.perf_counter() - started
            got, row = _timed(
                f"FAISS, {probes} probes", lambda some: faiss_search(features, some, TOP, probes), asked
            )
            recall = np.mean([len(set(a) & set(b)) / TOP for a, b in zip(right, got, strict=True)])
            size = (folder / INDEX).stat().st_size
            about_it = {"recall_at_10": round(float(recall), 3), "MB_on_disk": round(size / 1e6)}
            found.append({**row, **about_it, "building_s": round(building, 1)})
    packages = ("numpy", *(["faiss-cpu"] if len(found) > 1 else []))
    return {
        "what": f"the {TOP} nearest of {rows} rows of {WIDTH}, float16 on the disk",
        "queries": queries,
        "rows": found,
        **about(packages),
    }


def _faiss_threads(threads: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of its wrapper's types
        import faiss
    faiss.omp_set_num_threads(threads)


def _timed(way: str, ask, asked: np.ndarray) -> tuple[np.ndarray, dict]:
    ask(asked[:1])  # files into the cache
    reset_peak_memory()
    started = time.perf_counter()
    found, _ = ask(asked)
    together = time.perf_counter() - started
    started = time.perf_counter()
    ask(asked[:1])
    return found, {
        "way": way,
        "ms_a_query": round(1e3 * together / len(asked), 1),
        "ms_of_one_alone": round(1e3 * (time.perf_counter() - started), 1),
        "peak_MiB": round(peak_memory_mib()),
    }


def _write(folder: Path, rows: int, queries: int) -> np.ndarray:
    """A folder of features, as `clipvip embed` leaves it. Returns the queries."""
    rng = np.random.default_rng(0)
    centres = _unit(rng.standard_normal((min(CENTRES, rows), WIDTH), np.float32))
    path = folder / "features.npy"
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(rows, WIDTH))
    for start in range(0, rows, PART):
        count = min(PART, rows - start)
        noise = _unit(rng.standard_normal((count, WIDTH), np.float32))
        array[start : start + count] = _unit(centres[rng.integers(len(centres), size=count)] + NEAR * noise)
    picked = np.asarray(array[np.sort(rng.choice(rows, queries, replace=False))], np.float32)
    array.flush()
    del array
    lines = b"".join(b'{"id": "%d", "path": "%d"}\n' % (row, row) for row in range(rows))
    (folder / "ids.jsonl").write_bytes(lines)
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    meta = {
        "rows": rows,
        "width": WIDTH,
        "settings": {"stored": "float16", "kind": "videos"},
        "ids_sha256": hashlib.sha256(lines).hexdigest(),
        "features_sha256": checksum,
        "features_mtime_ns": path.stat().st_mtime_ns,
    }
    write_json(folder / "meta.json", meta)
    return _unit(picked + 0.5 * _unit(rng.standard_normal(picked.shape, np.float32)))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
