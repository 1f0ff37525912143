"""Where a video file should end: read from a few bytes of its headers.

FFmpeg plays what is there of a cut file and says nothing. But the formats announce their length: the boxes
of MP4, the segment of Matroska, the RIFF parts of AVI, the packets of MPEG-TS by their size.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

# Top-level boxes of an MP4 file: one that ends after the file does means that the file was cut.
BOXES = frozenset(b"moov mdat moof free skip wide uuid mfra meta sidx ftyp styp".split())


def announced_end(file: BinaryIO, size: int) -> int:
    """Where the file should end, at least, in bytes; 0 where it does not say so. ``size``: how many it has."""
    file.seek(0)
    head = file.read(256).ljust(16, b"\0")
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _matroska_end(head)
    if head[:4] == b"RIFF":
        return _riff_end(file, size)
    if step := _transport_packet(head):
        return -(-size // step) * step
    return _mp4_end(file, size)


def _mp4_end(file: BinaryIO, size: int) -> int:
    """Where the last top-level box of an MP4 file ends."""
    end = 0
    for kind, stop in _boxes(file, size):
        if kind not in BOXES:
            break
        end = stop
    return end


def _boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int]]:
    """(type, where it ends) of the top-level boxes of an MP4 file."""
    start = 0
    while start + 8 <= size:
        file.seek(start)
        head = file.read(16)
        if len(head) < 8:
            return
        length, kind = struct.unpack_from(">I4s", head)
        least = 8
        if length == 1 and len(head) == 16:
            (length,) = struct.unpack_from(">Q", head, 8)
            least = 16
        elif length == 0:
            length = size - start
        if length < least:
            return
        start += length
        yield kind, start


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
