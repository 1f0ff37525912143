"""Which videos some files, folders and shards hold, and their frames, decoded before they are needed.

A clip is a video file, a folder of numbered pictures, or a member of a tar shard (found by its offset, so that a
shard's samples are decoded side by side). Decoding runs in threads: FFmpeg leaves Python's lock while it
works, and a thread needs neither a second import of torch nor a guarded main module, as a spawned process does.
"""

from __future__ import annotations

import contextlib
import os
import queue
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from clipvip_lib.cores import cores
from clipvip_lib.data.frame_folders import PICTURES, is_picture, read
from clipvip_lib.data.shards import MEDIA, Entry, NeverFetched, expand, media_of, read_media, scan_members
from clipvip_lib.data.video import Reading, VideoError, uniform_indices
from clipvip_lib.data.video_files import SUFFIXES, stem
from clipvip_lib.data.windows import Window, Windows, read_windows
from clipvip_lib.errors import ClipVipError, unknown
from clipvip_lib.files import kind_of, named
from clipvip_lib.say import counted, is_unicode

SHARD = ".tar"
IDS = ("name", "path")
REASONS = 8  # that a line tells
LeaveOut = Callable[[str, str], None]  # what is left out, and why
OfShard = Callable[
    [Path, str, LeaveOut], Iterator["Clip"]
]  # the clips of a shard, given its name below the source
MOST_WORKERS = 16
MOST_ASKED = 1024
OWN = ("pack.json", ".not_packed.jsonl", ".locks")  # what `clipvip pack` writes beside what it packs
NEVER = "samples that were never fetched"
DEPTH = 4  # windows of a clip that wait in memory


@dataclass(frozen=True, slots=True)
class Clip:
    """One video: its id, its absolute path, and in a shard its entry.

    stamp: size and time of change, which tell a file that was replaced; of a frame folder those of its pictures.
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
    """The frames of a clip or a window, uint8 [N, size, size, 3], and how many it shows; or why it cannot be read.

    damage: what the decoder said of damage, if the clip was accepted in spite of it; window: if windows were asked for
    (its own frames are None). Of a clip with an error nothing comes after it.
    """

    clip: Clip
    frames: np.ndarray | None = None
    total: int = 0
    error: ClipVipError | None = None
    damage: str = ""
    window: Window | None = None


# ------------------------------------------------------------------------------------------------------- listing


class Clips(list[Clip]):
    """Clips in order, and what was found beside them and left out: for each reason how many, and the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.left_out: dict[str, tuple[int, str]] = {}

    def leave_out(self, name: str, why: str) -> None:
        count, first = self.left_out.get(why, (0, name))
        self.left_out[why] = count + 1, first

    def note(self) -> str:
        """What was left out and why, as one line; empty if nothing was."""
        reasons = sorted(self.left_out.items(), key=lambda each: -each[1][0])
        told = [f"{count} {why} (first {first})" for why, (count, first) in reasons[:REASONS]]
        if rest := sum(count for _, (count, _) in reasons[REASONS:]):
            told.append(f"{rest} for other reasons")
        return f"left out beside {counted(len(self), 'video')}: {'; '.join(told)}" if told else ""


def list_clips(sources: Iterable[str | Path], ids: str = "name") -> Clips:
    """The clips of video files, folders (searched through), frame folders, shards and patterns of shards, in order.

    A folder's clips are sorted by path; links are followed; one with pictures and no video in it is a frame folder.
    Shard patterns (``{00000..00099}.tar``) are data/shards.py's. What is not a clip is counted in ``Clips.left_out``:
    files without a video's suffix, hidden ones, samples of a shard without a video or picture (video2dataset's failed
    downloads), second videos of a sample.

    Args:
        ids: "name": the path below the given folder without its suffix, a file's stem, a sample's key;
            "path": the whole path, of a sample ``SHARD/KEY``.

    Raises ClipVipError if a source is not there or holds no video, a link leads back to a folder above it, a shard is
    damaged, a name is not UTF-8, or two clips have one id.
    """
    if ids not in IDS:
        raise unknown("kind of ids", ids, IDS)
    return _list(sources, ids, _of_shard, "take whole paths as ids (--ids path), or rename one")


