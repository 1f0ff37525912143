"""The probes find order where it is, and nothing where it is not."""

import numpy as np
import pytest
import torch

from clipvip_lib.data.frames import FrameStore
from clipvip_lib.data.world import MOTIONS
from clipvip_lib.models.clip_vip import ClipViP, ClipViPConfig
from clipvip_lib.statistics.probes import motion_table, patch_states, probe


def made(clips, seed, leak=False):
    """States in which a motion is a ramp over time at its own place and feature, and its opposite the ramp back."""
    rng = np.random.default_rng(seed)
    motions, states = rng.integers(len(MOTIONS), size=clips), rng.normal(size=(clips, 4, 9, 8)) * 0.3
    ramp = np.linspace(-1, 1, 4)
    for clip, motion in enumerate(motions):
        states[clip, :, rng.integers(9), motion // 2] += 2 * (ramp if motion % 2 else -ramp)
        if leak:
            states[clip, :, 0, 7] += 2 * (motion % 2)
    return torch.from_numpy(states).half(), motion_table([[MOTIONS[m]] for m in motions])


def share(found):
    return sum(found.right) / sum(found.asked)


@pytest.fixture(scope="module")
def sets():
    return made(1500, 0), made(400, 1)


def test_all_frames_tell_the_direction(sets):
    found = probe(*sets, one_frame=False, seed=0)
    assert share(found) > 0.95 and sum(found.asked) == 400
    assert found.pairs == tuple(zip(MOTIONS[::2], MOTIONS[1::2], strict=True))


def test_one_frame_does_not(sets):
    assert 0.42 < share(probe(*sets, one_frame=True, seed=0)) < 0.58


def test_the_probe_of_one_frame_would_find_a_leak():
    assert share(probe(made(1500, 0, leak=True), made(400, 1, leak=True), one_frame=True, seed=0)) > 0.9


def test_it_is_a_function_of_its_seed(sets):
    torch.manual_seed(3)
    first = probe(*sets, one_frame=True, seed=1, epochs=1)
    assert first == probe(*sets, one_frame=True, seed=1, epochs=1)


def test_patch_states_are_those_of_single_frames(tmp_path):
    torch.manual_seed(0)
    sizes = {"width": 16, "layers": 2, "heads": 2, "image_size": 16, "patch_size": 8, "embed_dim": 16}
    model = ClipViP(ClipViPConfig.small(**sizes, vocab_size=40, context_length=12, attention="mean_pool"))
    rng = np.random.default_rng(0)
    np.save(tmp_path / "frames.npy", rng.integers(0, 255, (5, 8, 16, 16, 3)).astype(np.uint8))
    store = FrameStore([tmp_path / "frames.npy"])
    states = patch_states(model, store, 4, "bfloat16", batch=2)
    assert states.shape == (5, 4, 4, 16)
    alone = patch_states(model, store, 1, "bfloat16", batch=5)  # the first frame
    torch.testing.assert_close(states[:, :1], alone)
