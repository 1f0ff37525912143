"""From frames as they are shown to the tensor that a model takes.

Two ways of resizing stand side by side, because they give different pixels. The authors of CLIP-ViP resize the
float tensor bicubically without antialiasing (torchvision of 2022: aliased when it shrinks), and keep no
aspect. CLIP itself and OFA resize the 8-bit picture with Pillow, antialiased. Neither crops nor augments.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from clipvip_lib.errors import ClipVipError

# openai/CLIP, clip.py, `_transform`
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def resize(frames: np.ndarray, size: int, antialias: bool) -> np.ndarray:
    """Resize to size x size, aspect not kept: uint8 [..., H, W, 3] to uint8 [..., size, size, 3].

    ``antialias`` False: the authors' float bicubic, here rounded to 8 bits; True: Pillow's two-step bicubic.
    Frames that already have the size come back as they are.

    Raises ClipVipError for another dtype or shape, or a size below 1.
    """
    _check(frames, size)
    *lead, height, width, _ = frames.shape
    if (height, width) == (size, size):
        return frames
    flat = frames.reshape(-1, height, width, 3)
    if antialias:
        small = np.stack([_pillow_resize(frame, size) for frame in flat])
    else:
        floats = _float_resize(torch.from_numpy(np.ascontiguousarray(flat)).movedim(-1, 1).float(), size)
        small = floats.round_().clamp_(0, 255).to(torch.uint8).movedim(1, -1).numpy()
    return np.ascontiguousarray(small).reshape(*lead, size, size, 3)


def normalize(frames: torch.Tensor) -> torch.Tensor:
    """uint8 [..., H, W, 3] to float32 [..., 3, H, W]: divided by 255, CLIP's mean and standard deviation.

    Works on the device that ``frames`` is on. Raises ClipVipError for another dtype or shape.
    """
    _check(frames)
    return _standardize(frames.movedim(-1, -3).float().div(255))


def preprocess(frames: np.ndarray, size: int, antialias: bool = False) -> torch.Tensor:
    """Frames of a video as the model takes them: uint8 [N, H, W, 3] to float32 [N, 3, size, size].

    By default in the authors' order, to the last bit of float32: divide by 255, bicubic resize, mean and
    standard deviation (XPretrain, CLIP-ViP/src/datasets/dataloader.py). Values may leave the 8-bit range at
    edges, because a bicubic overshoots and nothing is clamped. ``antialias`` resizes with Pillow first, as CLIP
    does.

    Raises ClipVipError for another dtype or shape, or a size below 1.
    """
    _check(frames, size)
    if antialias:
        return normalize(torch.from_numpy(resize(frames, size, antialias=True)))
    floats = torch.from_numpy(np.ascontiguousarray(frames)).movedim(-1, 1).float().div(255)
    return _standardize(_float_resize(floats, size))


def _float_resize(floats: torch.Tensor, size: int) -> torch.Tensor:
    """[N, 3, H, W] to [N, 3, size, size], bicubic, not antialiased, not clamped."""
    if floats.shape[-2:] == (size, size):
        return floats
    return torch.nn.functional.interpolate(
        floats, (size, size), mode="bicubic", align_corners=False, antialias=False
    )


def _pillow_resize(frame: np.ndarray, size: int) -> np.ndarray:
    """[H, W, 3] to [size, size, 3], first in width, then in height, rounded to 8 bits in between.

    Pillow up to 12 always worked in this order; Pillow 13 takes the cheaper one, which gives portrait
    pictures other pixels. Two calls give the old result, the one that CLIP and OFA were trained on,
    everywhere.
    """
    image = Image.fromarray(frame)
    image = image.resize((size, image.height), Image.Resampling.BICUBIC)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def _standardize(floats: torch.Tensor) -> torch.Tensor:
    mean = floats.new_tensor(CLIP_MEAN).view(3, 1, 1)
    std = floats.new_tensor(CLIP_STD).view(3, 1, 1)
    return floats.sub(mean).div(std)


def _check(frames: np.ndarray | torch.Tensor, size: int = 1) -> None:
    if frames.dtype not in (np.uint8, torch.uint8) or frames.ndim < 3 or frames.shape[-1] != 3:
        raise ClipVipError(
            f"expected frames as uint8 [..., H, W, 3], got {frames.dtype} {list(frames.shape)}; "
            "pass what read_frames returns"
        )
    if size < 1:
        raise ClipVipError(f"expected an image size of at least 1 pixel, got {size}; choose a larger one")
