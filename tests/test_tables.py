"""How numbers are said in a table; how a table becomes HTML is tested with the pages."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipvip_lib.study import tables


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
    assert tables.seeds_text(seeds) == text


@given(st.sets(st.integers(0, 60)))
def test_runs_hold_every_number_once_and_are_as_long_as_they_can_be(numbers):
    runs = tables.in_a_row(numbers)
    assert [number for run in runs for number in run] == sorted(numbers)
    assert all(run == list(range(run[0], run[0] + len(run))) for run in runs)
    assert all(after[0] > before[-1] + 1 for before, after in itertools.pairwise(runs))
