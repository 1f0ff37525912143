"""The right frames, by number and order, of whole and undamaged files only. For turns and colours see test_turns.py and
test_rgb.py."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import decord
import numpy as np
import patience
import pytest
import videos
from hypothesis import given, settings
from hypothesis import strategies as st

from clipvip_lib.data.container import look
from clipvip_lib.data.rgb import ToRgb
from clipvip_lib.data.video import (
    DAMAGED,
    VideoError,
    count_frames,
    middle_index,
    read,
    read_frames,
    uniform_indices,
)

FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
INDEX_FIRST = {"movflags": "faststart"}
UNEVEN = np.cumsum(np.random.default_rng(0).integers(1, 20, 60)).tolist()

FILES = {
    "one frame": lambda: videos.encode(1),
    "two frames": lambda: videos.encode(2),
    "B-frames": videos.encode,
    "long group of pictures": lambda: videos.encode(300, videos.LONG),
    "variable frame rate": lambda: videos.encode(times=UNEVEN),
    "variable frame rate, Matroska": lambda: videos.encode(times=UNEVEN, container="matroska"),
    "Matroska": lambda: videos.encode(container="matroska"),
    "late start": lambda: videos.remux(videos.encode(), shift=5000),
    "late start, Matroska": lambda: videos.remux(videos.encode(), "matroska", shift=5000),
    "full range": lambda: videos.encode(pixels="yuvj420p"),
    "odd size": lambda: videos.encode(size=(62, 90)),
    "HEVC": lambda: videos.encode(codec="libx265", options={"x265-params": "open-gop=0:log-level=none"}),
    "quarter turn": lambda: videos.with_matrix(videos.encode(), 0, 1, -1, 0),
    "half turn": lambda: videos.with_matrix(videos.encode(), -1, 0, 0, -1),
    "three quarters of a turn": lambda: videos.with_matrix(videos.encode(), 0, -1, 1, 0),
    "two sizes": lambda: videos.two_streams((32, 64)),
    "edit list": lambda: videos.cut_without_decoding(videos.encode(), 17),
    "edit list over open groups": lambda: videos.cut_without_decoding(videos.encode(x264=videos.OPEN), 17),
    "open groups": lambda: videos.encode(x264=videos.OPEN),
    "open groups, Matroska": lambda: videos.encode(x264=videos.OPEN, container="matroska"),
    "open groups, HEVC": lambda: videos.encode(codec="libx265", options={"x265-params": "log-level=none"}),
    "intra refresh": lambda: videos.encode(x264=videos.INTRA_REFRESH),
    "fragments": lambda: videos.remux(videos.encode(), mux=FRAGMENTS),
    "MPEG-TS": lambda: videos.encode(container="mpegts"),
    "AVI": lambda: videos.encode(container="avi"),
    "AVI, MPEG-4 part 2": lambda: videos.encode(container="avi", codec="mpeg4", options={"bf": "2"}),
    "WebM": lambda: videos.encode(container="webm", codec="libvpx-vp9", options={"cpu-used": "8"}),
    "10 bits": lambda: videos.encode(pixels="yuv420p10le"),
    "mirrored": lambda: videos.with_matrix(videos.encode(), -1, 0, 0, 1),
    "one size twice": lambda: videos.two_streams((64, 64)),
}


def whole_file(source: bytes | str) -> np.ndarray:
    """All frames that the file shows, uint8 [total, H, W, 3], turned upright by a table of its own.

    Converted as the reader does, so that frames can be told apart to the byte.
    """
    turns = {
        (0, 1, -1, 0): lambda f: np.rot90(f, -1, (1, 2)),
        (-1, 0, 0, -1): lambda f: np.rot90(f, 2, (1, 2)),
        (0, -1, 1, 0): lambda f: np.rot90(f, 1, (1, 2)),
        (-1, 0, 0, 1): lambda f: np.flip(f, 2),
        (1, 0, 0, -1): lambda f: np.flip(f, 1),
        (0, 1, 1, 0): lambda f: f.transpose(0, 2, 1, 3),
    }
    with av.open(io.BytesIO(source) if isinstance(source, bytes) else source) as container:
        stream = max(container.streams.video, key=lambda s: s.width * s.height)
        frames = list(container.decode(stream))
        to_rgb = ToRgb("a test")
        rgb = np.stack([to_rgb(frame) for frame in frames])
        side = frames[0].side_data.get("DISPLAYMATRIX")
        if side is None:
            return rgb
        matrix = np.frombuffer(bytes(side), np.int32)[[0, 1, 3, 4]] // 65536
        return turns[tuple(matrix.tolist())](rgb)


def differ(a: np.ndarray, b: np.ndarray) -> int:
    """Largest difference in grey levels; 256 for other shapes."""
    return int(np.abs(a.astype(int) - b).max()) if a.shape == b.shape else 256


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    paths = {}
    for i, (name, make) in enumerate(FILES.items()):
        paths[name] = folder / f"{i}.bin"
        paths[name].write_bytes(make())
    return paths


@pytest.mark.parametrize("name", FILES)
def test_frames_are_those_that_the_file_shows(files, name):
    path = files[name]
    shown = whole_file(str(path))
    assert count_frames(path) == len(shown)
    expected = shown[uniform_indices(len(shown), 12)]
    assert differ(read_frames(path, lambda total: uniform_indices(total, 12)), expected) == 0
    assert differ(read_frames(path.read_bytes(), uniform_indices(len(shown), 12)), expected) == 0


# Files that decord, with an FFmpeg of its own, reads rightly; on others it is silently wrong.
PLAIN = (
    "one frame",
    "B-frames",
    "long group of pictures",
    "variable frame rate",
    "Matroska",
    "late start",
    "full range",
    "odd size",
    "HEVC",
    "quarter turn",
    "half turn",
)


@pytest.mark.parametrize("name", PLAIN)
def test_another_decoder_returns_the_same_bytes(files, name):
    """Frames and colours of ordinary files are those that the authors' code trains on."""
    reader = decord.VideoReader(str(files[name]), num_threads=1)
    assert (reader.get_batch(range(len(reader))).asnumpy() == read_frames(files[name], range)).all()


