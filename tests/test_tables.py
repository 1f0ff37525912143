"""How numbers are said in a table; how a table becomes HTML is tested with the pages."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipvip_lib.workshop import tables


@pytest.mark.parametrize(
    ("seeds", "text"),
    [
        ([0, 1, 2, 3, 4], "0–4"),
        ([5, 6], "5, 6"),
        ([9, 3, 7, 8, 4], "3, 4, 7–9"),
        ([100], "100"),
        ([], ""),
    ],
)
def test_seeds_are_said_in_short(seeds, text):
    assert tables.in_short(seeds) == text


@given(st.sets(st.integers(0, 60)))
def test_every_number_is_said_once_and_as_shortly_as_can_be(numbers):
    parts = [list(map(int, part.split("-"))) for part in tables.in_short(numbers, "{:02d}", "-", " ").split()]
    assert all(len(part) == 1 or part[1] > part[0] + 1 for part in parts)
    runs = [list(range(part[0], part[-1] + 1)) for part in parts]
    assert [number for run in runs for number in run] == sorted(numbers)
    for before, after in itertools.pairwise(runs):
        if len(before) > 1 or len(after) > 1:  # else two numbers in a row stand by themselves
            assert after[0] > before[-1] + 1
