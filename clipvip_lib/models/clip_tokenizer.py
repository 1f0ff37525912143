"""CLIP's byte-pair tokenizer without a network, and a small version of it for small models.

The vocabulary is the file that open_clip ships, found without importing open_clip (which costs seconds). The
``tokenizers`` library makes the merges; the cleaning and the splitting into words follow open_clip's rules. So ids
are open_clip's ids for any text (a test compares them). A word's pieces are looked up once.

A model of a few hundred thousand weights cannot afford 49,408 embedding rows. ``ClipTokenizer.for_texts``
keeps the ids that occur in some texts and renumbers them: row 0 is <unk>, then the kept pieces in CLIP's
order, then start and end of text. End of text stays the largest id, which is how CLIP's text encoder finds
it.

Source: CLIP (arXiv 2103.00020), ``simple_tokenizer.py``; open_clip/tokenizer.py.
"""

from __future__ import annotations

import functools
import gzip
import html
import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path

import ftfy
import regex
import torch
from tokenizers.models import BPE

from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import read_json, write_json

START, END = "<start_of_text>", "<end_of_text>"
WORD = regex.compile(
    rf"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+", regex.IGNORECASE
)
CLIP_VOCAB = 49408


class ClipTokenizer:
    """Texts to ids: ``ids, mask = tokenizer(["a red circle grows"])``.

    context_length: longest text in tokens, start and end included (CLIP: 77).
    vocabulary: sorted CLIP ids to keep, or None for CLIP's own numbering.
    Attributes ``seen``, ``cut``: texts that were encoded so far, and those of them that the context did not hold.
    Raises ClipVipError for a context below 3 tokens or ids that are not CLIP's.
    """

    def __init__(self, context_length: int = 77, vocabulary: Sequence[int] | None = None):
        if context_length < 3:
            raise ClipVipError(
                f"the context length expected 3 tokens or more (start, one piece, end), got {context_length}"
            )
        self.context_length, self.seen, self.cut = context_length, 0, 0
        self.vocabulary = None if vocabulary is None else [int(i) for i in vocabulary]
        if self.vocabulary is None:
            self.vocab_size = CLIP_VOCAB
        else:
            kept = self.vocabulary
            if kept != sorted(set(kept)) or (kept and (kept[0] < 0 or kept[-1] >= CLIP_VOCAB - 2)):
                raise ClipVipError(
                    f"the vocabulary expected sorted CLIP ids from 0 to {CLIP_VOCAB - 3} without repeats, "
                    f"got {kept[:5]}...; make it with ClipTokenizer.for_texts"
                )
            self.vocab_size = len(kept) + 3
        self.start_id, self.end_id = self.vocab_size - 2, self.vocab_size - 1
        self._renumbered = None if vocabulary is None else {c: n + 1 for n, c in enumerate(self.vocabulary)}
        if self._renumbered is not None:
            self._renumbered |= {CLIP_VOCAB - 2: self.start_id, CLIP_VOCAB - 1: self.end_id}

    @classmethod
    def for_texts(cls, texts: Iterable[str], context_length: int = 77) -> ClipTokenizer:
        """A tokenizer that keeps just the pieces that occur in some texts; all others become <unk>, id 0."""
        pieces = {i for text in texts for i in clip_ids(text)}
        return cls(context_length, sorted(pieces - {CLIP_VOCAB - 2, CLIP_VOCAB - 1}))

    def encode(self, text: str) -> list[int]:
        """The ids of one text with start and end, cut to the context length; the end is always kept."""
        ids = clip_ids(text)
        if self._renumbered is not None:
            ids = [self._renumbered.get(i, 0) for i in ids]
        return [self.start_id, *ids[: self.context_length - 2], self.end_id]

    def is_cut(self, text: str) -> bool:
        """Whether a text is longer than the context, so that its end is lost."""
        return len(clip_ids(text)) > self.context_length - 2

    def unknown(self, text: str) -> list[str]:
        """The words of a text that a small vocabulary cannot spell. They become <unk>, and look alike to the model."""
        if self._renumbered is None:
            return []
        words = dict.fromkeys(WORD.findall(clean(text)))
        return [word for word in words if not self._renumbered.keys() >= set(_word_ids(word))]

    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask, both int64 [B, T], T the longest text of the batch; ids are padded with 0
        (open_clip's rule).

        Raises ClipVipError for an empty batch or a text that is not a string.
        """
        if isinstance(texts, str) or not len(texts) or not all(isinstance(text, str) for text in texts):
            raise ClipVipError(f"the tokenizer expected a list of one or more strings, got {texts!r:.80}")
        rows = [self.encode(text) for text in texts]
        self.seen += len(rows)
        self.cut += sum(
            self.is_cut(text)
            for text, row in zip(texts, rows, strict=True)
            if len(row) == self.context_length
        )
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        ids = torch.zeros(mask.shape, dtype=torch.long)
        ids[mask] = torch.tensor([each for row in rows for each in row])
        return ids, mask.long()

    def save(self, path: str | Path) -> Path:
        """Write what distinguishes this tokenizer as JSON: context length and kept ids."""
        value = {"tokenizer": "clip", "context_length": self.context_length, "vocabulary": self.vocabulary}
        return write_json(path, value)

    @classmethod
    def load(cls, path: str | Path) -> ClipTokenizer:
        """Read what ``save`` wrote. Raises ClipVipError if the file is missing or is something else."""
        value = read_json(path)
        length, kept = (
            (value.get(n) for n in ("context_length", "vocabulary")) if isinstance(value, dict) else (0, 0)
        )
        whole = type(length) is int and (
            kept is None or (isinstance(kept, list) and all(type(i) is int for i in kept))
        )
        if not whole or value.get("tokenizer") != "clip" or "vocabulary" not in value:
            raise ClipVipError(
                f"{path} expected a tokenizer saved by ClipTokenizer.save (context_length, vocabulary), got other "
                "JSON; take the one that was saved with the weights"
            )
        return cls(length, kept)


def clean(text: str) -> str:
    """open_clip's cleaning: broken encodings and HTML entities repaired, white space single, lower case."""
    # Plain ASCII is what ftfy, the slow part, leaves alone.
    if not text.isascii() or not text.isprintable() or "&" in text:
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def clip_ids(text: str) -> list[int]:
    """CLIP's ids of a text, without start and end, of any length."""
    return [i for word in WORD.findall(clean(text)) for i in _word_ids(word)]


@functools.lru_cache(maxsize=100_000)
def _word_ids(word: str) -> tuple[int, ...]:
    # open_clip reads these two as the special tokens wherever they stand alone, so this does too.
    if word in (START, END):
        return (CLIP_VOCAB - 2 if word == START else CLIP_VOCAB - 1,)
    letters = byte_letters()
    return tuple(t.id for t in _bpe().tokenize("".join(letters[b] for b in word.encode("utf-8"))))


@functools.cache
def byte_letters() -> dict[int, str]:
    """GPT-2's table from a byte to a printable letter, in the order of CLIP's ids."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}


@functools.cache
def _bpe() -> BPE:
    lines = gzip.decompress(_vocabulary_file().read_bytes()).decode("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines[1 : CLIP_VOCAB - 2 - 512 + 1]]
    letters = list(byte_letters().values())
    pieces = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges)]
    return BPE({piece: i for i, piece in enumerate(pieces)}, merges, end_of_word_suffix="</w>")


def _vocabulary_file() -> Path:
    spec = importlib.util.find_spec("open_clip")
    path = Path(spec.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz" if spec else None
    if path is None or not path.is_file():
        raise ClipVipError(
            "CLIP's vocabulary expected open_clip_torch's bpe_simple_vocab_16e6.txt.gz, it is not installed; "
            "run pip install open_clip_torch"
        )
    return path
