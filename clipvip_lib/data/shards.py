"""Tar shards as video2dataset writes them (key.mp4 or key.jpg, key.txt, key.json): their samples, found and read.

A sample's video or picture may have any suffix that is read from a folder, too. A key ends at the first dot, as
WebDataset has it; where that would leave no video (``1_Film_00.00.32.166.mp4``), it ends at the suffix.

A shard's headers are read first, about 20 microseconds per file, and an `Entry` says where a sample's files begin. So
a shuffle buffer holds addresses where others hold gigabytes, and a position in it is a few numbers. A sample's bytes
are read when its turn comes, by the process that decodes them. The order of a shard is kept: clips of one long video
stand together, and training relies on that.
"""

from __future__ import annotations

import contextlib
import glob
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from clipvip_lib.data.braces import names_of
from clipvip_lib.data.frame_folders import PICTURES
from clipvip_lib.data.video_files import SUFFIXES
from clipvip_lib.errors import ClipVipError, first_line
from clipvip_lib.files import kind_of, named

# Of a sample with several the first one is read: a video before a picture.
MEDIA = tuple(suffix.removeprefix(".") for suffix in (*SUFFIXES, *PICTURES))
READ = (*MEDIA, "txt", "json")  # what is read of a sample; audio and the like stay where they are
_IS_MEDIA, _IS_READ = frozenset(MEDIA), frozenset(READ)
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)$")  # WebDataset: a key ends at the first dot behind the folder
_META = re.compile(r"__[^/]*__($|/)")  # WebDataset's own notes inside a shard


@dataclass(frozen=True, slots=True)
class Entry:
    """One sample of a shard: its key and, for each extension, where its bytes begin and how many there are.

    ``error`` is not empty if the sample must not be read, and says why. ``others``: extensions that are not read.
    """

    key: str
    files: dict[str, tuple[int, int]]
    error: str = ""
    others: tuple[str, ...] = ()

    @property
    def has_media(self) -> bool:
        return not _IS_MEDIA.isdisjoint(self.files)


@dataclass(frozen=True)
class Sample:
    """One sample of a shard: the bytes of its video or picture, its text, and what key.json says."""

    key: str
    media: bytes
    text: str
    about: dict


