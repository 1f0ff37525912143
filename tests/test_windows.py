"""Windows of long videos: the same frames and features as those of clips that were cut out, whatever the container."""

from __future__ import annotations

import io
import json
import tracemalloc
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import videos
from hypothesis import given
from hypothesis import strategies as st
from small_clip import save_small
from test_clips import jpeg, write_pictures, write_shard
from test_embed_commands import run

from clipvip_lib.data import windows as module
from clipvip_lib.data.video import DAMAGED, VideoError, read_frames, uniform_indices
from clipvip_lib.data.windows import Windows, lay_out, read_windows
from clipvip_lib.errors import ClipVipError
from clipvip_lib.features.folder import Features

N = 3
SECOND_KEYS = (
    videos.STEADY + ":bframes=2:b-adapt=0:keyint=25:min-keyint=25:scenecut=0"
)  # at 25 frames per second


def whole(frames: np.ndarray) -> np.ndarray:
    return frames


def windows(length: float, stride: float) -> Windows:
    return Windows(Fraction(str(length)), Fraction(str(stride)))


def cut(video: bytes, start: int, end: int) -> bytes:
    """The clip from second ``start`` to ``end`` as cutters take it: the packets, from one key picture to another."""
    file = io.BytesIO()
    with av.open(io.BytesIO(video)) as source, av.open(file, "w", format="mp4") as out:
        old = source.streams.video[0]
        new = out.add_stream_from_template(old)
        packets = [packet for packet in source.demux(old) if packet.size]
        zero = min(packet.pts for packet in packets)
        first = round(start / old.time_base)
        for packet in packets:
            if first <= packet.pts - zero < round(end / old.time_base):
                packet.pts, packet.dts = packet.pts - zero - first, packet.dts - zero - first
                packet.stream = new
                out.mux(packet)
    return file.getvalue()


def by_hand(video: bytes, length: float, stride: float) -> list[tuple[float, np.ndarray, int]]:
    """(start, frames, total) of each window, from all decoded frames and their times."""
    with av.open(io.BytesIO(video)) as source:
        times = [Fraction(frame.pts) * frame.time_base for frame in source.decode(video=0)]
    times = [time - times[0] for time in times]
    found, start = [], Fraction(0)
    while True:
        inside = [i for i, time in enumerate(times) if start <= time < start + Fraction(str(length))]
        frames = read_frames(video, [inside[i] for i in uniform_indices(len(inside), N)])
        found.append((float(start), frames, len(inside)))
        if inside[-1] == len(times) - 1:
            return found
        start += Fraction(str(stride))


def test_a_window_is_the_clip_that_was_cut_out():
    video = videos.encode(140, SECOND_KEYS)  # 5.6 s
    found = list(read_windows(video, windows(2, 1), N, whole))
    assert [(each.start, each.end, each.total, each.last) for each in found] == [
        (0, 2, 50, False),
        (1, 3, 50, False),
        (2, 4, 50, False),
        (3, 5, 50, False),
        (4, 5.6, 40, True),
    ]
    for each in found:
        clip = cut(video, int(each.start), int(each.start) + 2)
        expected = read_frames(clip, lambda total: uniform_indices(total, N))
        assert (each.frames == expected).all() and each.total == len(read_frames(clip, range(each.total)))


