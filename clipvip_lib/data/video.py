"""Frames of a video file: the right ones, upright, as RGB.

One reader for every video of the study, from a path or from the bytes of a tar shard. PyAV decodes it from its first
picture to its last, in the order shown, whatever frames are asked for: only so is every index right (edit lists, open
groups of pictures, intra refresh, streams without times), and only so is damage found, wherever it is. A decoder hides
damage by copying from other pictures, which can be far off; such a file is refused unless its frames are accepted by
name. On clips of ten seconds that costs no more than jumping to 12 frames did, on videos of three minutes 2.7 times as
much. Nothing is kept between calls.

Frame indices follow the authors' rule (XPretrain, CLIP-ViP/src/datasets/dataset_video_retrieval.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from clipvip_lib.data import hangs
from clipvip_lib.data.container import (
    Look,
    VideoError,
    as_video_error,
    describe,
    look,
    open_container,
    reason,
)
from clipvip_lib.data.rgb import ToRgb
from clipvip_lib.data.turns import Matrix, Turns, turned
from clipvip_lib.errors import unknown

__all__ = [
    "DAMAGED",
    "Pictures",
    "PicturesLost",
    "Reading",
    "VideoError",
    "clip_indices",
    "count_frames",
    "middle_index",
    "read",
    "read_frames",
    "uniform_indices",
]

#: What may be done with a video whose decoder says that it hid damage.
DAMAGED = ("refuse", "accept")
Source = str | Path | bytes
Indices = Sequence[int] | np.ndarray | Callable[[int], Sequence[int] | np.ndarray]


@dataclass(frozen=True)
class Reading:
    """frames: uint8 [N, H, W, 3]; total: how many the video shows; damage: what the decoder said first of damage that
    it hid, empty if it said nothing."""

    frames: np.ndarray
    total: int
    damage: str


def uniform_indices(total: int, n: int, jitter: np.random.Generator | None = None) -> np.ndarray:
    """Indices of ``n`` frames spread evenly over a video of ``total``: int64 [n], first and last included.

    With ``jitter`` (training only) both ends move inwards at random by up to one interval, total // (n - 1).
    A single frame is the first one without jitter, any one with it. A short video repeats frames.

    Raises VideoError if ``total`` or ``n`` is below 1.
    """
    if n < 1 or total < 1:
        raise VideoError(
            f"expected at least one frame to choose and one to choose from, got n={n}, total={total}"
        )
    first, last = 0, total - 1
    if jitter is not None and n == 1:
        first = int(jitter.integers(total))
    elif jitter is not None:
        # The authors' code lets the ends cross, or leave the video, when n = 2; here they do neither.
        interval = min(total // (n - 1), total - 1)
        first, last = sorted((jitter.integers(interval + 1), last - jitter.integers(interval + 1)))
    return np.linspace(first, last, n).astype(np.int64)


def middle_index(total: int) -> int:
    """Index of the middle frame, the one that is captioned: total // 2."""
    return total // 2


def clip_indices(total: int, frames: int, jitter: np.random.Generator | None = None) -> list[int]:
    """What training, embedding and packs read of a video: ``frames`` uniform frames, and the middle one."""
    return [*uniform_indices(total, frames, jitter), middle_index(total)]


def count_frames(source: Source, name: str | None = None) -> int:
    """Number of frames that the video shows (not always the number it holds); decodes it to its end.

    ``name`` stands for bytes in errors, for example the key in a shard.

    Raises VideoError as `read_frames` does.
    """
    return _decode(source, look(source, name), (), describe(source, name)).total


def read_frames(
    source: Source, indices: Indices, name: str | None = None, damaged: str = "refuse"
) -> np.ndarray:
    """Read N frames of a video: uint8 [N, H, W, 3], RGB, upright, in the order asked for; repeats allowed.

    ``indices`` count the frames that the video shows, from zero, or are a function from their number to
    indices: ``read_frames(path, lambda total: uniform_indices(total, 12))``. ``name`` stands for bytes in
    errors. ``damaged``: "accept" takes the frames of a damaged video as the decoder makes them up; pictures that it
    cannot make up do not count.

    Raises VideoError, naming the file: it is missing, empty, cut, damaged anywhere (so far as its decoder can tell),
    without frames or not a video; an index is not in it; no index is asked for.
    """
    return read(source, indices, name, damaged).frames


def read(source: Source, indices: Indices, name: str | None = None, damaged: str = "refuse") -> Reading:
    """`read_frames`, with what else is known of the video. Raises VideoError as that does."""
    if damaged not in DAMAGED:
        raise unknown("way with damaged videos", damaged, DAMAGED)
    label, seen = describe(source, name), look(source, name)
    accept = damaged == "accept"
    wanted = chosen_indices(indices, seen.frames)
    found = _decode(source, seen, wanted, label, accept)
    if callable(indices) and found.total != seen.frames:
        wanted = chosen_indices(indices, found.total)
        found = _decode(source, seen, wanted, label, accept)
    frames = np.stack(
        [found.frames[i] for i in expect_indices(wanted, found.total, label, "shows {} frames").tolist()]
    )
    return Reading(turned(frames, found.turn), found.total, found.damage)


