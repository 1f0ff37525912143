"""A captioner small enough to train in a second, and what it is trained on."""

import numpy as np
import torch

from clipvip_lib.captions.captioner import Captioner
from clipvip_lib.profiles import CaptionerSize

TINY = CaptionerSize(
    d_model=16, layers=1, heads=2, ffn=32, resnet_width=4, image_size=32, vocab_size=300, beam=2, stem_steps=5, steps=5,
    batch=8, lr=3e-3, warmup=0.2,
)  # fmt: skip
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (30, 60, 220), "white": (240, 240, 240)}


def pairs(count: int) -> tuple[list[np.ndarray], list[str]]:
    """One-coloured noisy pictures and what a person says of them."""
    rng, images, texts = np.random.default_rng(0), [], []
    for i in range(count):
        name = list(COLOURS)[i % len(COLOURS)]
        noise = rng.integers(-20, 20, (40, 48, 3))
        images.append(np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8))
        texts.append(f"a {name} wall.")
    return images, texts


def weights_equal(a: Captioner, b: Captioner) -> bool:
    ours, theirs = a.model.state_dict(), b.model.state_dict()
    return all(torch.equal(ours[key], theirs[key]) for key in theirs) and ours.keys() == theirs.keys()
