"""Trains a small OFA, as the mini study needs one: OFA's own first captioning stage, on caption pairs.

The loss is the authors' label-smoothed cross-entropy. One thing is not OFA's: a released OFA starts from a ResNet
trained on ImageNet and from long pre-training, a small one from nothing. Its ResNet therefore first learns, and keeps
learning, which words the caption holds (``_WordHead``), from the same captions. Without it no trial within the
mini budget named the right thing in a quarter of its captions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipvip_lib.captions.captioner import Captioner, postprocess
from clipvip_lib.data.transform import resize
from clipvip_lib.errors import ClipVipError
from clipvip_lib.models.beam import BeamSettings
from clipvip_lib.models.ofa import OFA, PAD, PROMPT, OFAConfig, ofa_scale
from clipvip_lib.models.ofa_tokenizer import OFATokenizer
from clipvip_lib.precision import autocast
from clipvip_lib.profiles import CaptionerSize
from clipvip_lib.progress import ProgressCallback, quiet
from clipvip_lib.training.step import schedule
from clipvip_lib.training.weights import UNREADABLE, save_state

STEM_LR = 5e-3  # in one trial of the ResNet alone, 300 steps: it found 83 % of the things, with 2e-3 64 %
WORDS_WEIGHT = 0.1  # of the words' loss (a sum over the vocabulary) beside the captions' (a mean over tokens)
LONGEST_CAPTION = 20  # words of a training caption (the authors' script)
CHECKPOINT_SECONDS = 20.0  # a kill loses at most about this much training


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


def small_config(size: CaptionerSize, vocab_size: int) -> OFAConfig:
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
        dropout=size.dropout,
        encoder_drop_path_rate=size.drop_path,
        decoder_drop_path_rate=size.drop_path,
    )


def train_captioner(
    images: Sequence[np.ndarray],
    captions: Sequence[str],
    size: CaptionerSize,
    *,
    seed: int,
    folder: Path | None = None,
    progress: ProgressCallback = quiet,
    smoothing: float = 0.1,
    precision: str = "auto",
    device: str = "cpu",
) -> tuple[Captioner, list[dict]]:
    """Train a small OFA on uint8 RGB images [H, W, 3] and one caption for each.

    Tokenizer and weights depend on the data and ``seed`` alone (bit for bit on one thread), also when a run was
    killed and resumes from ``folder``/checkpoint.pt. The ResNet alone learns for ``size.stem_steps``, then all of
    OFA for ``size.steps``. Returns the captioner and one row per 10 steps: step, phase, loss, words (loss of the
    words), and for captions nll per token.

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
    pixels = torch.from_numpy(np.stack([resize(image, size.image_size, antialias=True) for image in images]))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = OFA(small_config(size, tokenizer.vocab_size)).to(device)
        data = _Pairs(*(part.to(device) for part in (pixels, tokenizer(texts), tokenizer([PROMPT]))))
        run = _Training(model, data, size, seed, smoothing, precision)
        history = run.loop(folder / "checkpoint.pt" if folder else None, progress)
    return Captioner(model, tokenizer, size.image_size, BeamSettings(size.beam), precision), history


class _Pairs(NamedTuple):
    """Training data: pixels uint8 [n, h, w, 3], caption ids [n, U], prompt ids [1, T]."""

    pixels: Tensor
    tokens: Tensor
    prompt: Tensor

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pixels [B, 3, h, w] and caption ids cut after the longest."""
        tokens = self.tokens[rows]
        return ofa_scale(self.pixels[rows]), tokens[:, : int((tokens != PAD).sum(1).max())]


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
        held[:, :4] = 0.0  # special tokens are not words
        return F.binary_cross_entropy_with_logits(logits, held, reduction="sum") / len(tokens)


class _Training:
    """The loop: every step is a function of (weights, seed, step), so that a resumed run is the same run."""

    def __init__(
        self,
        model: OFA,
        data: _Pairs,
        size: CaptionerSize,
        seed: int,
        smoothing: float,
        precision: str,
    ) -> None:
        self.model, self.data, self.size, self.seed = model, data, size, seed
        self.smoothing, self.precision, self.stem_steps = smoothing, precision, size.stem_steps
        self.stem = model.encoder.embed_images
        self.words = _WordHead(16 * size.resnet_width, model.config.vocab_size).to(data.pixels.device)
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
        self.step, self.history, self.total = 0, [], size.stem_steps + size.steps

    def loop(self, checkpoint: Path | None, progress: ProgressCallback) -> list[dict]:
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

    def one_step(self) -> dict:
        stem = self.step < self.stem_steps  # each phase has a schedule of its own
        begun, steps = (0, self.stem_steps) if stem else (self.stem_steps, self.size.steps)
        rng = np.random.default_rng([self.seed, self.step])
        rows = torch.from_numpy(rng.choice(len(self.data.pixels), self.size.batch, replace=False))
        torch.manual_seed(int(rng.integers(2**62)))  # of dropout: nothing but (seed, step) decides
        share = schedule(self.step - begun, steps, self.size.warmup)
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
        phase = "stem" if stem else "captions"
        return {"step": self.step, "phase": phase, **{name: value.item() for name, value in losses.items()}}

    def losses(self, pixels: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """loss, which is minimised, and its parts: words; nll per token once captions are learnt."""
        if self.step < self.stem_steps:
            with autocast(self.precision, pixels.device):
                words = self.words(self.stem(pixels), tokens)
            return {"loss": WORDS_WEIGHT * words, "words": words}
        features: list[Tensor] = []
        hook = self.stem.register_forward_hook(lambda module, inputs, output: features.append(output))
        with hook, autocast(self.precision, pixels.device):
            logits = self.model(self.data.prompt.expand(len(tokens), -1), pixels, tokens[:, :-1])
            words = self.words(features[0], tokens)
        labels = tokens[:, 1:].flatten()
        loss, nll, count = label_smoothed_loss(logits.flatten(0, 1), labels, self.smoothing)
        return {"loss": loss / count + WORDS_WEIGHT * words, "words": words, "nll": nll / count}

    def save(self, path: Path) -> None:
        state = {"model": self.model.state_dict(), "words": self.words.state_dict()}
        state["optimizer"] = self.optimizer.state_dict()
        save_state({**state, "step": self.step, "history": self.history}, path)

    def resume(self, path: Path) -> None:
        try:
            state = torch.load(path, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.words.load_state_dict(state["words"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.history = state["step"], state["history"]
        except UNREADABLE as error:
            raise ClipVipError(
                f"{path} is not a checkpoint of this captioner; remove it to train from the start"
            ) from error