def list_files(sources: Iterable[str | Path]) -> Clips:
    """As `list_clips` by name, but a shard is one of them, not opened, and its id ends in .tar.

    Raises ClipVipError as that does, but not for what is in a shard.
    """

    def whole(path: Path, name: str, leave_out: LeaveOut) -> Iterator[Clip]:
        yield _of_file(path, name)

    return _list(sources, "name", whole, "rename one, or take them one after the other")


def _list(sources: Iterable[str | Path], ids: str, of_shard: OfShard, advice: str) -> Clips:
    clips: dict[str, Clip] = {}
    listed = Clips()
    for source in sources:
        found = False
        for clip in _of_source(str(source), listed.leave_out, of_shard):
            found = True
            _check_name(clip)
            if ids == "path":
                clip = replace(clip, id=f"{clip.path}/{clip.key}" if clip.entry else clip.path)
            other = clips.setdefault(clip.id, clip)
            if other is not clip:
                raise _doubled(other, clip, advice)
        if not found:
            note = listed.note()
            raise ClipVipError(
                f"{source} holds no video: expected files that end in {', '.join(SUFFIXES)}, pictures NAME_000.jpg, or "
                f"shards with samples{f' ({note})' if note else ''}; give another folder"
            )
    listed.extend(clips.values())
    return listed


def _check_name(clip: Clip) -> None:
    """A name with bytes that are not UTF-8 cannot be written to ids.jsonl, and the rows beside it would be lost."""
    if not is_unicode(clip.id + clip.name):
        raise ClipVipError(f"the name {clip.name!a} expected UTF-8, got other bytes; rename it")


def _doubled(one: Clip, two: Clip, advice: str) -> ClipVipError:
    if one.name == two.name:
        return ClipVipError(f"{one.name} is named twice: expected each video once; leave one out")
    return ClipVipError(
        f"two videos have the id {one.id!r}, {one.name} and {two.name}: expected one each; {advice}"
    )


def _of_source(source: str, leave_out: LeaveOut, of_shard: OfShard) -> Iterator[Clip]:
    if not source.strip():  # which Path takes for the current folder
        raise ClipVipError(
            f"expected the name of a file or folder, got {source!r}; a variable may be empty by mistake"
        )
    path = _home_expanded(named(source))
    kind = kind_of(path)
    if kind == "folder":
        return _of_folder(path, leave_out, of_shard)
    if kind == "file":
        return (
            of_shard(path, path.name, leave_out)
            if path.suffix.lower() == SHARD
            else iter([_of_file(path, stem(path.name))])
        )
    if any(sign in source for sign in "{*?["):
        return (
            clip for shard in expand(source, leave_out) for clip in of_shard(shard, shard.name, leave_out)
        )
    raise ClipVipError(
        f"no file or folder {source}: expected a video, a folder, frames or a shard; check the path"
    )


def _home_expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:  # ~ of somebody who is not known here may be a name
        return path


def _of_folder(root: Path, leave_out: LeaveOut, of_shard: OfShard) -> Iterator[Clip]:
    for here, names in _walk(root, {}):
        kinds: dict[str, list[Path]] = {"video": [], "shard": [], "picture": []}
        for name in names:
            suffix = Path(name).suffix.lower()
            kind = "video" if suffix in SUFFIXES else "shard" if suffix == SHARD else ""
            kind = kind or ("picture" if suffix in PICTURES else "")
            if name.endswith(OWN):
                continue
            if name.startswith("."):
                leave_out(name, "hidden")
            elif kind:
                kinds[kind].append(here / name)
            else:
                leave_out(name, f"with the suffix {suffix}" if suffix else "without a suffix")
        for file in kinds["video"]:
            yield _of_file(file, stem(file.relative_to(root).as_posix()))
        for file in kinds["shard"]:
            yield from of_shard(file, file.relative_to(root).as_posix(), leave_out)
        if kinds["video"] or kinds["shard"]:
            for file in kinds["picture"]:
                leave_out(file.name, "pictures beside videos")
        elif kinds["picture"]:
            yield _of_file(here, root.name if here == root else here.relative_to(root).as_posix())


def _walk(folder: Path, above: dict[tuple[int, int], Path]) -> Iterator[tuple[Path, list[str]]]:
    """Folders with the names of their files and of hidden folders, sorted. ``above``: the folders they lie in."""
    try:
        about = folder.stat()
        place = about.st_dev, about.st_ino
        if place in above:
            raise ClipVipError(
                f"the link {folder} leads back to {above[place]}, the folder that it lies in: expected links to other "
                "folders; remove it"
            )
        with os.scandir(folder) as entries:
            listed = sorted((entry.name, entry.is_dir()) for entry in entries)
    except OSError as error:
        raise ClipVipError(
            f"cannot list {folder}: expected a folder, got {error.strerror}; look at it, or name other folders"
        ) from error
    yield folder, [name for name, is_folder in listed if not is_folder or name.startswith(".")]
    for name, is_folder in listed:
        if is_folder and not name.startswith("."):
            yield from _walk(folder / name, {**above, place: folder})


