"""A CLIP-ViP small enough to encode a clip in a millisecond, with its tokenizer, saved as `clipvip train` saves it."""

from __future__ import annotations

from pathlib import Path

import torch
import videos

from clipvip_lib.models.clip_tokenizer import ClipTokenizer
from clipvip_lib.models.clip_vip import ClipViP, ClipViPConfig
from clipvip_lib.models.encoding import TOKENIZER

WORDS = ("a red circle slides left", "a blue square grows", "somebody cooks", "a dog runs")
SIZE, FRAMES = 32, 3


def small_model(
    seed: int = 0, vocab_size: int | None = None, antialias: bool | None = None, **changes
) -> ClipViP:
    """Random weights; a text tower for the tokenizer of WORDS, or for another vocabulary."""
    size = ClipTokenizer.for_texts(WORDS).vocab_size if vocab_size is None else vocab_size
    config = ClipViPConfig.small(
        **{
            "width": 64,
            "layers": 2,
            "heads": 1,
            "image_size": SIZE,
            "patch_size": 8,
            "vocab_size": size,
            "context_length": 16,
            "embed_dim": 24,
            "frames": FRAMES,
            **changes,
        }
    )
    config.antialias = antialias
    torch.manual_seed(seed)
    return ClipViP(config).eval()


def save_small(folder: Path, seed: int = 0, **changes) -> Path:
    """A folder of weights with the tokenizer beside them."""
    small_model(seed, **changes).save_pretrained(folder)
    ClipTokenizer.for_texts(WORDS, context_length=16).save(folder / TOKENIZER)
    return folder


def write_videos(folder: Path, count: int, first: int = 4) -> list[Path]:
    """``count`` different videos v00.mp4, v01.mp4, ..: each one frame longer than the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"v{i:02d}.mp4" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(videos.encode(first + i, size=(48, 64)))
    return paths
