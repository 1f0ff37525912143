"""A video file opened, and a cheap look at its packets before any of them is decoded.

The look refuses what is not a whole video: missing, empty and cut files, text, pages of HTML. It chooses the stream and
counts its pictures. Where the container tells their number for certain, a picture that does not come out of the decoder
is damage; a decoder of HEVC leaves such pictures out without a word.

MPEG-TS and live Matroska announce no length. If such a file was cut, the look cannot see it, and its last picture may
be damaged.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av

from clipvip_lib.data import hangs
from clipvip_lib.data.structure import announced_end
from clipvip_lib.errors import ClipVipError

SMALL = 16  # bytes: a packet that only marks an end is not longer
# FFmpeg would also "play" text, subtitles, and playlists that point to other files; none is a video.
DEMUXERS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,gif,ivf,h264,hevc,m4v,mpegvideo,nut,rm,mxf,dv"


class VideoError(ClipVipError):
    """A video that cannot be read rightly, or a frame that it does not have; the text names the file."""


@dataclass(frozen=True)
class Look:
    """What the container says.

    frames: pictures to be shown, exact where ``doubt`` is empty; stream: index of the video stream; doubt: why the
    decoder may show another number of pictures, empty if it must not; times: when each picture is shown, in ticks of
    ``tick`` seconds and sorted, empty if some packet does not say so.
    """

    frames: int
    stream: int
    doubt: str
    times: tuple[int, ...]
    tick: Fraction


def describe(source: str | Path | bytes, name: str | None = None) -> str:
    """How an error names a video: its given name, its path, or the number of its bytes."""
    if name is not None:
        return str(name)
    return f"video of {len(source)} bytes" if isinstance(source, bytes) else str(source)


def look(source: str | Path | bytes, name: str | None = None) -> Look:
    """Read the container's headers and packets, decoding nothing.

    The stream is the one with the largest picture; cover art is left out.

    Raises VideoError for a missing, empty, cut or encrypted file, one that is not a video, and one without frames.
    """
    label = describe(source, name)
    _expect_whole_file(source, label)
    with open_container(source, label) as container:
        stream = main_stream(container, label)
        # Read now: PyAV's objects dangle once the container is closed.
        index, announced, codec = stream.index, stream.frames, stream.codec_context.name
        tick = stream.time_base
        family, packets = container.format.name, _walk(container, stream)
    if packets.encrypted:
        raise VideoError(f"{label} is encrypted: expected a video that plays without a key; decrypt it first")
    frames = len(packets.times) - packets.hidden
    if frames == 0:
        raise VideoError(
            f"{label} has a video stream but no frame to show: expected at least one; fetch it again"
        )
    shown = () if None in packets.shown else tuple(sorted(packets.shown))
    return Look(frames, index, _doubt(family, codec, packets, announced), shown, tick)


@contextlib.contextmanager
def open_container(source: str | Path | bytes, label: str) -> Iterator[av.container.InputContainer]:
    """Open with PyAV, for a ``with`` statement; in its body whatever PyAV raises becomes a VideoError.

    This is the only boundary between decoders and the library. What FFmpeg makes of a damaged file is not only its own
    errors: PyAV raises IndexError for a packet of a stream that the headers do not name, and ValueError for what it has
    no name for.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else str(Path(source).absolute())
    with hangs.watched(label):
        try:
            # Titles in another alphabet's encoding are not a reason to refuse a video.
            container = av.open(file, options={"format_whitelist": DEMUXERS}, metadata_errors="replace")
        except Exception as error:
            raise VideoError(
                f"{label} is not a readable video: expected a whole MP4, Matroska or other video file, "
                f"got bytes without its headers or its index; check the download"
            ) from error
        with container, as_video_error(label):
            yield container


@contextlib.contextmanager
def as_video_error(label: str) -> Iterator[None]:
    """Whatever PyAV raises in the ``with`` becomes a VideoError."""
    try:
        yield
    except ClipVipError:
        raise
    except Exception as error:
        raise VideoError(f"{label} is damaged or cut: {reason(error)}; fetch it again") from error


def reason(error: Exception) -> str:
    """What a decoder's exception says, without what came from the file."""
    said = error.strerror if isinstance(error, av.error.FFmpegError) else None
    return said or f"its reader ended with {type(error).__name__}"


