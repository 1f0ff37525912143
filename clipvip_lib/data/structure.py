"""Where a video file should end, and how its tracks are to be turned: read from a few bytes of its headers.

FFmpeg plays what is there of a cut file and says nothing. But the formats announce their length: the boxes
of MP4, the segment of Matroska, the RIFF parts of AVI, the packets of MPEG-TS by their size. And PyAV does not
give an MP4's display matrix, without which decord cannot be judged, before a frame is decoded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

# Top-level boxes of an MP4 file: one that ends after the file does means that the file was cut.
BOXES = frozenset(b"moov mdat moof free skip wide uuid mfra meta sidx ftyp styp".split())
UPRIGHT = (1, 0, 0, 1)
QUARTER_TURNS = (UPRIGHT, (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0))


def announced_end_and_turns(file: BinaryIO, size: int) -> tuple[int, dict[int, tuple[int, ...]]]:
    """(where the file should end, at least; display matrix (a, b, c, d) of each track that has one).

    A point (x, y) of the picture is shown at (a x + c y, b x + d y). Entries other than -1, 0 and 1 become
    2, and a track that may be turned in a way not looked into has (2, 2, 2, 2). ``size`` is what the file
    has, in bytes.
    """
    file.seek(0)
    head = file.read(256).ljust(16, b"\0")
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _matroska_end(head), _matroska_projection(file)
    if head[:4] == b"RIFF":
        return _riff_end(file, size), {}
    if step := _transport_packet(head):
        return -(-size // step) * step, {}
    return _mp4(file, size)


def _mp4(file: BinaryIO, size: int) -> tuple[int, dict[int, tuple[int, ...]]]:
    """(where the last top-level box ends, display matrices by track)."""
    end, matrices = 0, {}
    for kind, start, stop in _boxes(file, 0, size):
        if kind not in BOXES:
            break
        end = stop
        if kind == b"moov" and stop <= size:
            matrices = _mp4_matrices(file, start, stop)
    return end, matrices


def _mp4_matrices(file: BinaryIO, start: int, stop: int) -> dict[int, tuple[int, ...]]:
    """Display matrix of each track by its identifier."""
    matrices: dict[int, tuple[int, ...]] = {}
    movie = UPRIGHT
    for kind, inner, end in _boxes(file, start, stop):
        if kind == b"mvhd":
            file.seek(inner)
            head = file.read(84)
            movie = _matrix(head, 48 if head[:1] == b"\1" else 36)
        elif kind == b"trak":
            for child, body, _ in _boxes(file, inner, end):
                if child == b"tkhd":
                    file.seek(body)
                    head = file.read(88).ljust(24, b"\0")
                    long = head[:1] == b"\1"
                    (track,) = struct.unpack_from(">I", head, 20 if long else 12)
                    matrices[track] = _matrix(head, 52 if long else 40)
    # A turn of the whole movie on top of its tracks' is left to PyAV: (2, 2, 2, 2) is not a quarter turn.
    return matrices if movie == UPRIGHT else dict.fromkeys(matrices, (2, 2, 2, 2))


def _matrix(head: bytes, at: int) -> tuple[int, ...]:
    """(a, b, c, d) in whole numbers; anything that is not -1, 0 or 1 becomes 2."""
    if len(head) < at + 36:
        return UPRIGHT
    a, b, _, c, d = struct.unpack_from(">5i", head, at)
    return tuple(v >> 16 if v in (-65536, 0, 65536) else 2 for v in (a, b, c, d))


def _boxes(file: BinaryIO, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """(type, where its content begins, where it ends) of the boxes of an MP4 file between two positions."""
    while start + 8 <= stop:
        file.seek(start)
        head = file.read(16)
        if len(head) < 8:
            return
        length, kind = struct.unpack_from(">I4s", head)
        body = start + 8
        if length == 1 and len(head) == 16:
            (length,) = struct.unpack_from(">Q", head, 8)
            body += 8
        elif length == 0:
            length = stop - start
        if length < body - start:
            return
        yield kind, body, start + length
        start += length


def _matroska_end(head: bytes) -> int:
    """Where the segment ends; 0 if the file does not say so (written as a stream)."""
    size, at = _ebml_number(head, 4)
    at += size  # past the EBML header
    if head[at : at + 4] != b"\x18\x53\x80\x67" or len(head) < at + 12:
        return 0
    length = 8 - head[at + 4].bit_length() + 1
    size, begin = _ebml_number(head, at + 4)
    return 0 if size == (1 << 7 * length) - 1 else begin + size


def _ebml_number(data: bytes, at: int) -> tuple[int, int]:
    """(value, position after it) of an EBML number of variable length."""
    length = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + length], "big") & (1 << 7 * length) - 1
    return value, at + length


def _matroska_projection(file: BinaryIO) -> dict[int, tuple[int, ...]]:
    """Tracks turned by a Projection element: sought by its identifier alone, because it is very rare."""
    file.seek(0)
    return dict.fromkeys(range(1, 9), (2, 2, 2, 2)) if b"\x76\x70" in file.read(1024) else {}


def _transport_packet(head: bytes) -> int:
    """Bytes in a packet of MPEG-TS (188, on Blu-ray discs and camcorders 192); 0 if it is another format."""
    for step, sync in ((188, 0), (192, 4)):
        if len(head) > step + sync and head[sync] == head[step + sync] == 0x47:
            return step
    return 0


def _riff_end(file: BinaryIO, size: int) -> int:
    """Where the last RIFF part of an AVI file ends (files over one GB have several)."""
    end = 0
    while end + 8 <= size:
        file.seek(end)
        kind, length = struct.unpack("<4sI", file.read(8))
        if kind != b"RIFF":
            break
        if length == 0:  # its writer was stopped before it could fill in the size
            return size + 1
        end += 8 + length
    return end
