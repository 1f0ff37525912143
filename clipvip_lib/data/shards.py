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
    count_samples(path)
    try:
        with path.open("rb") as stream:
            # The reader takes names, and a colon in a path would look like a protocol: open the file ourselves.
            opened = [{"url": str(path), "stream": stream}]
            files = webdataset.tariterators.tar_file_expander(
                opened, handler=webdataset.handlers.reraise_exception
            )
            for raw in webdataset.tariterators.group_by_keys(
                files, handler=webdataset.handlers.reraise_exception
            ):
                yield _sample(path, raw)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise _damaged(path, error) from error
    except ValueError as error:
        if isinstance(error, ClipVipError):
            raise
        # webdataset's word for one member's name standing twice in a sample
        raise ClipVipError(
            f"shard {path} names a file twice ({error.args[0]}): expected each once; write the shard again"
        ) from error


def count_samples(path: str | Path) -> int:
    """Number of samples of a tar shard, from its headers alone.

    Raises ClipVipError if the shard is missing, cut or damaged: Python's tarfile takes a file that was cut between
    members, or whose headers are damaged further on, for one that ends there, so the end mark is looked for.
    """
    path = Path(path)
    if not path.is_file():
        raise ClipVipError(f"no shard {path}: expected a tar file; check the shard list")
    try:
        with tarfile.open(path) as tar:
            names = [member.name for member in tar if member.isfile()]
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"no header and no end mark after {len(names)} whole files")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise _damaged(path, error) from error
    parts = (name.rpartition("/") for name in names)
    keys = {(folder, last.split(".", 1)[0]) for folder, _, last in parts}
    if not keys:
        raise ClipVipError(
            f"shard {path} holds no sample: expected key.mp4, key.txt and key.json; fetch it again"
        )
    return len(keys)


def _damaged(path: Path, error: Exception) -> ClipVipError:
    reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
    return ClipVipError(
        f"shard {path} is damaged ({reason}): expected a whole tar file; fetch or write it again"
    )


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
    except (ValueError, RecursionError) as error:  # no JSON, no text at all, or too deep
        raise ClipVipError(
            f"{key}.json of shard {path} is not JSON that people write ({error}); write the shard again"
        ) from error
    return Sample(key, media, text, about)