class NeverFetched(ClipVipError):
    """A sample without media: key.json says that video2dataset could not fetch it, and ``why``."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name} was never fetched ({why})")
        self.why = why


# ------------------------------------------------------------------------------------------------------- reading


def read_shard(path: str | Path) -> Iterator[Sample]:
    """Yield the samples of one tar shard in order.

    Raises ClipVipError as ``index_shard`` and ``read_sample``. Nothing is replaced or skipped.
    """
    for entry in index_shard(path):
        yield read_sample(path, entry)


def read_sample(shard: str | Path, entry: Entry, text: str | None = None) -> Sample:
    """One sample. ``text``: in place of its key.txt.

    Raises ClipVipError as ``read_media``, and if there is no text or an empty one, or key.json is not JSON.
    """
    found = read_files(shard, entry, (_first(entry), "txt", "json"))
    media = _media(shard, entry, found)
    if text is None:
        try:
            text = found.get("txt", b"").decode("utf-8")
        except UnicodeDecodeError as error:
            raise ClipVipError(
                f"{entry.key}.txt of shard {shard} is not UTF-8 ({error.reason}); write the shard again"
            ) from error
    if not text.strip():
        raise ClipVipError(
            f"sample {entry.key} of shard {shard} has no text: expected {entry.key}.txt with a caption in it"
        )
    return Sample(entry.key, media, text.strip(), _about(shard, entry, found))


def read_media(shard: str | Path, entry: Entry) -> bytes:
    """The video or picture of a sample.

    Raises NeverFetched where key.json says why there is none; ClipVipError naming the sample if it must not be read,
    has no media, or cannot be read.
    """
    return _media(shard, entry, read_files(shard, entry, (_first(entry) or "json",)))


def read_about(shard: str | Path, entry: Entry) -> dict:
    """What key.json says of a sample, {} without one. Raises ClipVipError if it cannot be read or is not JSON."""
    return _about(shard, entry, read_files(shard, entry, ("json",)))


def _first(entry: Entry) -> str:
    """The extension of what is shown of a sample; empty if there is nothing."""
    return next((extension for extension in MEDIA if entry.files.get(extension, (0, 0))[1]), "")


def media_of(entry: Entry) -> tuple[str, tuple[int, int]]:
    """(extension, (first byte, number of bytes)) of what is shown of a sample; ("", (0, 0)) if it must not be read or
    there is nothing."""
    extension = "" if entry.error else _first(entry)
    return extension, entry.files.get(extension, (0, 0))


def read_files(shard: str | Path, entry: Entry, extensions: Iterable[str]) -> dict[str, bytes]:
    """Those files of a sample that are there, by extension. Raises ClipVipError if they cannot or must not be read."""
    if entry.error:
        raise ClipVipError(entry.error)
    found = {}
    try:
        with Path(shard).open("rb") as file:  # once per sample: over a network, opening is what takes long
            for extension in extensions:
                start, length = entry.files.get(extension, (0, 0))
                file.seek(start)
                if length and len(content := file.read(length)) != length:
                    raise ClipVipError(
                        f"{entry.key} of {shard} is cut: expected {length} bytes, got {len(content)}; fetch it again"
                    )
                if length:
                    found[extension] = content
    except OSError as error:
        raise ClipVipError(
            f"cannot read {entry.key} of {shard} ({error.strerror}); look at the disk, or fetch it again"
        ) from error
    return found


def _media(shard: str | Path, entry: Entry, found: dict[str, bytes]) -> bytes:
    media = found.get(_first(entry))
    if media:
        return media
    about = {}
    with contextlib.suppress(ClipVipError):
        about = _about(shard, entry, found)
    if str(about.get("status")).startswith("failed_to_"):
        why = ": ".join(str(about[name]) for name in ("status", "error_message") if about.get(name))
        raise NeverFetched(f"{entry.key} of {shard}", why)
    raise ClipVipError(
        f"sample {entry.key} of shard {shard} has no mp4 or jpg, nor another video or picture; write the shard again"
    )


def _about(shard: str | Path, entry: Entry, found: dict[str, bytes]) -> dict:
    try:
        about = json.loads(found.get("json", b"{}"))
        if not isinstance(about, dict):
            raise ValueError(f"expected an object, got {type(about).__name__}")
    except (ValueError, RecursionError) as error:  # not JSON, not text at all, or too deep
        raise ClipVipError(
            f"{entry.key}.json of shard {shard} is not JSON that people write ({error}); write the shard again"
        ) from error
    return about


# ------------------------------------------------------------------------------------------------------- listing


def index_shard(path: str | Path) -> list[Entry]:
    """The samples of a tar shard, in its order. Files that belong to no sample are left out.

    Raises ClipVipError naming the shard if it is missing, compressed, cut or damaged, or holds no sample.
    """
    entries, damage = scan_shard(path)
    if damage is not None:
        raise damage
    return entries


def scan_shard(path: str | Path) -> tuple[list[Entry], ClipVipError | None]:
    """As ``index_shard``, but returns what stands before the damage together with the error, or None."""
    entries, _, damage = scan_members(path)
    return entries, damage


def scan_members(path: str | Path) -> tuple[list[Entry], list[str], ClipVipError | None]:
    """As ``scan_shard``, and between the two the names of the files that belong to no sample."""
    path = Path(path)
    listing = _Listing(path)
    if not path.is_file():
        return [], [], ClipVipError(f"no shard {path}: expected a tar file; check the shard list")
    entries, damage = listing.entries, None
    try:
        with tarfile.open(path, "r:") as tar:  # no decompression: addresses would mean nothing
            while (member := tar.next()) is not None:
                if (
                    member.size < 0 or member.issparse()
                ):  # one never ends, of the other the bytes stand elsewhere
                    raise tarfile.ReadError(f"{member.name} has a size that no video has")
                if not member.isdir():
                    listing.add(member)
                tar.members.clear()  # or the headers of a large shard would all stay in memory
            listing.end_group()
            # tarfile takes a file that was cut between members for one that ends there: look for the end mark.
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"no header and no end mark after {len(entries)} samples")
    except (
        tarfile.TarError,
        EOFError,
        OSError,
        ValueError,
        OverflowError,
        RecursionError,
        MemoryError,
    ) as error:
        reason = first_line(error).rstrip(":")
        damage = ClipVipError(
            f"shard {path} is damaged ({reason}): expected a whole, uncompressed tar file; fetch or write it again"
        )
    listing.end_group()
    if not entries and damage is None:
        damage = ClipVipError(
            f"shard {path} holds no sample: expected key.mp4, key.txt and key.json; fetch it again"
        )
    return entries, listing.strays, damage


class _Listing:
    """Samples from the members of a tar, in the order of their first ones. Members with one name up to the first dot
    are one group, and a group is one sample, unless its videos have further dots in their names. Files of one sample
    that do not stand together (an unsorted tar) find each other by their name."""

    def __init__(self, shard: Path) -> None:
        self.shard, self.entries, self.strays = shard, [], []
        self._places: dict[str, int] = {}  # key -> its first entry
        self._base, self._group = "", []

    def add(self, member: tarfile.TarInfo) -> None:
        match = _NAME.match(member.name)
        if match is None or _META.match(member.name):
            self.strays.append(member.name)
            return
        if match[1] != self._base:
            self.end_group()
            self._base = match[1]
        self._group.append((match[2], member))

    def end_group(self) -> None:
        group, self._group = self._group, []
        direct = {rest.lower() for rest, _ in group}
        videos = {rest.rpartition(".")[0] for rest, _ in group if _suffix(rest) in _IS_MEDIA}
        whole = not _IS_MEDIA.isdisjoint(direct) or not (videos or _IS_READ.isdisjoint(direct))
        for rest, member in group:
            head = "" if whole else _longest(rest.rpartition(".")[0], videos)
            extension = rest[len(head) + 1 :] if head else rest
            self._file(f"{self._base}.{head}" if head else self._base, extension.lower(), member)

    def _file(self, key: str, extension: str, member: tarfile.TarInfo) -> None:
        # A key is written into sidecars and logs, which are UTF-8: one with other bytes would cost all of its shard.
        printable = key.encode(errors="backslashreplace").decode()
        entries, shard = self.entries, self.shard
        place = self._places.get(printable, -1)
        if place >= 0 and extension in entries[place].files and entries[-1].key != printable:
            place = -1  # another sample of this name, not the rest of one whose files stand apart
        if place < 0:
            fault = (
                f"the key {printable} of shard {shard} expected UTF-8, got other bytes; write the shard again"
            )
            twice = f"the key {printable} stands in two places of shard {shard}; write the shard again"
            error = fault if key != printable else twice if printable in self._places else ""
            place = len(entries)
            entries.append(Entry(printable, {}, error))
            self._places[printable] = place
        found = entries[place]
        if extension not in _IS_READ:
            entries[place] = replace(found, others=(*found.others, extension))
        elif not member.isfile():
            fault = (
                f"{member.name} of shard {shard} is a link or a device: expected a file with its bytes; write the "
                "shard again (tar --dereference --hard-dereference)"
            )
            entries[place] = replace(found, error=found.error or fault)
        elif extension in found.files:
            fault = f"{member.name} is there twice in shard {shard}: expected each file once; write the shard again"
            entries[place] = replace(found, error=found.error or fault)
        else:
            found.files[extension] = (member.offset_data, member.size)


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _longest(head: str, videos: set[str]) -> str:
    """Of the videos' names the longest that ``head`` begins with, up to a dot (``a.b`` of ``a.b.seg``); or itself."""
    parts = head.split(".")
    names = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((name for name in names if name in videos), head)