def test_edit_list_starts_where_the_cut_was(files):
    """Frame 0 of the cut is frame 17 of the video; the key picture before it, frame 12, is not shown."""
    whole = read_frames(files["B-frames"], range(60))
    assert differ(read_frames(files["edit list"], range(43)), whole[17:]) == 0


@pytest.mark.parametrize("x264", [videos.CLOSED, videos.STEADY + ":bframes=0"])
def test_empty_packets_are_no_damage(x264):
    """Theora in Ogg, and others, say in this way that a picture stands still; the ffmpeg program passes over them."""
    video, file = videos.encode(20, x264), io.BytesIO()
    with av.open(io.BytesIO(video)) as source, av.open(file, "w", format="nut") as out:
        old = source.streams.video[0]
        new = out.add_stream_from_template(old)
        for packet in [packet for packet in source.demux(old) if packet.size]:
            empty = av.Packet(b"")
            empty.pts, empty.dts, empty.time_base = packet.pts + 9, packet.dts + 9, packet.time_base
            for each in (packet, empty):
                each.stream = new
                out.mux(each)
    with av.open(io.BytesIO(file.getvalue())) as container:
        assert [packet.size for packet in container.demux()].count(0) > 19  # one is the end
    assert (read_frames(file.getvalue(), range(20)) == read_frames(video, range(20))).all()


def test_pictures_that_a_decoder_drops_by_a_wrong_guess_are_no_damage():
    """Where H.264 does not say how far it reorders, FFmpeg guesses, and drops pictures when it must guess again."""
    deep = videos.STEADY + ":bframes=3:b-pyramid=2:b-adapt=0:ref=4:scenecut=0"
    video = videos.encode(110, deep, "matroska", forwards=80)
    silent = videos.without_telling_the_order(video)
    with av.open(io.BytesIO(silent)) as container:
        assert sum(1 for _ in container.decode(video=0)) < 110
    assert count_frames(silent) == 110
    for way in DAMAGED:
        found = read(silent, range(110), damaged=way)
        assert (found.frames == read_frames(video, range(110))).all() and found.damage == ""


