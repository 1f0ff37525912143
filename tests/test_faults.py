"""docs/faults.md is what the tests say, in words that they hold."""

from collections import Counter

import faults
import pytest

ROWS = faults.read()
SMALL = """
import pytest
from other import MORE
CASES = {"one": "lost 3 of 9", "two": "cut"}

@pytest.mark.bad_input("a file", says="`lost 3 of`")
@pytest.mark.parametrize("name", [*sorted(CASES), *MORE])
@pytest.mark.parametrize("way", ("here", "there"))
def test_it(name, way):
    assert CASES[name]

@pytest.mark.fault("b, a disk", sees="`is full.`", keeps="`lost 3 of`")
def test_other():
    assert r"is full\\."
"""


@pytest.fixture
def small(tmp_path):
    (tmp_path / "other.py").write_text('MORE = ["three"]')

    def read(text: str) -> list[faults.Row]:
        (tmp_path / "test_small.py").write_text(text)
        return faults.read(tmp_path)

    return read


def test_the_page_is_what_the_tests_say():
    assert faults.PAGE.read_text(encoding="utf-8") == faults.page(ROWS), "run make faults"


def test_quoted_words_are_those_of_the_test():
    assert {f"{row.file}::{row.test}": row.missing for row in ROWS if row.missing} == {}


def test_there_are_enough_and_none_twice():
    assert Counter(row.what for row in ROWS).most_common(1)[0][1] == 1
    kinds = Counter(row.kind for row in ROWS)
    assert kinds["fault"] >= 25 and kinds["bad_input"] >= 60


def test_rows_are_tests_that_run_with_as_many_cases(request):
    """Compared with what pytest collected, as far as it was asked for whole files."""
    options = request.config.option
    found = Counter((item.path.name, item.originalname) for item in request.session.items)
    files = {name for name, _ in found}
    rows = {(row.file, row.test): row.cases for row in ROWS if row.file in files}
    some = options.keyword or options.markexpr or any("::" in each for each in request.config.args)
    if some or not rows:
        pytest.skip("no whole file with marks was asked for")
    assert {place: found[place] for place in rows} == rows


def test_cases_and_quoted_words_are_found_and_missed(small):
    first, second = small(SMALL)
    assert (first.kind, first.cases, first.missing) == ("bad_input", 6, [])
    assert (second.kind, second.cases, second.missing) == ("fault", 1, ["lost 3 of"])
    assert "| b, a disk | `is full.` | `lost 3 of` | test_small.py::other |" in faults.page([first, second])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("keeps=", "kept=", "test_other: fault expected one text and"),
        ("sorted(CASES)", "SETS", "cannot count SETS; state cases="),
    ],
)
def test_a_mark_that_cannot_be_read_is_refused(small, old, new, words):
    with pytest.raises(ValueError, match=words):
        small(SMALL.replace(old, new))
