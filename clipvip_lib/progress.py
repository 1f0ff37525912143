"""Progress with rate and remaining time that reads well in a terminal, in JupyterLab and in a log.

One callable, ``progress(done, total, note)``, is all that the science knows of it. A terminal and JupyterLab get
one line that is rewritten in place; a log (papermill, a pipe, a file) gets a plain line about every ten seconds,
because carriage returns and widgets leave such logs unreadable.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

from clipvip_lib.say import give_up, shown

#: What the science is given to tell how far it is: ``progress(done, total, note)``.
ProgressCallback = Callable[..., None]


def quiet(done: int, total: int, note: str = "") -> None:
    """Shows nothing, for callers that want no progress."""


def duration(seconds: float) -> str:
    """A length of time for people: ``7 s``, ``3 min 20 s``, ``2 h 05 min``."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def rate_text(per_second: float) -> str:
    """A rate with three figures: ``12.3/s``, or ``4.1 s each`` where one takes longer than a second."""
    if per_second <= 0:
        return "-/s"
    return f"{per_second:.3g}/s" if per_second >= 1 else f"{1 / per_second:.3g} s each"


def detect_mode(stream: TextIO) -> str:
    """``terminal``, ``jupyter`` or ``plain``: how lines can be shown on ``stream``.

    jupyter_server names the open notebook in JPY_SESSION_NAME; papermill and nbclient do not, and there
    a line that rewrites itself would be stored as one long mess.
    """
    if stream.isatty():
        return "terminal"
    if os.environ.get("JPY_SESSION_NAME") and "ipykernel" in sys.modules:
        return "jupyter"
    return "plain"


class InPlaceLine:
    """One line that is rewritten (terminal, jupyter) or printed again (plain) on each ``show``."""

    def __init__(self, stream: TextIO | None = None, mode: str | None = None):
        self.stream = stream if stream is not None else sys.stdout
        self.mode = mode or detect_mode(self.stream)
        self._shown = 0

    def show(self, text: str) -> None:
        text = shown(text)
        if self.mode == "plain":
            self._write(text + "\n")
            return
        width = shutil.get_terminal_size((100, 20)).columns if self.mode == "terminal" else 120
        text = text if len(text) < width else text[: width - 2] + "…"
        self._write("\r" + text.ljust(self._shown))
        self._shown = len(text)

    def say(self, text: str) -> None:
        """Print a line that stays; the line in place moves below it."""
        if self._shown:
            self._write("\r" + " " * self._shown + "\r")
            self._shown = 0
        self._write(shown(text) + "\n")

    def end(self) -> None:
        """Leave the line in place as it is and go to the next."""
        if self._shown:
            self._write("\n")
            self._shown = 0

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError:
            # The reader (a closed pager or pipe) is gone, or a disk is full; the work itself continues.
            give_up(self.stream)
        except ValueError:  # the stream is closed
            pass


class Progress:
    """Callable ``progress(done, total, note)`` for one loop: shows count, rate and remaining time.

    The rate is measured from the first call on, so a resumed loop that starts at 300 of 400 is not
    credited with steps that another process made. ``every``: seconds between plain lines.
    """

    def __init__(
        self,
        label: str = "",
        *,
        stream: TextIO | None = None,
        mode: str | None = None,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.label, self.every, self._clock = label, every, clock
        self._line = InPlaceLine(stream, mode)
        self._first: tuple[float, int] | None = None
        self._last_shown = float("-inf")

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now = self._clock()
        if self._first is None or done < self._first[1]:
            self._first = (now, done)
            if self._line.mode == "plain":
                self._last_shown = now  # a plain log's first line comes when there is a rate to tell
        finished = done >= total
        pause = self.every if self._line.mode == "plain" else 0.2
        if not finished and now - self._last_shown < pause:
            return
        self._last_shown = now
        self._line.show(self.text(done, total, note, now))
        if finished:
            self._line.end()
            self._first = None

    def text(self, done: int, total: int, note: str, now: float) -> str:
        """The line that is shown, for example ``train 120/400 30 %, 8.1/s, 35 s left, loss 2.31``."""
        start, first = self._first or (now, done)
        elapsed = now - start
        parts = [f"{self.label} {done}/{total} {100 * done // max(total, 1)} %".strip()]
        if elapsed > 0 and done > first:
            per_second = (done - first) / elapsed
            parts.append(rate_text(per_second))
            parts.append(
                f"took {duration(elapsed)}"
                if done >= total
                else f"{duration((total - done) / per_second)} left"
            )
        if note:
            parts.append(note)
        return ", ".join(parts)
