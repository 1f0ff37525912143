"""Captions as Parquet: read where no JSON lines are, and what is wrong with them in one sentence."""

import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipvip_lib.data.corpora import write_shard
from clipvip_lib.errors import ClipVipError
from clipvip_lib.streams.parquet import write_captions
from clipvip_lib.streams.shard_set import ShardSet
from clipvip_lib.streams.sidecars import find_sidecar, read_sidecar, sidecar_path, write_sidecar

CAPTIONS = {"k2": "a dog", "k1": "", "é": "ünï\u2028lines"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "00000.captions.parquet"


def test_what_is_written_is_read(path):
    assert list(read_sidecar(write_captions(path, CAPTIONS), "captions").items()) == list(CAPTIONS.items())
    assert read_sidecar(write_captions(path, {}), "captions") == {}


def test_parquet_is_taken_only_where_no_json_lines_are(path, tmp_path):
    shard = tmp_path / "00000.tar"
    assert find_sidecar(shard, "captions") == sidecar_path(shard, "captions")  # a missing one is named so
    write_captions(path, CAPTIONS)
    assert find_sidecar(shard, "captions") == find_sidecar("x/00000.tar", "captions", tmp_path) == path
    write_sidecar(sidecar_path(shard, "captions"), "captions", [("k", "lines")])
    assert read_sidecar(find_sidecar(shard, "captions"), "captions") == {"k": "lines"}


def test_a_folder_of_either_name_is_no_file_of_captions(path, tmp_path):
    shard = tmp_path / "00000.tar"
    path.mkdir()
    assert find_sidecar(shard, "captions") == sidecar_path(shard, "captions")
    path.rmdir()
    write_captions(path, CAPTIONS)
    sidecar_path(shard, "captions").mkdir()
    assert find_sidecar(shard, "captions") == path


def test_texts_are_json_lines_alone(tmp_path):
    (tmp_path / "00000.texts.parquet").write_bytes(b"PAR1")
    assert find_sidecar(tmp_path / "00000.tar", "texts") == tmp_path / "00000.texts.jsonl"


def test_other_tools_types_of_text_and_further_columns_are_taken(path):
    keys, words = pa.array(["a", "b"], pa.large_string()), pa.array(["x", "y"]).dictionary_encode()
    pq.write_table(pa.table({"score": [0.5, 0.25], "caption": words, "key": keys}), path)
    assert read_sidecar(path, "captions") == {"a": "x", "b": "y"}


def test_a_folders_name_gives_no_column(tmp_path):
    path = write_captions(tmp_path / "caption=none" / "00000.captions.parquet", CAPTIONS)
    assert read_sidecar(path, "captions") == CAPTIONS


@pytest.mark.bad_input(
    "captions as Parquet: other columns or types, or a key twice",
    says="the file, the row and what was expected",
)
@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"key": ["a"], "text": ["b"]}, "with the columns key and caption, each once, got key, text; write"),
        ({"caption": ["b"]}, "with the columns key and caption, each once, got caption; write"),
        ({"key": [7], "caption": ["b"]}, "row 1 of .*expected text as key and caption, got 7 and 'b'; write"),
        ({"key": ["a", "b"], "caption": ["x", None]}, "row 2 of .*expected text .*got 'b' and None; write"),
        ({"key": ["a"], "caption": [b"x"]}, "row 1 of .*expected text .*got 'a' and b'x'; write"),
        ({"key": ["a", "a"], "caption": ["x", "y"]}, "row 2 of .* names the key a a second time; write"),
    ],
)
def test_what_is_no_captions_is_one_sentence(path, columns, words):
    pq.write_table(pa.table(columns), path)
    with pytest.raises(ClipVipError, match=words) as raised:
        read_sidecar(path, "captions")
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.bad_input("captions as Parquet: cut", says="`expected Parquet with`")
@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_cut_file_is_one_sentence(path, keep):
    path.write_bytes(write_captions(path, CAPTIONS).read_bytes()[:keep])
    with pytest.raises(
        ClipVipError, match="cannot read captions .*00000.captions.parquet .*expected Parquet with"
    ):
        read_sidecar(path, "captions")


@pytest.mark.bad_input(
    "captions as Parquet: every byte turned, one at a time",
    says="a sentence or captions, never another error",
)
def test_damage_is_a_sentence_or_captions_but_no_other_error(path):
    whole = write_captions(path, CAPTIONS).read_bytes()
    refused = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        try:
            read_sidecar(path, "captions")
        except ClipVipError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > len(whole) // 4


def test_without_pyarrow_parquet_is_named_when_it_is_found(path, tmp_path, monkeypatch):
    write_captions(path, CAPTIONS)
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ClipVipError, match="00000.captions.parquet expected pyarrow, .*run pip install pyarrow"
    ):
        find_sidecar(tmp_path / "00000.tar", "captions")


def test_a_set_of_shards_takes_captions_from_parquet(path, tmp_path):
    (tmp_path / "shards").mkdir()
    shard = tmp_path / "shards" / "00000.tar"
    write_shard(shard, [{"__key__": key, "jpg": b"x", "txt": b"said"} for key in ("k1", "k2", "k3")])
    write_captions(path, CAPTIONS)
    found = ShardSet([shard], {"captions": tmp_path}).open(0)
    assert [each.caption for each in found] == ["", "a dog", None]
    assert "k3" in found[2].entry.error and "00000.captions.parquet; write" in found[2].entry.error