def chosen_indices(indices: Indices, total: int) -> Sequence[int] | np.ndarray:
    return indices(total) if callable(indices) else indices


def expect_indices(indices: Sequence[int] | np.ndarray, total: int, label: str, has: str) -> np.ndarray:
    """Indices as int64 [N]; VideoError if there are none or one is outside. has: what the video has, in words."""
    indices = np.asarray(indices)
    if indices.ndim != 1 or indices.size < 1 or not np.issubdtype(indices.dtype, np.integer):
        raise VideoError(f"expected a list of at least one frame index for {label}, got {indices.tolist()}")
    outside = indices[(indices < 0) | (indices >= total)]
    if outside.size:
        raise VideoError(
            f"frame {outside[0]} is not in {label}: expected 0 to {total - 1}, it {has.format(total)}"
        )
    return indices.astype(np.int64)


class PicturesLost(VideoError):
    """Fewer pictures came out of the decoder than the container holds: by damage, or because it guessed how far it must
    reorder. A strict one (``Pictures``) does not guess."""


@dataclass
class _Decoded:
    """frames: [H, W, 3] by index, those that were wanted, as stored; total: of all frames; turn: that of all."""

    frames: dict[int, np.ndarray]
    total: int
    turn: Matrix
    damage: str


def _decode(source: Source, seen: Look, wanted, label: str, accept: bool = False) -> _Decoded:
    try:
        return _decode_once(Pictures(source, seen, label, accept), wanted)
    except PicturesLost:
        return _decode_once(Pictures(source, seen, label, accept, strict=True), wanted)


def _decode_once(pictures: Pictures, wanted) -> _Decoded:
    chosen, frames = set(np.asarray(wanted).ravel().tolist()), {}
    for index, frame in enumerate(pictures):
        if index == 0 or index in chosen:  # the first too: its size is that of all
            frames[index] = pictures.rgb(frame)
    turn = pictures.turns.common(pictures.source, pictures.seen.stream, pictures.label)
    return _Decoded(frames, pictures.total, turn, pictures.damage)


class Pictures:
    """All pictures of a video in the order of presentation, for a ``for``; those that an edit list hides do not appear.

    turns: what they say of being turned; damage: what the decoder said first, if ``accept``; total: how many came.
    strict: hold back as many pictures as the level allows where H.264 does not say how far it reorders.

    Raises VideoError if the decoder says that it hid damage (unless ``accept``), or nothing can be decoded;
    PicturesLost, even with ``accept``, if it is worth while to try again with ``strict``.
    """

    def __init__(
        self, source: Source, seen: Look, label: str, accept: bool = False, strict: bool = False
    ) -> None:
        self.source, self.seen, self.label, self.accept, self.strict = source, seen, label, accept, strict
        self.turns, self.damage, self.total = Turns(), "", 0
        self._to_rgb = ToRgb(label)

    def __iter__(self) -> Iterator[av.VideoFrame]:
        with open_container(self.source, self.label) as container:
            stream = container.streams[self.seen.stream]
            stream.codec_context.thread_count = 1
            if self.strict:
                stream.codec_context.options = {"strict": "strict"}
            for frame in _shown(container, stream, self._complain):
                self.turns.add(frame)
                self.total += 1
                with hangs.resting():
                    yield frame
        if self.total == 0:
            raise VideoError(
                f"no frame of {self.label} can be decoded: expected at least one; fetch it again"
            )
        if not self.seen.doubt and self.total < self.seen.frames:
            lost = f"{self.seen.frames - self.total} of {self.seen.frames} pictures cannot be decoded"
            if not self.strict:
                raise PicturesLost(f"{self.label}: {lost}")
            self._complain(lost)

    def rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """uint8 [H, W, 3], as stored: not turned. All have the size of the first that was asked for."""
        with hangs.watched(self.label), as_video_error(self.label):
            return self._to_rgb(frame)

    def _complain(self, what: str) -> None:
        if not self.accept:
            raise VideoError(
                f"{self.label} is damaged: {what}; fetch it again, or accept what the decoder makes up "
                '(--damaged accept; in Python damaged="accept")'
            )
        self.damage = self.damage or what


def _shown(container, stream, complain: Callable[[str], None]) -> Iterator[av.VideoFrame]:
    for packet in container.demux(stream):
        hangs.alive()
        if packet.size == 0 and packet.buffer_ptr:  # empty, and not the end: the picture before it stays
            continue
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            complain(reason(error))
            continue
        for frame in frames:
            if frame.is_corrupt:
                complain(f"a frame at {frame.time} s is incomplete")
            yield frame
