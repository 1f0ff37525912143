"""How numbers are said in a table; how a table becomes HTML is tested with the pages."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from page_tables import require_same_numbers

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


def test_truth_is_said_in_words_whatever_its_type():
    assert [tables.cell_text(value, 1) for value in (True, np.True_, np.False_)] == ["yes", "yes", "no"]


def test_a_float_that_rounds_to_zero_has_no_sign():
    assert tables.cell_text(-0.04, 1) == "0.0" and tables.cell_text(-0.06, 1) == "−0.1"


FRAME = pd.DataFrame(
    {
        "arm": ["a", "b", "c"],
        "benchmark": ["one", "one", "one"],
        "text number": ["+1.25", "−3", "–"],
        "interval": ["−1.0 to +2.0", "0.0 to 1.0", "–"],
        "verdict": ["open"] * 3,
        "paper": ["NOT VERIFIED", "1.5", "NOT VERIFIED"],
    }
)


def test_what_is_the_same_in_every_row_is_said_once_and_a_verdict_always():
    made = tables.table_html(FRAME, "Three arms")
    assert made.count("one") == 1 and '<span data-column="1">one</span>' in made
    assert made.count('<span data-verdict="open">open</span>') == 3
    assert "<details" not in made
    two = tables.table_html(FRAME[:2], "Two arms")
    assert two.count("<td>one</td>") == 2


def test_what_was_not_verified_is_one_footnote():
    made = tables.table_html(FRAME, "Three arms")
    assert (
        "NOT VERIFIED" not in made and made.count("could not be verified") == 1 and made.count("–<sup>†") == 2
    )


def test_numbers_in_words_stand_by_their_points():
    made = tables.table_html(FRAME, "Three arms")
    assert '<td class="number">+1.25</td>' in made and '<td class="number">−3<span class="pad"' in made
    assert made.count('<td class="range">') == 3


def test_a_short_name_at_the_start_of_a_row_is_not_broken():
    names = pd.DataFrame({"loss": ["V-S + V-C + F-C", "the loss that was released"], "terms": [6, 6]})
    made = tables.table_html(names, "Losses")
    assert '<td class="short">V-S + V-C + F-C</td>' in made and '<td class="long">the loss that' in made
    assert '<th scope="row" class="short">V-S + V-C + F-C</th>' in tables.table_html(
        names.set_index("loss"), "L"
    )


def test_a_long_table_is_folded_under_a_sentence():
    long = pd.DataFrame({"x": range(tables.FOLDS_FROM), "y": range(tables.FOLDS_FROM)})
    made = tables.table_html(long, "Numbers")
    assert made.startswith('<details class="fold"><summary>Numbers: 13 rows</summary>')
    assert not tables.table_html(long[1:], "Numbers").startswith("<details")
    assert not tables.table_html(long.assign(verdict="open"), "Numbers").startswith("<details")


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["x", "NOT VERIFIED"])), min_size=1, max_size=5)
)
def test_every_cell_can_be_read_back_wherever_it_stands(cells):
    frame = pd.DataFrame(cells, columns=["first", "second"]).assign(third=range(len(cells)))
    kept = tables.table_json(frame, "read back")
    require_same_numbers(tables.table_html(frame, "read back"), {"tables": {"read back": kept}})
