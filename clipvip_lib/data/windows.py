"""Windows of a long video: pieces of some seconds, their frames chosen as those of a cut clip would be.

The video is decoded once, in order, and only the chosen frames of the windows that are under way stay in memory, shrunk
as they come. Which frames to choose depends on how many a window has. The times of the packets tell that before any is
decoded, and each decoded frame is held against them. Where they do not agree (hidden frames, containers without times),
the times are taken from the decoder, which costs a second pass, and reading resumes with the first unfinished window.

A window begins every ``stride`` from the first frame on, as long as some frame is in no window before it. So the end of
a video is never dropped, its last window may be shorter, and a video shorter than a window is one.
"""

from __future__ import annotations

import bisect
import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np

from clipvip_lib.data.container import Look, VideoError, describe, look
from clipvip_lib.data.turns import UPRIGHT, Matrix, turned
from clipvip_lib.data.video import Pictures, PicturesLost, uniform_indices
from clipvip_lib.errors import ClipVipError
from clipvip_lib.say import exact_seconds

MOST = 100_000  # windows of a video; 139 hours at a stride of 5 s
SHORTEST = Fraction(1, 10)  # second: less would be a frame or none
MARK = "#t="  # ID#t=15: where in the video a window begins, as a URL says it (W3C's media fragments)
Shrink = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Windows:
    """length, stride: seconds, exact to the millisecond. Raises ClipVipError for windows that leave frames out."""

    length: Fraction
    stride: Fraction

    def __post_init__(self) -> None:
        for name, value in (("windows", self.length), ("a stride", self.stride)):
            if value < SHORTEST:
                raise ClipVipError(
                    f"expected {name} of at least {float(SHORTEST):g} s, got {float(value):g}; 10 is usual"
                )
        if self.stride > self.length:
            raise ClipVipError(
                f"expected a stride of at most the window's {float(self.length):g} s, got {float(self.stride):g}: what "
                "lies between two windows would never be found; make it smaller"
            )

    def start(self, number: int) -> Fraction:
        """Where a window begins, in seconds from the first frame."""
        return number * self.stride

    def id(self, video: str, number: int) -> str:
        """A window's id, ``VIDEO#t=15``."""
        return f"{video}{MARK}{exact_seconds(float(self.start(number)))}"


def expect_ids(videos: Iterable[str]) -> None:
    """Raises ClipVipError for the id of a video that could be mistaken for a window's."""
    if odd := next((video for video in videos if MARK in video), None):
        raise ClipVipError(
            f"the id {odd!r} has {MARK} in it: expected that in the ids of windows only; rename the file or its folder"
        )


@dataclass(frozen=True)
class Window:
    """number: from zero; start, end: seconds from the first frame, the end to the millisecond and at most that of the
    video; frames: uint8 [N, ...] as shrunk; total: frames in it; damage: as in ``video.Reading``, of all that was
    decoded so far; last: whether it is the video's last."""

    number: int
    start: float
    end: float
    frames: np.ndarray
    total: int
    damage: str
    last: bool


class _OtherTimes(VideoError):
    """A decoded frame is not shown when it was thought to be. Of the decoder's own times, it is an error."""


def read_windows(
    source: str | Path | bytes,
    windows: Windows | None,
    frames: int,
    shrink: Shrink,
    name: str | None = None,
    damaged: str = "refuse",
    wanted: Callable[[int], bool] = lambda number: True,
) -> Iterator[Window]:
    """The windows of a video in order, each with N uniform frames, as ``video.read_frames`` of the cut clip gives them.

    Args:
        windows: None takes the whole video as one.
        shrink: makes uint8 [1, H, W, 3], upright, small, because one frame after the other is kept.
        wanted: by its number, whether a window is to be read; others are passed over.

    Raises VideoError as ``video.read_frames``, and for a video whose frames have no times. It may come after windows.
    """
    label, seen = describe(source, name), look(source, name)
    done = 0
    for strict in (False, True):
        job = _Job(source, seen, label, windows, frames, shrink, damaged == "accept", wanted, strict)
        with contextlib.suppress(PicturesLost):
            for window in job.read_all(done):
                yield window
                done = window.number + 1
            return


def _grow(times: Sequence[int | None]) -> bool:
    return len(times) > 0 and None not in times and all(one <= two for one, two in pairwise(times))


def _to_the_end(times: Sequence[int | None]) -> tuple[int | None, ...]:
    """Times of decoding, which grow where those of showing are wrong (B-frames in AVI, which knows no others). The last
    pictures, which a decoder hands over at the end, have none, and follow at the same pace."""
    found = list(times)
    for index in range(2, len(found)):
        if found[index] is None and None not in found[index - 2 : index]:
            found[index] = 2 * found[index - 1] - found[index - 2]
    return tuple(found)


