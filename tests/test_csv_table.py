"""One strict reader for all tables: a row is right, or the line is named."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipvip_lib.data.annotations import msrvtt, reading
from clipvip_lib.data.csv_table import CsvTable
from clipvip_lib.errors import ClipVipError
from clipvip_lib.features.text_files import read_texts as read_queries
from clipvip_lib.streams.webvid import read_texts_csv

HEADERS = {"webvid": "videoid,contentUrl,duration,page_dir,name", "msrvtt": "key,vid_key,video_id,sentence"}
OPEN = '"a man says hello'


def rows(text: str) -> list[tuple[int, dict]]:
    return list(CsvTable(io.StringIO(text, newline=""), "t.csv"))


def write(folder, kind, texts):
    path = folder / {"webvid": "w.csv", "msrvtt": "MSRVTT_JSFUSION_test.csv"}[kind]
    front = {"webvid": "{0},u,d,p,", "msrvtt": "ret{0},msr{0},video{0},"}[kind]
    lines = [front.format(number) + text for number, text in enumerate(texts)]
    path.write_text("\n".join([HEADERS[kind], *lines, ""]))
    return path


def read(path, kind):
    if kind == "webvid":
        return list(read_texts_csv(path).values())
    return [record.sentences[0] for record in msrvtt.read(path.parent, "test", reading.refuse)]


# What follows the open mark decides what a lenient reader makes of it.
AFTER = {
    "nothing": ["a cat", "a dog"],
    "marks in the middle of a text": ["a cat", 'a "b" c', "the end"],
    "a whole text in marks": ["a cat", '"a, b"', "the end"],
    "a mark at the end of a later text": ["a cat", 'he says "no"', "the end"],
    "a mark that closes": ["a cat", 'a dog"', "the end"],
}


@pytest.mark.bad_input(
    "table: a quotation mark that is not closed",
    says="`is not CSV from line 3 on`, `a quote may not be closed`",
)
@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.parametrize("after", AFTER)
def test_a_mark_that_is_not_closed_is_named_with_its_line(tmp_path, kind, after):
    path = write(tmp_path, kind, ["first", OPEN, *AFTER[after]])
    with pytest.raises(ClipVipError, match=r"csv is not CSV from line 3 on .*a quote may not be closed"):
        read(path, kind)


@pytest.mark.bad_input(
    "table of queries: a quotation mark that is not closed", says="`is not CSV from line 3 on`"
)
@pytest.mark.parametrize("after", AFTER)
def test_queries_are_read_as_strictly(tmp_path, after):
    texts = ["first", OPEN, *AFTER[after]]
    (tmp_path / "q.csv").write_text("id,text\n" + "".join(f"{n},{text}\n" for n, text in enumerate(texts)))
    with pytest.raises(ClipVipError, match=r"q\.csv is not CSV from line 3 on"):
        read_queries(tmp_path / "q.csv")


@pytest.mark.parametrize("kind", HEADERS)
def test_marks_as_writers_of_csv_set_them_are_read(tmp_path, kind):
    texts = ['a "b" c', '"a, ""b"" c"', "it's", '"over\ntwo lines"', '"one, two\nthree"']
    found = read(write(tmp_path, kind, texts), kind)
    assert found == ['a "b" c', 'a, "b" c', "it's", "over\ntwo lines", "one, two\nthree"]


@pytest.mark.bad_input("table: a column that stands twice", says="`has the column 'text' twice`")
def test_a_column_that_stands_twice_is_refused():
    with pytest.raises(ClipVipError, match="t.csv has the column 'text' twice"):
        rows("id,text,text\n1,a,b\n")


LETTERS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\n\0"), max_size=8)


@given(st.lists(st.tuples(LETTERS, LETTERS, LETTERS), max_size=5))
def test_what_the_writer_writes_is_read_back(table):
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerows([("a", "b", "c"), *table])
    assert [tuple(row.values()) for _, row in rows(file.getvalue())] == table


@pytest.mark.bad_input("table: random text", says="rows, or a sentence with the line")
@given(st.text(st.sampled_from('ab,"\n\r\0é'), max_size=40))
def test_any_text_is_rows_or_a_sentence(text):
    """And no row that is read holds another one."""
    try:
        found = rows("a,b\n" + text)
    except ClipVipError as error:
        assert "line" in str(error)
    else:
        inner = [
            line
            for _, row in found
            for v in row.values()
            if isinstance(v, str)
            for line in v.splitlines()[1:]
        ]
        assert not any("," in line for line in inner)
