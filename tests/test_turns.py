"""Turned and mirrored videos come out upright, whoever tells of the turn; what turns on the way is refused."""

import numpy as np
import pytest
import videos

from clipvip_lib.data.video import VideoError, count_frames, read_frames

INDICES = (0, 13, 29)
N = 30
QUARTER = (0, -1, 1, 0)  # anticlockwise
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
LIVE = {"live": "1"}


def anticlockwise(frames: np.ndarray) -> np.ndarray:
    return np.rot90(frames, 1, (1, 2))


@pytest.fixture(scope="module")
def plain() -> bytes:
    return videos.encode(N)


@pytest.fixture(scope="module")
def lying(plain) -> np.ndarray:
    return read_frames(plain, INDICES)


#: Containers that tell of a turn in their headers.
CONTAINERS = {
    "MP4": lambda v: v,
    "QuickTime": lambda v: videos.remux(v, "mov"),
    "3GP": lambda v: videos.remux(v, "3gp"),
    "MP4, index first": lambda v: videos.remux(v, mux={"movflags": "faststart"}),
    "MP4 in fragments": lambda v: videos.remux(v, mux=FRAGMENTS),
    "Matroska": lambda v: videos.remux(v, "matroska"),
    "Matroska, track entry behind byte 1024": lambda v: videos.remux(v, "matroska", title="t" * 1500),
    "Matroska, track entry behind byte 100,000": lambda v: videos.remux(v, "matroska", title="t" * 100_000),
    "live Matroska": lambda v: videos.remux(v, "matroska", mux=LIVE),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_turn_told_by_the_container(name, plain, lying):
    turned = CONTAINERS[name](videos.with_matrix(plain, *QUARTER))
    assert (read_frames(turned, INDICES) == anticlockwise(lying)).all()
    assert (read_frames(CONTAINERS[name](plain), INDICES) == lying).all()
    assert count_frames(turned) == N


def test_a_turned_webm():
    options = {"container": "webm", "codec": "libvpx-vp9", "options": {"cpu-used": "8"}}
    plain = videos.encode(N, **options)
    turned = videos.remux(videos.with_matrix(videos.remux(plain, "mp4"), *QUARTER), "webm")
    assert (read_frames(turned, INDICES) == anticlockwise(read_frames(plain, INDICES))).all()


# ------------------------------------------------------------------------------------------- inside the stream


def told(turn: str, video: bytes, container: str = "mp4", mux: dict[str, str] | None = None) -> bytes:
    """With a display orientation message in the H.264 stream."""
    return videos.remux(video, container, mux, change=f"h264_metadata=display_orientation=insert:{turn}")


MESSAGES = {
    "rotate=90": anticlockwise,
    "rotate=180": lambda f: np.rot90(f, 2, (1, 2)),
    "rotate=270": lambda f: np.rot90(f, 3, (1, 2)),
    "flip=horizontal": lambda f: f[:, :, ::-1],
    "rotate=0": lambda f: f,
}


@pytest.mark.parametrize("turn", MESSAGES)
@pytest.mark.parametrize("container", ["mp4", "matroska", "mov"])
def test_a_turn_told_by_a_message_in_the_stream(turn, container, plain, lying):
    """In decoders' frames the message comes with the first picture only: not with the key pictures after it."""
    turned = told(turn, plain, container)
    assert (read_frames(turned, INDICES) == MESSAGES[turn](lying)).all()
    assert count_frames(turned) == N


def test_a_turn_told_by_a_message_in_fragments(plain, lying):
    turned = told("rotate=90", plain, mux=FRAGMENTS)
    assert (read_frames(turned, INDICES) == anticlockwise(lying)).all()


@pytest.mark.parametrize("x264", [videos.CLOSED, videos.OPEN, videos.INTRA_REFRESH])
@pytest.mark.parametrize("container", ["mpegts", "avi"])
def test_in_streams_a_message_is_followed_or_the_video_refused(x264, container):
    """FFmpeg's filter puts the message behind some of the key pictures here, which then are not to be turned."""
    plain = videos.encode(N, x264, container)
    turned = told("rotate=90", videos.encode(N, x264), container)
    try:
        frames = read_frames(turned, INDICES)
    except VideoError as error:
        assert "turns its pictures in different ways" in str(error)
        with pytest.raises(VideoError, match="in different ways"):
            count_frames(turned)
    else:
        assert (frames == anticlockwise(read_frames(plain, INDICES))).all()


def test_an_open_transport_stream_with_messages_is_upright():
    plain = videos.encode(N, videos.OPEN, "mpegts")
    turned = told("rotate=90", videos.encode(N, videos.OPEN), "mpegts")
    assert (read_frames(turned, INDICES) == anticlockwise(read_frames(plain, INDICES))).all()


@pytest.mark.bad_input(
    "video: turned on the way", says="`turns its pictures in different ways: expected one`"
)
@pytest.mark.parametrize("after", ["", "rotate=0", "rotate=180", "rotate=270"])
def test_a_video_that_is_turned_on_the_way_is_refused(after, plain):
    first, second = (
        told(turn, plain, "mpegts") if turn else videos.remux(plain, "mpegts")
        for turn in ("rotate=90", after)
    )
    for joined in (first + second, second + first):
        for call in (count_frames, lambda video: read_frames(video, [0])):
            with pytest.raises(VideoError, match="turns its pictures in different ways: expected one"):
                call(joined)


@pytest.mark.bad_input("video: two turns that disagree", says="`in different ways`")
def test_a_message_and_a_header_that_disagree_are_refused(plain):
    both = videos.with_matrix(told("rotate=180", plain), *QUARTER)
    with pytest.raises(VideoError, match="in different ways"):
        read_frames(both, [0])


#: HEVC's message: a prefix unit with payload 47: not cancelled, not mirrored, a quarter turn, until it is repeated.
HEVC_QUARTER = bytes([0x4E, 0x01, 47, 3, 0x08, 0x00, 0x18, 0x80])


@pytest.mark.parametrize("groups", ["open-gop=0", "open-gop=1"])
def test_a_message_in_hevc(groups):
    plain = videos.encode(N, codec="libx265", options={"x265-params": f"{groups}:keyint=12:log-level=none"})
    turned = videos.before_keys(plain, len(HEVC_QUARTER).to_bytes(4, "big") + HEVC_QUARTER)
    assert (read_frames(turned, INDICES) == anticlockwise(read_frames(plain, INDICES))).all()


ORIENTATIONS = {1: lambda f: f, 2: lambda f: f[:, :, ::-1], 3: MESSAGES["rotate=180"], 8: anticlockwise}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("container", ["avi", "matroska", "mov"])
def test_motion_jpeg_with_exif(orientation, container):
    """PyAV knows no name for EXIF, and fails for a frame that has it."""
    flat = read_frames(videos.motion_jpeg(1, container=container), range(4))
    assert abs(flat.astype(int) - videos.pictures(4)).mean() < 12
    turned = read_frames(videos.motion_jpeg(orientation, container=container), range(4))
    assert (turned == ORIENTATIONS[orientation](flat)).all()
