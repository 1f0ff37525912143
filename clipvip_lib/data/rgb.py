"""A decoded picture as RGB, to the byte as the ffmpeg program converts it.

Most videos store colours at half the resolution, and converters differ in how they fill them in: PyAV's own is up to 4
grey levels off the ffmpeg program on average for 10-bit video, and treats interlaced video differently. So the
conversion is the program's: its scale filter, with its default, bicubic.
"""

from __future__ import annotations

import errno

import av
import numpy as np

from clipvip_lib.data.container import VideoError


class Chain:
    """FFmpeg's filters (name, arguments) in a row, made again when the kind of frames changes."""

    def __init__(self, *filters: tuple[str, str]) -> None:
        self._filters = filters
        self._graph: av.filter.Graph | None = None
        self._made_for: tuple | None = None

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        kind = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if kind != self._made_for:
            self._graph, self._made_for = self._make(frame), kind
        self._graph.push(frame)
        return self._graph.pull()

    def _make(self, frame: av.VideoFrame) -> av.filter.Graph:
        graph = av.filter.Graph()
        graph.threads = 1  # decoding runs side by side already
        last = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
        )
        for name, arguments in (*self._filters, ("buffersink", None)):
            after = graph.add(name, arguments)
            last.link_to(after)
            last = after
        graph.configure()
        return graph


class ToRgb:
    """Converts the frames of one video, each to the size of the first: a stream may change its size on the way."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._chain: Chain | None = None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """uint8 [H, W, 3], as stored: not turned. Raises VideoError for colours that cannot be converted."""
        if self._chain is None:
            scale = f"{frame.width}:{frame.height}:flags=bicubic"
            self._chain = Chain(("scale", scale), ("format", "rgb24"))
        try:
            return self._chain(frame).to_ndarray()
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            raise VideoError(
                f"{self._label} stores colours that cannot be converted ({frame.format.name}, matrix "
                f"{frame.colorspace}): expected those of BT.601, BT.709 or BT.2020; write it again with ffmpeg"
            ) from error