@pytest.mark.parametrize(
    "turn", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0)]
)
def test_turned_and_mirrored_clips_come_out_upright(turn):
    a, b, c, d = turn
    lying = videos.encode(12)
    upright = read_frames(videos.with_matrix(lying, *turn), [0, 5])
    flat = read_frames(lying, [0, 5])
    height, width = flat.shape[1:3]
    for y, x in ((0, 0), (0, width - 1), (height - 1, 0), (20, 33)):
        # Shown at the matrix times the point, moved back into the picture.
        to_x = a * x + c * y + (width - 1) * (a < 0) + (height - 1) * (c < 0)
        to_y = b * x + d * y + (width - 1) * (b < 0) + (height - 1) * (d < 0)
        assert differ(upright[:, to_y, to_x], flat[:, y, x]) == 0


@pytest.mark.bad_input("video: encrypted", says="`is encrypted`, and to decrypt it first")
def test_an_encrypted_video_is_named_as_one():
    cenc = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": f"{1:032x}", "encryption_kid": f"{2:032x}"}
    video = videos.remux(videos.encode(9), mux=cenc)
    for way in DAMAGED:
        with pytest.raises(VideoError, match="is encrypted: expected .* decrypt it"):
            read_frames(video, [0], damaged=way)


@pytest.mark.bad_input("video: shown slanted", says="`slant`")
def test_a_slanted_clip_is_refused():
    video = bytearray(videos.with_matrix(videos.encode(3), 1, 0, 0, 1))
    at = video.index(b"tkhd") + 44
    video[at : at + 20] = np.array([46341, 46341, 0, -46341, 46341], ">i4").tobytes()
    with pytest.raises(VideoError, match="slant"):
        read_frames(bytes(video), [0])


@given(st.lists(st.integers(0, 59), min_size=1, max_size=20))
@settings(max_examples=15, deadline=None)
def test_any_order_and_repeats(indices):
    for video in (CLOSED_GROUPS, OPEN_GROUPS):
        assert differ(read_frames(video, indices), ALL_FRAMES[video][indices]) == 0


CLOSED_GROUPS, OPEN_GROUPS = videos.encode(), videos.encode(x264=videos.OPEN)
ALL_FRAMES = {video: whole_file(video) for video in (CLOSED_GROUPS, OPEN_GROUPS)}


def test_size_changes_on_the_way_do_not_break_the_batch():
    """MPEG-TS joined from two encodings: later frames take the first one's size."""
    joined = videos.encode(6, container="mpegts") + videos.encode(6, container="mpegts", size=(96, 128))
    assert read_frames(joined, lambda total: [0, total - 1]).shape == (2, 64, 96, 3)


def test_threads_may_read_side_by_side(files):
    """Nothing is kept between calls."""
    names = ["B-frames", "Matroska", "edit list", "quarter turn"]
    alone = {name: read_frames(files[name], range(0, 40, 5)) for name in names}
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda name: read_frames(files[name], range(0, 40, 5)), names * 8))
    assert all(differ(frames, alone[name]) == 0 for name, frames in zip(names * 8, together, strict=True))


CUT = {
    "index at the end": videos.encode,
    "index first": lambda: videos.remux(videos.encode(), mux=INDEX_FIRST),
    "fragments": lambda: videos.remux(videos.encode(), mux=FRAGMENTS),
    "Matroska": lambda: videos.encode(container="matroska"),
    "WebM": lambda: videos.encode(container="webm", codec="libvpx-vp9", options={"cpu-used": "8"}),
    "AVI": lambda: videos.encode(container="avi"),
}


WHOLE = {name: make() for name, make in CUT.items()}


