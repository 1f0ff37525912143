"""Whatever stands in a file, the reader ends with frames or with a VideoError of one line; never with anything else."""

import numpy as np
import pytest
import videos

from clipvip_lib.data.container import VideoError, look
from clipvip_lib.data.video import count_frames, read_frames, uniform_indices
from clipvip_lib.data.video_files import clip_seconds

N = 12
NAME = "clip-7"
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
VP9 = {"codec": "libvpx-vp9", "options": {"cpu-used": "8"}}
MESSAGE = "h264_metadata=display_orientation=insert:rotate=90"
KINDS = {
    "mp4": lambda: videos.encode(N),
    "mp4, index first": lambda: videos.remux(videos.encode(N), mux={"movflags": "faststart"}),
    "mp4 in fragments": lambda: videos.remux(videos.encode(N), mux=FRAGMENTS),
    "mp4, edit list": lambda: videos.cut_without_decoding(videos.encode(24), 7),
    "mp4, HEVC": lambda: videos.encode(N, codec="libx265", options={"x265-params": "log-level=none"}),
    "mp4, MPEG-4": lambda: videos.encode(N, codec="mpeg4", options={"bf": "2"}),
    "mp4, turned in the stream": lambda: videos.remux(videos.encode(N), change=MESSAGE),
    "mkv": lambda: videos.encode(N, container="matroska"),
    "mkv, turned": lambda: videos.remux(videos.with_matrix(videos.encode(N), 0, -1, 1, 0), "matroska"),
    "avi": lambda: videos.encode(N, container="avi"),
    "avi, Motion JPEG with EXIF": lambda: videos.motion_jpeg(6),
    "ts": lambda: videos.encode(N, container="mpegts"),
    "ts, MPEG-2": lambda: videos.encode(N, container="mpegts", codec="mpeg2video", options={"bf": "2"}),
    "webm": lambda: videos.encode(N, container="webm", **VP9),
}


def mutated(video: bytes, rng: np.random.Generator) -> bytes:
    """Bytes turned over, at random, in the headers or anywhere; pieces lost, doubled, put elsewhere or made zero."""
    changed = bytearray(video)
    for _ in range(int(rng.integers(1, 4))):
        reach = int(rng.choice([64, 1500, len(changed)]))
        at = int(rng.integers(min(reach, len(changed))))
        length = int(rng.integers(1, 200))
        way = int(rng.integers(7))
        if way <= 1:
            for place in rng.integers(0, min(reach, len(changed)), int(rng.choice([1, 4, 30]))).tolist():
                changed[place] = int(rng.integers(256))
        elif way == 2:
            del changed[at : at + length]
        elif way == 3:
            changed[at:at] = changed[at : at + length]
        elif way == 4:
            elsewhere = int(rng.integers(len(changed)))
            changed[elsewhere : elsewhere + length] = changed[at : at + length]
        elif way == 5:
            changed[at : at + length] = bytes(length)
        else:
            changed[at : at + 4] = rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1], 1).astype(">u4").tobytes()
    return bytes(changed)


def outcome(video: bytes, path) -> str:
    """ "read" or "refused"; the same of all readers. Fails for another exception than a VideoError of one line."""
    path.write_bytes(video)
    without_verdict = (
        lambda: look(video, NAME).frames,
        lambda: clip_seconds(path),
        lambda: read_frames(video, [0], NAME, damaged="accept"),
    )
    with_verdict = (
        lambda: count_frames(video, NAME),
        lambda: read_frames(video, lambda total: uniform_indices(total, 4), NAME),
        lambda: read_frames(path, [0]),
    )
    found = set()
    for call in (*without_verdict, *with_verdict):
        try:
            call()
            said = "read"
        except VideoError as error:
            assert str(error).isprintable() and (NAME in str(error) or str(path) in str(error))
            said = "refused"
        if call in with_verdict:
            found.add(said)
    assert len(found) == 1, found
    return found.pop()


@pytest.mark.bad_input(
    "video: bytes turned, lost, doubled or moved, 40 files of each of 14 kinds",
    says="frames or a sentence, never another error",
)
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_are_read_or_refused(kind, tmp_path):
    whole = KINDS[kind]()
    assert outcome(whole, tmp_path / "x.bin") == "read"
    outcomes = [
        outcome(mutated(whole, np.random.default_rng(seed)), tmp_path / "x.bin") for seed in range(40)
    ]
    assert set(outcomes) == {"read", "refused"}


@pytest.mark.bad_input(
    "video: damaged tables of an MPEG-TS",
    says="`is damaged or cut: its reader ended with IndexError; fetch it again`",
)
def test_what_pyav_raises_by_itself_becomes_a_video_error():
    """Damaged tables of MPEG-TS name streams that come late, for which PyAV's demux raises IndexError."""
    whole = videos.encode(60, container="mpegts")
    said = set()
    for seed in range(20):
        rng, changed = np.random.default_rng(seed), bytearray(whole)
        for place in rng.integers(0, len(whole), 30).tolist():
            changed[place] = int(rng.integers(256))
        try:
            count_frames(bytes(changed), NAME)
        except VideoError as error:
            said.add(str(error))
    assert "clip-7 is damaged or cut: its reader ended with IndexError; fetch it again" in said
