"""Shard patterns give their names as braceexpand does, or are refused before the first one is made."""

import time

import braceexpand
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipvip_lib.data.braces import MOST_NAMES, _sequence, names_of
from clipvip_lib.data.clips import list_clips
from clipvip_lib.data.shards import expand
from clipvip_lib.errors import ClipVipError

PARTS = st.sampled_from(
    [
        "a",
        "{",
        "}",
        ",",
        "..",
        "1",
        "09",
        "{a,b}",
        "{1..3}",
        "{03..1}",
        "{1..9..2}",
        "{b..d}",
        "{Y..b}",
        "{h..a..3}",
        "{a}",
        "\\",
        "-2",
    ]
)
ENDLESS = (
    "{00000..99999999999}.tar",
    "{0..99999999999999999999999}.tar",
    "{-999999999..999999999}.tar",
    "{0..9999999}.tar",
    "{0..9999}/{0..9999}.tar",
    "{a,b}" * 40 + ".tar",
    "{a..z}{A..Z}{z..a}{a..z}{a..z..2}.tar",
    "{{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{0..9999},x}.tar",
    "{0.." + "9" * 5000 + "}.tar",
)


@given(st.lists(PARTS, max_size=7).map("".join))
def test_names_are_those_of_braceexpand_and_are_counted(pattern):
    try:
        expected = list(braceexpand.braceexpand(pattern))
    except braceexpand.UnbalancedBracesError:
        with pytest.raises(ClipVipError, match="closing brace"):
            names_of(pattern)
        return
    assert names_of(pattern) == expected
    assert _sequence(pattern, 0, inside=False)[0] >= len(expected)


@pytest.mark.bad_input(
    "shard pattern: more than a million names, up to 5,000 digits",
    says="`shards or more: expected at most 1,000,000`, within 5 seconds",
)
@pytest.mark.parametrize("pattern", ENDLESS)
@pytest.mark.parametrize("ask", (expand, lambda pattern: list_clips([pattern])))
def test_a_pattern_without_end_is_refused_at_once(pattern, ask):
    start = time.monotonic()
    with pytest.raises(ClipVipError, match=r"names [\d,]+ shards or more: expected at most 1,000,000"):
        ask(pattern)
    assert time.monotonic() - start < 5


def test_two_corpora_in_one_pattern_are_a_sum_and_not_a_product():
    assert len(names_of("{a/{0000..9999},b/{0000..9999}}.tar")) == 20_000
    assert len(names_of(f"{{1..{MOST_NAMES}}}")) == MOST_NAMES


@pytest.mark.bad_input("shard pattern: 100,000 open braces", says="`closing brace`")
def test_braces_in_braces_without_end_are_a_sentence():
    with pytest.raises(ClipVipError, match="closing brace"):
        names_of("{" * 100_000)
