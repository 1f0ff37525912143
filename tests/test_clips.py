"""What sources hold, and their frames: files, folders, frame folders and shards are read alike."""

from __future__ import annotations

import io
import json
import os
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import videos
from patience import STILL
from PIL import Image
from small_clip import write_videos

from clipvip_lib.data.clips import decode_ahead, list_clips, list_files, read_clip
from clipvip_lib.data.transform import resize
from clipvip_lib.data.video import VideoError, read_frames, uniform_indices
from clipvip_lib.data.video_files import SUFFIXES
from clipvip_lib.errors import ClipVipError

N, SIZE = 4, 32


def by_hand(video: Path | bytes, antialias: bool = False) -> np.ndarray:
    return resize(read_frames(video, lambda total: uniform_indices(total, N), "by hand"), SIZE, antialias)


def write_shard(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, files in samples.items():
            for extension, content in files.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def sample(frames: int) -> dict[str, bytes]:
    return {"mp4": videos.encode(frames, size=(48, 64)), "txt": b"a text", "json": b"{}"}


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(videos.pictures(1, 48, 64)[0]).save(file, "jpeg")
    return file.getvalue()


def write_pictures(folder: Path, frames: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{folder.name}_{i:03d}.png")
    return folder


def test_folders_are_searched_in_order(tmp_path):
    write_videos(tmp_path / "b" / "deep", 2)
    write_videos(tmp_path, 1)
    (tmp_path / "v.0.MKV").write_bytes(videos.encode(5, container="matroska"))
    for name in ("notes.txt", ".hidden.mp4", "b/._v00.mp4"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "poster.jpg").write_bytes(jpeg())  # beside videos it is not a frame
    write_pictures(tmp_path / "a", videos.pictures(5))
    write_shard(tmp_path / "c" / "00000.tar", {"000": sample(4)})
    clips = list_clips([tmp_path])
    assert [clip.id for clip in clips] == ["v.0", "v00", "a", "b/deep/v00", "b/deep/v01", "000"]
    assert all(Path(clip.path).is_absolute() and Path(clip.path).exists() and clip.stamp for clip in clips)
    assert [clip.id for clip in list_clips([tmp_path / "b" / "deep" / "v01.mp4", tmp_path / "a"])] == [
        "v01",
        "a",
    ]
    whole = [clip.id for clip in list_clips([tmp_path], ids="path")]
    assert whole[1] == str(tmp_path / "v00.mp4") and whole[-1] == str(tmp_path / "c" / "00000.tar") + "/000"


def test_files_are_listed_with_shards_unopened(tmp_path):
    write_videos(tmp_path, 1)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "00.0.tar").write_bytes(b"not looked into")
    write_pictures(tmp_path / "c", videos.pictures(5))
    found = list_files([tmp_path])
    assert [clip.id for clip in found] == ["v00", "b/00.0.tar", "c"] and found[1].entry is None
    assert [clip.id for clip in list_files([tmp_path / "b" / "*.tar"])] == ["00.0.tar"]
    with pytest.raises(ClipVipError, match="two videos have the id '00.0.tar'.*rename one"):
        list_files([tmp_path / "b" / "00.0.tar", write_shard(tmp_path / "d" / "00.0.tar", {"0": sample(4)})])


def test_paths_are_those_of_the_caller_made_whole(tmp_path, monkeypatch):
    write_videos(tmp_path, 1)
    monkeypatch.chdir(tmp_path)
    assert [clip.path for clip in list_clips(["v00.mp4"])] == [str(tmp_path / "v00.mp4")]


def test_shards_and_patterns(tmp_path):
    failed = {"json": json.dumps({"status": "failed_to_download"}).encode()}
    for shard, samples in enumerate(
        ({"000": sample(4), "001": failed, "002": sample(9)}, {"003": sample(6)})
    ):
        write_shard(tmp_path / f"{shard:05d}.tar", samples)
    clips = list_clips([str(tmp_path / "{00000..00001}.tar")])
    assert [clip.id for clip in clips] == ["000", "002", "003"]
    assert clips == list_clips([tmp_path / "00000.tar", tmp_path / "00001.tar"])
    for clip, frames in zip(clips, (4, 9, 6), strict=True):
        found = read_clip(clip, N, SIZE)
        assert found.total == frames and (found.frames == by_hand(sample(frames)["mp4"])).all()
    with pytest.raises(ClipVipError, match="1 of 3 names of the shard pattern"):
        list_clips([str(tmp_path / "{00000..00002}.tar")])


def test_every_kind_is_read_as_read_frames_reads_it(tmp_path):
    (path,) = write_videos(tmp_path, 1, first=11)
    whole = read_frames(path, range(11))
    write_pictures(tmp_path / "frames", whole)
    write_shard(tmp_path / "s.tar", {"k": {"mp4": path.read_bytes()}, "still": {"jpg": jpeg()}})
    for antialias in (False, True):
        expected = by_hand(path, antialias)
        for source in (path, tmp_path / "frames"):
            (clip,) = list_clips([source])
            found = read_clip(clip, N, SIZE, antialias)
            assert found.total == 11 and (found.frames == expected).all()
        packed, picture = list_clips([tmp_path / "s.tar"])
        assert (read_clip(packed, N, SIZE, antialias).frames == expected).all()
        found = read_clip(picture, N, SIZE, antialias)
        shown = found.frames
        assert found.total == 1 and shown.shape == (N, SIZE, SIZE, 3) and (shown == shown[0]).all()


@pytest.mark.bad_input(
    "embed: names that are absent, empty, doubled, with a NUL or too long",
    says="such as `no file or folder absent`",
)
@pytest.mark.parametrize(
    ("sources", "words"),
    [
        (["absent"], "no file or folder absent"),
        (["empty"], "empty holds no video"),
        (["a/v00.mp4", "a"], "v00.mp4 is named twice"),
        (["a", "b"], "two videos have the id 'v00'.*--ids path"),
        (["cut.tar"], "cut.tar is damaged"),
        (["no{.tar"], "brace"),
        (["a", ""], "expected the name of a file or folder, got ''"),
        (["*.avi"], "not tar files"),
        (["a\0b"], r"'a\\x00b' expected the name of a file or folder, got one with a NUL"),
        (["{a,b\0}.tar"], "got one with a NUL"),
        (["x" * 5000], "no file or folder x"),
    ],
)
def test_what_is_not_there_or_not_clear_is_refused(tmp_path, monkeypatch, sources, words):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        write_videos(tmp_path / name, 2)
    (tmp_path / "empty").mkdir()
    whole = write_shard(tmp_path / "whole.tar", {"0": sample(4)}).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ClipVipError, match=words):
        list_clips(sources)


