"""A video is found by its name in whatever folder and with whatever suffix; two candidates are refused."""

import unicodedata

import formats
import pytest

from clipvip_lib.data import corpora
from clipvip_lib.data.benchmarks import load_benchmark
from clipvip_lib.data.container import VideoError
from clipvip_lib.data.video_files import VideoFiles, clip_seconds
from clipvip_lib.errors import ClipVipError


def quiet(done, total, note=""):
    pass


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    folder = tmp_path_factory.mktemp("native")
    corpora.write_benchmark(folder, "msrvtt", 0, {"train": 4, "val": 4, "test": 4}, quiet)
    return folder


@pytest.fixture
def write(native, tmp_path):
    """``write(name)`` is the folder of a set."""

    def written(name):
        formats.rewrite("msrvtt", native, name, tmp_path / name, quiet)
        return tmp_path / name

    return written


@pytest.mark.bad_input("benchmark: two videos for one name", says="`expected one; remove the other`")
def test_two_candidates_for_one_name_are_refused(write):
    root = write("msrvtt")
    path = load_benchmark("msrvtt", root, "test")[0].path
    path.with_suffix(".webm").write_bytes(path.read_bytes())
    with pytest.raises(ClipVipError, match=r"video8 may be .* or .*: expected one; remove the other"):
        load_benchmark("msrvtt", root, "test")


def test_videos_are_found_in_any_layout(write, tmp_path):
    root = write("msrvtt")
    good = [item.path.read_bytes() for item in load_benchmark("msrvtt", root, "test")]
    (root / "videos").rename(root / "MSRVTT_Videos")
    assert [item.path.read_bytes() for item in load_benchmark("msrvtt", root, "test")] == good
    (root / "MSRVTT_Videos").rename(tmp_path / "elsewhere")
    items = load_benchmark("msrvtt", root, "test", videos=tmp_path / "elsewhere")
    assert [item.path.read_bytes() for item in items] == good
    with pytest.raises(ClipVipError, match=r"4 of 4 videos .* are not under .*videos, first"):
        load_benchmark("msrvtt", root, "test")


def test_a_folder_is_listed_once_and_frame_folders_not_to_their_end(tmp_path):
    for name in (
        "a/b/x.mp4",
        "a/y.y.AVI",
        "a/notes.txt",
        "z/z_000.jpg",
        "z/z_001.jpg",
        "film/poster.jpg",
        "film/q.mp4",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a/gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    files = VideoFiles(tmp_path / "a")
    assert {path.name for path in files.paths} == {"x.mp4", "y.y.AVI"}
    assert files.find(["y.y"]) == [tmp_path / "a/y.y.AVI"]
    assert files.find(["nothing", "x"]) == [tmp_path / "a/b/x.mp4"]
    assert files.find(["z"]) == []
    (tmp_path / "film/loop").symlink_to(tmp_path)
    names = sorted(path.name for path in VideoFiles(tmp_path).paths)
    assert names == ["q.mp4", "x.mp4", "y.y.AVI", "z"]  # each once, though a link leads back
    assert VideoFiles(tmp_path / "nowhere").paths == []


def test_didemos_names_are_found_as_they_are_and_re_encoded(tmp_path):
    for name in ("1@N00_1_x.3g2", "2@N00_2_x.mp4", "3@N00_3_x.m2ts", "4@N00_4_x.avi"):
        (tmp_path / name).write_bytes(b"x")
    files = VideoFiles(tmp_path)
    asked = ("1@N00_1_x.3g2", "2@N00_2_x.m2ts", "3@N00_3_x.mts", "4@N00_4_x.3gp")
    found = [[path.name for path in files.find([name])] for name in asked]
    assert found == [["1@N00_1_x.3g2"], ["2@N00_2_x.mp4"], ["3@N00_3_x.m2ts"], ["4@N00_4_x.avi"]]


def test_a_second_suffix_belongs_to_the_name(tmp_path):
    for file in ("a.mov.mp4", "b.h264.mkv", "b.mp4", "c.mov", "c.mov.mp4"):
        (tmp_path / file).write_bytes(b"x")
    found = VideoFiles(tmp_path)
    expected = {
        "a.mov": "a.mov.mp4",
        "b.h264": "b.h264.mkv",
        "b": "b.mp4",
        "b.avi": "b.mp4",
        "c.mov": "c.mov",
    }
    assert {name: [path.name for path in found.find([name])] for name in expected} == {
        name: [file] for name, file in expected.items()
    }


def test_letters_with_accents_are_found_composed_and_apart(tmp_path):
    whole, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    for folder, name in (("a", whole), ("b", apart)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.mp4").write_bytes(b"x")
        files = VideoFiles(tmp_path / folder)
        for asked in (whole, apart, f"{whole}.avi", f"{apart}.mp4"):
            assert files.find([asked]) == [tmp_path / folder / f"{name}.mp4"]
    assert len(VideoFiles(tmp_path).find([whole])) == 2  # none is chosen
    assert VideoFiles(tmp_path).find([f"{apart}.mp4"]) == [tmp_path / "b" / f"{apart}.mp4"]


def test_a_clips_length_is_read_without_decoding(write):
    for name in ("msrvtt", "lsmdc"):
        item = load_benchmark(name, write(name), "test")[0]
        assert clip_seconds(item.path) == pytest.approx(7 / 3)
    with pytest.raises(VideoError, match="is not a readable video"):
        clip_seconds(write("msvd") / "raw-captions.pkl")
