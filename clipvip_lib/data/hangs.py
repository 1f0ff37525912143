"""A decoder that hangs, or a disk that does not answer, ends its process with a sentence.

A thread cannot be taken out of a call that does not return: neither an exception nor the end of the interpreter
reaches it. So a thread of its own looks after those that decode, and ends the process. Written files are whole at any
moment. What counts is the time without a picture, not the time of a video, which may last for hours.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator

from clipvip_lib.data import crashes
from clipvip_lib.say import say

STUCK_SECONDS = 300.0  # a decoder that gives nothing for so long hangs
LOOKS = 100  # in this time: a process that was stopped (Ctrl-Z) has looked at nothing, and is not taken for hanging


class _Reader:
    """A thread that reads a video: its name, and how many signs of life it gave."""

    def __init__(self, label: str) -> None:
        self.label, self.signs = label, 0


_here = threading.local()
_readers: set[_Reader] = set()
_watcher: threading.Thread | None = None
_lock = threading.Lock()


@contextlib.contextmanager
def watched(label: str) -> Iterator[None]:
    """In the body this thread reads a video; it must call ``alive`` within STUCK_SECONDS each time."""
    global _watcher
    if getattr(_here, "reader", None):
        yield  # within another look at the same video
        return
    reader = _Reader(label)
    with _lock:
        if _watcher is None or not _watcher.is_alive():  # a fork has no thread of its parent's
            _watcher = threading.Thread(target=_watch, name="hangs", daemon=True)
            _watcher.start()
    _enter(reader)
    try:
        yield
    finally:
        _leave(reader)


@contextlib.contextmanager
def resting() -> Iterator[None]:
    """Around the ``yield`` of a generator that reads: in the body nobody waits for the decoder. Whoever asks for more
    may take hours, read another video in between, or be another thread."""
    reader = getattr(_here, "reader", None)
    if reader is None:
        yield
        return
    _leave(reader)
    try:
        yield
    finally:
        reader.signs += 1
        _enter(reader)


def _enter(reader: _Reader) -> None:
    if (
        getattr(_here, "reader", None) is None
    ):  # else this thread reads another video, and is watched for that
        _here.reader = reader
        crashes.note(reader.label)
        with _lock:
            _readers.add(reader)


def _leave(reader: _Reader) -> None:
    if getattr(_here, "reader", None) is reader:
        _here.reader = None
        crashes.note(None)
        with _lock:
            _readers.discard(reader)


def alive() -> None:
    """A sign of life of the video that this thread reads, if it is watched."""
    if reader := getattr(_here, "reader", None):
        reader.signs += 1


def _watch() -> None:
    seen: dict[_Reader, tuple[int, int]] = {}  # signs, and looks since they changed
    while True:
        time.sleep(STUCK_SECONDS / LOOKS)
        with _lock:
            reading = set(_readers)
        seen = {reader: _looked(reader, *seen.get(reader, (-1, 0))) for reader in reading}
        for reader, (_, looks) in seen.items():
            if looks >= LOOKS:
                say(
                    f"clipvip: nothing came of {reader.label} for {STUCK_SECONDS:.0f} seconds: expected a picture, its "
                    "decoder hangs or its disk does not answer; take it out and run the same command, what was done is "
                    "kept",
                    sys.stderr,
                )
                os._exit(2)


def _looked(reader: _Reader, signs: int, looks: int) -> tuple[int, int]:
    return (signs, looks + 1) if reader.signs == signs else (reader.signs, 0)
