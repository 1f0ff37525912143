"""Shard patterns: ``{00000..00099}`` and ``{a,b}`` to names, counted before the first one is made."""

from __future__ import annotations

import re

import braceexpand

from clipvip_lib.errors import ClipVipError

MOST_NAMES = 1_000_000  # shards of a corpus: HD-VILA-100M has some ten thousand
_RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.(-?\d{1,18}))?")
_LETTERS = re.compile(r"([A-Za-z])\.\.([A-Za-z])(?:\.\.-?(\d{1,18}))?")
_ENDLESS = re.compile(r"\d{19}")


def names_of(pattern: str) -> list[str]:
    """The names that a pattern's braces give, in their order.

    Raises ClipVipError for braces that are not closed, and for more than MOST_NAMES names.
    """
    try:
        count = _sequence(pattern, 0, inside=False)[0]
        if count > MOST_NAMES or any(
            _ENDLESS.search(part) for part in re.findall(r"\{[^{}]*\.\.[^{}]*\}", pattern)
        ):
            raise ClipVipError(
                f"the shard pattern {pattern[:200]!r} names {count:,} shards or more: expected at most {MOST_NAMES:,}; "
                "correct it, or name fewer"
            )
        return list(braceexpand.braceexpand(pattern))
    except (braceexpand.UnbalancedBracesError, RecursionError) as error:
        raise ClipVipError(
            f"shard pattern {pattern[:200]!r}: expected a closing brace for each opening one, as in {{000..099}}.tar"
        ) from error


def _sequence(text: str, at: int, inside: bool) -> tuple[int, int]:
    """(names of what stands from ``at`` on, its end); inside braces it ends at a comma or the closing brace."""
    count = 1
    while at < len(text) and not (inside and text[at] in ",}"):
        if text[at] == "{":
            names, at = _group(text, at + 1)
            count *= names
        else:
            at += 2 if text[at] == "\\" else 1
    return count, at


def _group(text: str, start: int) -> tuple[int, int]:
    """(names of a group in braces, the place behind it): a sum over its alternatives, or a range's length."""
    total, at = _sequence(text, start, inside=True)
    while at < len(text) and text[at] == ",":
        count, at = _sequence(text, at + 1, inside=True)
        total += count
    if found := _RANGE.fullmatch(text, start, at):
        first, last, step = (int(part or 1) for part in found.groups())
        total = abs(last - first) // max(1, abs(step)) + 1
    elif found := _LETTERS.fullmatch(text, start, at):
        first, last = map(braceexpand.alphabet.index, found.groups()[:2])
        total = abs(last - first) // max(1, int(found[3] or 1)) + 1
    return total, at + 1
