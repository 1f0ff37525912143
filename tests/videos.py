"""Writes odd video files for the tests, with PyAV: as cameras, cutters and downloads leave them."""

from __future__ import annotations

import io
import struct
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.video.frame import PictureType
from PIL import Image

# Without this, x264 reads memory that it never wrote, and one input gives several files (seen at 96 x 64).
STEADY = "mbtree=0"
CLOSED = STEADY + ":bframes=3:b-adapt=0:keyint=12:scenecut=0"
LONG = STEADY + ":bframes=3:keyint=250:scenecut=0"
OPEN = CLOSED + ":open-gop=1"
INTRA_REFRESH = STEADY + ":bframes=0:keyint=12:intra-refresh=1"


def pictures(n: int, height: int = 64, width: int = 96) -> np.ndarray:
    """uint8 [n, H, W, 3]: a block walks over textured ground and changes colour; no two frames agree."""
    noise = np.random.default_rng(0).integers(0, 200, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    ground = noise.repeat(8, 0).repeat(8, 1)[:height, :width]
    frames = np.tile(ground, (n, 1, 1, 1))
    for i, frame in enumerate(frames):
        y, x = 3 * i % (height - 16), 5 * i % (width - 16)
        frame[y : y + 16, x : x + 16] = (255, 37 * i % 256, 91 * i % 256)
    return frames


def encode(
    n: int = 60,
    x264: str = CLOSED,
    container: str = "mp4",
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    mux: dict[str, str] | None = None,
    times: list[int] | None = None,
    size: tuple[int, int] = (64, 96),
    pixels: str = "yuv420p",
    forwards: int = 0,
) -> bytes:
    """A video file of n frames at 25 per second, or at ``times`` in hundredths of a second. The first ``forwards`` have
    no B-frames."""
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=mux or {}) as out:
        stream = out.add_stream(
            codec, rate=25, options=options or {"preset": "veryfast", "x264-params": x264}
        )
        stream.height, stream.width = size
        stream.pix_fmt = pixels
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = 12 if options else 250
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 100)
        out.start_encoding()  # else a file without frames would not even have a track
        for i, picture in enumerate(pictures(n, *size)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = i if times is None else times[i]
            frame.time_base = stream.codec_context.time_base if times is not None else Fraction(1, 25)
            if i < forwards:
                frame.pict_type = PictureType.P
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return file.getvalue()


def without_telling_the_order(video: bytes) -> bytes:
    """H.264 whose headers no longer say how far its pictures are reordered: without the VUI, in which that stands."""
    with av.open(io.BytesIO(video)) as container:
        extra = bytes(container.streams.video[0].codec_context.extradata)
    told = extra[8 : 8 + int.from_bytes(extra[6:8], "big")]  # the sequence parameter set
    bits, at = "".join(f"{byte:08b}" for byte in told[1:]), 24  # behind profile and level

    def number() -> int:
        """Exponential Golomb."""
        nonlocal at
        zeros = bits.index("1", at) - at
        at += 2 * zeros + 1
        return int(bits[at - zeros - 1 : at], 2) - 1

    assert told[1] == 100 and number() == 0  # the High profile
    assert [number() for _ in range(3)] == [1, 0, 0]  # 4:2:0, 8 bits
    at += 2  # no lossless, no own scaling
    number(), number(), number(), number()  # of frames and their order
    at += 1
    number(), number()  # width and height
    at += 2
    assert bits[at] == "0"  # not cropped
    kept = f"{bits[: at + 1]}01".ljust(len(bits), "0")
    assert video.count(told) == 1
    return video.replace(told, told[:1] + int(kept, 2).to_bytes(len(bits) // 8, "big"))


def cut_without_decoding(video: bytes, begin: int, container: str = "mp4") -> bytes:
    """Stream copy from the middle of a group of pictures, as clip cutters do it.

    The copy starts at the key picture before frame ``begin``, and an edit list hides the frames in between.
    """
    file = io.BytesIO()
    with (
        av.open(io.BytesIO(video)) as source,
        av.open(file, "w", format=container, options={"avoid_negative_ts": "disabled"}) as out,
    ):
        old = source.streams.video[0]
        new = out.add_stream_from_template(old)
        packets = [p for p in source.demux(old) if p.size]
        zero = sorted(p.pts for p in packets)[begin]
        first = max(i for i, p in enumerate(packets) if p.is_keyframe and p.pts <= zero)
        for packet in packets[first:]:
            packet.pts -= zero
            packet.dts -= zero
            packet.stream = new
            out.mux(packet)
    return file.getvalue()


def remux(
    video: bytes,
    container: str = "mp4",
    mux: dict[str, str] | None = None,
    shift: int = 0,
    title: str = "",
    change: str | None = None,
) -> bytes:
    """The same packets in another container, ``shift`` ticks of their clock later, and through the bitstream filter
    ``change``."""
    # In a folder: to put the index first, FFmpeg reads back what it has written.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video"
        with av.open(io.BytesIO(video)) as source, av.open(path, "w", format=container, options=mux) as out:
            old = source.streams.video[0]
            new = out.add_stream_from_template(old)
            if title:
                out.metadata["title"] = title
            changed = BitStreamFilterContext(change, old, new) if change else None
            for packet in [*source.demux(old), None]:
                if changed is None:
                    packets = [packet] if packet is not None and packet.size else []
                else:
                    packets = changed.filter(packet) if packet is None or packet.size else []
                for each in packets:
                    each.pts += shift
                    each.dts += shift
                    each.stream = new
                    out.mux(each)
        return path.read_bytes()


def before_keys(video: bytes, unit: bytes) -> bytes:
    """An MP4 with ``unit`` put before the coded picture of each key packet."""
    file = io.BytesIO()
    with av.open(io.BytesIO(video)) as source, av.open(file, "w", format="mp4") as out:
        old = source.streams.video[0]
        new = out.add_stream_from_template(old)
        for packet in source.demux(old):
            if packet.size:
                longer = av.Packet((unit if packet.is_keyframe else b"") + bytes(packet))
                longer.pts, longer.dts, longer.time_base = packet.pts, packet.dts, packet.time_base
                longer.is_keyframe, longer.stream = packet.is_keyframe, new
                out.mux(longer)
    return file.getvalue()


def motion_jpeg(orientation: int, n: int = 4, container: str = "avi") -> bytes:
    """Motion JPEG whose pictures carry EXIF, as some cameras write it."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "camera", orientation
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuvj420p"
        for i, picture in enumerate(pictures(n)):
            jpeg = io.BytesIO()
            Image.fromarray(picture).save(jpeg, "JPEG", quality=92, subsampling=2, exif=exif)
            packet = av.Packet(jpeg.getvalue())
            packet.stream, packet.time_base = stream, Fraction(1, 10)
            packet.pts = packet.dts = i
            packet.is_keyframe = True
            out.mux(packet)
    return file.getvalue()


def damaged(video: bytes, seed: int, places: int) -> bytes:
    """With some bytes of the coded pictures turned over; in an MP4 only of those, else anywhere but at both ends."""
    at = video.find(b"mdat") + 4
    begin, end = at, at - 8 + int.from_bytes(video[at - 8 : at - 4], "big")
    if at == 3:
        begin, end = len(video) // 5, len(video) * 9 // 10
    changed = bytearray(video)
    for place in np.random.default_rng(seed).integers(begin, end, places).tolist():
        changed[place] ^= 0xFF
    return bytes(changed)


def with_matrix(video: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """Patch the display matrix of an MP4's track: (x, y) is shown at (a x + c y, b x + d y)."""
    at = video.index(b"tkhd") + 4 + 40
    entries = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    return video[:at] + entries + video[at + 36 :]


def two_streams(sizes: tuple[int, int]) -> bytes:
    """An MP4 with two square video streams; the second one's colours are inverted."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        streams = [out.add_stream("libx264", rate=25, options={"preset": "veryfast"}) for _ in sizes]
        for stream, size in zip(streams, sizes, strict=True):
            stream.width = stream.height = size
            stream.pix_fmt = "yuv420p"
        for picture in pictures(20, 64, 64):
            for invert, stream in enumerate(streams):
                part = picture[: stream.height, : stream.width]
                rgb = np.ascontiguousarray(255 - part if invert else part)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        for stream in streams:
            out.mux(stream.encode())
    return file.getvalue()


def sound() -> bytes:
    """An MP4 with sound and no picture."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("aac", rate=16000)
        for i in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 1024 * i
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return file.getvalue()
