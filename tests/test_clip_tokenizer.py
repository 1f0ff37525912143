"""Our ids are open_clip's ids, for any text; and the small vocabulary keeps what CLIP's text tower relies
on."""

import json
import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clipvip_lib.errors import ClipVipError
from clipvip_lib.models.clip_tokenizer import CLIP_VOCAB, ClipTokenizer, clip_ids

LETTERS = st.characters(min_codepoint=32, max_codepoint=126) | st.sampled_from(
    "àâäçéèêëîïôöùûüßñåøæœÿÀÉÑÖÜ’“”—–…€£°½"
)


@pytest.fixture(scope="module")
def theirs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what timm and torch say while open_clip is imported is not ours
        from open_clip.tokenizer import SimpleTokenizer
    return SimpleTokenizer()


@settings(max_examples=300, deadline=None)
@given(text=st.text(LETTERS, max_size=80))
@example(text="A photo of a cat's &amp;amp; dog's, they'LL don't\tgo\n\n 3rd 12:34")
@example(text="x <end_of_text> !!<end_of_text><START_OF_TEXT>y")
@example(text="schÃ¶n &lt;b&gt; ＡＢＣ")
def test_ids_are_open_clips(theirs, text):
    assert clip_ids(text) == theirs.encode(text)


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=30))
@example(text="日本語 テスト 🙂🙂 𝔄𝔅 ſ'ſ İstanbul a\u0301 \x00\x1b[31m")
def test_ids_are_open_clips_in_any_script(theirs, text):
    assert clip_ids(text) == theirs.encode(text)


def test_batches_are_open_clips_up_to_the_padding(theirs):
    texts = ["a red circle", "", "word " * 100, "two dogs run"]
    ids, mask = ClipTokenizer(77)(texts)
    assert torch.equal(ids, theirs(texts, context_length=77))
    assert mask.sum(1).tolist() == [5, 2, 77, 5] and ids.dtype == mask.dtype == torch.int64
    short, mask = ClipTokenizer(77)(texts[:2])
    assert short.shape == mask.shape == (2, 5)
    assert short[1].tolist() == [CLIP_VOCAB - 2, CLIP_VOCAB - 1, 0, 0, 0]


def test_the_end_is_kept_when_a_text_is_cut():
    ids, _ = ClipTokenizer(6)(["one two three four five six seven"])
    assert ids.shape == (1, 6) and ids[0, -1] == CLIP_VOCAB - 1


WORLD = ["a red circle grows", "the blue square, then it's gone", "a circle vanishes"]


def test_a_small_vocabulary_renumbers_and_keeps_the_end_largest():
    small = ClipTokenizer.for_texts(WORLD, 16)
    pieces = sorted({i for text in WORLD for i in clip_ids(text)})
    assert small.vocabulary == pieces and small.vocab_size == len(pieces) + 3
    for text in WORLD:
        ids = small.encode(text)
        assert [pieces[i - 1] for i in ids[1:-1]] == clip_ids(text)
        assert ids[0] == small.vocab_size - 2 and ids[-1] == small.vocab_size - 1 == max(ids)


def test_unknown_words_become_unk():
    small = ClipTokenizer.for_texts(WORLD, 16)
    ids = small.encode("a purple circle")
    assert ids[2] == 0 and 0 not in (ids[1], ids[3])
    # A text may spell the end of text; it must not become <unk>, and stays the largest id.
    assert small.encode("a <end_of_text>")[2] == small.vocab_size - 1


def test_unknown_words_are_named():
    small = ClipTokenizer.for_texts(["a red circle falls", "two birds"])
    assert small.unknown("A red zebra, two circles: zebra") == ["zebra", ",", "circles", ":"]
    assert small.unknown("two red birds") == [] == ClipTokenizer().unknown("zebra, \u4f60\u597d")


@pytest.mark.parametrize(
    "tokenizer", [ClipTokenizer(20), ClipTokenizer.for_texts(WORLD, 20)], ids=["clip", "small"]
)
def test_save_and_load(tokenizer, tmp_path):
    again = ClipTokenizer.load(tokenizer.save(tmp_path / "tokenizer.json"))
    assert again.vocab_size == tokenizer.vocab_size
    assert all(torch.equal(a, b) for a, b in zip(again(WORLD), tokenizer(WORLD), strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: ClipTokenizer(2), "expected 3 tokens or more"),
        (lambda path: ClipTokenizer(9, [5, 3]), "expected sorted CLIP ids"),
        (lambda path: ClipTokenizer(9, [3, CLIP_VOCAB - 1]), "expected sorted CLIP ids"),
        (lambda path: ClipTokenizer()([]), "list of one or more strings"),
        (lambda path: ClipTokenizer()("a cat"), "list of one or more strings"),
        (lambda path: ClipTokenizer()(["a", None]), "list of one or more strings"),
        (lambda path: ClipTokenizer.load(path / "none.json"), "no file"),
        (lambda path: ClipTokenizer.load(path / "other.json"), "saved by ClipTokenizer.save"),
    ],
)
def test_bad_input_is_one_sentence(make, message, tmp_path):
    (tmp_path / "other.json").write_text("[1, 2]")
    with pytest.raises(ClipVipError, match=message):
        make(tmp_path)


def test_texts_that_the_context_does_not_hold_are_counted():
    tokenizer = ClipTokenizer(8)
    fits, long = "a b c d e f", "a b c d e f g"
    assert [tokenizer.is_cut(text) for text in (fits, long, "", "a")] == [False, True, False, False]
    tokenizer([fits, long])
    tokenizer([long, "a"])
    assert (tokenizer.seen, tokenizer.cut) == (4, 2)


@pytest.mark.bad_input(
    "tokenizer: a file of another shape", says="`expected a tokenizer saved by ClipTokenizer.save`"
)
@pytest.mark.parametrize(
    "shape",
    (
        {},
        {"context_length": 16},
        {"vocabulary": None},
        {"context_length": "16", "vocabulary": None},
        {"context_length": None, "vocabulary": None},
        {"context_length": True, "vocabulary": None},
        {"context_length": 16, "vocabulary": 5},
        {"context_length": 16, "vocabulary": ["a"]},
        {"context_length": 16, "vocabulary": [1.5]},
        {"context_length": 16, "vocabulary": {"a": 1}},
    ),
)
def test_a_saved_tokenizer_of_another_shape_is_refused(tmp_path, shape):
    (tmp_path / "t.json").write_text(json.dumps({"tokenizer": "clip", **shape}))
    with pytest.raises(ClipVipError, match=r"t\.json expected a tokenizer saved by ClipTokenizer\.save"):
        ClipTokenizer.load(tmp_path / "t.json")


def test_open_clip_and_transformers_are_not_imported():
    code = (
        "import sys; from clipvip_lib.models.clip_tokenizer import ClipTokenizer; ClipTokenizer()(['a cat']);"
        "assert not {'open_clip', 'transformers'} & set(sys.modules), 'imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
