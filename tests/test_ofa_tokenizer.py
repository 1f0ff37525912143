"""OFA's tokenizer: the authors' ids where their files are at hand, and the properties of a trained one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ofa_cases import FOLDER

from clipvip_lib.errors import ClipVipError
from clipvip_lib.models.ofa import PROMPT
from clipvip_lib.models.ofa_tokenizer import OFATokenizer

BPE = os.environ.get("CLIPVIP_OFA_BPE")
TEXTS = [f" a {colour} {shape} on grass" for colour in ("red", "blue") for shape in ("circle", "star")]


@pytest.fixture(scope="module")
def tokenizer() -> OFATokenizer:
    return OFATokenizer.train([PROMPT, *TEXTS], 320)


@pytest.mark.skipif(not BPE, reason="CLIPVIP_OFA_BPE names no folder with vocab.json and merges.txt")
def test_released_tokenizer_gives_the_authors_ids():
    golden = json.loads((FOLDER / "tokenizer.json").read_text())
    tokenizer = OFATokenizer.from_files(Path(BPE) / "vocab.json", Path(BPE) / "merges.txt")
    assert tokenizer.vocab_size == golden["len"]
    for case in golden["cases"]:
        assert tokenizer.encode(case["text"]) == case["ids"], case["text"]
        assert tokenizer.decode(case["ids"]) == case["decode_skip_special"]
        assert tokenizer.decode(case["ids"], skip_special_tokens=False) == case["decode_raw"]
    texts = [case["text"] for case in golden["cases"][: len(golden["batch_padded"])]]
    assert tokenizer(texts).tolist() == golden["batch_padded"]
    assert tokenizer.decode([golden["code_0"]]) == "<code_0>"
    assert tokenizer.decode([golden["bin_0"]]) == "<bin_0>"


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=40))
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    if not any(special in text for special in ("<s>", "<pad>", "</s>", "<unk>")):
        assert tokenizer.decode(ids) == text
        assert 3 not in ids
    assert ids[0] == 0
    assert ids[-1] == 2
    assert max(ids) < tokenizer.vocab_size


def test_frequent_words_become_one_token(tokenizer):
    assert len(tokenizer.encode(" a red circle")) == 5


def test_training_twice_gives_the_same_tokenizer_and_a_file_keeps_it(tokenizer, tmp_path):
    again = OFATokenizer.train([PROMPT, *TEXTS], 320)
    first, second = again.save(tmp_path / "a.json"), tokenizer.save(tmp_path / "b.json")
    assert first.read_bytes() == second.read_bytes()
    loaded = OFATokenizer.load(first)
    assert loaded(TEXTS).tolist() == tokenizer(TEXTS).tolist()


def test_batches_are_padded_right_with_1(tokenizer):
    ids = tokenizer([" a red circle", " a"])
    assert ids[1].tolist() == [0, int(ids[0, 1]), 2, 1, 1]


def test_image_codes_follow_the_words_and_swallow_spaces(tokenizer):
    with_codes = OFATokenizer(tokenizer._vocab, tokenizer._merges, codes=4, bins=2)
    words = tokenizer.vocab_size
    assert with_codes.encode("<code_3> <bin_1>")[1:-1] == [words + 3, words + 5]
    assert with_codes.decode(with_codes.encode(" a <bin_0>x")) == " a <bin_0> x"


@pytest.mark.bad_input(
    "OFA's tokenizer: files that do not fit or are not there", says="`do not fit`, `no file`"
)
def test_bad_files_are_one_sentence(tokenizer, tmp_path):
    with pytest.raises(ClipVipError, match="at least 260"):
        OFATokenizer.train(TEXTS, 100)
    with pytest.raises(ClipVipError, match="special tokens"):
        OFATokenizer({"<s>": 1}, [])
    with pytest.raises(ClipVipError, match="do not fit"):
        OFATokenizer(tokenizer._vocab, ["q q"])
    with pytest.raises(ClipVipError, match="no file"):
        OFATokenizer.from_files(tmp_path / "vocab.json", tmp_path / "merges.txt")
    (tmp_path / "vocab.json").write_text(json.dumps(tokenizer._vocab))
    with pytest.raises(ClipVipError, match=r"merges\.txt"):
        OFATokenizer.from_files(tmp_path / "vocab.json", tmp_path / "merges.txt")
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(ClipVipError, match=r"OFATokenizer\.save"):
        OFATokenizer.load(tmp_path / "t.json")
    with pytest.raises(ClipVipError, match="ids go from 0"):
        tokenizer.decode([5000])