def test_ids_kinds_and_workers_are_checked(tmp_path):
    with pytest.raises(ClipVipError, match="did you mean 'path'"):
        list_clips([], ids="paths")
    with pytest.raises(ClipVipError, match="workers expected 0 or more"):
        list(decode_ahead([], N, SIZE, workers=-1))
    assert list(decode_ahead([], N, SIZE)) == []


def test_a_sample_that_is_there_twice_is_one_bad_clip(tmp_path):
    path = write_shard(tmp_path / "s.tar", {"a": sample(4), "b": sample(4)})
    with tarfile.open(path, "a") as tar:
        for _ in range(2):
            member = tarfile.TarInfo("c.mp4")
            member.size = 3
            tar.addfile(member, io.BytesIO(b"abc"))
    a, b, c = decode_ahead(list_clips([path]), N, SIZE)
    assert a.error is None and b.error is None and "c.mp4 is there twice" in str(c.error)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_decoding_ahead_keeps_the_order_and_names_what_is_bad(tmp_path, workers):
    paths = write_videos(tmp_path, 12)
    paths[3].write_bytes(b"no video")
    paths[8].write_bytes(paths[8].read_bytes()[:200])
    found = list(decode_ahead(list_clips([tmp_path]), N, SIZE, workers=workers, ahead=2))
    assert [decoded.clip.path for decoded in found] == [str(path) for path in paths]
    for i, decoded in enumerate(found):
        if i in (3, 8):
            assert isinstance(decoded.error, VideoError) and paths[i].name in str(decoded.error)
            assert decoded.frames is None
        else:
            assert decoded.total == 4 + i and (decoded.frames == by_hand(paths[i])).all()


