"""What a row of a folder of features shows: a file, or a part of a shard, or the middle picture of a folder.

Which file that is says the index (ids.jsonl) by the row's number, and nothing else: who asks has only the number.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from clipvip_lib.data.clips import stamp_of
from clipvip_lib.data.frame_folders import PICTURES, frame_files
from clipvip_lib.data.shards import Entry, index_shard, media_of
from clipvip_lib.data.video_files import SUFFIXES
from clipvip_lib.errors import ClipVipError
from clipvip_lib.features.folder import Features

SHARDS_KEPT = 16  # whose lists of samples stay in memory
#: What browsers are told; they look into a file themselves where they do not know its type.
TYPES = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".webm": "video/webm",
    ".mkv": "video/x-matroska",
    ".mov": "video/quicktime",
    ".avi": "video/x-msvideo",
    ".ogv": "video/ogg",
    ".gif": "image/gif",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
}


@dataclass(frozen=True)
class Place:
    """Where a row's bytes are. start, length: in the file, None of a whole one; type: as HTTP names it; entry: of a
    sample in a shard."""

    path: Path
    type: str
    start: int = 0
    length: int | None = None
    entry: Entry | None = None

    @property
    def is_picture(self) -> bool:
        return self.type.startswith("image/")

    @contextmanager
    def open(self):
        """(file, first byte, number of bytes, its state as a word). Raises ClipVipError if they are not there."""
        try:
            # Without waiting: by now it could be a pipe.
            handle = os.open(
                self.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            )
        except OSError as error:
            raise ClipVipError(
                f"cannot read {self.path}: expected the video that was embedded, got {error.strerror}; embed again"
            ) from error
        with os.fdopen(handle, "rb") as file:
            about = os.fstat(file.fileno())
            length = about.st_size if self.length is None else self.length
            if not stat.S_ISREG(about.st_mode) or self.start + length > about.st_size:
                raise ClipVipError(
                    f"{self.path} is not what was embedded: expected a whole file, got a cut one or another; embed it"
                )
            yield file, self.start, length, f"{about.st_mtime_ns:x}-{self.start:x}-{length:x}"


def copy(file: BinaryIO, start: int, length: int, write) -> None:
    """Some bytes of a file, piece by piece. Raises ConnectionError if the file ends before."""
    file.seek(start)
    while length:
        piece = file.read(min(length, 2**18))
        if not piece:
            raise ConnectionAbortedError("the file was cut while it was read")
        write(piece)
        length -= len(piece)


def embedded_path(row: dict) -> Path:
    """Where a row's file is, without links. Raises ClipVipError if they lead elsewhere than when it was embedded, or if
    it is gone or changed since; its content is not looked at."""
    path, found = os.path.abspath(row["path"]), os.path.realpath(row["path"])  # noqa: PTH100
    if found != row.get("real", path):
        raise ClipVipError(
            f"{row['path']} leads to {found}: expected {row.get('real', path)}, as when it was embedded; put the link "
            "right, or embed into a new folder"
        )
    try:
        Path(found).stat()
    except FileNotFoundError:
        raise ClipVipError(
            f"{found} is gone since it was embedded: expected a video; put it back, or embed again"
        ) from None
    except OSError:  # what the stamp tells
        pass
    if row.get("stamp", "") not in ("", stamp_of(Path(found))):
        raise ClipVipError(
            f"{found} changed since it was embedded: expected the size and time of then, got others, so the score "
            "may be another video's; embed it again"
        )
    return Path(found)


def lost(row: dict) -> str:
    """Why the file of a row is not what was embedded, or nothing: it is, or the row is a text."""
    try:
        if isinstance(row.get("path"), str):
            embedded_path(row)
    except ClipVipError as error:
        return str(error)
    return ""


class Media:
    """The places of a folder's rows; may be asked by several threads."""

    def __init__(self, features: Features) -> None:
        self.features = features
        self._shards: OrderedDict[tuple[str, int], dict[str, Entry]] = OrderedDict()
        self._lock = threading.Lock()

    def place(self, row: int) -> Place:
        """Raises ClipVipError if the row does not exist, it is a text, or its file is gone, changed or no video."""
        if not 0 <= row < len(self.features):
            raise ClipVipError(f"no row {row}: expected 0 to {len(self.features) - 1}")
        about = self.features.row(row)
        if not isinstance(about.get("path"), str):
            raise ClipVipError(f"row {row} is a text: expected a video; there is nothing to show")
        path = embedded_path(about)
        return self._in_shard(path, about["key"]) if about.get("key") else self._of_file(path, about)

    def _of_file(self, path: Path, about: dict) -> Place:
        suffix = Path(about["path"]).suffix.lower()
        if path.is_dir():
            files = frame_files(path)
            path = Path(os.path.realpath(files[len(files) // 2]))
            suffix = path.suffix.lower()
        # An index may come from elsewhere, and name any file of this machine.
        if suffix not in SUFFIXES and suffix not in PICTURES:
            raise ClipVipError(
                f"{path} has no suffix of a video: expected one of {', '.join(SUFFIXES[:4])}, ..; it is not shown"
            )
        place = Place(path, TYPES.get(suffix, "application/octet-stream"))
        with place.open():
            return place

    def _in_shard(self, path: Path, key: str) -> Place:
        try:
            state = path.stat().st_mtime_ns
        except OSError as error:
            raise ClipVipError(
                f"cannot read {path}: expected the shard that was embedded, got {error.strerror}; embed again"
            ) from error
        with self._lock:
            entries = self._shards.get((str(path), state))
            if entries is None:
                entries = {entry.key: entry for entry in index_shard(path)}
                self._shards[str(path), state] = entries
                while len(self._shards) > SHARDS_KEPT:
                    self._shards.popitem(last=False)
            self._shards.move_to_end((str(path), state))
        entry = entries.get(key)
        extension, (start, length) = media_of(entry) if entry else ("", (0, 0))
        if not extension:
            raise ClipVipError(f"{path} holds no video of the sample {key}: expected one; embed it again")
        return Place(path, TYPES.get(f".{extension}", "application/octet-stream"), start, length, entry)