def _of_file(path: Path, name: str) -> Clip:
    return Clip(name or path.name, str(path.absolute()), stamp=stamp_of(path))


def _of_shard(path: Path, _name: str, leave_out: LeaveOut) -> Iterator[Clip]:
    """A shard's samples by their place in the tar; those that are there twice keep why they must not be read."""
    stamp, name = stamp_of(path), str(path.absolute())
    entries, strays, damage = scan_members(path)
    if damage is not None:
        raise damage
    for stray in strays:
        leave_out(stray, "members of no sample")
    for entry in entries:
        why = "" if entry.error or media_of(entry)[0] else _why_no_clip(path, entry)
        if why and (why == NEVER or not entry.has_media):
            leave_out(entry.key, why)
        else:  # an empty file is told when it is read
            media = [each for each in (*entry.files, *entry.others) if each.rpartition(".")[2] in MEDIA]
            for extension in media[1:]:
                leave_out(f"{extension} of {entry.key}", "further videos or pictures of a sample")
            yield Clip(entry.key, name, entry, stamp)


def _why_no_clip(shard: Path, entry: Entry) -> str:
    try:
        read_media(shard, entry)
    except NeverFetched:
        return NEVER
    except ClipVipError:
        pass
    have = ", ".join(f".{each}" for each in (*entry.files, *entry.others))
    return f"samples without a video or picture, only {have}"


def stamp_of(path: Path) -> str:
    """Size and time of change of a file, or a frame folder and its pictures. Raises ClipVipError if it is neither."""
    try:
        about, pictures = path.stat(), []
        if stat.S_ISDIR(about.st_mode):  # whose own time stays when ffmpeg writes over the pictures in it
            with os.scandir(path) as entries:
                pictures = [each.stat() for each in entries if each.name.lower().endswith(PICTURES)]
    except OSError as error:  # a link to nowhere
        raise ClipVipError(
            f"cannot read {path}: expected a video, got {error.strerror}; fetch it again"
        ) from error
    if not (
        stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)
    ):  # a pipe would keep its reader waiting
        raise ClipVipError(f"cannot read {path}: expected a file, got a pipe or a device; remove it")
    stamp = f"{about.st_size}-{about.st_mtime_ns}"
    if pictures:
        stamp += f"-{sum(each.st_size for each in pictures)}-{max(each.st_mtime_ns for each in pictures)}"
    return stamp


# ------------------------------------------------------------------------------------------------------ decoding


def read_clip(
    clip: Clip, frames: int, size: int, antialias: bool = False, damaged: str = "refuse"
) -> Reading:
    """N uniform frames of a clip, uint8 [N, size, size, 3], and the number of frames that it shows.

    A still image of a shard is a video of one frame. ``damaged``: "refuse" or "accept", as in ``video.read_frames``.

    Raises ClipVipError naming a clip that cannot be read rightly.
    """
    # Here and not above: they bring torch, and listing clips should not wait for it.
    from clipvip_lib.data.frames import still
    from clipvip_lib.data.transform import resize

    source = Path(clip.path) if clip.entry is None else read_media(clip.path, clip.entry)
    if isinstance(source, bytes) and is_picture(source):
        found = Reading(still(source, clip.name)[None].repeat(frames, 0), 1, "")
    else:
        found = read(source, lambda total: uniform_indices(total, frames), clip.name, damaged)
    return replace(found, frames=resize(found.frames, size, antialias))


