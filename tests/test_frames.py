"""A store holds the very frames that the reader reads, and draws from them as training needs."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from clipvip_lib.data import transform
from clipvip_lib.data.corpora import encode_h264, encode_jpeg
from clipvip_lib.data.frames import FrameStore, write_store
from clipvip_lib.data.video import VideoError, middle_index, read_frames, uniform_indices
from clipvip_lib.data.world import FRAMES, render, rng_for, sample_video
from clipvip_lib.errors import ClipVipError

CLIPS = [encode_h264(render(clip)) for i in range(2) for clip in sample_video(rng_for(i), "train")]


def quiet(done, total, note=""):
    pass


def store(path, clips=CLIPS, count=None, frames=8, size=32):
    named = ((f"clip-{i}", clip) for i, clip in enumerate(clips))
    return write_store(path, named, len(clips) if count is None else count, frames, size, True, quiet)


def test_a_store_holds_uniform_frames_and_the_middle_one(tmp_path):
    assert store(tmp_path / "a.npy") == len(CLIPS) * 9
    found = FrameStore([tmp_path / "a.npy"])
    assert (len(found), found.frames) == (8, 8)
    for index in (0, 5):
        indices = [*uniform_indices(FRAMES, 8), middle_index(FRAMES)]
        direct = transform.resize(read_frames(CLIPS[index], indices), 32, True)
        np.testing.assert_array_equal(found.take([index], 8)[0], direct[:8])
        np.testing.assert_array_equal(found.middle([index])[0], direct[8:])


def test_frames_are_drawn_uniformly_and_with_jitter(tmp_path):
    store(tmp_path / "a.npy")
    found = FrameStore([tmp_path / "a.npy"])
    whole = found.take([3], 8)[0]
    np.testing.assert_array_equal(found.take([3], 4)[0], whole[[0, 2, 4, 7]])
    draws = {found.take([3], 4, np.random.default_rng(s)).tobytes() for s in range(20)}
    assert len(draws) > 3
    again = (found.take([3, 4], 4, np.random.default_rng(1)) for _ in range(2))
    np.testing.assert_array_equal(*again)


def test_parts_are_one_list(tmp_path):
    store(tmp_path / "a.npy", CLIPS[:3])
    store(tmp_path / "b.npy", CLIPS[3:])
    store(tmp_path / "all.npy")
    parts, whole = FrameStore([tmp_path / "a.npy", tmp_path / "b.npy"]), FrameStore([tmp_path / "all.npy"])
    order = [7, 0, 2, 3]
    np.testing.assert_array_equal(parts.take(order, 4), whole.take(order, 4))
    np.testing.assert_array_equal(parts.middle(order), whole.middle(order))


def test_a_still_image_is_a_video_of_one_frame(tmp_path):
    image = render(sample_video(rng_for(5), "train")[0])[0]
    store(tmp_path / "a.npy", [encode_jpeg(image)], frames=1)
    taken = FrameStore([tmp_path / "a.npy"]).take([0], 1)
    assert taken.shape == (1, 1, 32, 32, 3)
    assert abs(taken[0, 0].astype(int) - transform.resize(image[None], 32, True)[0]).mean() < 3


@pytest.mark.bad_input(
    "frame store: fewer or more videos than announced",
    says="that another number was expected; no file is left",
)
@pytest.mark.parametrize("count", (7, 9))
def test_a_wrong_count_is_refused_and_leaves_no_file(tmp_path, count):
    with pytest.raises(ClipVipError, match=f"expected {count} videos"):
        store(tmp_path / "a.npy", count=count)
    assert not list(tmp_path.iterdir())


@pytest.mark.bad_input("frame store: a cut video", says="its name; no file is left")
def test_a_bad_video_is_named_never_replaced(tmp_path):
    with pytest.raises(VideoError, match="clip-1"):
        store(tmp_path / "a.npy", [CLIPS[0], CLIPS[1][: len(CLIPS[1]) // 2], CLIPS[2]])
    assert not list(tmp_path.iterdir())


def test_stores_of_other_shapes_and_too_few_frames_are_refused(tmp_path):
    store(tmp_path / "a.npy")
    store(tmp_path / "b.npy", size=16)
    with pytest.raises(ClipVipError, match="one shape"):
        FrameStore([tmp_path / "a.npy", tmp_path / "b.npy"])
    with pytest.raises(ClipVipError, match="at least 1 frame"):
        store(tmp_path / "c.npy", frames=0)


def junk(path):
    path.write_bytes(b"junk" * 99)


def npz(path):
    with path.open("wb") as file:
        np.savez(file, a=np.zeros((3, 9, 32, 32, 3), np.uint8))


DAMAGES = {
    "gone": (Path.unlink, "No such file"),
    "empty": (lambda p: p.write_bytes(b""), "EOF: reading magic string"),
    "cut": (lambda p: os.truncate(p, p.stat().st_size // 2), "mmap length"),
    "cut in its header": (lambda p: os.truncate(p, 40), ""),
    "junk": (junk, ""),
    "header of junk": (lambda p: p.write_bytes(p.read_bytes()[:10] + b"(" * 70 + p.read_bytes()[80:]), ""),
    "an archive": (npz, "magic string"),
    "numbers of another kind": (lambda p: np.save(p, np.zeros((3, 9, 8, 8, 3))), "it holds something else"),
    "an array of another shape": (lambda p: np.save(p, np.zeros(9, np.uint8)), "it holds something else"),
    "pickled objects": (lambda p: np.save(p, np.array([{}])), "Python objects"),
    "a folder": (lambda p: p.unlink() or p.mkdir(), "Is a directory"),
}


@pytest.mark.bad_input(
    "frame store: gone, empty, cut, junk, pickled objects, of another shape or a folder",
    says="`cannot read the frame store`, `remove it`",
)
@pytest.mark.parametrize("name", DAMAGES)
def test_a_store_that_is_not_one_is_named(tmp_path, name):
    damage, why = DAMAGES[name]
    store(tmp_path / "a.npy")
    damage(tmp_path / "a.npy")
    with pytest.raises(
        ClipVipError, match=rf"cannot read the frame store .*a\.npy \(.*({why}).*remove it"
    ) as caught:
        FrameStore([tmp_path / "a.npy"])
    assert "\n" not in str(caught.value)


@pytest.mark.bad_input("picture: cut, or none", says="`is damaged or cut: expected a whole JPEG`")
@pytest.mark.parametrize("content", (b"\xff\xd8 no picture", None))
def test_a_damaged_still_is_named_for_what_it_is(tmp_path, content):
    if content is None:
        image = render(sample_video(rng_for(5), "train")[0])[0]
        content = encode_jpeg(image)[:600]
    with pytest.raises(VideoError, match="clip-0 is damaged or cut: expected a whole JPEG"):
        store(tmp_path / "a.npy", [content])
    assert not list(tmp_path.iterdir())


@pytest.mark.fault(
    "frame store: the disk is full (simulated)",
    sees="`No space left on device; free some space`",
    keeps="the process, which a memory map would end; no half file",
)
@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot reserve a file's room")
def test_a_full_disk_is_a_sentence_and_not_the_end_of_the_process(tmp_path, monkeypatch):
    def full(handle, offset, length):
        assert length > 8 * 9 * 32 * 32 * 3
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        ClipVipError, match=r"cannot write .*a\.npy: No space left on device; free some space"
    ):
        store(tmp_path / "a.npy")
    assert not list(tmp_path.iterdir())
