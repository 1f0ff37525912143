"""Colours are the ffmpeg program's, to the byte; the truth here is the program, where it is installed."""

import shutil
import subprocess

import numpy as np
import pytest
import videos

from clipvip_lib.data.video import VideoError, count_frames, read_frames

N = 6
NO_LOG = {"x265-params": "log-level=none"}
LOSSLESS = {"codec": "ffv1", "container": "matroska", "options": {"level": "3"}}
VP9 = {"codec": "libvpx-vp9", "container": "webm", "options": {"cpu-used": "8"}}

needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None, reason="the ffmpeg program is not installed"
)


def ffmpeg(*arguments: object) -> bytes:
    done = subprocess.run(["ffmpeg", "-v", "error", "-nostdin", *map(str, arguments)], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def expect_the_programs_bytes(path) -> None:
    frames = read_frames(path, range(N))
    raw = ffmpeg("-i", path, "-f", "rawvideo", "-vsync", "0", "-pix_fmt", "rgb24", "-")
    shown = np.frombuffer(raw, np.uint8).reshape(N, *frames.shape[1:])
    off = np.abs(frames.astype(int) - shown)
    assert off.max() == 0, f"{off.mean():.2f} grey levels in the mean, {off.max()} at most"


FILES = {
    "8 bits": {},
    "8 bits, cropped": {"size": (62, 90)},
    "full range": {"pixels": "yuvj420p"},
    "10 bits": {"pixels": "yuv420p10le"},
    "10 bits, HEVC": {"pixels": "yuv420p10le", "codec": "libx265", "options": NO_LOG},
    "10 bits, 4:2:2": {"pixels": "yuv422p10le"},
    "4:2:2": {"pixels": "yuv422p"},
    "4:4:4": {"pixels": "yuv444p"},
    "odd size": {"size": (63, 95), **LOSSLESS},
    "odd size, 4:4:4": {"size": (63, 95), "pixels": "yuv444p"},
    "odd size, VP9": {"size": (63, 95), **VP9},
    "Motion JPEG, 4:2:2": {
        "codec": "mjpeg",
        "container": "avi",
        "pixels": "yuvj422p",
        "options": {"q": "3"},
    },
    "12 bits": {"pixels": "yuv420p12le", **LOSSLESS},
    "4:1:1": {"pixels": "yuv411p", **LOSSLESS},
    "4:1:0": {"pixels": "yuv410p", **LOSSLESS},
    "4:4:0": {"pixels": "yuv440p", **LOSSLESS},
    "grey": {"pixels": "gray", **LOSSLESS},
    "RGB": {"pixels": "bgr0", **LOSSLESS},
    "palette": {"codec": "gif", "container": "gif", "pixels": "rgb8", "options": {"loop": "0"}},
}


@needs_ffmpeg
@pytest.mark.parametrize("name", FILES)
def test_pixel_formats(name, tmp_path):
    (tmp_path / "video").write_bytes(videos.encode(N, **FILES[name]))
    expect_the_programs_bytes(tmp_path / "video")


def written(path, *options: str) -> None:
    """A test video re-encoded by the program, with colours tagged as the options say."""
    (path.parent / "plain.mp4").write_bytes(videos.encode(N))
    ffmpeg("-i", path.parent / "plain.mp4", *options, path)


@needs_ffmpeg
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv420p10le", "yuv444p"])
@pytest.mark.parametrize("levels", ["tv", "pc"])
@pytest.mark.parametrize(
    ("space", "matrix"), [("bt709", "bt709"), ("smpte170m", "bt601"), ("bt2020nc", "bt2020")]
)
def test_colour_spaces(space, matrix, levels, pixels, tmp_path):
    filters = f"scale=out_color_matrix={matrix}:out_range={levels},format={pixels}"
    tags = ("-colorspace", space, "-color_range", levels)
    written(tmp_path / "video.mkv", "-vf", filters, *tags, "-c:v", "libx264")
    expect_the_programs_bytes(tmp_path / "video.mkv")


@needs_ffmpeg
def test_interlaced_video(tmp_path):
    how = ("-vf", "setfield=tff", "-flags", "+ildct+ilme", "-x264-params", "interlaced=1")
    written(tmp_path / "video.mkv", "-c:v", "libx264", *how)
    expect_the_programs_bytes(tmp_path / "video.mkv")


@pytest.mark.bad_input("video: colours that cannot be converted", says="`stores colours`")
@pytest.mark.parametrize("matrix", [8, 10, 14])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv420p10le"])
def test_colours_that_cannot_be_converted_are_refused(matrix, pixels):
    change = f"h264_metadata=matrix_coefficients={matrix}"
    video = videos.remux(videos.encode(N, pixels=pixels), change=change)
    for call in (count_frames, lambda v, name: read_frames(v, [3], name)):
        with pytest.raises(VideoError, match=f"^x stores colours .*{pixels}, matrix {matrix}.*: expected"):
            call(video, "x")


def test_ordinary_video_has_the_colours_that_were_drawn():
    """Without the program: lossless RGB comes back to the byte, H.264 nearly."""
    drawn = videos.pictures(N)
    lossless = videos.encode(N, pixels="bgr0", **LOSSLESS)
    assert (read_frames(lossless, range(N)) == drawn).all()
    fine = videos.encode(N, videos.CLOSED + ":qp=4", pixels="yuv444p")
    assert np.abs(read_frames(fine, range(N)).astype(int) - drawn).mean() < 2