def read_windows_of(
    clip: Clip,
    windows: Windows,
    frames: int,
    size: int,
    antialias: bool = False,
    damaged: str = "refuse",
    wanted: Callable[[int], bool] = lambda number: True,
) -> Iterator[Window]:
    """The windows of a clip in order, each with N uniform frames, uint8 [N, size, size, 3] (data/windows.py).

    A still image of a shard is one window. Raises ClipVipError as `read_clip`, and for a frame folder, which has no
    times; it may come after windows.
    """
    from clipvip_lib.data.transform import resize

    source = Path(clip.path) if clip.entry is None else read_media(clip.path, clip.entry)
    if isinstance(source, bytes) and is_picture(source):
        if wanted(0):
            yield Window(0, 0.0, 0.0, read_clip(clip, frames, size, antialias).frames, 1, "", True)
        return
    if isinstance(source, Path) and source.is_dir():
        raise VideoError(
            f"{clip.name} is a folder of pictures: expected a video, whose frames have times, for windows; embed it "
            "without --windows"
        )
    yield from read_windows(
        source, windows, frames, lambda shown: resize(shown, size, antialias), clip.name, damaged, wanted
    )


def decode_ahead(
    clips: Sequence[Clip],
    frames: int,
    size: int,
    antialias: bool = False,
    workers: int | None = None,
    ahead: int = 8,
    damaged: str = "refuse",
    windows: Windows | None = None,
    wanted: Callable[[Clip, int], bool] = lambda clip, number: True,
) -> Iterator[Decoded]:
    """The frames of clips, or of their windows, in order, decoded in threads while the caller computes.

    A clip that cannot be read comes with its error, and the caller decides. At most ``ahead`` clips (or two per
    worker) wait in memory, of each at most DEPTH windows. ``workers``: threads, by default one per core; 0 decodes when
    asked. ``damaged``: as for `read_clip`. ``wanted``: whether a window (by its number) is to be read; the last one
    of a clip may therefore not come.

    Raises ClipVipError for fewer workers than 0.
    """
    import torch

    workers = workers_of(workers)

    def decode(clip: Clip) -> Iterator[Decoded]:
        try:
            if windows is None:
                found = read_clip(clip, frames, size, antialias, damaged)
                yield Decoded(clip, found.frames, found.total, damage=found.damage)
                return
            for each in read_windows_of(
                clip, windows, frames, size, antialias, damaged, partial(wanted, clip)
            ):
                about = replace(each, frames=None)
                yield Decoded(clip, each.frames, each.total, damage=each.damage, window=about)
        except ClipVipError as error:
            yield Decoded(clip, error=error)

    if workers == 0:
        for clip in clips:
            yield from decode(clip)
        return
    torch.get_num_threads()  # so that the caller's thread has its number before a worker sets its own to 1
    waiting: deque[tuple[Future, queue.Queue]] = deque()
    rest = iter(clips)
    own: set[threading.Thread] = set()
    given_up = threading.Event()

    def start() -> None:
        own.add(threading.current_thread())
        torch.set_num_threads(1)

    def fill(clip: Clip, ready: queue.Queue) -> None:
        try:
            with contextlib.closing(decode(clip)) as found:
                for each in found:
                    if not _put(ready, each, given_up):
                        return
        finally:
            _put(ready, None, given_up)

    def submit(clip: Clip) -> None:
        ready: queue.Queue = queue.Queue(DEPTH)
        waiting.append((pool.submit(fill, clip, ready), ready))

    pool = ThreadPoolExecutor(workers, "decode", initializer=start)
    try:
        for clip in islice(rest, max(ahead, 2 * workers)):
            submit(clip)
        while waiting:
            # The pool takes clips in order, so the one that is waited for never waits for a later one.
            future, ready = waiting.popleft()
            while (found := ready.get()) is not None:
                yield found
            future.result()
            for clip in islice(rest, 1):
                submit(clip)
    finally:
        given_up.set()
        # Where the caller gave up, the collector may end this in one of the pool's own threads: none waits for itself.
        pool.shutdown(wait=threading.current_thread() not in own, cancel_futures=True)


def _put(ready: queue.Queue, item: object, given_up: threading.Event) -> bool:
    """Whether there came to be room for an item before the reader gave up."""
    while not given_up.is_set():
        with contextlib.suppress(queue.Full):
            ready.put(item, timeout=0.2)
            return True
    return False


def workers_of(workers: int | None) -> int:
    """How many threads decode, by default one per core. Raises ClipVipError for fewer than 0, or thousands."""
    if workers is not None and workers < 0:
        raise ClipVipError(f"workers expected 0 or more, got {workers}; leave it out for one per core")
    if workers is not None and workers > MOST_ASKED:
        raise ClipVipError(
            f"workers expected at most {MOST_ASKED}, got {workers}; leave it out for one per core"
        )
    return min(cores(), MOST_WORKERS) if workers is None else workers
