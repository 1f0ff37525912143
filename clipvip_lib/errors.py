"""Errors that a person reads: what was expected, what came, what to do next, in one sentence."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable

from clipvip_lib.say import shown

# What torch, Python's threads, the system and the loader of libraries say.
NO_MEMORY = (
    "not enough memory",
    "can't allocate memory",
    "out of memory",
    "Cannot allocate memory",
    "can't start new thread",
)

NO_ROOM = os.strerror(errno.ENOSPC)  # libraries that raise errors of their own have these words in them


class ClipVipError(ValueError):
    """Bad input or a state that a user can fix; its text is one sentence, shown without a traceback.

    Names and values in it come from others' data: its text shows control characters by their numbers.
    """

    def __str__(self) -> str:
        return shown(super().__str__())


def lack_of_memory(kind: str, words: str) -> bool:
    """Whether an exception of this kind, with these words, says that memory is exhausted: Python's, numpy's and
    torch's exceptions of their own, and those that have only words for it."""
    return kind.endswith("MemoryError") or any(said in words for said in NO_MEMORY)


def first_line(error: BaseException) -> str:
    """The first line that a library's error has, cut to 160 characters, or its kind if it says nothing."""
    words = str(error).strip().splitlines()
    if not words:
        return type(error).__name__
    return words[0] if len(words[0]) <= 160 else f"{words[0][:159]}…"


def unknown(kind: str, name: object, known: Iterable[str]) -> ClipVipError:
    """The error for a name that is not in a list: says the nearest one, if any, and all known ones.

    Example: ``raise unknown("attention", "proxi", ("proxy", "full"))``.
    """
    known = [str(k) for k in known]
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ClipVipError(f"unknown {kind} {str(name)!r}: expected one of {', '.join(known)}{hint}")
