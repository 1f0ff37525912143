"""One dial: known names, known fields, right types."""

import dataclasses

import pytest

from clipvip_lib.data.world import CLIPS_PER_VIDEO
from clipvip_lib.errors import ClipVipError
from clipvip_lib.profiles import PROFILES, get_profile


def test_profiles_are_frozen_and_hashable():
    for name, profile in PROFILES.items():
        assert hash(profile) == hash(get_profile(name))
        with pytest.raises(dataclasses.FrozenInstanceError):
            profile.finetune.steps = 1


def test_unknown_profile_and_fields_are_refused_with_the_nearest_name():
    with pytest.raises(ClipVipError, match="unknown profile 'mni'.*did you mean 'mini'"):
        get_profile("mni")
    with pytest.raises(ClipVipError, match="unknown profile field 'finetune.step'.*did you mean 'steps'"):
        get_profile("mini", **{"finetune.step": 3})
    with pytest.raises(ClipVipError, match="plain value"):
        get_profile("mini", **{"curve_points.x": 3})
    with pytest.raises(ClipVipError, match="expected int like"):
        get_profile("mini", **{"finetune.steps": "many"})
    with pytest.raises(ClipVipError, match="expected int like"):
        get_profile("mini", **{"finetune.steps": True})
    with pytest.raises(ClipVipError, match="expected 1 or more, got 0"):
        get_profile("mini", **{"model.frames": 0})


def test_one_field_changes_and_nothing_else():
    changed = get_profile("mini", **{"finetune.steps": 7})
    assert changed.finetune.steps == 7
    assert dataclasses.replace(changed, finetune=get_profile("mini").finetune) == get_profile("mini")


def test_mini_on_a_gpu_is_the_same_study_and_another_result():
    mini, gpu = get_profile("mini"), get_profile("mini-gpu")
    assert repr(mini) == repr(gpu) and mini != gpu
    assert dataclasses.replace(gpu, device="cpu") == mini


def test_corpora_keep_the_real_proportion_and_whole_videos():
    for name in ("smoke", "mini"):
        world = get_profile(name).world
        assert world.corpus_clips % (40 * CLIPS_PER_VIDEO) == 0
        assert all(count % CLIPS_PER_VIDEO == 0 for count in (world.train, world.val, world.test))
        smallest = world.corpus_clips // 40
        assert smallest >= get_profile(name).postpretrain.batch, "a batch must fit into the smallest corpus"


def test_mini_sees_the_largest_corpus_about_once():
    profile = get_profile("mini")
    epochs = profile.postpretrain.steps * profile.postpretrain.batch / profile.world.corpus_clips
    assert 0.9 < epochs <= 1.1
    assert profile.world.test >= 1000
