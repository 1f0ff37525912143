"""The embedded world: deterministic, its time visible and not to be told from a set of frames, its splits apart."""

import dataclasses
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipvip_lib.data import world
from clipvip_lib.data.video import middle_index, uniform_indices
from clipvip_lib.data.world import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    OPPOSITE,
    SHAPES,
    DrawnClip,
    Event,
    Thing,
    rng_for,
)
from clipvip_lib.profiles import get_profile

seeds = st.integers(0, 2**31 - 1)


def still(clip: DrawnClip) -> DrawnClip:
    """The clip without camera drift and change of light."""
    return dataclasses.replace(clip, drift=(0.0, 0.0), light=0.0)


HASHING = """
import hashlib
from clipvip_lib.data import world
from clipvip_lib.data.video import middle_index, uniform_indices
from clipvip_lib.data.world import rng_for
digest = hashlib.sha256()
for index in range(3):
    for clip in world.sample_video(rng_for(5, "hash", index), "train"):
        digest.update(repr(clip).encode() + world.render(clip).tobytes())
print(digest.hexdigest())
"""


def test_same_seed_gives_the_same_frames_in_another_process():
    def run(hash_seed: str) -> str:
        env = os.environ | {"PYTHONHASHSEED": hash_seed}
        return subprocess.run(
            [sys.executable, "-c", HASHING], env=env, capture_output=True, text=True, check=True
        ).stdout

    assert run("1") == run("2")


def test_other_seeds_give_other_videos():
    first, second = (world.sample_video(rng_for(seed, "x", 0), "train") for seed in (0, 1))
    assert first != second


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_a_video_is_two_pairs_of_clips_that_do_and_undo(seed):
    clips = world.sample_video(rng_for(seed), "train")
    assert len(clips) == world.CLIPS_PER_VIDEO
    assert len({(c.things, c.background, c.texture) for c in clips}) == 1
    assert len({c.events for c in clips}) == len(clips)
    for do, undo in (clips[:2], clips[2:]):
        assert do.places == undo.places
        assert [(e.thing, OPPOSITE[e.motion]) for e in reversed(do.events)] == [
            (e.thing, e.motion) for e in undo.events
        ]


@given(seeds)
@settings(max_examples=15, deadline=None)
def test_no_set_of_frames_tells_the_direction(seed):
    """The frames of an undone clip are those of the clip, backwards: as sets they are equal."""
    do, undo = (still(clip) for clip in world.sample_video(rng_for(seed), "train")[:2])
    np.testing.assert_array_equal(world.render(do), world.render(undo)[::-1])
    assert not np.array_equal(world.render(do), world.render(undo))


@pytest.mark.parametrize("motion", MOTIONS)
def test_every_motion_is_visible_over_patches(motion):
    """First and last frame differ over more than half a patch of the mini model's grid (32 x 32 pixels)."""
    clip = DrawnClip("sand", (Thing("circle", "red"),), ((1, 1),), (Event(0, motion),), (0.0, 0.0), 0.0, 3)
    frames = world.render(clip).astype(int)
    changed = (abs(frames[-1] - frames[0]).max(-1) > 40).sum()
    assert changed > 32 * 32 / 2
    assert abs(frames[len(frames) // 2] - frames[0]).max() > 40


def test_slides_and_growth_span_patches():
    patch = world.PIXELS / 4
    assert world.SLIDE >= 2.5 * patch
    assert (world.LARGE / world.SMALL) ** 2 > 10


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_and_colour_stands_out_from_every_background(shape, background):
    for colour in COLOURS:
        with_thing = DrawnClip(background, (Thing(shape, colour),), ((1, 2),), (), (0.0, 0.0), 0.0, 9)
        without = dataclasses.replace(with_thing, things=(), places=())
        difference = abs(world.render(with_thing, 1).astype(int) - world.render(without, 1)).max(-1)
        assert (difference > 40).sum() > 100, (shape, colour, background)


def test_shapes_differ_from_one_another():
    masks = {shape: world._mask(shape, 15) for shape in SHAPES}
    for a in SHAPES:
        for b in SHAPES:
            if a < b:
                assert abs(masks[a] - masks[b]).mean() > 0.04, (a, b)


@given(seeds, st.sampled_from(sorted(world.SPLITS)))
@settings(max_examples=40, deadline=None)
def test_a_scene_belongs_to_one_split_alone(seed, split):
    clips = world.sample_video(rng_for(seed), split)
    assert {world.split_of(clip.scene) for clip in clips} == {split}


def test_scene_name_ignores_the_order_of_things():
    a, b = Thing("star", "red"), Thing("moon", "blue")
    assert world.scene_name((a, b), "sand") == world.scene_name((b, a), "sand")


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_things_at_rest_never_share_a_row_or_column(seed):
    for clip in world.sample_video(rng_for(seed), "train"):
        assert all(len(set(axis)) == len(clip.things) for axis in zip(*clip.places, strict=True))


def test_documented_shares_hold():
    clips = [c for i in range(1500) for c in world.sample_video(rng_for(0, "share", i), "pretraining")[:1]]
    things = np.bincount([len(c.things) for c in clips], minlength=4)[1:] / len(clips)
    expected = [world.ONE_THING, world.TWO_THINGS, 1 - world.ONE_THING - world.TWO_THINGS]
    np.testing.assert_allclose(things, expected, atol=0.07)
    assert abs(np.mean([len(c.events) == 2 for c in clips]) - world.TWO_EVENTS) < 0.05
    drawn = {e.motion for c in clips for e in c.events}
    assert drawn == set(MOTIONS)
    assert max(abs(d) for c in clips for d in c.drift) <= world.DRIFT


def test_rendered_frames_have_the_stated_form():
    frames = world.render(world.sample_video(rng_for(1), "train")[0])
    assert frames.shape == (world.FRAMES, world.PIXELS, world.PIXELS, 3)
    assert frames.dtype == np.uint8
    assert hashlib.sha256(frames[0]).digest() != hashlib.sha256(frames[-1]).digest()


def test_evaluation_sees_the_same_times_forwards_and_backwards():
    """Else the set of frames tells the direction: of 16 frames 0, 4, 8 and 15 were taken, and one frame told it."""
    size = get_profile("mini").model
    stored = uniform_indices(world.FRAMES, size.cached_frames)
    taken = stored[uniform_indices(size.cached_frames, size.frames)]
    assert (taken == world.FRAMES - 1 - taken[::-1]).all()
    assert middle_index(world.FRAMES) == (world.FRAMES - 1) / 2
