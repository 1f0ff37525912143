"""Which videos some files, folders and shards hold, and their frames, decoded before they are needed.

A clip is a video file, a folder of numbered pictures, or a member of a tar shard (found by its offset, so that a
shard's samples are decoded side by side). Decoding runs in threads: FFmpeg leaves Python's lock while it
works, and a thread needs neither a second import of torch nor a guarded main module, as a spawned process does.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from clipvip_lib.data.frame_folders import is_frame_folder, read
from clipvip_lib.data.shards import Entry, expand, index_shard, read_media
from clipvip_lib.data.video import Reading, uniform_indices
from clipvip_lib.data.video_files import SUFFIXES, stem
from clipvip_lib.errors import ClipVipError, unknown

SHARD = ".tar"
IDS = ("name", "path")
MOST_WORKERS = 16


@dataclass(frozen=True, slots=True)
class Clip:
    """One video: its id, its absolute path, and in a shard its entry.

    stamp: size and time of change, which tell a file that was replaced.
    """

    id: str
    path: str
    entry: Entry | None = None
    stamp: str = ""

    @property
    def key(self) -> str:
        """In a shard, its sample's; else empty."""
        return self.entry.key if self.entry else ""

    @property
    def name(self) -> str:
        """How errors and results call it: its path, or ``KEY of SHARD``."""
        return f"{self.key} of {self.path}" if self.entry else self.path


@dataclass(frozen=True, slots=True)
class Decoded:
    """The frames of a clip, uint8 [N, size, size, 3], and how many the video shows; or why it cannot be read.

    damage: what the decoder said of damage, if the clip was accepted in spite of it.
    """

    clip: Clip
    frames: np.ndarray | None = None
    total: int = 0
    error: ClipVipError | None = None
    damage: str = ""


# ------------------------------------------------------------------------------------------------------- listing


def list_clips(sources: Iterable[str | Path], ids: str = "name") -> list[Clip]:
    """The clips of video files, folders (searched through), frame folders, shards and patterns of shards, in order.

    A folder's clips are sorted by path; one with pictures and no video in it is a frame folder. Shard patterns
    (``{00000..00099}.tar``) are data/shards.py's. Samples of a shard without a video or picture
    (video2dataset's failed downloads) are not clips; neither are hidden files.

    Args:
        ids: "name": the path below the given folder without its suffix, a file's stem, a sample's key;
            "path": the whole path, of a sample ``SHARD/KEY``.

    Raises ClipVipError if a source is not there or holds no video, a shard is damaged, a name is not UTF-8, or two
    clips have one id.
    """
    if ids not in IDS:
        raise unknown("kind of ids", ids, IDS)
    clips: dict[str, Clip] = {}
    for source in sources:
        found = _of_source(str(source))
        if not found:
            raise ClipVipError(
                f"{source} holds no video: expected files that end in {', '.join(SUFFIXES)}, pictures NAME_000.jpg, or "
                "shards with samples; give another folder"
            )
        for clip in found:
            _check_name(clip)
            if ids == "path":
                clip = replace(clip, id=f"{clip.path}/{clip.key}" if clip.entry else clip.path)
            other = clips.setdefault(clip.id, clip)
            if other is not clip:
                raise _doubled(other, clip)
    return list(clips.values())


def _check_name(clip: Clip) -> None:
    """A name with bytes that are not UTF-8 cannot be written to ids.jsonl, and the rows beside it would be lost."""
    try:
        (clip.id + clip.name).encode()
    except UnicodeEncodeError as error:
        raise ClipVipError(f"the name {clip.name!a} expected UTF-8, got other bytes; rename it") from error


def _doubled(one: Clip, two: Clip) -> ClipVipError:
    if one.name == two.name:
        return ClipVipError(f"{one.name} is named twice: expected each video once; leave one out")
    return ClipVipError(
        f"two videos have the id {one.id!r}, {one.name} and {two.name}: expected one each; take whole paths as ids "
        "(--ids path), or rename one"
    )


def _of_source(source: str) -> list[Clip]:
    if not source.strip():  # which Path takes for the current folder
        raise ClipVipError(
            f"expected the name of a file or folder, got {source!r}; a variable may be empty by mistake"
        )
    path = Path(source).expanduser()
    if path.is_dir():
        return list(_of_folder(path))
    if path.is_file():
        return _of_shard(path) if path.suffix.lower() == SHARD else [_of_file(path, stem(path.name))]
    if any(sign in source for sign in "{*?["):
        return [clip for shard in expand(source) for clip in _of_shard(Path(shard))]
    raise ClipVipError(
        f"no file or folder {source}: expected a video, a folder, frames or a shard; check the path"
    )


