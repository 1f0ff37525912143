"""Where every sample of a tar shard stands, from its headers alone, and which shards a pattern names.

What is special: training from shards usually means reading them from end to end, and then a shuffle buffer holds
gigabytes and a position cannot be found again. Here a shard's headers are read first (about 20 microseconds a
file), and an `Entry` says where a sample's files begin: a shuffle buffer holds addresses, a position in it is a
few numbers, and a sample's bytes are read when its turn comes, by the process that decodes them.
"""

from __future__ import annotations

import glob
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

from clipvip_lib.data.shards import MEDIA
from clipvip_lib.errors import ClipVipError

READ = (*MEDIA, "txt", "json")  # what is read of a sample; audio and the like stay where they are
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)$")  # WebDataset: a key ends at the first dot behind the folder
_META = re.compile(r"__[^/]*__($|/)")  # WebDataset's own notes inside a shard


@dataclass(frozen=True, slots=True)
class Entry:
    """One sample of a shard: its key and, for each extension, where its bytes begin and how many there are.

    ``error`` is not empty if the sample must not be read, and says why.
    """

    key: str
    files: dict[str, tuple[int, int]]
    error: str = ""

    @property
    def has_media(self) -> bool:
        return any(extension in self.files for extension in MEDIA)


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
    path = Path(path)
    entries: list[Entry] = []
    if not path.is_file():
        return entries, ClipVipError(f"no shard {path}: expected a tar file; check the shard list")
    try:
        with tarfile.open(path, "r:") as tar:  # no decompression: addresses would mean nothing
            while (member := tar.next()) is not None:
                if member.isfile():
                    _add(entries, member)
                tar.members.clear()  # or the headers of a large shard would all stay in memory
            # tarfile takes a file that was cut between members for one that ends there: look for the end mark.
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"no header and no end mark after {len(entries)} samples")
    except (tarfile.TarError, EOFError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
        return entries, ClipVipError(
            f"shard {path} is damaged ({reason}): expected a whole, uncompressed tar file; fetch or write it again"
        )
    if not entries:
        return entries, ClipVipError(
            f"shard {path} holds no sample: expected key.mp4, key.txt and key.json; fetch it again"
        )
    return entries, None


def _add(entries: list[Entry], member: tarfile.TarInfo) -> None:
    match = _NAME.match(member.name)
    if match is None or _META.match(member.name):
        return
    key, extension = match[1], match[2].lower()
    # A key is written into sidecars and logs, which are UTF-8: one with other bytes would cost all of its shard.
    printable = key.encode(errors="backslashreplace").decode()
    if not entries or entries[-1].key != printable:
        fault = "" if key == printable else f"the key {printable} expected UTF-8, got other bytes"
        entries.append(Entry(printable, {}, fault))
    last = entries[-1]
    if extension in last.files and not last.error:
        entries[-1] = Entry(key, last.files, f"{member.name} is there twice: expected each file once")
    elif extension in READ:
        last.files[extension] = (member.offset_data, member.size)


def expand(pattern: str | Path) -> list[Path]:
    """The shards that a pattern names: ``/data/{00000..00099}.tar``, ``/data/*.tar``, or a folder with its ``*.tar``.

    Braces give their names in order, a glob its files by name. What a glob finds beside the tars (.parquet,
    _stats.json, captions) is left out. Raises ClipVipError for unbalanced braces, a glob or folder without a
    tar, or a named shard that is not there.
    """
    import braceexpand

    if Path(pattern).is_file():  # a name may hold brackets
        return [Path(pattern)]
    try:
        names = list(braceexpand.braceexpand(str(pattern)))
    except braceexpand.UnbalancedBracesError as error:
        raise ClipVipError(
            f"shard pattern {str(pattern)!r}: expected a closing brace for each opening one, as in {{00000..00099}}.tar"
        ) from error
    found: list[Path] = []
    missing: list[str] = []
    for name in names:
        if Path(name).is_file():
            found.append(Path(name))
            continue
        wanted = f"{glob.escape(name)}/*.tar" if Path(name).is_dir() else name
        # Not Path.glob, which takes no absolute pattern.
        tars = sorted(Path(tar) for tar in glob.glob(wanted) if tar.endswith(".tar"))  # noqa: PTH207
        found += tars
        if not tars:
            missing.append(name)
    if missing:
        raise ClipVipError(
            f"{len(missing)} of {len(names)} names of the shard pattern {str(pattern)!r} are no tar file, first "
            f"{missing[0]}; fetch what is missing or name fewer"
        )
    return found
