"""Pixels as the models were trained on them: the authors' float bicubic, and Pillow's two steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from clipvip_lib.data.transform import CLIP_MEAN, CLIP_STD, normalize, preprocess, resize
from clipvip_lib.errors import ClipVipError


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 [2, H, W, 3]: noise, the hardest case for a resize."""
    return np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), dtype=np.uint8)


def cubic(x: np.ndarray, stretch: float, a: float) -> np.ndarray:
    """Keys' kernel (1981), made wider by ``stretch``."""
    x = np.abs(x) / stretch
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def weights(old: int, new: int, antialias: bool) -> np.ndarray:
    """[new, old] by definition: torch repeats the border, a = -0.75; Pillow renormalises, a = -0.5."""
    scale = old / new
    table = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * scale - 0.5
        if antialias:
            row = cubic(np.arange(old) - centre, max(scale, 1.0), -0.5)
            table[i] = row / row.sum()
        else:
            for j in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
                table[i, np.clip(j, 0, old - 1)] += cubic(np.array(j - centre), 1.0, -0.75)
    return table


@pytest.mark.parametrize("shape", [(31, 50), (50, 31), (40, 40), (17, 90)])
@pytest.mark.parametrize("size", [16, 48])
def test_preprocess_is_the_authors_rule_by_definition(shape, size):
    """Divide by 255, bicubic, neither antialiased nor clamped, mean and standard deviation."""
    frames = picture(*shape)
    rows, columns = weights(shape[0], size, False), weights(shape[1], size, False)
    resized = np.einsum("ih,jw,nhwc->ncij", rows, columns, frames / 255)
    assert resized.min() < -0.05 and resized.max() > 1.05  # the overshoot is kept
    expected = (resized - np.array(CLIP_MEAN).reshape(3, 1, 1)) / np.array(CLIP_STD).reshape(3, 1, 1)
    got = preprocess(frames, size)
    assert got.dtype == torch.float32 and got.shape == (2, 3, size, size)
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("shape", [(31, 50), (50, 31), (200, 333), (333, 200), (17, 90), (90, 17)])
def test_antialiased_resize_goes_width_first_whatever_pillow_does(shape):
    """By hand: in width, rounded to 8 bits, then in height. Pillow 13 alone takes portraits the other way."""
    frames = picture(*shape)
    size = 24
    wide = np.einsum("jw,nhwc->nhjc", weights(shape[1], size, True), frames.astype(float))
    wide = np.clip(np.floor(wide + 0.5), 0, 255)
    expected = np.einsum("ih,nhjc->nijc", weights(shape[0], size, True), wide)
    expected = np.clip(np.floor(expected + 0.5), 0, 255)
    got = resize(frames, size, antialias=True)
    assert got.dtype == np.uint8
    # Pillow counts in fixed point: a weighted sum near one half may round the other way, by one level.
    assert np.abs(got - expected).max() <= 1 and (got != expected).mean() < 0.01


def test_height_first_would_give_other_pixels():
    """The trap that the two steps avoid: in another order, overshoots are cut off elsewhere."""
    frame = (picture(333, 200)[0] > 127).astype(np.uint8) * 255
    image = Image.fromarray(frame).resize((200, 224), Image.Resampling.BICUBIC)
    height_first = np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC)).astype(int)
    off = np.abs(height_first - resize(frame, 224, antialias=True))
    assert off.max() > 8 and (off > 1).mean() > 0.1


def test_the_two_rules_differ_when_shrinking():
    frames = picture(128, 128)
    aliased, smooth = (resize(frames, 32, antialias) for antialias in (False, True))
    assert aliased.std() > 1.5 * smooth.std()


def test_preprocess_antialiased_is_resize_then_normalize():
    frames = picture(60, 40)
    expected = normalize(torch.from_numpy(resize(frames, 32, antialias=True)))
    assert torch.equal(preprocess(frames, 32, antialias=True), expected)


def test_normalize_by_hand_on_any_leading_shape():
    frames = torch.tensor([0, 128, 255], dtype=torch.uint8).expand(2, 5, 4, 6, 3)
    got = normalize(frames)
    assert got.shape == (2, 5, 3, 4, 6) and got.dtype == torch.float32
    for channel, value in enumerate((0, 128, 255)):
        expected = (value / 255 - CLIP_MEAN[channel]) / CLIP_STD[channel]
        assert got[..., channel, :, :].numpy() == pytest.approx(expected, abs=1e-6)


@given(arrays(np.uint8, (3, 7, 9, 3)), st.integers(1, 20), st.booleans())
@settings(max_examples=30, deadline=None)
def test_resize_is_per_frame_and_per_channel(frames, size, antialias):
    whole = resize(frames, size, antialias)
    assert whole.shape == (3, size, size, 3) and whole.dtype == np.uint8
    assert (resize(frames[1], size, antialias) == whole[1]).all()
    assert (resize(frames[..., ::-1], size, antialias) == whole[..., ::-1]).all()
    assert (resize(frames[None], size, antialias)[0] == whole).all()


@given(st.integers(0, 255), st.integers(1, 40), st.integers(1, 40), st.integers(1, 30), st.booleans())
@settings(max_examples=30, deadline=None)
def test_flat_pictures_stay_flat(level, height, width, size, antialias):
    frames = np.full((1, height, width, 3), level, np.uint8)
    assert (resize(frames, size, antialias) == level).all()


def test_a_picture_of_the_right_size_is_not_touched():
    frames = picture(32, 32)
    for antialias in (False, True):
        assert (resize(frames, 32, antialias) == frames).all()
        assert torch.equal(preprocess(frames, 32, antialias), normalize(torch.from_numpy(frames)))


@pytest.mark.parametrize(
    "frames",
    [np.zeros((2, 8, 8, 3), np.float32), np.zeros((2, 3, 8, 8), np.uint8), np.zeros((8, 3), np.uint8)],
)
def test_other_arrays_are_refused(frames):
    for call in (
        lambda: resize(frames, 8, True),
        lambda: preprocess(frames, 8),
        lambda: normalize(torch.from_numpy(frames)),
    ):
        with pytest.raises(ClipVipError, match=r"expected frames as uint8 \[\.\.\., H, W, 3\], got"):
            call()


@pytest.mark.parametrize("size", [0, -4])
def test_sizes_below_one_are_refused(size):
    for call in (lambda: resize(picture(8, 8), size, False), lambda: preprocess(picture(8, 8), size)):
        with pytest.raises(ClipVipError, match="at least 1 pixel"):
            call()
