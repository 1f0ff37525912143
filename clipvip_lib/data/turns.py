"""How the pictures of a video are to be turned or mirrored: one way for all of them, or the video is refused.

A file says it in its container (the display matrix of MP4, the projection of Matroska) or inside its stream (H.264's
display orientation message; EXIF in Motion JPEG). FFmpeg's decoders hand over a matrix with each picture. Those of a
message come with some pictures only, though it holds until the next key picture, so the stream itself is asked then.
"""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from av.bitstream import BitStreamFilterContext

from clipvip_lib.data import hangs
from clipvip_lib.data.container import VideoError, open_container
from clipvip_lib.data.rgb import Chain

Matrix = tuple[int, int, int, int]
UPRIGHT: Matrix = (1, 0, 0, 1)
# PyAV has no name for these kinds of side data (EXIF, layers, ..) and then lists none at all.
NAMELESS = range(28, 64)


class Turns:
    """Collects what the frames of one video say."""

    def __init__(self) -> None:
        self._found: set[Matrix | None] = set()
        self._without_nameless = Chain(*(("sidedata", f"mode=delete:type={kind}") for kind in NAMELESS))

    def add(self, frame: av.VideoFrame) -> None:
        try:
            side = frame.side_data.get("DISPLAYMATRIX")
        except ValueError:
            side = self._without_nameless(frame).side_data.get("DISPLAYMATRIX")
        if side is None:
            self._found.add(None)
        else:
            a, b, _, c, d = np.sign(np.frombuffer(bytes(side), np.int32)[:5]).tolist()
            self._found.add((a, b, c, d))

    def common(self, source: str | Path | bytes, index: int, label: str) -> Matrix:
        """The matrix for all pictures of stream ``index``: signs (a, b, c, d), with which the point (x, y) is shown at
        (a x + c y, b x + d y).

        Raises VideoError if pictures are turned in different ways, or at a slant.
        """
        told = self._found - {None}
        if len(told) > 1 or (told and None in self._found and not _messages_agree(source, index, label)):
            raise VideoError(
                f"{label} turns its pictures in different ways: expected one for the whole video; write it again with "
                "ffmpeg, in parts if need be"
            )
        a, b, c, d = turn = next(iter(told), UPRIGHT)
        if abs(a * d - b * c) != 1 or a * b or c * d:
            raise VideoError(
                f"{label} is to be shown at a slant: expected quarter turns only; turn it upright first"
            )
        return turn


def _messages_agree(source: str | Path | bytes, index: int, label: str) -> bool:
    """Whether all display orientation messages of an H.264 stream say the same, and each key picture has one.

    What they say is taken from the frames: this filter halves the angle.
    """
    told: set[bytes] = set()
    with open_container(source, label) as container:
        stream = container.streams[index]
        if stream.codec_context.name != "h264":
            return False
        messages = BitStreamFilterContext("h264_metadata=display_orientation=extract", stream)
        for packet in container.demux(stream):
            hangs.alive()
            for each in messages.filter(packet) if packet.size else ():
                if each.has_sidedata("display_matrix"):
                    told.add(bytes(each.get_sidedata("display_matrix")))
                elif each.is_keyframe:
                    return False
    return len(told) == 1


def turned(frames: np.ndarray, turn: Matrix) -> np.ndarray:
    """Frames [N, H, W, 3] as they are to be shown: [N, W, H, 3] after a quarter turn."""
    a, b, c, d = turn
    if a == 0:
        frames, a, d = frames.transpose(0, 2, 1, 3), c, b
    return np.ascontiguousarray(frames[:, ::d, ::a])