def _of_folder(root: Path) -> Iterator[Clip]:
    for parent, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = Path(parent)
        named = [here / name for name in sorted(files) if not name.startswith(".")]
        videos = [file for file in named if file.suffix.lower() in SUFFIXES]
        shards = [file for file in named if file.suffix.lower() == SHARD]
        for file in videos:
            yield _of_file(file, stem(file.relative_to(root).as_posix()))
        for file in shards:
            yield from _of_shard(file)
        if not videos and not shards and is_frame_folder(here):
            yield _of_file(here, root.name if here == root else here.relative_to(root).as_posix())


def _of_file(path: Path, name: str) -> Clip:
    return Clip(name or path.name, str(path.absolute()), stamp=_stamp(path))


def _of_shard(path: Path) -> list[Clip]:
    """A shard's samples by their place in the tar; those that are there twice keep why they must not be read."""
    stamp, name = _stamp(path), str(path.absolute())
    entries = (entry for entry in index_shard(path) if entry.has_media or entry.error)
    return [Clip(entry.key, name, entry, stamp) for entry in entries]


def _stamp(path: Path) -> str:
    try:
        about = path.stat()
    except OSError as error:  # a link to nowhere
        raise ClipVipError(
            f"cannot read {path}: expected a video, got {error.strerror}; fetch it again"
        ) from error
    return f"{about.st_size}-{about.st_mtime_ns}"


# ------------------------------------------------------------------------------------------------------ decoding


def read_clip(
    clip: Clip, frames: int, size: int, antialias: bool = False, damaged: str = "refuse"
) -> Reading:
    """N uniform frames of a clip, uint8 [N, size, size, 3], and the number of frames that it shows.

    A still image of a shard is a video of one frame. ``damaged``: "refuse" or "accept", as in ``video.read_frames``.

    Raises ClipVipError naming a clip that cannot be read rightly.
    """
    # Here and not above: they bring torch, and listing clips should not wait for it.
    from clipvip_lib.data.frames import JPEG, still
    from clipvip_lib.data.transform import resize

    source = Path(clip.path) if clip.entry is None else read_media(clip.path, clip.entry)
    if isinstance(source, bytes) and source.startswith(JPEG):
        found = Reading(still(source, clip.name)[None].repeat(frames, 0), 1, "")
    else:
        found = read(source, lambda total: uniform_indices(total, frames), clip.name, damaged)
    return replace(found, frames=resize(found.frames, size, antialias))


def decode_ahead(
    clips: Sequence[Clip],
    frames: int,
    size: int,
    antialias: bool = False,
    workers: int | None = None,
    ahead: int = 8,
    damaged: str = "refuse",
) -> Iterator[Decoded]:
    """The frames of clips, in their order, decoded in threads while the caller computes.

    A clip that cannot be read comes with its error, and the caller decides. At most ``ahead`` clips (or two per
    worker) wait in memory. ``workers``: threads, by default one per core; 0 decodes when asked. ``damaged``: as for
    `read_clip`.

    Raises ClipVipError for fewer workers than 0.
    """
    import torch

    workers = workers_of(workers)

    def decode(clip: Clip) -> Decoded:
        try:
            found = read_clip(clip, frames, size, antialias, damaged)
            return Decoded(clip, found.frames, found.total, damage=found.damage)
        except ClipVipError as error:
            return Decoded(clip, error=error)

    if workers == 0:
        yield from map(decode, clips)
        return
    torch.get_num_threads()  # so that the caller's thread has its number before a worker sets its own to 1
    waiting: deque = deque()
    rest = iter(clips)
    own: set[threading.Thread] = set()

    def start() -> None:
        own.add(threading.current_thread())
        torch.set_num_threads(1)

    pool = ThreadPoolExecutor(workers, "decode", initializer=start)
    try:
        for clip in islice(rest, max(ahead, 2 * workers)):
            waiting.append(pool.submit(decode, clip))
        while waiting:
            done = waiting.popleft().result()
            for clip in islice(rest, 1):
                waiting.append(pool.submit(decode, clip))
            yield done
    finally:
        # Where the caller gave up, the collector may end this in one of the pool's own threads: none waits for itself.
        pool.shutdown(wait=threading.current_thread() not in own, cancel_futures=True)


def workers_of(workers: int | None) -> int:
    """How many threads decode, by default one per core. Raises ClipVipError for fewer than 0."""
    if workers is not None and workers < 0:
        raise ClipVipError(f"workers expected 0 or more, got {workers}; leave it out for one per core")
    return min(usable_cores(), MOST_WORKERS) if workers is None else workers


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
