"""From a clip to an auxiliary caption: middle frame -> OFA -> at most 16 tokens -> a line beside the shard.

Paper section 3.2. ``Captioner`` is an OFA with its tokenizer and beam; the authors' is the released
OFA-large, the mini study trains a small one (``train_captioner``) on the embedded world's caption pairs with
the loss of OFA's own first captioning stage. ``caption_shard`` writes the captions of one tar shard whole or
not at all.

One thing is not OFA's: a released OFA starts from a ResNet trained on ImageNet and from long pre-training, a
small one from nothing. Its ResNet therefore first learns, and goes on learning, which words the caption holds
(``_WordHead``), from the same captions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import math
import string
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from clipvip_lib.data.shards import read_shard
from clipvip_lib.data.video import middle_index, read_frames
from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import atomic_path, make_folder, read_json, write_bytes, write_json
from clipvip_lib.models.beam import BeamSettings, beam_search
from clipvip_lib.models.ofa import OFA, PAD, PROMPT, OFAConfig, ofa_preprocess, ofa_resize
from clipvip_lib.models.ofa_tokenizer import OFATokenizer
from clipvip_lib.profiles import CaptionerSize

Progress = Callable[[int, int, str], None]
TIED = (
    "decoder.embed_tokens.weight",
    "decoder.output_projection.weight",
)  # stored once by ``Captioner.save``
STEM_LR = 5e-3  # in one trial of the ResNet alone, 300 steps: it found 83 % of the things, with 2e-3 64 %
WORDS_WEIGHT = 0.1  # of the words' loss (a sum over the vocabulary) beside the captions' (a mean over tokens)
LONGEST_CAPTION = 20  # words of a training caption (the authors' script)
CHECKPOINT_SECONDS = 20.0  # a kill loses at most about this much training
JPEG = b"\xff\xd8"  # how a still image begins
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def postprocess(text: str) -> str:
    """A decoded caption without ASCII punctuation and outer spaces (the authors' utils/eval_utils.py)."""
    return text.translate(NO_PUNCTUATION).strip()


def _quiet(done: int, total: int, note: str = "") -> None:
    """No progress wanted."""


class Captioner:
    """OFA, its tokenizer, the image size it was trained at and the beam: ``caption(images) -> texts``.

    Released OFAs caption at 480 pixels with a beam of 5. ``bfloat16`` runs the model in autocast.
    """

    def __init__(
        self,
        model: OFA,
        tokenizer: OFATokenizer,
        image_size: int,
        beam: BeamSettings | None = None,
        bfloat16: bool = False,
    ) -> None:
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ClipVipError(
                f"the tokenizer has {tokenizer.vocab_size} ids and the model {model.config.vocab_size}; "
                "use the tokenizer that the model was trained with"
            )
        self.model, self.tokenizer, self.image_size = model.eval(), tokenizer, image_size
        self.beam, self.bfloat16 = beam or BeamSettings(), bfloat16

    def caption(self, images: Sequence[np.ndarray], batch: int = 64) -> list[str]:
        """One caption for each uint8 RGB image [H, W, 3]; sizes may differ."""
        device = next(self.model.parameters()).device
        texts: list[str] = []
        for start in range(0, len(images), batch):
            pixels = ofa_preprocess(images[start : start + batch], self.image_size).to(device)
            prompt = self.tokenizer([PROMPT]).expand(len(pixels), -1).to(device)
            with _autocast(device, self.bfloat16):
                found = beam_search(self.model, prompt, pixels, self.beam)
            texts += [postprocess(self.tokenizer.decode(hypotheses[0].tokens)) for hypotheses in found]
        return texts

    def save(self, folder: str | Path) -> Path:
        """Write model.safetensors, tokenizer.json and, last, config.json into ``folder``."""
        folder = make_folder(folder)
        weights = {k: v.contiguous() for k, v in self.model.state_dict().items() if k not in TIED}
        with atomic_path(folder / "model.safetensors") as partial:
            save_file(weights, partial)
        self.tokenizer.save(folder / "tokenizer.json")
        beam, about = (
            dataclasses.asdict(self.beam),
            {"image_size": self.image_size, "bfloat16": self.bfloat16},
        )
        write_json(folder / "config.json", {"ofa": self.model.config.to_dict(), "beam": beam, **about})
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Captioner:
        """Read what ``save`` wrote. Raises ClipVipError naming what is missing or does not fit."""
        folder = Path(folder)
        config = read_json(folder / "config.json")
        try:
            model, beam = OFA(OFAConfig.from_dict(config["ofa"])), BeamSettings(**config["beam"])
            image_size, bfloat16 = config["image_size"], config["bfloat16"]
            weights = load_file(folder / "model.safetensors")
            weights |= dict.fromkeys(TIED, weights["encoder.embed_tokens.weight"])
            model.load_state_dict(weights)
        except (KeyError, TypeError, OSError, SafetensorError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ClipVipError(
                f"{folder} is no whole captioner ({reason}); train or save it again"
            ) from error
        return cls(model, OFATokenizer.load(folder / "tokenizer.json"), image_size, beam, bfloat16)


def _autocast(device: torch.device, bfloat16: bool) -> contextlib.AbstractContextManager:
    return torch.autocast(device.type, torch.bfloat16) if bfloat16 else contextlib.nullcontext()


# -------------------------------------------------------------------------------------------- training


def label_smoothed_loss(logits: Tensor, labels: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Label-smoothed cross-entropy summed over tokens that are not padding.

    logits [n, V], labels int64 [n] -> (loss, its part without smoothing, number of tokens). Source: the
    authors' criterions/label_smoothed_cross_entropy.py; note epsilon / (V - 1), not epsilon / V.
    """
    keep = labels != PAD
    wide = torch.promote_types(logits.dtype, torch.float32)  # half precision is too short for a sum over V
    logp = logits[keep].to(wide).log_softmax(-1)
    nll = -logp.gather(-1, labels[keep][:, None]).sum()
    each = epsilon / (logits.shape[-1] - 1)
    return (1 - epsilon - each) * nll - each * logp.sum(), nll, keep.sum()


def small_config(size: CaptionerSize, vocab_size: int, dropout: float, drop_path: float) -> OFAConfig:
    """An OFA of this size; its position tables hold just the grid and the captions that it will see."""
    return OFAConfig(
        d_model=size.d_model,
        encoder_layers=size.layers,
        decoder_layers=size.layers,
        encoder_ffn_dim=size.ffn,
        decoder_ffn_dim=size.ffn,
        encoder_attention_heads=size.heads,
        decoder_attention_heads=size.heads,
        resnet_type=size.resnet_type,
        resnet_width=size.resnet_width,
        vocab_size=vocab_size,
        max_position_embeddings=128,
        token_bucket_size=32,
        image_bucket_size=math.ceil(size.image_size / 16),
        dropout=dropout,
        encoder_drop_path_rate=drop_path,
        decoder_drop_path_rate=drop_path,
    )


def train_captioner(
    images: Sequence[np.ndarray],
    captions: Sequence[str],
    size: CaptionerSize,
    *,
    seed: int,
    folder: Path | None = None,
    progress: Progress = _quiet,
    dropout: float = 0.1,
    drop_path: float = 0.1,
    smoothing: float = 0.1,
    stem_steps: int | None = None,
    bfloat16: bool = True,
) -> tuple[Captioner, list[dict]]:
    """Train a small OFA on uint8 RGB images [H, W, 3] and one caption for each.

    Tokenizer and weights depend on the data and ``seed`` alone (bit for bit on one thread), also when a run
    was killed and goes on from ``folder``/checkpoint.pt. The ResNet alone learns for ``stem_steps`` (as many
    as ``size.steps`` unless given), then all of OFA for ``size.steps``. Returns the captioner and a row per
    10 steps: step, phase, loss, words (loss of the words), and for captions nll per token.

    Raises ClipVipError for too few pairs, an empty caption or a loss that is not finite.
    """
    if len(images) != len(captions) or len(images) < size.batch:
        raise ClipVipError(
            f"expected as many captions as images and at least one batch of {size.batch}, got {len(images)} "
            f"images and {len(captions)} captions"
        )
    texts = [" " + " ".join(postprocess(caption).split()[:LONGEST_CAPTION]) for caption in captions]
    if " " in texts:
        raise ClipVipError(f"caption {texts.index(' ')} is empty: expected words; remove that pair")
    # As many prompts as captions, so that its words become tokens too: 8 instead of 23.
    tokenizer = OFATokenizer.train([*[PROMPT] * len(texts), *texts], size.vocab_size)
    pixels = torch.from_numpy(np.stack([ofa_resize(image, size.image_size) for image in images]))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = OFA(small_config(size, tokenizer.vocab_size, dropout, drop_path))
        stem_steps = size.steps if stem_steps is None else stem_steps
        data = _Pairs(pixels, tokenizer(texts), tokenizer([PROMPT]))
        run = _Training(model, data, size, stem_steps, seed, smoothing, bfloat16)
        history = run.loop(folder / "checkpoint.pt" if folder else None, progress)
    return Captioner(model, tokenizer, size.image_size, BeamSettings(size.beam), bfloat16), history


class _Pairs(NamedTuple):
    """Training data: pixels uint8 [n, h, w, 3], caption ids [n, U], prompt ids [1, T]."""

    pixels: Tensor
    tokens: Tensor
    prompt: Tensor

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pixels [B, 3, h, w] and caption ids cut after the longest."""
        tokens = self.tokens[rows]
        pixels = (self.pixels[rows].permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
        return pixels, tokens[:, : int((tokens != PAD).sum(1).max())]


class _WordHead(nn.Module):
    """Which words does the caption hold? Every cell of the image proposes words, the best cell counts.

    So a cell learns to know what stands in it, though nobody says where things are. Used in training only.
    """

    def __init__(self, channels: int, vocab: int) -> None:
        super().__init__()
        self.proposal = nn.Linear(channels, vocab)

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """features [B, channels, h, w], caption ids [B, U] -> binary cross-entropy, a sum over words."""
        logits = self.proposal(features.flatten(2).transpose(1, 2)).float().amax(1) - 4.0  # words are rare
        held = torch.zeros_like(logits).scatter_(1, tokens, 1.0)
        held[:, :4] = 0.0  # special tokens are no words
        return F.binary_cross_entropy_with_logits(logits, held, reduction="sum") / len(tokens)


class _Training:
    """The loop: every step is a function of (weights, seed, step), so that a resumed run is the same run."""

    def __init__(
        self,
        model: OFA,
        data: _Pairs,
        size: CaptionerSize,
        stem_steps: int,
        seed: int,
        smoothing: float,
        bfloat16: bool,
    ) -> None:
        self.model, self.data, self.size, self.seed = model, data, size, seed
        self.smoothing, self.bfloat16, self.stem_steps = smoothing, bfloat16, stem_steps
        self.stem = model.encoder.embed_images
        self.words = _WordHead(16 * size.resnet_width, model.config.vocab_size)
        stem = [*self.stem.parameters(), *self.words.parameters()]
        known = {id(parameter) for parameter in stem}
        rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
        groups = [
            {
                "params": [p for p in part if (p.ndim >= 2) == matrix],
                "weight_decay": 0.01 * matrix,
                "peak": peak,
            }
            for part, peak in ((stem, STEM_LR), (rest, size.lr))
            for matrix in (True, False)
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
        self.step, self.history, self.total = 0, [], stem_steps + size.steps

    def loop(self, checkpoint: Path | None, progress: Progress) -> list[dict]:
        if checkpoint and checkpoint.exists():
            self.resume(checkpoint)
        self.model.train()
        saved = time.monotonic()
        while self.step < self.total:
            row = self.one_step()
            if self.step % 10 == 0 or self.step == self.total - 1:
                self.history.append(row)
            self.step += 1
            progress(self.step, self.total, f"{row['phase']}, loss {row['loss']:.2f}")
            if checkpoint and time.monotonic() - saved > CHECKPOINT_SECONDS:
                self.save(checkpoint)
                saved = time.monotonic()
        return self.history

    def rate(self) -> float:
        """Share of the peak learning rate: in each phase a linear warm-up, then a cosine to zero."""
        first = self.step < self.stem_steps
        step, steps = (
            (self.step, self.stem_steps) if first else (self.step - self.stem_steps, self.size.steps)
        )
        warm = max(1, round(self.size.warmup * steps))
        return (
            (step + 1) / warm
            if step < warm
            else 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))
        )

    def one_step(self) -> dict:
        rng = np.random.default_rng([self.seed, self.step])
        rows = torch.from_numpy(rng.choice(len(self.data.pixels), self.size.batch, replace=False))
        torch.manual_seed(int(rng.integers(2**62)))  # of dropout: nothing but (seed, step) decides
        share = self.rate()
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share
        losses = self.losses(*self.data.take(rows))
        if not math.isfinite(losses["loss"].item()):
            raise ClipVipError(
                f"the captioner's loss is {losses['loss'].item()} at step {self.step}: expected a finite "
                "number; lower lr"
            )
        self.optimizer.zero_grad()
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        phase = "stem" if self.step < self.stem_steps else "captions"
        return {"step": self.step, "phase": phase, **{name: value.item() for name, value in losses.items()}}

    def losses(self, pixels: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """loss, which is minimised, and its parts: words; nll per token once captions are learnt."""
        if self.step < self.stem_steps:
            with _autocast(pixels.device, self.bfloat16):
                words = self.words(self.stem(pixels), tokens)
            return {"loss": WORDS_WEIGHT * words, "words": words}
        features: list[Tensor] = []
        hook = self.stem.register_forward_hook(lambda module, inputs, output: features.append(output))
        with hook, _autocast(pixels.device, self.bfloat16):
            logits = self.model(self.data.prompt.expand(len(tokens), -1), pixels, tokens[:, :-1])
            words = self.words(features[0], tokens)
        labels = tokens[:, 1:].flatten()
        loss, nll, count = label_smoothed_loss(logits.flatten(0, 1), labels, self.smoothing)
        return {"loss": loss / count + WORDS_WEIGHT * words, "words": words, "nll": nll / count}

    def save(self, path: Path) -> None:
        state = {"model": self.model.state_dict(), "words": self.words.state_dict()}
        state["optimizer"] = self.optimizer.state_dict()
        with atomic_path(path) as partial:
            torch.save({**state, "step": self.step, "history": self.history}, partial)

    def resume(self, path: Path) -> None:
        try:
            state = torch.load(path, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.words.load_state_dict(state["words"])
            self.optimizer.load_state_dict(state["optimizer"])
        except Exception as error:  # torch raises many kinds for a file that is not its own
            raise ClipVipError(
                f"{path} is no checkpoint of this captioner; remove it to train from the start"
            ) from error
        self.step, self.history = state["step"], state["history"]


# ---------------------------------------------------------------------------------------------- shards


def captions_path(shard: str | Path) -> Path:
    """Where the captions of a shard stand: beside it, ``00000.tar`` -> ``00000.captions.jsonl``."""
    return Path(shard).with_suffix(".captions.jsonl")


def caption_shard(
    shard: str | Path,
    out: str | Path | None,
    captioner: Captioner,
    progress: Progress = _quiet,
    batch: int = 64,
) -> int:
    """Caption the middle frame of each clip of a tar shard; returns how many captions ``out`` holds.

    ``out`` (by default ``captions_path(shard)``) gets a JSON line {"key", "caption"} a sample, in the shard's
    order, whole or not at all; a shard that has it already is skipped. Raises ClipVipError naming the shard
    when it is missing, empty, or cut, with the position, and the sample when a video cannot be read.
    """
    shard, out = Path(shard), Path(out) if out is not None else captions_path(shard)
    if out.exists():
        count = len(read_captions(out))
        progress(count, count, "captioned before")
        return count
    total = count_samples(shard)
    lines: list[str] = []
    for keys, frames in _batches(_middle_frames(shard), batch):
        for key, text in zip(keys, captioner.caption(frames, batch), strict=True):
            lines.append(json.dumps({"key": key, "caption": text}, ensure_ascii=False) + "\n")
        progress(len(lines), total, shard.name)
    write_bytes(out, "".join(lines).encode())
    return len(lines)


def read_captions(path: str | Path) -> dict[str, str]:
    """Captions by key, as ``caption_shard`` wrote them. Raises ClipVipError naming the bad line."""
    captions: dict[str, str] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ClipVipError(f"cannot read captions {path} ({error}); caption the shard again") from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            captions[row["key"]] = row["caption"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ClipVipError(
                f"line {number} of {path} is not a JSON object with key and caption; remove the file and "
                "caption the shard again"
            ) from error
    return captions


def count_samples(shard: str | Path) -> int:
    """Number of samples of a tar shard, from its headers alone.

    Raises ClipVipError naming the shard and the position for a shard that is missing, empty or cut. A cut
    between two files looks like an end to tar readers, so the end mark is looked for.
    """
    shard = Path(shard)
    try:
        size = shard.stat().st_size
    except OSError as error:
        raise ClipVipError(f"no shard {shard}: expected a tar file; check the shard list") from error
    keys: dict[str, None] = {}
    end = 0
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                keys[member.name.split(".", 1)[0]] = None
                end = member.offset_data + -(-member.size // 512) * 512
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ClipVipError(
            f"shard {shard} is cut or damaged at byte {end} of {size} ({error}): expected a whole tar file; "
            "fetch or write it again"
        ) from error
    if size < end + 1024:
        raise ClipVipError(
            f"shard {shard} is cut at byte {size} of at least {end + 1024}, after sample "
            f"{next(reversed(keys), 'none')}: expected tar's end mark; fetch or write it again"
        )
    if not keys:
        raise ClipVipError(f"shard {shard} holds no sample: expected key.mp4 and key.txt; write it again")
    return len(keys)


def _middle_frames(shard: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Key and middle frame uint8 [H, W, 3] of each sample; a still image (jpg) is its own middle frame."""
    for sample in read_shard(shard):
        if sample.media[:2] == JPEG:
            frame = np.asarray(Image.open(io.BytesIO(sample.media)).convert("RGB"))
        else:
            name = f"{sample.key} of {shard}"
            frame = read_frames(sample.media, lambda total: [middle_index(total)], name)[0]
        yield sample.key, frame


def _batches(
    samples: Iterable[tuple[str, np.ndarray]], size: int
) -> Iterator[tuple[list[str], list[np.ndarray]]]:
    """Groups of at most ``size`` samples: keys, frames."""
    samples = iter(samples)
    while group := list(itertools.islice(samples, size)):
        yield [key for key, _ in group], [frame for _, frame in group]
