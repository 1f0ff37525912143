"""A folder of pictures is read as the video it was taken from; one that lost a picture is refused."""

import numpy as np
import pytest
from formats import write_pictures
from PIL import Image

from clipvip_lib.data import transform
from clipvip_lib.data.corpora import encode_h264
from clipvip_lib.data.frame_folders import (
    count_frames,
    frame_files,
    read_folder,
    read_frames,
)
from clipvip_lib.data.frames import FrameStore, write_store
from clipvip_lib.data.video import VideoError, uniform_indices
from clipvip_lib.data.world import FRAMES, render, rng_for, sample_video


def quiet(done, total, note=""):
    pass


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    (folder / "a.mp4").write_bytes(encode_h264(render(sample_video(rng_for(0), "train")[0])))
    return folder / "a.mp4"


@pytest.fixture
def folder(clip, tmp_path):
    assert write_pictures(tmp_path / "a", clip, ".png") == FRAMES
    return tmp_path / "a"


def test_a_folder_reads_as_the_video(clip, folder):
    assert count_frames(folder) == FRAMES
    for indices in ([0], [5, 2, 2], lambda total: uniform_indices(total, 4)):
        np.testing.assert_array_equal(read_frames(folder, indices), read_frames(clip, indices))
    np.testing.assert_array_equal(read_frames(clip.read_bytes(), [3]), read_folder(folder, [3]))


def test_a_store_takes_folders_beside_files(clip, folder, tmp_path):
    sources = [("file", clip), ("folder", folder), ("text", str(folder))]
    assert write_store(tmp_path / "a.npy", sources, 3, 4, 24, True, quiet) == 3 * 5
    store = FrameStore([tmp_path / "a.npy"])
    np.testing.assert_array_equal(*store.take([0, 1], 4))
    np.testing.assert_array_equal(store.middle([1]), store.middle([2]))
    np.testing.assert_array_equal(
        store.middle([1])[0], transform.resize(read_frames(clip, [FRAMES // 2]), 24, True)
    )


def test_jpeg_differs_by_a_few_grey_levels(clip, tmp_path):
    write_pictures(tmp_path / "a", clip, ".jpg")
    difference = np.abs(
        read_frames(tmp_path / "a", range(FRAMES)).astype(int) - read_frames(clip, range(FRAMES))
    )
    assert 0 < difference.mean() < 2


def test_numbers_may_begin_at_one_and_need_no_three_digits(clip, folder):
    whole = read_folder(folder, range(FRAMES))
    for number, picture in reversed([*enumerate(frame_files(folder))]):
        picture.rename(folder / f"frame{number + 1}.png")
    np.testing.assert_array_equal(read_folder(folder, range(FRAMES)), whole)


def rename(folder, old, new):
    (folder / f"a_{old:03d}.png").rename(folder / new)


@pytest.mark.bad_input(
    "frame folder: a frame missing, doubled, damaged, of another name or size, or none at all",
    says="the folder and what is wrong, such as `frame 1 is there twice`",
)
@pytest.mark.parametrize(
    ("damage", "message"),
    (
        (lambda f: (f / "a_003.png").unlink(), f"frame 3 is missing among {FRAMES - 1} pictures"),
        (lambda f: [(f / f"a_00{i}.png").unlink() for i in (0, 1)], "frame 1 is missing"),
        (lambda f: rename(f, FRAMES - 1, "a_1.png"), "frame 1 is there twice"),
        (lambda f: rename(f, 0, "cover.png"), r"named like a_000\.jpg, got cover\.png"),
        (lambda f: [p.unlink() for p in f.iterdir()], "holds no picture"),
        (lambda f: (f / "a_002.png").write_bytes(b"no picture"), r"a_002\.png is damaged or cut"),
        (
            lambda f: (f / "a_002.png").write_bytes((f / "a_001.png").read_bytes()[:900]),
            r"a_002\.png is damaged or cut",
        ),
        (lambda f: Image.new("RGB", (9, 8)).save(f / "a_002.png"), "9 x 8 pixels, others have 128 x 128"),
    ),
)
def test_a_damaged_folder_is_named(folder, damage, message):
    damage(folder)
    with pytest.raises(VideoError, match=message):
        read_folder(folder, range(3))


@pytest.mark.parametrize(
    ("indices", "message"),
    (([FRAMES], "expected 0 to"), ([-1], "is not in"), ([], "at least one"), ([0.5], "at least")),
)
def test_indices_outside_are_refused(folder, indices, message):
    with pytest.raises(VideoError, match=message):
        read_folder(folder, indices)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(VideoError, match="cannot read .*expected a folder of frames"):
        frame_files(tmp_path / "b")
