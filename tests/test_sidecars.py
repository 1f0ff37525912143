"""Texts beside shards: what is written is one line for each, and comes back; what is damaged is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipvip_lib.errors import ClipVipError
from clipvip_lib.streams.sidecars import read_sidecar, write_sidecar

LINE_ENDS = "a \u2028 \u2029 \x85 \x0b \n é"


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "00000.captions.jsonl"


def test_any_text_is_one_line_and_comes_back(path):
    texts = [("k", LINE_ENDS), (LINE_ENDS, "ünï"), ("empty", "")]
    assert write_sidecar(path, "captions", texts) == 3
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [tuple(json.loads(line).values()) for line in lines] == texts
    assert "ünï" in lines[1]  # for people, who look at it or grep
    assert list(read_sidecar(path, "captions").items()) == texts


@pytest.mark.parametrize("text", ["half \ud800", f"half \ud800 {LINE_ENDS}"])
def test_half_a_character_is_refused_and_nothing_is_written(path, text):
    for row in (("k", text), (text, "a wall")):
        with pytest.raises(ClipVipError, match=r"the caption of .* holds half a character .'\\ud800'"):
            write_sidecar(path, "captions", [("a", "b"), row])
    assert list(path.parent.iterdir()) == []


@pytest.mark.bad_input("captions: a line that is none", says="`line 2 of`")
def test_a_bad_caption_line_is_named(path):
    for line in ("{", '{"key": "a"}', "[1]"):
        path.write_text('{"key": "v", "caption": "a wall"}\n' + line + "\n")
        with pytest.raises(ClipVipError, match="line 2 of"):
            read_sidecar(path, "captions")
    with pytest.raises(ClipVipError, match="cannot read captions"):
        read_sidecar(path.with_name("none.jsonl"), "captions")
