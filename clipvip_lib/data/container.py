"""A cheap look into a video file before any frame is decoded: may decord be trusted with it?

decord is fast and, on most files, exact. On some it is silently wrong: it returns frames that an edit
list hides, starts at the wrong frame where a group of pictures is open (a key picture followed by pictures
that come before it in time), jumps into the middle of intra-refresh video, mixes up the frames of MPEG-TS
and of H.264 in AVI; and a cut AVI file, or a damaged MP4 in fragments, ends the whole process. What may go
wrong shows in the container's packets, without decoding, in 0.4 ms for a clip of 16 frames; what is doubtful
is then decoded from its start with PyAV (video.py).

The look also refuses anything that is not a whole video: missing, empty and cut files, text, pages of HTML. It cannot
see damage inside a packet (`video.check_video` finds most of it), nor where MPEG-TS or live Matroska, which
announce no length, once ended: if such a file was cut, its last picture may be damaged.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import av

from clipvip_lib.data.structure import QUARTER_TURNS, UPRIGHT, announced_end_and_turns
from clipvip_lib.errors import ClipVipError

# FFmpeg would also "play" text, subtitles, and playlists that point to other files; none is a video.
DEMUXERS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,gif,ivf,h264,hevc,m4v,mpegvideo,nut,rm,mxf,dv"
# decord converts 10-bit pictures one or two grey levels off; these two it converts exactly.
EXACT_PIXELS = ("yuv420p", "yuvj420p")


class VideoError(ClipVipError):
    """A video that cannot be read rightly, or a frame that it does not have; the text names the file."""


@dataclass(frozen=True)
class Look:
    """What the container says.

    frames: pictures to be shown (exact where ``doubt`` is empty); stream: index of the video stream;
    size: (height, width) as the file is to be shown; doubt: why decord is not trusted, empty if it is.
    """

    frames: int
    stream: int
    size: tuple[int, int]
    doubt: str


def describe(source: str | Path | bytes, name: str | None = None) -> str:
    """How an error names a video: its given name, its path, or the number of its bytes."""
    if name is not None:
        return str(name)
    return f"video of {len(source)} bytes" if isinstance(source, bytes) else str(source)


def look(source: str | Path | bytes, name: str | None = None) -> Look:
    """Read the container's headers and packets, decoding nothing.

    The stream is the one with the largest picture; cover art is left out.

    Raises VideoError for a missing, empty or cut file, one that is not a video, and one without frames.
    """
    label = describe(source, name)
    display = _turns_of_whole_file(source, label)
    with open_container(source, label) as container:
        streams = [s for s in container.streams.video if s.codec_context and not _is_cover(s)]
        if not streams:
            raise VideoError(
                f"{label} has no video stream with a known codec: expected pictures; check the download"
            )
        stream = max(streams, key=lambda s: s.width * s.height)
        context = stream.codec_context
        matrix = display.get(stream.id, UPRIGHT)
        # Read now: PyAV's objects dangle once the container is closed.
        index, width, height = stream.index, context.width, context.height
        doubt = _doubt_about_file(container, stream, streams, matrix)
        try:
            frames, packets_doubt = _look_at_packets(container, stream)
        except av.error.FFmpegError as error:
            raise VideoError(f"{label} is damaged or cut: {error.strerror}; fetch it again") from error
    if frames == 0:
        raise VideoError(
            f"{label} has a video stream but no frame to show: expected at least one; fetch it again"
        )
    return Look(frames, index, (height, width) if matrix[0] else (width, height), doubt or packets_doubt)


def open_container(source: str | Path | bytes, label: str) -> av.container.InputContainer:
    """Open with PyAV; what FFmpeg does not know as a video raises VideoError."""
    file = io.BytesIO(source) if isinstance(source, bytes) else str(Path(source).absolute())
    try:
        # Titles in another alphabet's encoding are not a reason to refuse a video.
        return av.open(file, options={"format_whitelist": DEMUXERS}, metadata_errors="replace")
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(
            f"{label} is not a readable video: expected a whole MP4, Matroska or other video file, "
            f"got bytes without its headers or its index; check the download"
        ) from error


def _is_cover(stream: av.VideoStream) -> bool:
    return av.stream.Disposition.attached_pic in stream.disposition


def _doubt_about_file(container, stream, streams, matrix) -> str:
    """What in the headers makes decord unsure; empty if nothing does."""
    family = container.format.name
    codec = stream.codec_context.name
    if not family.startswith(("mov,", "matroska,")):
        return f"{family} container: decord misplaces frames in some of them and dies on cut ones"
    if family.startswith("mov,") and stream.frames == 0:
        return "MP4 in fragments: a damaged one ends decord and the whole process with it"
    if codec not in ("h264", "hevc"):
        return f"{codec} video: its key pictures cannot be checked from outside"
    if stream.codec_context.pix_fmt not in EXACT_PIXELS:
        return f"{stream.codec_context.pix_fmt} pixels: decord converts them inexactly or not at all"
    if [s.width * s.height for s in streams].count(stream.width * stream.height) > 1:
        return "several video streams of one size: their pictures do not tell which one decord takes"
    if matrix not in QUARTER_TURNS:
        return "a display matrix that is not a quarter turn"
    return ""


def _look_at_packets(container, stream) -> tuple[int, str]:
    """(frames to be shown, doubt): walks over all packets of the stream."""
    times: list[int | None] = []
    keys: list[int] = []
    hidden = broken = 0
    clean = True
    is_clean = _clean_key_test(stream.codec_context)
    for packet in container.demux(stream):
        if not packet.size:
            continue
        if packet.is_keyframe:
            keys.append(len(times))
            clean = clean and is_clean(packet)
        hidden += packet.is_discard
        broken += packet.is_corrupt
        times.append(packet.pts)
    shown = len(times) - hidden
    if hidden:
        return shown, f"an edit list hides {hidden} of {len(times)} frames, and decord returns them"
    if broken:
        return shown, "packets marked as damaged"
    if None in times or len(set(times)) < len(times):
        return shown, "packets without their own time"
    if not clean or not _groups_are_closed(times, keys):
        return shown, "an open group of pictures: decord starts at the wrong frame after a jump"
    if stream.frames not in (0, len(times)):
        return shown, f"the header announces {stream.frames} frames, and there are {len(times)}"
    return shown, ""


def _groups_are_closed(times: list[int], keys: list[int]) -> bool:
    """Whether pictures stored before a key picture are shown before it, and those stored after it, after."""
    if not times or not keys or keys[0] != 0:
        return False
    latest = list(accumulate(times, max))
    earliest = list(accumulate(reversed(times), min))[::-1]
    return all(earliest[k] == times[k] and (k == 0 or latest[k - 1] < times[k]) for k in keys)


def _clean_key_test(context: av.VideoCodecContext):
    """A test of key packets: True where decoders forget everything before it (H.264, HEVC: an IDR picture).

    Recovery points and CRA pictures are marked as keys too, but what follows may refer to what was before.
    """
    extra = context.extradata or b""
    if context.name == "h264" and len(extra) > 4 and extra[0] == 1:
        width, kind, pictures, idr = (extra[4] & 3) + 1, lambda byte: byte & 31, range(1, 6), (5,)
    elif context.name == "hevc" and len(extra) > 21 and extra[0] == 1:
        width, kind, pictures, idr = (extra[21] & 3) + 1, lambda byte: byte >> 1 & 63, range(32), (19, 20)
    else:
        return lambda packet: False

    def is_clean(packet: av.Packet) -> bool:
        data = memoryview(packet)
        at = 0
        while at + width < len(data):
            unit = kind(data[at + width])
            if unit in pictures:
                return unit in idr
            at += width + int.from_bytes(data[at : at + width], "big")
        return False

    return is_clean


def _turns_of_whole_file(source: str | Path | bytes, label: str) -> dict[int, tuple[int, ...]]:
    """Check that the file is there and whole; return its tracks' display matrices (structure.py)."""
    if not isinstance(source, str | Path | bytes):
        raise VideoError(f"expected a path or the bytes of a video, got {type(source).__name__}")
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            end, turns = announced_end_and_turns(file, size)
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
    return turns
