"""Video files of known kinds for benchmarks: textures that move as films do, with the bit rates of real clips.

A background with detail at all sizes drifts, a patch wanders over it with a motion of its own, grain changes with every
frame, and the scene changes every five seconds. x264's usual settings give 0.3 to 0.4 Mbit/s at 320 x 240 and 0.7 to
1.3 at 640 x 480, as clips of MSR-VTT and HD-VILA have.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

RATE = 25
SCENE = 5 * RATE
HEIGHTS = {"240p": (240, 320), "480p": (480, 640)}


def write(path: Path, seed: int, height: int, width: int, seconds: int, gop: int) -> Path:
    """An H.264 file with a key frame every ``gop`` frames."""
    options = {
        "preset": "veryfast",
        "x264-params": f"mbtree=0:keyint={gop}:min-keyint={min(gop, RATE)}:scenecut=0",
    }
    with av.open(path, "w") as out:
        stream = out.add_stream("libx264", rate=RATE, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for picture in _pictures(seed, height, width, seconds * RATE):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    return path


def _pictures(seed: int, height: int, width: int, count: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    grain = [rng.normal(0, 2, (height, width, 1)).astype(np.float32) for _ in range(7)]
    patch = _texture(rng, height // 2, width // 2)
    for i in range(count):
        if i % SCENE == 0:
            ground = _texture(rng, height, width)
        picture = np.roll(ground, (i // 2, i), (0, 1)) + grain[i % len(grain)]
        y, x = int(height / 4 * (1 + np.sin(i / 20))), int(width / 4 * (1 + np.cos(i / 15)))
        picture[y : y + height // 2, x : x + width // 2] = np.roll(patch, 3 * i, 1)
        yield np.clip(picture, 0, 255).astype(np.uint8)


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Float [H, W, 3] around 128: large shapes of strong colour, small ones of weak."""
    found = np.full((height, width, 3), 128, np.float32)
    for cell, strength in ((64, 60), (16, 30), (4, 14), (1, 6)):
        grid = rng.normal(0, strength, (height // cell + 1, width // cell + 1, 3)).astype(np.float32)
        grid[..., 1:] = grid[..., :1] + 0.4 * grid[..., 1:]  # as in films, colours change less than light
        found += grid.repeat(cell, 0).repeat(cell, 1)[:height, :width]
    return found