def test_few_clips_wait_and_no_thread_stays(tmp_path, monkeypatch):
    from clipvip_lib.data import clips as module

    asked = []
    read = module.read_clip
    monkeypatch.setattr(module, "read_clip", lambda clip, *rest: asked.append(clip.id) or read(clip, *rest))
    write_videos(tmp_path, 12)
    ready = decode_ahead(list_clips([tmp_path]), N, SIZE, workers=2, ahead=5)
    next(ready)
    assert len(asked) <= 6
    ready.close()
    assert len(asked) <= 6 and not [t for t in threading.enumerate() if t.name.startswith("decode")]


def test_what_was_given_up_may_end_in_a_decoding_thread(tmp_path, monkeypatch):
    """The collector runs in any thread; one that waited for itself would raise."""
    from clipvip_lib.data import clips as module

    read, given_up, ended = module.read_clip, threading.Event(), []

    def reading(clip, *rest):
        if clip == clips[-1]:
            given_up.wait(STILL)
            ended.append(ready.close())
        return read(clip, *rest)

    monkeypatch.setattr(module, "read_clip", reading)
    write_videos(tmp_path, 6)
    clips = list_clips([tmp_path])
    ready = decode_ahead(clips, N, SIZE, workers=2, ahead=6)
    next(ready)
    given_up.set()
    for thread in threading.enumerate():
        if thread.name.startswith("decode"):
            thread.join(STILL)
    assert ended == [None]


@pytest.mark.bad_input("embed: a shard that was cut after it was listed", says="`is cut: expected`")
def test_a_member_beyond_a_cut_shard_is_a_bad_clip(tmp_path):
    path = write_shard(tmp_path / "s.tar", {"a": sample(4), "b": sample(30)})
    clips = list_clips([path])
    path.write_bytes(path.read_bytes()[: clips[1].entry.files["mp4"][0] + 100])
    a, b = decode_ahead(clips, N, SIZE)
    assert a.error is None and "b of" in str(b.error) and "is cut: expected" in str(b.error)


@pytest.mark.bad_input(
    "embed: a file name that is not UTF-8", says="`expected UTF-8, got other bytes; rename it`"
)
def test_names_that_are_not_utf8_are_refused(tmp_path):
    (path,) = write_videos(tmp_path / "videos", 1)
    try:
        path.rename(path.with_name(os.fsdecode(b"caf\xe9.mp4")))
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    with pytest.raises(ClipVipError, match=r"caf\\udce9\.mp4' expected UTF-8, got other bytes; rename it"):
        list_clips([tmp_path / "videos"])


