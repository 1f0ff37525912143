"""OFA's tokenizer: GPT-2's byte-level BPE with fairseq's ids, and image codes and boxes behind the words.

Ids 0 to 3 are ``<s>``, ``<pad>``, ``</s>`` and ``<unk>``. The released vocabulary has 50265 entries (the
last is ``<mask>``), then come ``<code_0..8191>`` and ``<bin_0..999>``: 59457. A small captioner trains the
same kind of BPE on its own captions (``OFATokenizer.train``).

Where to get the released files: GPT-2's merges ship with OFA (``utils/BPE``) and with BART; a folder of a
released Hugging Face OFA or of BART holds both ``vocab.json`` and ``merges.txt``. They are not part of this
project; the tests look for them in the folder that ``CLIPVIP_OFA_BPE`` names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import read_json, write_json
from clipvip_lib.models.ofa import BOS, EOS, PAD, UNK

SPECIAL = {"<s>": BOS, "<pad>": PAD, "</s>": EOS, "<unk>": UNK}
CODES, BINS = 8192, 1000  # image codes and box coordinates of the released vocabulary


class OFATokenizer:
    """Text to token ids and back. ``vocab`` maps tokens to ids, ``merges`` are "left right" lines in order.

    Raises ClipVipError when the vocabulary does not start with the four special tokens or a merge does not
    fit.
    """

    def __init__(self, vocab: dict[str, int], merges: Sequence[str], codes: int = 0, bins: int = 0) -> None:
        wrong = {token: vocab.get(token) for token, id_ in SPECIAL.items() if vocab.get(token) != id_}
        if wrong:
            raise ClipVipError(f"expected the special tokens {SPECIAL} in OFA's vocabulary, got {wrong}")
        pairs = [tuple(line.split(" ")) for line in merges]
        try:
            self._tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs, unk_token="<unk>"))
        except Exception as error:  # the library raises plain Exception
            raise ClipVipError(
                f"OFA's merges do not fit its vocabulary ({error}); take both from one release"
            ) from error
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        special = [AddedToken(token, normalized=False) for token in SPECIAL]
        if "<mask>" in vocab:
            special.append(AddedToken("<mask>", lstrip=True, normalized=False))
        self._tokenizer.add_special_tokens(special)
        self._special = {self._tokenizer.token_to_id(token.content) for token in special}
        names = [f"<code_{i}>" for i in range(codes)] + [f"<bin_{i}>" for i in range(bins)]
        # As the authors' tokenizer, these swallow the white space around them.
        self._tokenizer.add_tokens(
            [AddedToken(name, lstrip=True, rstrip=True, normalized=False) for name in names]
        )
        self._vocab, self._merges, self._codes, self._bins = vocab, list(merges), codes, bins
        self._bytes = decoders.ByteLevel()

    @classmethod
    def from_files(
        cls, vocab: str | Path, merges: str | Path, codes: int = CODES, bins: int = BINS
    ) -> OFATokenizer:
        """Read ``vocab.json`` and ``merges.txt``; the image codes and boxes are added behind their entries.

        Raises ClipVipError naming the file that is missing or is not what it should be.
        """
        entries = read_json(vocab)
        if not isinstance(entries, dict):
            raise ClipVipError(f"{vocab} is not a vocabulary: expected a JSON object from token to id")
        try:
            lines = Path(merges).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ClipVipError(f"cannot read {merges}: expected the lines of merges.txt ({error})") from error
        return cls(entries, [line for line in lines if line and not line.startswith("#version")], codes, bins)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> OFATokenizer:
        """A vocabulary of at most ``vocab_size`` entries for ``texts``, the same for the same texts.

        All 256 bytes are in it, so that any text has ids. Raises ClipVipError for a size below 260.
        """
        least = len(SPECIAL) + 256
        if vocab_size < least:
            raise ClipVipError(f"a byte-level vocabulary has at least {least} entries, got {vocab_size}")
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        model = json.loads(tokenizer.to_str())["model"]
        return cls(model["vocab"], [" ".join(pair) for pair in model["merges"]])

    @property
    def vocab_size(self) -> int:
        """Number of ids, the image codes and boxes included."""
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """``<s>``, the text's ids, ``</s>``. The space before the first word counts: captions have it."""
        return [BOS, *self._tokenizer.encode(text, add_special_tokens=False).ids, EOS]

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Ids int64 [B, T] of several texts, padded on the right."""
        rows = [torch.tensor(self.encode(text)) for text in texts]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of ids; image codes and boxes stand apart by spaces, as in the authors' tokenizer."""
        parts: list[str] = []
        run: list[str] = []
        for id_ in (int(i) for i in ids):
            if skip_special_tokens and id_ in self._special:
                continue
            token = self._tokenizer.id_to_token(id_)
            if token is None:
                raise ClipVipError(f"token ids go from 0 to {self.vocab_size - 1}, got {id_}")
            if id_ < len(self._vocab):
                run.append(token)
            else:
                parts += [self._bytes.decode(run)] * bool(run) + [token]
                run = []
        return " ".join(parts + [self._bytes.decode(run)] * bool(run))

    def save(self, path: str | Path) -> Path:
        """Write one JSON file, whole or not at all."""
        content = {"vocab": self._vocab, "merges": self._merges, "codes": self._codes, "bins": self._bins}
        return write_json(path, content)

    @classmethod
    def load(cls, path: str | Path) -> OFATokenizer:
        """Read what ``save`` wrote. Raises ClipVipError for another file."""
        raw = read_json(path)
        if not isinstance(raw, dict) or set(raw) != {"vocab", "merges", "codes", "bins"}:
            raise ClipVipError(f"{path} is not a tokenizer written by OFATokenizer.save; write it again")
        return cls(**raw)