@dataclass(frozen=True)
class _Planned:
    number: int
    start: Fraction
    end: Fraction
    chosen: tuple[int, ...]
    until: int  # the first frame behind it
    total: int


def lay_out(times: Sequence[Fraction], windows: Windows | None, frames: int) -> list[_Planned]:
    """What each window shows, by the times of all frames, in seconds from the first one and sorted."""
    gap = times[-1] / (len(times) - 1) if len(times) > 1 else Fraction(0)
    finish = times[-1] + gap
    windows = windows or Windows(finish + 1, finish + 1)
    planned, covered = [], 0
    while covered < len(times):
        number = len(planned)
        start = windows.start(number)
        low = bisect.bisect_left(times, start)
        high = bisect.bisect_left(times, start + windows.length)
        # A picture that stands still is shown in every window up to the next one.
        low = low if low < high else max(low - 1, 0)
        high = max(high, low + 1)
        chosen = tuple((low + uniform_indices(high - low, frames)).tolist())
        end = min(start + windows.length, finish)
        planned.append(_Planned(number, start, end, chosen, high, high - low))
        covered = high
    return planned


@dataclass(frozen=True)
class _Job:
    """What `read_windows` was asked for."""

    source: str | Path | bytes
    seen: Look
    label: str
    windows: Windows | None
    frames: int
    shrink: Shrink
    accept: bool
    wanted: Callable[[int], bool]
    strict: bool

    def read_all(self, done: int) -> Iterator[Window]:
        """The windows from number ``done`` on, by the packets' times if they are right, else by the decoder's."""
        try:
            for window in self.read(self.seen.times, self.seen.times, done):
                yield window
                done = window.number + 1
            return
        except _OtherTimes:
            told = [(frame.pts, frame.dts) for frame in self._pictures()]
        shown, decoded = zip(*told, strict=True)
        yield from self.read(shown, shown if _grow(shown) else _to_the_end(decoded), done)

    def read(self, told: Sequence[int | None], times: Sequence[int | None], done: int) -> Iterator[Window]:
        """The windows from number ``done`` on, by the times of all frames; _OtherTimes if the decoder does not tell
        those that are ``told``."""
        todo = [each for each in self._planned(times) if each.number >= done]
        last = todo[-1].number if todo else -1
        todo = deque(each for each in todo if self.wanted(each.number))
        needed = {index for each in todo for index in each.chosen}
        kept: dict[int, np.ndarray] = {}
        pictures, turn = self._pictures(), UPRIGHT

        def finished(shown: int) -> Iterator[Window]:
            while todo and todo[0].until <= shown:
                each = todo.popleft()
                found = np.stack([kept[index] for index in each.chosen])
                for index in [index for index in kept if not todo or index < todo[0].chosen[0]]:
                    del kept[index]
                at, end, is_last = float(each.start), round(float(each.end), 3), each.number == last
                yield Window(each.number, at, end, found, each.total, pictures.damage, is_last)

        with contextlib.closing(iter(pictures)) as shown:
            for index, frame in enumerate(shown):
                if index >= len(told) or frame.pts != told[index]:
                    raise _OtherTimes(self._odd)
                yield from finished(index)  # now it is known that no further frame belongs to them
                # The first is converted too: its size is that of all.
                rgb = pictures.rgb(frame) if index == 0 or index in needed else None
                if index == 0:
                    turn = self._turn(pictures)
                if index in needed:
                    kept[index] = self.shrink(turned(rgb[None], turn))[0]
        if pictures.total < len(times) or self._turn(pictures) != turn:
            raise _OtherTimes(self._odd)
        yield from finished(len(times))

    def _planned(self, times: Sequence[int | None]) -> list[_Planned]:
        if not _grow(times):
            raise _OtherTimes(self._odd)
        since = [(time - times[0]) * self.seen.tick for time in times]
        stride = since[-1] + 1 if self.windows is None else self.windows.stride
        if since[-1] / stride > MOST:
            raise VideoError(
                f"{self.label} would have more than {MOST} windows: expected fewer, its frames last until "
                f"{float(since[-1]):.0f} s; take longer strides, or write it again with ffmpeg if that is wrong"
            )
        return lay_out(since, self.windows, self.frames)

    def _pictures(self) -> Pictures:
        return Pictures(self.source, self.seen, self.label, self.accept, self.strict)

    def _turn(self, pictures: Pictures) -> Matrix:
        return pictures.turns.common(self.source, self.seen.stream, self.label)

    @property
    def _odd(self) -> str:
        return (
            f"{self.label} does not say when its frames are shown: expected times that grow; write it again with "
            "ffmpeg as .mp4 or .mkv"
        )
