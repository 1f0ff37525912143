"""A clip rewritten as a short video of the frames that are wanted: it decodes in a tenth of the time, and any reader of
videos reads it.

A reader asks a video of P frames for ``uniform_indices(P, n)`` and for frame P // 2. So the frames that it would get of
the original are put exactly there. Between them lies what those questions pass over:

    n = 3, a clip of 100 frames, P = 4:   place   0   1   2   3     uniform_indices(4, 3) is 0, 1, 3
                                          frame   0  49  50  99     4 // 2 is 2, and 100 // 2 is 50

Places that no such question reaches repeat the frame before them, which costs nearly nothing; with ``steps`` above 1
they hold further frames, so that jittered ends (training) find others. The repeats apart, every picture is coded on its
own, at the model's size: H.264 4:4:4 with a constant quantiser, CAVLC, no loop filter. At equal error JPEG takes twice
the bytes and about the same time, and 4:2:0 halves the time but loses most of the fine colours.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from clipvip_lib.data import frame_folders
from clipvip_lib.data.container import describe
from clipvip_lib.data.frame_folders import is_picture
from clipvip_lib.data.video import clip_indices, middle_index, uniform_indices
from clipvip_lib.data.video_files import clip_seconds
from clipvip_lib.errors import ClipVipError

#: With jitter: places in each interval between two wanted frames.
JITTER_STEPS = 3
MOST_FRAMES = 1024
_SIZES = (8, 4096)  # that the codec takes
_X264 = "mbtree=0:keyint=infinite:scenecut=0:bframes=0:forced-idr=1"


@dataclass(frozen=True)
class Packing:
    """How clips are packed.

    frames: n, as many as readers will ask for. steps: 1, or JITTER_STEPS for training with jittered ends.
    size, antialias: as readers will resize (``transform.resize``). quality: H.264's quantiser, 0 (lossless but for the
    change of colour space) to 51. damaged: as in ``video.read_frames``.

    Raises ClipVipError for a number outside its range.
    """

    frames: int = 12
    steps: int = 1
    size: int = 224
    antialias: bool = False
    quality: int = 20
    damaged: str = "refuse"

    def __post_init__(self) -> None:
        ranges = {"frames": (1, MOST_FRAMES), "steps": (1, 16), "size": _SIZES, "quality": (0, 51)}
        for name, (least, most) in ranges.items():
            if not least <= (got := getattr(self, name)) <= most:
                raise ClipVipError(f"{name} expected {least} to {most}, got {got}; change it")


@dataclass(frozen=True)
class Packed:
    """content: an MP4 file. total: frames of the original. error: the mean difference of the frames that are asked for
    from the original's at the same size, in grey levels of 255. damage: what the decoder said, if that was accepted."""

    content: bytes
    total: int
    error: float
    damage: str


@dataclass(frozen=True)
class Coding:
    """How pictures are coded: FFmpeg's encoder, its pixels, its options, of which "{}" is the quality."""

    encoder: str
    pixels: str
    options: dict[str, str]


H264 = Coding(
    "libx264", "yuv444p", {"preset": "veryfast", "tune": "fastdecode", "qp": "{}", "x264-params": _X264}
)


def places(frames: int, steps: int = 1) -> int:
    """P, the frames of a packed clip: 23 for 12 frames, 34 with three steps. The smallest number from
    steps * (frames - 1) + 1 on whose middle is none of its uniform frames."""
    count = max(steps * (frames - 1) + 1, 2)
    while middle_index(count) in uniform_indices(count, frames):
        count += 1
    return count


def chosen(total: int, frames: int, steps: int = 1) -> np.ndarray:
    """Which frame of a clip of ``total`` stands at each place: int64 [P], ascending; all of a clip of P or fewer.

    Raises VideoError if ``total`` is below 1.
    """
    count = places(frames, steps)
    if total <= count:
        return uniform_indices(total, total)
    found = uniform_indices(total, count) if steps > 1 else np.zeros(count, np.int64)
    found[uniform_indices(count, frames)] = uniform_indices(total, frames)
    found[middle_index(count)] = middle_index(total)
    return found if steps > 1 else np.maximum.accumulate(found)


def pack_clip(
    source: bytes | str | Path, packing: Packing, name: str | None = None, coding: Coding = H264
) -> Packed:
    """A video (a file, its bytes, or a frame folder) as an MP4 of its chosen frames; it lasts as long as the original.

    It is read back, by the reader of every command. Raises VideoError as ``video.read_frames``.
    """
    # Here: it brings torch.
    from clipvip_lib.data.transform import resize

    def wanted(total: int) -> np.ndarray:
        return chosen(total, packing.frames, packing.steps)

    found = frame_folders.read(source, lambda total: np.unique(wanted(total)), name, packing.damaged)
    small = resize(found.frames, packing.size, packing.antialias)
    order = np.unique(wanted(found.total), return_inverse=True)[1]
    content = encode(small, order, packing.quality, _seconds(source, name, found.total), coding)
    asked = clip_indices(len(order), packing.frames)
    back = frame_folders.read_frames(content, asked, describe(source, name))
    error = float(np.abs(back.astype(np.int16) - small[order[asked]]).mean())
    return Packed(content, found.total, error, found.damage)


def _seconds(source: bytes | str | Path, name: str | None, total: int) -> float:
    """How long a clip lasts; one that does not say so, or a folder of pictures, shows one frame a second."""
    if isinstance(source, bytes) or not Path(source).is_dir():
        try:
            return clip_seconds(source, name)
        except ClipVipError:
            pass
    return float(total)


def encode(
    pictures: np.ndarray, order: np.ndarray, quality: int, seconds: float, coding: Coding = H264
) -> bytes:
    """An MP4 of ``pictures`` [n, S, S, 3] in an ``order`` [P]; a picture that follows itself is coded as a repeat."""
    file = io.BytesIO()
    rate = max(Fraction(len(order) / max(seconds, 1e-3)).limit_denominator(1000), Fraction(1, 1000))
    options = {name: value.format(quality) for name, value in coding.options.items()}
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream(coding.encoder, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], coding.pixels
        stream.codec_context.thread_count = 1
        kinds, before = av.video.frame.PictureType, -1
        for picture in order.tolist():
            frame = av.VideoFrame.from_ndarray(pictures[picture], format="rgb24")
            frame.pict_type = kinds.P if picture == before else kinds.I
            out.mux(stream.encode(frame))
            before = picture
        out.mux(stream.encode())
    return file.getvalue()


def pack_media(media: bytes, packing: Packing, name: str) -> Packed | None:
    """``pack_clip``, or None for a still image, which is kept as it is. Raises VideoError if it cannot be read."""
    if not is_picture(media):
        return pack_clip(media, packing, name)
    from clipvip_lib.data.frames import still

    still(media, name)
    return None
