"""What a container says of its pictures, where that is certain, and which stream is shown."""

import io

import av
import pytest
import videos

from clipvip_lib.data.container import VideoError, look, open_container
from clipvip_lib.data.video import count_frames

HEVC = {"codec": "libx265", "options": {"x265-params": "open-gop=0:log-level=none"}}
CERTAIN = {
    "MP4": {},
    "Matroska": {"container": "matroska"},
    "MP4 in fragments": {"mux": {"movflags": "frag_keyframe+empty_moov"}},
    "HEVC": HEVC,
    "open groups": {"x264": videos.OPEN},
}


@pytest.mark.parametrize("name", CERTAIN)
def test_some_containers_tell_the_number_of_pictures_for_certain(name):
    seen = look(videos.encode(20, **CERTAIN[name]))
    assert (seen.frames, seen.doubt) == (20, "")


DOUBTFUL = {
    "an edit list hides 5 of 48 frames": lambda: videos.cut_without_decoding(videos.encode(), 17),
    "avi container": lambda: videos.encode(container="avi"),
    "mpegts container": lambda: videos.encode(container="mpegts"),
    "vp9 video": lambda: videos.encode(container="webm", codec="libvpx-vp9", options={"cpu-used": "8"}),
    "mpeg4 video": lambda: videos.encode(codec="mpeg4", options={"bf": "2"}),
}


@pytest.mark.parametrize("reason", DOUBTFUL)
def test_others_do_not(reason):
    assert reason in look(DOUBTFUL[reason]()).doubt


@pytest.mark.parametrize(("options", "mark"), [({}, "0a"), (HEVC, "4801"), (HEVC, "4a01")])
def test_a_mark_of_the_end_is_no_picture(options, mark):
    file, unit = io.BytesIO(), bytes.fromhex(mark)
    with av.open(io.BytesIO(videos.encode(20, **options))) as source, av.open(file, "w", format="mp4") as out:
        old = source.streams.video[0]
        new = out.add_stream_from_template(old)
        packets = [packet for packet in source.demux(old) if packet.size]
        last = av.Packet(len(unit).to_bytes(4, "big") + unit)
        last.pts = max(packet.pts for packet in packets) + 512
        last.dts, last.time_base = last.pts, packets[0].time_base
        for packet in [*packets, last]:
            packet.stream = new
            out.mux(packet)
    video = file.getvalue()
    assert (look(video).frames, look(video).doubt, count_frames(video)) == (20, "", 20)


def test_the_largest_stream_is_shown():
    assert [look(videos.two_streams(sizes)).stream for sizes in ((32, 64), (64, 32))] == [1, 0]


@pytest.mark.fault(
    "video: the decoder raises IndexError, ValueError, OSError or MemoryError",
    sees="`is damaged or cut: its reader ended with`",
    keeps="the run, which may skip it: the error is a VideoError",
)
@pytest.mark.parametrize(
    "error", [IndexError("x"), ValueError("31 is no Type"), OSError(5, "x"), MemoryError()]
)
def test_what_a_decoder_raises_becomes_a_video_error(error):
    """The text is ours: what a library says may hold anything that stands in the file."""
    expected = rf"^clip is damaged or cut: its reader ended with {type(error).__name__};"
    with pytest.raises(VideoError, match=expected), open_container(videos.encode(1), "clip"):
        raise error


def test_our_own_errors_and_interruptions_pass():
    for error in (VideoError("slant"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, open_container(videos.encode(1), "clip"):
            raise error
        assert caught.value is error
