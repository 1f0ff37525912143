"""Small copies of what a row shows, for a page that is sent on alone: a few frames as H.264, or a small picture."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from PIL import Image

from clipvip_lib.data.corpora import encode_h264, encode_jpeg
from clipvip_lib.data.frames import still
from clipvip_lib.data.shards import read_media
from clipvip_lib.data.windows import Windows, read_windows
from clipvip_lib.errors import ClipVipError
from clipvip_lib.features.media import Place

HEIGHT = 180
FRAMES = 40
SLOWEST = 4  # pictures per second: a longer video runs through in ten seconds


def preview(place: Place, row: dict, settings: dict) -> tuple[str, bytes]:
    """(type, bytes) of a sample of a shard, of its window if the row is one.

    Raises ClipVipError if it cannot be read. A damaged video is shown as the decoder makes it up.
    """
    content = read_media(place.path, place.entry)
    if place.is_picture:
        return "image/jpeg", encode_jpeg(_shrink(still(content)[None])[0])
    windows, number = None, 0
    if "start" in row:
        windows = Windows(Fraction(str(settings["window"])), Fraction(str(settings["stride"])))
        number = round(row["start"] / settings["stride"])
    found = next(
        read_windows(
            content, windows, FRAMES, _shrink, place.entry.key, "accept", lambda each: each == number
        ),
        None,
    )
    if found is None:
        raise ClipVipError(
            f"{place.entry.key} of {place.path} ends before {row['start']:g} s: expected the video that was embedded, "
            "got a shorter one; embed it again"
        )
    lasts = Fraction(str(round(found.end - found.start, 3)))
    rate = max(FRAMES / lasts, Fraction(SLOWEST)) if lasts else Fraction(SLOWEST)
    return "video/mp4", encode_h264(found.frames, min(rate, Fraction(60)))


def _shrink(frames: np.ndarray) -> np.ndarray:
    """uint8 [1, H, W, 3] to HEIGHT or less, both sides even, as H.264 wants them."""
    height, width = frames.shape[1:3]
    scale = min(1.0, HEIGHT / height)
    size = tuple(max(2, round(side * scale / 2) * 2) for side in (width, height))
    return np.asarray(Image.fromarray(frames[0]).resize(size, Image.Resampling.BICUBIC))[None]