@pytest.mark.bad_input(
    "video: cut short, in six containers", says="its name, and that it is cut, damaged or no video"
)
@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("share", [0.002, 0.05, 0.4, 0.8, 0.999])
def test_cut_files_raise(name, share):
    whole = WHOLE[name]
    for what in (lambda v: read_frames(v, [0], "00042.mp4"), lambda v: count_frames(v, "00042.mp4")):
        with pytest.raises(VideoError, match=r"^00042\.mp4 is (cut|not a readable video|damaged)"):
            what(whole[: int(len(whole) * share)])


@pytest.mark.bad_input(
    "video: random bytes in the headers", says="an answer or a sentence, never another error"
)
@given(st.sampled_from(sorted(CUT)), st.integers(0, 2**32), st.integers(1, 40), st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_garbled_headers_are_refused_or_looked_through(name, seed, changes, end):
    """Whatever stands in the headers, the look ends, with an answer or with a sentence."""
    rng = np.random.default_rng(seed)
    video = bytearray(WHOLE[name] if end > 100 else WHOLE[name][:end])
    for at in rng.integers(0, min(len(video), 400), changes if video else 0):
        video[at] = rng.integers(256)
    with contextlib.suppress(VideoError):
        assert look(bytes(video), "garbled").frames > 0


@pytest.mark.bad_input(
    "video: an MPEG-TS cut inside a packet; cut between two packets, at most one picture is wrong",
    says="`is cut`",
)
def test_a_cut_transport_stream_is_refused_or_damaged_at_the_cut_only():
    """MPEG-TS announces no length: a cut between two of its packets may go unseen and spoil one picture."""
    video = videos.encode(container="mpegts")
    known = {frame.tobytes() for frame in whole_file(video)}
    outcomes = set()
    for end in range(188 * 20, len(video), 188 * 7):
        try:
            frames = read_frames(video[:end], range)
        except VideoError:
            outcomes.add("refused")
        else:
            outcomes.add("read")
            assert sum(frame.tobytes() not in known for frame in frames) <= 1
    assert outcomes == {"read", "refused"}
    with pytest.raises(VideoError, match="is cut"):
        read_frames(video[: 188 * 40 + 5], [0])


@pytest.mark.bad_input("video: bytes overwritten inside packets", says="`damaged`")
def test_damage_inside_a_packet_is_found_by_the_check():
    video = bytearray(videos.remux(videos.encode(), mux=INDEX_FIRST))
    for at in range(len(video) // 2, len(video) - 200, 400):
        video[at : at + 40] = bytes(range(40))
    with pytest.raises(VideoError, match="damaged"):
        count_frames(bytes(video), "x.mp4")


NO_VIDEO = {
    "empty": (b"", "is empty"),
    "text": (b"a man is cooking\n" * 50, "is not a readable video"),
    "html": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "is not a readable video"),
    "playlist": (b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nother.ts\n", "is not a readable video"),
    "zeros": (bytes(5000), "is not a readable video"),
    "zero frames": (videos.encode(0, mux=FRAGMENTS), "no frame"),
    "zero frames, no track": (videos.encode(0), "no video stream"),
    "sound only": (videos.sound(), "no video stream"),
}


@pytest.mark.bad_input(
    "video: empty, text, a web page, a playlist, zeros, without frames, or sound alone",
    says="`is empty`, `is not a readable video`, `no frame` or `no video stream`",
)
@pytest.mark.parametrize("name", NO_VIDEO)
def test_what_is_no_video_is_refused_by_name(name, tmp_path):
    content, message = NO_VIDEO[name]
    path = tmp_path / "clip.txt"  # FFmpeg has a "demuxer" for text files, chosen by the name
    path.write_bytes(content)
    for source, called, label in ((path, None, str(path)), (content, "shard.tar/7", "shard.tar/7")):
        for call in (count_frames, count_frames, lambda s, n: read_frames(s, [0], n)):
            with pytest.raises(VideoError) as caught:
                call(source, called)
            text = str(caught.value)
            assert label in text and message in text and "\n" not in text


@pytest.mark.bad_input("video: a frame that it does not have", says="`is not in`, `expected 0 to`")
@pytest.mark.parametrize("name", ["B-frames", "edit list"])
def test_wrong_indices_are_refused_by_name(files, name):
    path = files[name]
    total = count_frames(path)
    for index in (-1, total, total + 100):
        with pytest.raises(VideoError, match=rf"frame {index} is not in .*: expected 0 to {total - 1}"):
            read_frames(path, [0, index])
    for indices in ([], [0.5], [[0, 1]], lambda total: []):
        with pytest.raises(VideoError, match="at least one frame index"):
            read_frames(path, indices)


@pytest.mark.bad_input(
    "video: no such file, a folder, a number", says="`expected a video file, got No such file`"
)
def test_missing_files_folders_and_other_things(tmp_path):
    with pytest.raises(VideoError, match=r"none\.mp4: expected a video file, got No such file"):
        read_frames(tmp_path / "none.mp4", [0])
    with pytest.raises(VideoError, match="Is a directory"):
        count_frames(tmp_path)
    with pytest.raises(VideoError, match="expected a path or the bytes of a video, got int"):
        read_frames(3, [0])


def test_errors_print_nothing(tmp_path):
    """FFmpeg writes to stderr by itself; a person is to see the one sentence only."""
    path = tmp_path / "cut.mp4"
    path.write_bytes(videos.encode()[:3000])
    code = (
        "import sys; from clipvip_lib.data.video import *\n"
        "try: read_frames(sys.argv[1], [0])\n"
        "except VideoError: print('refused')"
    )
    done = patience.run([sys.executable, "-c", code, path])
    assert (done.stdout, done.stderr, done.returncode) == ("refused\n", "", 0)


@given(st.integers(1, 500), st.integers(1, 64))
def test_uniform_indices(total, n):
    indices = uniform_indices(total, n)
    assert indices.dtype == np.int64 and indices.tolist() == np.linspace(0, total - 1, n).astype(int).tolist()
    assert indices[0] == 0 and (n == 1 or indices[-1] == total - 1)


@given(st.integers(1, 500), st.integers(1, 64), st.integers(0, 2**32))
def test_jitter_stays_inside_and_moves_the_ends_by_one_interval_at_most(total, n, seed):
    indices = uniform_indices(total, n, np.random.default_rng(seed))
    assert len(indices) == n and indices.min() >= 0 and indices.max() < total
    assert (np.diff(indices) >= 0).all()
    if n > 2:
        interval = total // (n - 1)
        assert indices[0] <= interval and indices[-1] >= total - 1 - interval


def test_jitter_reaches_every_allowed_end():
    rng = np.random.default_rng(0)
    drawn = np.stack([uniform_indices(45, 12, rng) for _ in range(400)])
    assert set(drawn[:, 0]) == set(range(5)) and set(drawn[:, -1]) == set(range(40, 45))


def test_uniform_and_middle_index_by_hand():
    assert uniform_indices(16, 4).tolist() == [0, 5, 10, 15]
    assert uniform_indices(2, 4).tolist() == [0, 0, 0, 1]
    assert uniform_indices(7, 1).tolist() == [0]
    assert [middle_index(t) for t in (1, 2, 25)] == [0, 1, 12]
    for total, n in ((10, 0), (0, 4), (10, -1)):
        with pytest.raises(VideoError, match="at least one"):
            uniform_indices(total, n)


REAL_CLIPS = {  # name: (frames shown, (height, width))
    "discard_first_keyframe.mp4": (25, (64, 64)),
    "nasa_13013_rotated.mp4": (17, (480, 270)),
    "nasa_13013.mp4": (390, (270, 480)),
    "flipping_a_pancake.mkv": (310, (240, 426)),
}


@pytest.mark.skipif("CLIPVIP_CLIPS" not in os.environ, reason="CLIPVIP_CLIPS names no folder of real clips")
@pytest.mark.parametrize("name", REAL_CLIPS)
def test_real_clips(name):
    path = Path(os.environ["CLIPVIP_CLIPS"]) / name
    total, size = REAL_CLIPS[name]
    frames = read_frames(path, lambda total: uniform_indices(total, 12))
    assert count_frames(path) == total and frames.shape == (12, *size, 3)
    assert differ(frames, whole_file(str(path))[uniform_indices(total, 12)]) == 0