def expand(pattern: str | Path, leave_out: Callable[[str, str], None] = lambda name, why: None) -> list[Path]:
    """The shards that a pattern names: ``/data/{00000..00099}.tar``, ``/data/*.tar``, or a folder with its ``*.tar``.

    Braces give their names in order, a glob its files by name. What a glob finds beside the tars (.parquet,
    _stats.json, captions) is left out, and ``leave_out(name, why)`` hears of it. Raises ClipVipError as ``names_of``,
    and for a glob or folder without a tar, or a named shard that is not there.
    """
    if kind_of(named(pattern)) == "file":  # a name may hold brackets
        return [Path(pattern)]
    names = names_of(str(pattern))
    found: list[Path] = []
    missing: list[str] = []
    for name in names:
        kind = kind_of(name)
        if kind == "file":
            found.append(Path(name))
            continue
        wanted = f"{glob.escape(name)}/*.tar" if kind == "folder" else name
        # Not Path.glob, which cannot take an absolute pattern.
        beside = sorted(glob.glob(wanted))  # noqa: PTH207
        tars = [Path(tar) for tar in beside if tar.endswith(".tar")]
        found += tars
        for other in beside:
            if not other.endswith(".tar"):
                leave_out(other, "files beside shards")
        if kind == "folder" and not tars:
            raise ClipVipError(
                f"the folder {name} holds no .tar: expected shards; name the folder that holds them (videos that are "
                "files: embed and pack read them as they are)"
            )
        if not tars:
            missing.append(name)
    if missing:
        raise ClipVipError(
            f"{len(missing)} of {len(names)} names of the shard pattern {str(pattern)!r} are not tar files, first "
            f"{missing[0]}; fetch what is missing or name fewer"
        )
    return found
