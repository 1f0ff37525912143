"""What people are told: one line on a terminal or in a log, whatever the data hold.

File names, ids, captions and texts come from others. A newline in one of them would forge a line of results, an escape
sequence would move the cursor or recolour the screen, and marks of writing direction would turn words round. So
characters that print nothing are shown by their numbers (``\\u001b``), here and in every error's text (errors.py).
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from typing import TextIO

# C0 and C1 controls, Unicode's line ends, overrides and isolates of direction, halves of characters
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_MINUS = re.compile(r"(?<![\w.)\]}-])-(?=\.?\d)")
_NO_ZERO_HAS_A_SIGN = re.compile(r"(?<![\w.,)])[+−]0(\.0+)?(?![\d.,]*\d)")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def shown(text: str) -> str:
    """The text on one line, without anything that a terminal obeys. What is JSON stays the same JSON."""
    return _UNSEEN.sub(lambda found: _SHORT.get(found[0]) or f"\\u{ord(found[0]):04x}", text)


def with_minus(text: str) -> str:
    """A text with the minus sign that people write before its negative numbers, and no sign before zero."""
    return _NO_ZERO_HAS_A_SIGN.sub(lambda zero: zero[0][1:], _MINUS.sub("−", text))


def counted(number: int, what: str) -> str:
    """How many there are of something: 1 video, 2,000 videos."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def exact_seconds(value: float) -> str:
    """A place in a video, exact to the millisecond: 15, 2.5, 12345.675."""
    return f"{value:.3f}".rstrip("0").rstrip(".")


def is_unicode(text: str) -> bool:
    """Whether a text can be written: a lone surrogate (half a character, or a file name's odd byte) cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class CannotSay(Exception):
    """Standard output cannot be written; the text says why. cli.py makes a sentence of it."""


def say(text: str, stream: TextIO | None = None) -> None:
    """Print one line, ``shown``. On standard error nothing is raised: where it has no room, nobody can be told.

    Raises CannotSay if another stream cannot be written (a full disk), SystemExit if its reader is gone.
    """
    stream = sys.stdout if stream is None else stream
    try:
        stream.write(shown(text) + "\n")
        stream.flush()
    except OSError as error:
        give_up(stream)
        if stream is sys.stderr:
            return
        if isinstance(error, BrokenPipeError):
            raise SystemExit(128 + signal.SIGPIPE) from error
        raise CannotSay(error.strerror or str(error)) from error


def give_up(stream: TextIO) -> None:
    """What a stream still holds would be tried again at the end of the process, and end it with a traceback."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), stream.fileno())
