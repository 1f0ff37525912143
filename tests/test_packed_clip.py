"""A packed clip shows every reader the frames that it would get of the original."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import videos
from hypothesis import given
from hypothesis import strategies as st
from small_clip import FRAMES, SIZE, small_model

from clipvip_lib.data.container import look
from clipvip_lib.data.frames import FrameStore, write_store
from clipvip_lib.data.packed_clip import JITTER_STEPS, Packing, chosen, pack_clip, pack_media, places
from clipvip_lib.data.transform import resize
from clipvip_lib.data.video import VideoError, middle_index, read_frames, uniform_indices
from clipvip_lib.data.video_files import clip_seconds
from clipvip_lib.errors import ClipVipError
from clipvip_lib.models.encoding import encode_videos
from clipvip_lib.progress import quiet

STEPS = st.sampled_from([1, 2, JITTER_STEPS, 4])


def original(frames: int = 90, **options) -> bytes:
    return videos.encode(frames, size=(96, 128), **options)


@given(total=st.integers(1, 5000), frames=st.integers(1, 64), steps=STEPS)
def test_the_frames_that_readers_ask_for_are_those_of_the_original(total, frames, steps):
    found = chosen(total, frames, steps)
    packed = len(found)
    np.testing.assert_array_equal(found[uniform_indices(packed, frames)], uniform_indices(total, frames))
    assert found[middle_index(packed)] == middle_index(total)
    assert (np.diff(found) >= 0).all() and 0 <= found[0] and found[-1] < total
    assert packed == min(total, places(frames, steps))


@given(total=st.integers(2, 5000), frames=st.integers(2, 32), seed=st.integers(0, 99))
def test_jittered_frames_lie_where_the_original_could_put_them(total, frames, seed):
    """Each within two places and a frame of what the same movement of the ends asks of the original."""
    found = chosen(total, frames, JITTER_STEPS)
    places_asked = uniform_indices(len(found), frames, np.random.default_rng(seed))
    scale = (total - 1) / max(1, len(found) - 1)
    ends = np.linspace(places_asked[0], places_asked[-1], frames) * scale
    assert (np.abs(found[places_asked] - ends) <= 2 * scale + 1).all()


def test_places_for_the_numbers_that_people_use():
    assert [places(n) for n in (1, 2, 3, 8, 12, 24, 32)] == [2, 3, 4, 15, 23, 47, 63]
    assert places(12, JITTER_STEPS) == 34
    assert chosen(100, 3).tolist() == [0, 49, 50, 99]


@pytest.mark.parametrize("steps", [1, JITTER_STEPS])
@pytest.mark.parametrize("antialias", [False, True])
def test_pictures_are_the_originals_up_to_the_codec(steps, antialias):
    clip = original()
    packing = Packing(12, steps, 64, antialias, quality=12)
    packed = pack_clip(clip, packing, "a clip")
    assert packed.total == 90 and not packed.damage
    assert look(packed.content).frames == places(12, steps) and look(packed.content).doubt == ""
    whole = resize(read_frames(clip, range(90)), 64, antialias).astype(int)

    def asked(total: int) -> list[int]:
        return [*uniform_indices(total, 12), middle_index(total)]

    shown = read_frames(packed.content, asked).astype(int)
    assert shown.shape == (13, 64, 64, 3)
    nearest = [int(np.abs(whole - frame).mean((1, 2, 3)).argmin()) for frame in shown]
    assert nearest == asked(90)  # every picture of the clip differs from every other one
    error = np.abs(shown - whole[asked(90)]).mean()
    assert error == pytest.approx(packed.error) and error < 1.5
    coarse = pack_clip(clip, Packing(12, steps, 64, antialias, quality=40))
    assert coarse.error > 2 * packed.error and len(coarse.content) < len(packed.content)


def test_features_are_those_of_the_original(tmp_path):
    """The model's own features, from files to vectors: only the codec is between them."""
    model, paths = small_model(), {"clips": [], "packs": []}
    for frames in (20, 61, 90):
        clip = original(frames)
        for kind, content in (
            ("clips", clip),
            ("packs", pack_clip(clip, Packing(FRAMES, size=SIZE)).content),
        ):
            paths[kind].append(tmp_path / f"{kind}{frames}.mp4")
            paths[kind][-1].write_bytes(content)
    clips, packs = (encode_videos(model, each, frames=FRAMES) for each in paths.values())
    assert (clips * packs).sum(1).min() > 0.998
    assert (clips @ packs.T).argmax(1).tolist() == [0, 1, 2]


def test_it_lasts_as_long_as_the_original_and_repeats_cost_nothing(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(original())
    packed = pack_clip(path, Packing(12, size=64))
    assert clip_seconds(packed.content, "packed") == pytest.approx(90 / 25, abs=0.05)
    many = pack_clip(path, Packing(12, JITTER_STEPS, size=64))
    assert len(packed.content) < 0.7 * len(many.content)


def test_a_short_clip_is_kept_whole():
    packed = pack_clip(original(7), Packing(12, size=64, quality=12))
    assert look(packed.content).frames == 7
    assert pack_clip(original(1), Packing(12, size=64)).total == 1


def test_frame_folders_and_stills(tmp_path):
    from PIL import Image

    folder = tmp_path / "clip"
    folder.mkdir()
    for number, picture in enumerate(videos.pictures(30)):
        Image.fromarray(picture).save(folder / f"clip_{number:03d}.png")
    packed = pack_clip(folder, Packing(4, size=64))
    assert packed.total == 30 and clip_seconds(packed.content, "x") == pytest.approx(30, abs=0.1)
    still = (folder / "clip_000.png").read_bytes()
    assert pack_media(still, Packing(), "a still") is None
    with pytest.raises(VideoError, match="a still is damaged or cut"):
        pack_media(still[:200], Packing(), "a still")


def test_a_frame_store_of_packs_is_that_of_the_originals(tmp_path):
    """What fine-tuning keeps, made from a pack of as many frames."""
    clips = [original(frames) for frames in (90, 41)]
    packed = [pack_clip(clip, Packing(24, size=SIZE, quality=12)).content for clip in clips]
    stores = []
    for name, of in (("originals", clips), ("packs", packed)):
        path = tmp_path / f"{name}.npy"
        write_store(path, [(str(i), clip) for i, clip in enumerate(of)], 2, 24, SIZE, False, quiet)
        stores.append(FrameStore([path]))
    for one, other in (
        (store.take([0, 1], 12).astype(int) for store in stores),
        (store.middle([0, 1]).astype(int) for store in stores),
    ):
        assert np.abs(one - other).mean() < 2.5


@pytest.mark.bad_input("pack: numbers outside their range", says="the number, and what was expected")
@pytest.mark.parametrize("change", [{"frames": 0}, {"size": 4}, {"quality": 99}, {"steps": 0}])
def test_numbers_are_checked(change):
    with pytest.raises(ClipVipError, match=f"{next(iter(change))} expected .* to .*, got"):
        Packing(**change)


def test_what_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(VideoError, match="a of b.tar is not a readable video"):
        pack_media(b"<html>", Packing(), "a of b.tar")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(original()[:-500])
    with pytest.raises(VideoError, match="cut.mp4 is cut"):
        pack_clip(cut, Packing())