# Each suffix with a container and a codec that go by it.
KINDS = {
    "mp4": {".mp4", ".m4v"},
    "3gp": {".3gp"},
    "3g2": {".3g2"},
    "mov": {".mov", ".qt", ".mj2", ".f4v"},
    "matroska": {".mkv", ".mk3d"},
    "flv": {".flv"},
    "mpegts": {".ts", ".m2ts", ".mts", ".m2t", ".trp"},
    "h264": {".h264"},
    "nut": {".nut"},
}
OTHERS = {  # container -> codec, pixels, suffixes
    "webm": ("libvpx-vp9", "yuv420p", {".webm"}),
    "avi": ("mpeg4", "yuv420p", {".avi", ".divx"}),
    "mpeg": ("mpeg2video", "yuv420p", {".mpg", ".mpeg", ".mpe", ".vob", ".m2p", ".tod"}),
    "mpeg2video": ("mpeg2video", "yuv420p", {".m2v"}),
    "mpeg1video": ("mpeg1video", "yuv420p", {".m1v"}),
    "asf": ("wmv2", "yuv420p", {".wmv", ".asf"}),
    "gif": ("gif", "rgb8", {".gif"}),
    "ivf": ("libvpx", "yuv420p", {".ivf"}),
    "mxf": ("mpeg2video", "yuv420p", {".mxf"}),
    "rm": ("rv20", "yuv420p", {".rm", ".rmvb"}),
}
# No encoder of PyAV writes these as quickly (x265, Theora, DV), or not at all; FFmpeg reads them by the same demuxers.
NOT_MADE = {".hevc", ".h265", ".ogv", ".dv"}


def test_every_suffix_that_is_listed_is_read(tmp_path):
    made = {}
    for container, suffixes in KINDS.items():
        mux = {"mpegts_m2ts_mode": "1"} if container == "mpegts" else None
        made |= dict.fromkeys(suffixes, videos.encode(6, container=container, mux=mux, size=(96, 176)))
    for container, (codec, pixels, suffixes) in OTHERS.items():
        options = {"cpu-used": "8"} if "vpx" in codec else {"b": "400k"}
        content = videos.encode(
            6, container=container, codec=codec, pixels=pixels, options=options, size=(96, 176)
        )
        made |= dict.fromkeys(suffixes, content)
    assert made.keys() | NOT_MADE == set(SUFFIXES)
    for suffix, content in made.items():
        (tmp_path / f"v{suffix}{suffix.upper()}").write_bytes(content)
    listed = list_clips([tmp_path])
    assert {clip.id for clip in listed} == {f"v{suffix}" for suffix in made} and not listed.left_out
    for clip in listed:
        assert read_clip(clip, 2, 16).total == 6, clip.path
    shard = write_shard(tmp_path / "a.tar", {f"k{s[1:]}": {s[1:]: content} for s, content in made.items()})
    for clip in list_clips([shard]):
        assert read_clip(clip, 2, 16).total == 6, clip.key


def test_pictures_of_every_kind_are_samples_of_a_shard(tmp_path):
    picture = Image.fromarray(videos.pictures(1, 48, 64)[0])
    samples = {}
    for suffix, kind in (("jpg", "jpeg"), ("jpeg", "jpeg"), ("png", "png"), ("webp", "webp")):
        file = io.BytesIO()
        picture.save(file, kind, **({"lossless": True} if kind == "webp" else {}))
        samples[suffix] = {suffix: file.getvalue(), "txt": b"a"}
    shown = {
        clip.id: read_clip(clip, 2, 48) for clip in list_clips([write_shard(tmp_path / "a.tar", samples)])
    }
    assert shown.keys() == samples.keys() and all(found.total == 1 for found in shown.values())
    assert (shown["png"].frames == shown["webp"].frames).all() and shown["png"].frames.any()


def test_a_key_may_have_dots_where_a_video_would_be_lost(tmp_path):
    """LSMDC's names, a title with a dot; but a sample's further files stay its own."""
    times = ("1_Film_00.00.32.166-00.00.33.945", "1_Film_00.00.40.100-00.00.42.264")
    small = {"mp4": videos.encode(4, size=(48, 64)), "txt": b"a"}
    whole = {"000": {**small, "thumb.jpg": jpeg(), "seg.json": b"{}"}}
    dotted = {name: {**small, "seg.json": b"{}", "flac": b"x"} for name in (*times, "Track 2.0")}
    shard = write_shard(tmp_path / "a.tar", whole | dotted)
    clips = list_clips([shard])
    assert [clip.id for clip in clips] == ["000", *times, "Track 2.0"]
    assert all(set(clip.entry.files) == {"mp4", "txt"} for clip in clips)
    assert [read_clip(clip, N, SIZE).total for clip in clips] == [4] * 4
    assert clips.note() == (
        "left out beside 4 videos: 1 further videos or pictures of a sample (first thumb.jpg of 000)"
    )


