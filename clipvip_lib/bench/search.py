"""`clipvip bench search`: seconds a query, recall and memory of `clipvip search` among many rows, exact and by FAISS.

The rows stand in for features: unit vectors of 512 numbers around some thousand centres, with a cosine of about 0.7 to
their centre, as clips of one kind have; queries are rows, disturbed. Centres and what is beside them spread over
directions unevenly, the i-th by 1 / sqrt(i), as learned features do. Real features may give FAISS more or less.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from clipvip_lib.bench.measure import about, set_threads
from clipvip_lib.features.folder import Features
from clipvip_lib.features.search import INDEX, PROBES, faiss_search, search
from clipvip_lib.files import sha256, write_json
from clipvip_lib.workshop.machine import peak_memory_mib, reset_peak_memory

WIDTH, TOP, PART = 512, 10, 65_536
CENTRES, NEAR = 4_000, 1.0  # length of the noise beside a centre of length 1: a cosine of 0.7


def measure(
    rows: int = 200_000, queries: int = 32, probes: int = PROBES, threads: int = 1, index: bool = True
) -> dict:
    """Rows of way: seconds a query when ``queries`` are asked together and when one is, peak memory of the process,
    recall of the ten nearest, bytes on disk, and what building took. index: FAISS's too, where it is installed."""
    set_threads(threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asked = _write(folder, rows, queries)
        reset_peak_memory()
        before, started = peak_memory_mib(), time.perf_counter()
        features = Features(folder)
        opening = time.perf_counter() - started
        right, row = _timed("exact", lambda some: search(features, some, TOP), asked)
        found = [{**row, "recall_at_10": 1.0, "MB_on_disk": round(rows * WIDTH * 2 / 1e6)}]
        found[0] |= {"building_s": None, "building_peak_MiB": None}
        if index and importlib.util.find_spec("faiss"):
            _faiss_threads(threads)
            reset_peak_memory()
            started = time.perf_counter()
            faiss_search(features, asked[:1], TOP, probes)  # builds the index
            about_it = {
                "building_s": round(time.perf_counter() - started, 1),
                "building_peak_MiB": round(peak_memory_mib()),
            }
            got, row = _timed(
                f"FAISS, {probes} probes", lambda some: faiss_search(features, some, TOP, probes), asked
            )
            recall = np.mean([len(set(a) & set(b)) / TOP for a, b in zip(right, got, strict=True)])
            size = (folder / INDEX).stat().st_size
            found.append(
                {**row, "recall_at_10": round(float(recall), 3), "MB_on_disk": round(size / 1e6), **about_it}
            )
    packages = ("numpy", *(["faiss-cpu"] if len(found) > 1 else []))
    return {
        "what": f"the {TOP} nearest of {rows} rows of {WIDTH}, float16 on the disk",
        "queries": queries,
        "memory_before_MiB": round(before),
        "opening_s": round(opening, 2),
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
    spread = np.arange(1, WIDTH + 1, dtype=np.float32) ** -0.5
    centres = _unit(rng.standard_normal((min(CENTRES, rows), WIDTH), np.float32) * spread)
    path = folder / "features.npy"
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(rows, WIDTH))
    for start in range(0, rows, PART):
        count = min(PART, rows - start)
        noise = _unit(rng.standard_normal((count, WIDTH), np.float32) * spread)
        array[start : start + count] = _unit(centres[rng.integers(len(centres), size=count)] + NEAR * noise)
    picked = np.asarray(array[np.sort(rng.choice(rows, queries, replace=False))], np.float32)
    array.flush()
    del array
    with (folder / "ids.jsonl").open("wb") as file:
        file.writelines(b'{"id": "%d", "path": "%d"}\n' % (row, row) for row in range(rows))
    meta = {
        "rows": rows,
        "width": WIDTH,
        "settings": {"stored": "float16", "kind": "videos"},
        "ids_sha256": sha256(folder / "ids.jsonl"),
        "features_sha256": sha256(path),
        "features_mtime_ns": path.stat().st_mtime_ns,
    }
    write_json(folder / "meta.json", meta)
    return _unit(picked + 0.5 * _unit(rng.standard_normal(picked.shape, np.float32) * spread))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
