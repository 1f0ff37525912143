"""`clipvip bench pack`: which coding a pack should have: bytes, time to decode and error, beside the originals.

The same 12 frames and the middle one at 224 pixels, coded in several ways: H.264 with and without halved colours
(4:2:0), with CABAC and the loop filter ("full") or without (what decodes fast), and JPEG. Error is the mean difference
from the originals' frames after resizing, in grey levels, and as PSNR.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from pathlib import Path

import numpy as np

from clipvip_lib.bench.decode import FRAMES, SIZE, decord, kinds, ours, peers
from clipvip_lib.bench.measure import about, in_turns, set_threads
from clipvip_lib.data.packed_clip import H264, Coding, Packing, pack_clip
from clipvip_lib.data.transform import resize

FULL = {name: value for name, value in H264.options.items() if name != "tune"}
JPEG = {"qmin": "{}", "qmax": "{}"}
#: Name of a coding: what it is, and its quality.
CODINGS = {
    "H.264 4:4:4, 20 (chosen)": (H264, 20),
    "H.264 4:4:4, 16": (H264, 16),
    "H.264 4:4:4, 24": (H264, 24),
    "H.264 4:4:4 full, 20": (Coding("libx264", "yuv444p", FULL), 20),
    "H.264 4:2:0, 20": (Coding("libx264", "yuv420p", H264.options), 20),
    "JPEG 4:4:4, 3": (Coding("mjpeg", "yuvj444p", JPEG), 3),
    "JPEG 4:2:0, 2": (Coding("mjpeg", "yuvj420p", JPEG), 2),
    "JPEG 4:2:0, 5": (Coding("mjpeg", "yuvj420p", JPEG), 5),
}


def measure(repeats: int = 3, folder: str | None = None, clips: int = 20) -> dict:
    """Rows of kind of file and coding: kB per clip, milliseconds of one core per sample, times as fast as the originals
    by our reader and by decord, error. Raises ClipVipError as ``bench.decode.measure``."""
    set_threads(1)
    with tempfile.TemporaryDirectory() as name:
        rows = [
            row
            for kind, paths in kinds(Path(name), folder, clips).items()
            for row in _of_kind(kind, paths, Path(name), repeats)
        ]
    packages = ["av", *(peer for peer in peers() if peer == "decord")]
    return {
        "what": f"{FRAMES} frames and the middle one at {SIZE} pixels, coded",
        "rows": rows,
        **about(packages),
    }


def _of_kind(kind: str, paths: list[Path], work: Path, repeats: int) -> list[dict]:
    seconds: dict[str, list[float]] = {}
    sizes: dict[str, list[int]] = {}
    squares: dict[str, list[float]] = {}
    levels: dict[str, list[float]] = {}
    for path in paths:
        right = resize(ours(str(path)), SIZE, False).astype(np.int16)
        files = {"the original, ours": path}
        for number, (name, (coding, quality)) in enumerate(CODINGS.items()):
            files[name] = work / f"coded{number}.mp4"
            packed = pack_clip(path, Packing(FRAMES, 1, SIZE, quality=quality), coding=coding)
            files[name].write_bytes(packed.content)
        forms = {
            name: (lambda file=file: resize(ours(str(file)), SIZE, False)) for name, file in files.items()
        }
        for name, form in forms.items():
            difference = form() - right
            levels.setdefault(name, []).append(float(np.abs(difference).mean()))
            squares.setdefault(name, []).append(float((difference.astype(np.float64) ** 2).mean()))
            sizes.setdefault(name, []).append(files[name].stat().st_size)
        if "decord" in peers():
            forms["the original, decord"] = lambda path=path: resize(decord(str(path)), SIZE, False)
        for name, found in in_turns(forms, repeats).items():
            seconds.setdefault(name, []).extend(found)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    rows = []
    for name, median in medians.items():
        error = statistics.mean(squares[name]) if name in squares else math.nan
        rows.append(
            {
                "files": kind,
                "coding": name,
                "kB_a_clip": round(statistics.mean(sizes.get(name, sizes["the original, ours"])) / 1e3),
                "ms": round(1e3 * median, 1),
                "ms_min": round(1e3 * min(seconds[name]), 1),
                "ms_max": round(1e3 * max(seconds[name]), 1),
                "times_ours": round(medians["the original, ours"] / median, 1),
                **(
                    {"times_decord": round(medians["the original, decord"] / median, 1)}
                    if "the original, decord" in medians
                    else {}
                ),
                "error_in_grey_levels": round(statistics.mean(levels[name]), 2) if name in levels else None,
                "psnr_db": round(10 * math.log10(255**2 / error), 1) if error > 0 else None,
            }
        )
    return rows