def main_stream(container: av.container.InputContainer, label: str) -> av.VideoStream:
    """The video stream with the largest picture that is no cover art. Raises VideoError if there is none."""
    streams = [s for s in container.streams.video if s.codec_context and not _is_cover(s)]
    if not streams:
        raise VideoError(
            f"{label} has no video stream with a known codec: expected pictures; check the download"
        )
    return max(streams, key=lambda s: s.width * s.height)


def _is_cover(stream: av.VideoStream) -> bool:
    return av.stream.Disposition.attached_pic in stream.disposition


@dataclass
class _Packets:
    """Of a stream: the time of each, of those that no edit list hides, how many one hides, how many just say that the
    stream ends, whether the first needs none before it, and whether it is encrypted."""

    times: list[int | None] = field(default_factory=list)
    shown: list[int | None] = field(default_factory=list)
    hidden: int = 0
    ends: int = 0
    whole_start: bool = False
    encrypted: bool = False


def _walk(container: av.container.InputContainer, stream: av.VideoStream) -> _Packets:
    found = _Packets()
    for packet in container.demux(stream):
        hangs.alive()
        if 0 < packet.size < SMALL and _is_end(stream.codec_context, packet):
            found.ends += 1
        elif packet.size:
            if not found.times:
                found.whole_start = _needs_nothing_before(stream.codec_context, packet)
                found.encrypted = packet.has_sidedata("encryption_info")
            found.hidden += packet.is_discard
            found.times.append(packet.pts)
            if not packet.is_discard:
                found.shown.append(packet.pts)
    return found


def _doubt(family: str, codec: str, packets: _Packets, announced: int) -> str:
    """Why the decoder may show another number of pictures than the packets say."""
    times = packets.times
    if not family.startswith(("mov,", "matroska,")):
        return f"{family} container: its packets are not pictures"
    if codec not in ("h264", "hevc"):
        return f"{codec} video: some of its pictures may not be shown"
    if packets.hidden:
        return f"an edit list hides {packets.hidden} of {len(times)} frames"
    if None in times or len(set(times)) < len(times):
        return "packets without their own time"
    if not packets.whole_start or times[0] != min(times):
        return "the first pictures refer to others that are not there"
    if announced not in (0, len(times) + packets.ends):
        return f"the header announces {announced} packets, and there are {len(times) + packets.ends}"
    return ""


def _needs_nothing_before(context: av.VideoCodecContext, packet: av.Packet) -> bool:
    """Whether a packet of MP4 or Matroska holds a picture at which decoders need nothing before (an IDR picture).

    Recovery points and CRA pictures are marked as keys too, but pictures after them may refer to what was before.
    """
    pictures, idr = (range(1, 6), (5,)) if context.name == "h264" else (range(32), (19, 20))
    return next((unit in idr for unit in _units(context, packet) if unit in pictures), False)


def _is_end(context: av.VideoCodecContext, packet: av.Packet) -> bool:
    """Whether a packet holds no picture, only that the sequence or the stream ends."""
    units = set(_units(context, packet))
    return bool(units) and units <= ({10} if context.name == "h264" else {36, 37})


def _units(context: av.VideoCodecContext, packet: av.Packet) -> Iterator[int]:
    """The kinds of the units (NAL) of a packet of MP4 or Matroska; none for other codecs."""
    extra = context.extradata or b""
    if context.name == "h264" and len(extra) > 4 and extra[0] == 1:
        width, shift, mask = (extra[4] & 3) + 1, 0, 31
    elif context.name == "hevc" and len(extra) > 21 and extra[0] == 1:
        width, shift, mask = (extra[21] & 3) + 1, 1, 63
    else:
        return
    data, at = bytes(packet), 0
    while at + width < len(data):
        yield data[at + width] >> shift & mask
        at += width + int.from_bytes(data[at : at + width], "big")


def _expect_whole_file(source: str | Path | bytes, label: str) -> None:
    """Raises VideoError if the file is not there, is empty, or ends before it should."""
    if not isinstance(source, str | Path | bytes):
        raise VideoError(f"expected a path or the bytes of a video, got {type(source).__name__}")
    try:
        with (
            hangs.watched(label),
            io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file,
        ):
            size = file.seek(0, io.SEEK_END)
            end = announced_end(file, size)
    except OSError as error:
        raise VideoError(
            f"cannot read {label}: expected a video file, got {error.strerror}; check the path"
        ) from error
    if size == 0:
        raise VideoError(f"{label} is empty: expected a video file, got 0 bytes; fetch it again")
    if end > size:
        raise VideoError(
            f"{label} is cut: its headers announce {end} bytes, and it has {size}; fetch it again"
        )