def test_an_empty_file_of_a_failed_download_is_left_out_and_another_one_is_told(tmp_path):
    failed = {"mp4": b"", "json": json.dumps({"status": "failed_to_download"}).encode()}
    shard = write_shard(
        tmp_path / "0.tar", {"000": sample(4), "001": failed, "002": {"mp4": b"", "json": b"{}"}}
    )
    clips = list_clips([shard])
    assert [clip.id for clip in clips] == ["000", "002"]
    assert clips.left_out == {"samples that were never fetched": (1, "001")}
    with pytest.raises(ClipVipError, match="sample 002 of .* has no mp4"):
        read_clip(clips[1], N, SIZE)


@pytest.mark.bad_input(
    "embed: files that are not videos beside videos",
    says="`left out beside 1 video: 2 hidden`, with every reason",
)
def test_what_is_left_out_is_counted_with_its_reason(tmp_path):
    failed = {"json": json.dumps({"status": "failed_to_download"}).encode()}
    sounds = {"flac": b"x", "txt": b"a song"}
    shard = write_shard(
        tmp_path / "s" / "0.tar", {"000": sample(4), "001": failed, "002": sounds, "003": sounds}
    )
    with tarfile.open(shard, "a") as tar:
        tar.addfile(tarfile.TarInfo("README"))
    for name in ("a.txt", "b.txt", "c", ".d.mp4", "poster.jpg", "pack.json"):
        (tmp_path / "s" / name).write_bytes(b"x")
    (tmp_path / "s" / ".hidden").mkdir()
    clips = list_clips([tmp_path / "s"])
    assert [clip.id for clip in clips] == ["000"]
    assert clips.left_out == {
        "hidden": (2, ".d.mp4"),
        "with the suffix .txt": (2, "a.txt"),
        "without a suffix": (1, "c"),
        "pictures beside videos": (1, "poster.jpg"),
        "members of no sample": (1, "README"),
        "samples that were never fetched": (1, "001"),
        "samples without a video or picture, only .txt, .flac": (2, "002"),
    }
    assert clips.note().startswith("left out beside 1 video: 2 hidden (first .d.mp4); 2 with the suffix .txt")
    beside = list_clips([str(tmp_path / "s" / "*")])
    assert beside.left_out["files beside shards"] == (5, str(tmp_path / "s" / "a.txt"))
    (tmp_path / "s" / "0.tar").unlink()
    (tmp_path / "s" / "poster.jpg").unlink()
    with pytest.raises(ClipVipError, match=r"holds no video.*2 with the suffix \.txt"):
        list_clips([tmp_path / "s"])


@pytest.mark.bad_input("embed: a link that leads in a circle", says="`leads back to`")
def test_links_are_followed_and_circles_refused(tmp_path):
    write_videos(tmp_path / "elsewhere" / "deep", 1)
    write_videos(tmp_path / "in", 1)
    (tmp_path / "in" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "one.mp4").symlink_to(tmp_path / "elsewhere" / "deep" / "v00.mp4")
    assert [clip.id for clip in list_clips([tmp_path / "in"])] == ["one", "v00", "more/deep/v00"]
    (tmp_path / "elsewhere" / "deep" / "back").symlink_to(tmp_path / "in")
    with pytest.raises(
        ClipVipError, match=r"the link .*deep/back leads back to .*in, the folder that it lies in"
    ):
        list_clips([tmp_path / "in"])


@pytest.mark.bad_input(
    "embed: a pipe named like a video", says="`expected a file, got a pipe or a device; remove it`"
)
def test_a_pipe_is_refused_before_anybody_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "v.mp4")
    with pytest.raises(ClipVipError, match=r"v\.mp4: expected a file, got a pipe or a device; remove it"):
        list_clips([tmp_path])