@pytest.mark.parametrize(
    "video",
    [
        pytest.param({}, id="mp4"),
        pytest.param({"container": "matroska"}, id="matroska"),
        pytest.param({"container": "mpegts", "x264": videos.OPEN}, id="mpegts, open groups"),
        pytest.param({"container": "avi", "codec": "mpeg4", "options": {"b": "400k"}}, id="avi"),
        pytest.param(
            {"container": "webm", "codec": "libvpx-vp9", "options": {"cpu-used": "8"}}, id="webm, vp9"
        ),
        pytest.param({"times": [3 * i + i * i // 40 for i in range(60)]}, id="uneven times"),
    ],
)
def test_every_container_has_the_same_windows(video):
    content = videos.encode(60, **video)
    expected = by_hand(content, 0.7, 0.3)
    found = list(read_windows(content, windows(0.7, 0.3), N, whole))
    assert len(found) == len(expected) > 5
    for each, (start, frames, total) in zip(found, expected, strict=True):
        assert each.start == pytest.approx(start) and each.total == total and (each.frames == frames).all()


def test_b_frames_that_only_tell_when_they_are_decoded_are_in_windows():
    """As in old AVIs: their order is right, and their times are those of other pictures."""
    options = {"b": "400k", "bf": "2", "b_strategy": "0"}
    video, file = videos.encode(60, codec="mpeg4", options=options), io.BytesIO()
    with av.open(io.BytesIO(video)) as source, av.open(file, "w", format="mp4") as out:
        old = source.streams.video[0]
        new = out.add_stream_from_template(old)
        for packet in source.demux(old):
            if packet.size:
                packet.pts, packet.stream = packet.dts, new
                out.mux(packet)
    odd = file.getvalue()
    with av.open(io.BytesIO(odd)) as source:
        times = [frame.pts for frame in source.decode(video=0)]
    assert times != sorted(times)
    expected = lay_out([Fraction(i, 25) for i in range(len(times))], windows(0.8, 0.4), N)
    for found, each in zip(read_windows(odd, windows(0.8, 0.4), N, whole), expected, strict=True):
        assert (found.start, found.end) == (float(each.start), round(float(each.end), 3))
        assert found.total == each.total and (found.frames == read_frames(odd, each.chosen)).all()


@pytest.mark.parametrize("way", DAMAGED)
def test_pictures_that_a_decoder_drops_by_a_wrong_guess_are_in_windows(way):
    deep = videos.STEADY + ":bframes=3:b-pyramid=2:b-adapt=0:ref=4:scenecut=0"
    video = videos.encode(110, deep, "matroska", forwards=80)
    silent = videos.without_telling_the_order(video)
    told = [list(read_windows(each, windows(1, 0.5), N, whole, damaged=way)) for each in (video, silent)]
    assert len(told[0]) > 5
    for one, two in zip(*told, strict=True):
        assert (one.start, one.end, one.total) == (two.start, two.end, two.total)
        assert (one.frames == two.frames).all() and one.damage == two.damage == ""


def test_frames_that_an_edit_list_hides_are_in_no_window():
    content = videos.cut_without_decoding(videos.encode(60), 17)
    expected = by_hand(content, 0.7, 0.3)
    found = list(read_windows(content, windows(0.7, 0.3), N, whole))
    assert [(each.total, each.frames.tobytes()) for each in found] == [
        (total, frames.tobytes()) for _, frames, total in expected
    ]
    assert sum(each.total for each in read_windows(content, windows(1, 1), N, whole)) == 43


def test_a_turned_video_is_turned(tmp_path):
    content = videos.with_matrix(videos.encode(30), 0, 1, -1, 0)
    (found,) = read_windows(content, windows(9, 9), N, whole)
    assert (found.frames == read_frames(content, uniform_indices(30, N))).all()
    assert found.frames.shape[1:3] == (96, 64)


@given(
    st.lists(st.integers(1, 900), max_size=60),
    st.integers(100, 5000),
    st.integers(100, 5000),
    st.integers(1, 5),
)
def test_no_frame_is_left_out_and_no_window_is_too_many(gaps, length, stride, frames):
    times = [Fraction(sum(gaps[:i]), 1000) for i in range(len(gaps) + 1)]
    length, stride = Fraction(max(length, stride), 1000), Fraction(stride, 1000)
    planned = lay_out(times, Windows(length, stride), frames)
    seen = set()
    for number, each in enumerate(planned):
        inside = [i for i, time in enumerate(times) if each.start <= time < each.start + length]
        seen |= set(inside)
        assert each.number == number and each.start == number * stride and each.end <= each.start + length
        # In a gap the picture that is shown stands still.
        shown = inside or [max(i for i, time in enumerate(times) if time <= each.start)]
        assert each.total == len(shown) and each.until == shown[-1] + 1
        assert each.chosen == tuple(shown[i] for i in uniform_indices(len(shown), frames))
    assert seen == set(range(len(times)))
    assert len(planned) == 1 or times[-1] >= planned[-2].start + length
    assert all(one.chosen[0] <= two.chosen[0] for one, two in pairwise(planned))


def test_a_short_video_and_a_single_frame_are_one_window():
    for frames in (1, 24):
        (found,) = read_windows(videos.encode(frames), windows(10, 5), N, whole)
        assert (found.number, found.start, found.total, found.last) == (0, 0, frames, True)
        assert found.end == (0 if frames == 1 else 0.96)


def test_memory_does_not_grow_with_the_video_and_it_is_decoded_once(monkeypatch):
    decoded = []

    class Counted(module.Pictures):
        def __iter__(self):
            decoded.append(self)
            return super().__iter__()

    monkeypatch.setattr(module, "Pictures", Counted)
    video = videos.encode(
        4000, size=(48, 64)
    )  # 160 s: 159 windows of 8 frames of 9,216 bytes, 11.7 MB in all
    tracemalloc.start()
    try:
        base = tracemalloc.get_traced_memory()[0]
        count = sum(1 for _ in read_windows(video, windows(2, 1), 8, whole))
        peak = tracemalloc.get_traced_memory()[1] - base
    finally:
        tracemalloc.stop()
    assert count == 159 and peak < 4e6 and len(decoded) == 1


def test_windows_that_are_not_wanted_are_passed_over():
    video = videos.encode(140, SECOND_KEYS)
    every = list(read_windows(video, windows(2, 1), N, whole))
    some = list(read_windows(video, windows(2, 1), N, whole, wanted=lambda number: number in (1, 4)))
    assert [each.number for each in some] == [1, 4] and some[1].last
    assert all((each.frames == every[each.number].frames).all() for each in some)
    assert list(read_windows(video, windows(2, 1), N, whole, wanted=lambda number: False)) == []


@pytest.mark.bad_input(
    "embed --windows: a stream without times", says="`does not say when its frames are shown`, and what to do"
)
def test_a_stream_without_times_is_refused():
    raw = videos.encode(20, container="h264")
    with pytest.raises(VideoError, match="does not say when its frames are shown"):
        list(read_windows(raw, windows(2, 1), N, whole))


@pytest.mark.bad_input(
    "embed --windows: a time of months in a short file", says="`would have more than 100000 windows`"
)
def test_a_time_that_makes_no_sense_is_refused():
    odd = videos.encode(3, container="matroska", times=[0, 4, 15_000_000])
    with pytest.raises(VideoError, match="would have more than 100000 windows"):
        list(read_windows(odd, windows(1, 1), N, whole))


def test_damage_is_refused_or_told():
    bad = videos.damaged(videos.encode(140, SECOND_KEYS), seed=1, places=40)
    with pytest.raises(VideoError, match="is damaged"):
        list(read_windows(bad, windows(2, 1), N, whole))
    found = list(read_windows(bad, windows(2, 1), N, whole, damaged="accept"))
    assert found[-1].damage and found[-1].last


# ------------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return save_small(tmp_path_factory.mktemp("weights"))


def test_features_of_windows_are_those_of_cut_clips(weights, tmp_path, capsys):
    long, clips = videos.encode(140, SECOND_KEYS), tmp_path / "clips"
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "long.mp4").write_bytes(long)
    (tmp_path / "videos" / "short.mp4").write_bytes(videos.encode(10))
    write_shard(tmp_path / "videos" / "0.tar", {"k": {"mp4": long}, "still": {"jpg": jpeg()}})
    clips.mkdir()
    for start in range(5):
        (clips / f"{start}.mp4").write_bytes(cut(long, start, start + 2))
    asked = ("--weights", weights, "--out")
    out = tmp_path / "out"
    assert run("embed", tmp_path / "videos", *asked, out, "--windows", "2", "--stride", "1", "--parquet") == 0
    assert f"12 windows in {out / 'features.npy'}" in capsys.readouterr().out
    assert run("embed", clips, *asked, tmp_path / "cut") == 0
    found, expected = Features(out), Features(tmp_path / "cut")
    rows = [found.row(i) for i in range(len(found))]
    ids = [f"long#t={i}" for i in range(5)] + ["short#t=0"] + [f"k#t={i}" for i in range(5)] + ["still#t=0"]
    assert [row["id"] for row in rows] == ids
    assert [(row["start"], row["end"], row["frames"]) for row in rows[3:6]] == [
        (3, 5, 50),
        (4, 5.6, 40),
        (0, 0.4, 10),
    ]
    assert [row.get("last") for row in rows] == [*[None] * 4, True, True, *[None] * 4, True, True]
    for first in (0, 6):
        assert np.abs(found.array[first : first + 5] - expected.array).max() < 1e-6
    assert np.abs(expected.array[0] - expected.array[1]).max() > 1e-3
    capsys.readouterr()
    assert run("search", "--video", clips / "3.mp4", "--in", out, "--top", 1) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[1:] == [
        "+1.0000",
        "long#t=3",
        str(tmp_path / "videos" / "long.mp4"),
        "3-5",
        "s",
    ]
    assert run("search", "--video", clips / "4.mp4", "--in", out, "--top", 1, "--json") == 0
    hit = json.loads(capsys.readouterr().out)["results"][0]
    assert (hit["start"], hit["end"]) == (4, 5.6)


@pytest.mark.fault(
    "embed --windows: stopped within a video",
    sees="the same as without windows",
    keeps="every window of a whole part",
)
def test_a_stopped_run_continues_within_a_video(weights, tmp_path, capsys, monkeypatch):
    from clipvip_lib.features import embedding
    from clipvip_lib.progress import Progress

    for name in ("a", "b"):
        (tmp_path / f"{name}.mp4").write_bytes(videos.encode(140, SECOND_KEYS))
    line = ("embed", tmp_path / "a.mp4", tmp_path / "b.mp4", "--weights", weights, "--out", tmp_path / "out")
    line += ("--windows", "2", "--stride", "1", "--part", "2")

    class Stopping(Progress):
        def __call__(self, done, total, note=""):
            if note == "b at 3 s":
                raise KeyboardInterrupt
            super().__call__(done, total, note)

    with monkeypatch.context() as patch:
        patch.setattr("clipvip_lib.progress.Progress", Stopping)
        with pytest.raises(KeyboardInterrupt):
            run(*line)
    encoded, encode = [], embedding.encode_clips

    def counted(*arguments, **options):
        for found in encode(*arguments, **options):
            encoded.append(found[0].window.number)
            yield found

    monkeypatch.setattr(embedding, "encode_clips", counted)
    assert run(*line) == 0
    assert encoded == [2, 3, 4]  # of b; a was done
    rows = Features(tmp_path / "out")
    assert len(rows) == 10 and np.abs(rows.array[:5] - rows.array[5:]).max() < 1e-6
    assert run(*line) == 0 and encoded == [2, 3, 4]
    # A video that was replaced by a shorter one leaves no window behind.
    (tmp_path / "b.mp4").write_bytes(videos.encode(60, SECOND_KEYS))
    assert run(*line) == 0
    assert [Features(tmp_path / "out").row(i)["id"] for i in range(5, 7)] == ["b#t=0", "b#t=1"]
    assert len(Features(tmp_path / "out")) == 7


def test_a_video_that_breaks_off_has_no_row(weights, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(videos.damaged(videos.encode(140, SECOND_KEYS), seed=1, places=40))
    (tmp_path / "good.mp4").write_bytes(videos.encode(60))
    write_pictures(tmp_path / "frames", videos.pictures(4))
    line = ("embed", bad, tmp_path / "good.mp4", tmp_path / "frames", "--weights", weights)
    line += ("--out", tmp_path / "out", "--windows", "2")
    with pytest.raises(VideoError, match="bad.mp4 is damaged"):
        run(*line)
    with pytest.raises(VideoError, match="frames is a folder of pictures: expected a video"):
        run(*line, "--skip-bad", 1)
    assert run(*line, "--skip-bad", 2) == 0
    found = Features(tmp_path / "out")
    assert [found.row(i)["id"] for i in range(len(found))] == ["good#t=0", "good#t=2"]
    skipped = [
        json.loads(line)["id"] for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    ]
    assert skipped == ["bad", "frames"]


@pytest.mark.bad_input("embed --windows: lengths that make no sense", says="one sentence")
@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("--windows 0", "expected seconds, such as 10 or 2.5, got '0'"),
        ("--windows nan", "got 'nan'"),
        ("--windows 1e-9", "got '1e-9'"),
        ("--windows 0.01", "windows of at least 0.1 s, got 0.01"),
        ("--windows 5 --stride 6", "a stride of at most the window's 5 s, got 6"),
        ("--stride 5", "--stride belongs to --windows"),
    ],
)
def test_lengths_are_checked(weights, tmp_path, asked, words):
    (tmp_path / "v.mp4").write_bytes(videos.encode(10))
    with pytest.raises(ClipVipError) as caught:
        run("embed", tmp_path / "v.mp4", "--weights", weights, "--out", tmp_path / "o", *asked.split())
    assert words in str(caught.value)


def test_other_windows_and_ids_of_windows_are_refused(weights, tmp_path):
    (tmp_path / "v#t=0.mp4").write_bytes(videos.encode(10))
    line = ("embed", tmp_path, "--weights", weights, "--out", tmp_path / "o")
    with pytest.raises(ClipVipError, match="has #t= in it: expected that in the ids of windows only"):
        run(*line, "--windows", "2")
    (tmp_path / "v#t=0.mp4").rename(tmp_path / "v.mp4")
    assert run(*line, "--windows", "2") == 0
    with pytest.raises(ClipVipError, match="window was 2.0 and is 3.0; stride was 2.0 and is 3.0"):
        run(*line, "--windows", "3")
    with pytest.raises(ClipVipError, match="window was 2.0 and is None"):
        run(*line)
