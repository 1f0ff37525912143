"""Reads WebDataset tar shards as video2dataset writes them: key.mp4 (or key.jpg), key.txt, key.json.

The order of a shard is kept: clips of one long video stand together, which training relies on.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clipvip_lib.errors import ClipVipError

MEDIA = ("mp4", "jpg")


@dataclass(frozen=True)
class Sample:
    """One sample of a shard: its media bytes (mp4 or jpg), its text, and what key.json says."""

    key: str
    media: bytes
    text: str
    about: dict


def read_shard(path: str | Path) -> Iterator[Sample]:
    """Yield the samples of one tar shard in order.

    Raises ClipVipError naming the shard, and the sample where there is one, if the tar is missing or cut, if a
    sample has no media, no text or an empty one, or if key.json is not JSON. Nothing is replaced or skipped.
    """
    import webdataset  # here: it takes a second to import

    path = Path(path)
    if not path.is_file():
        raise ClipVipError(f"no shard {path}: expected a tar file; check the shard list")
    last = None
    try:
        _check_whole(path)
        with path.open("rb") as stream:
            # The reader takes names, and a colon in a path would look like a protocol: open the file ourselves.
            opened = [{"url": str(path), "stream": stream}]
            files = webdataset.tariterators.tar_file_expander(
                opened, handler=webdataset.handlers.reraise_exception
            )
            for raw in webdataset.tariterators.group_by_keys(
                files, handler=webdataset.handlers.reraise_exception
            ):
                last = raw["__key__"]
                yield _sample(path, raw)
        if last is None:
            raise ClipVipError(
                f"shard {path} holds no sample: expected key.mp4, key.txt and key.json; fetch it again"
            )
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ClipVipError(
            f"shard {path} is damaged{f' after sample {last}' if last else ''} ({error}): expected a whole tar "
            "file; fetch or write it again"
        ) from error


def _check_whole(path: Path) -> None:
    """Walk all headers to the end-of-archive mark: Python's tarfile takes a file that was cut between members, or
    whose headers are damaged further on, for one that ends there."""
    with tarfile.open(path) as tar:
        members = len(tar.getmembers())
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no header and no end mark after {members} whole files")


def _sample(path: Path, raw: dict) -> Sample:
    key = raw["__key__"]
    media = next((raw[extension] for extension in MEDIA if extension in raw), None)
    if not media:
        raise ClipVipError(f"sample {key} of shard {path} has no {' or '.join(MEDIA)}; write the shard again")
    try:
        text = raw.get("txt", b"").decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ClipVipError(
            f"{key}.txt of shard {path} is not UTF-8 ({error.reason}); write the shard again"
        ) from error
    if not text:
        raise ClipVipError(
            f"sample {key} of shard {path} has no text: expected {key}.txt with a caption in it"
        )
    try:
        about = json.loads(raw.get("json", b"{}"))
    except json.JSONDecodeError as error:
        raise ClipVipError(
            f"{key}.json of shard {path} is not JSON ({error}); write the shard again"
        ) from error
    return Sample(key, media, text, about)
