"""Texts with ids, as people and benchmarks write them."""

from __future__ import annotations

import pytest

from clipvip_lib.errors import ClipVipError
from clipvip_lib.features.text_files import read_texts

GOOD = {
    "lines.txt": ("a dog\nein Hund \n", [("1", "a dog"), ("2", "ein Hund")]),
    "windows.txt": ("\ufeffa dog\r\na cat\r\n", [("1", "a dog"), ("2", "a cat")]),
    "no end.txt": ("a dog\na\u2028cat", [("1", "a dog"), ("2", "a\u2028cat")]),
    "rows.jsonl": (
        '{"id": "x", "text": "a dog"}\n{"caption": "a, cat"}\n',
        [("x", "a dog"), ("2", "a, cat")],
    ),
    "plain.csv": ('id,text\n7,a dog\n8,"a, ""cat"""\n', [("7", "a dog"), ("8", 'a, "cat"')]),
    "msrvtt.csv": (
        "key,vid_key,video_id,sentence\nret0,msr9770,video9770,a man fixes it\n",
        [("video9770", "a man fixes it")],
    ),
    "lines in a field.csv": ('text\r\n"a dog\nruns"\r\na cat\r\n', [("3", "a dog\nruns"), ("4", "a cat")]),
}


@pytest.mark.parametrize("name", GOOD)
def test_texts_are_read(tmp_path, name):
    content, expected = GOOD[name]
    (tmp_path / name).write_bytes(content.encode())
    assert read_texts(tmp_path / name) == expected


@pytest.mark.bad_input(
    "texts: empty, not UTF-8, not JSON, not CSV, too deep or too long", says="the file and the line"
)
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", "holds no text"),
        ("a.txt", b"a\n\nb\n", "line 2 of .*: expected a text, got ''"),
        ("a.txt", b"caf\xe9", "is not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text"\n', "line 2 of .* is not JSON"),
        ("a.jsonl", b'["a"]\n', "line 1 of .*: expected an object"),
        ("a.jsonl", b'{"id": 3}\n', "line 1 of .*: expected a text, got 'None'"),
        ("a.jsonl", b'{"text": 3}\n', "line 1 of .*: expected a text, got '3'"),
        ("a.csv", b"a dog\na cat\n", "expected a first line with the columns id and text, got a dog"),
        ("a.csv", b"id,text\n1,a dog, a cat\n", "line 2 of .*' a cat'.*stands in quotes"),
        ("a.csv", b"id,text\n1\n", "line 2 of .*: expected a text, got 'None'"),
        ("a.csv", b"id,text\n", "holds no text"),
        (
            "a.csv",
            b'id,text\n1,"a dog\n2,a cat\n3,a man\n',
            "is not CSV from line 2 on .*quote may not be closed",
        ),
        ("a.csv", b'id,text\n1,"a dog\n2,"a cat"\n', "is not CSV from line 2 on"),
        ("a.csv", b"id,text\n1," + b"a" * 131_073, "is not CSV from line 2 on .*field limit"),
        ("a.csv", b"a" * 131_073, "is not CSV from line 1 on"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "a", "b": ' + b"[" * 200_000, "line 2 of .*brackets too deep"),
        ("a.jsonl", b'{"text": "a", "b": ' + b"9" * 5000 + b"}", "line 1 of .*a number too long"),
        ("a.jsonl", b'{"text": "a \\ud800"}', "line 1 of .*half a character"),
        ("a.jsonl", b'{"id": "\\udcff", "text": "a"}', "line 1 of .*half a character"),
    ],
)
def test_what_is_no_text_is_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ClipVipError, match=words):
        read_texts(tmp_path / name)
    with pytest.raises(ClipVipError, match="cannot read texts"):
        read_texts(tmp_path / "absent")
