"""Whether the videos of a downstream set exist, are whole, have the annotated length, differ between splits
and decode.

Every file is found and weighed, and files of one size are compared. The sample is decoded as training will do it, which
refuses what is damaged. The rest is opened, not decoded, as long as the time lasts, in an order that does not depend on
names, so that a part stands for the whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipvip_lib.data import frame_folders, video
from clipvip_lib.data.annotations.reading import Record, Tell
from clipvip_lib.data.container import VideoError
from clipvip_lib.data.structure import announced_end
from clipvip_lib.data.video_files import VideoFiles, clip_seconds
from clipvip_lib.progress import ProgressCallback

FRAMES = 12  # of a video, as in the paper, and its middle frame: what is timed; a frame store keeps more
# Annotated lengths are rounded to seconds, and cutters end at a key picture near by.
TOLERANCE_SECONDS, TOLERANCE_SHARE = 1.0, 0.1
STORE_SIZE = 224
Found = dict[str, list[tuple[Record, Path]]]


@dataclass(frozen=True)
class Decoding:
    """Measured on ``clips`` clips of the sample: seconds per clip (12 frames and the middle one) on one core; what that
    makes of all clips, in core hours; and the bytes of their frame store at 224 x 224, if it was told how many frames
    of a clip that keeps.
    """

    clips: int
    seconds_a_clip: float
    core_hours: float
    store_bytes: int | None


def match(records: dict[str, list[Record]], files: VideoFiles, tell: Tell) -> Found:
    """The file or frame folder of every record, the first where there are several."""
    found: Found = {}
    used = set()
    for split, listed in records.items():
        found[split] = []
        for record in listed:
            paths = files.find(record.names)
            used.update(paths)
            if len(paths) > 1:
                tell(
                    "ambiguous-video",
                    f"{split}: video {record.video_id} may be {' or '.join(map(str, paths))}; remove all but one",
                )
            elif not paths:
                tell(
                    "missing-video", f"{split}: video {record.video_id} is not under {files.folder}; fetch it"
                )
            if len(paths) > 0:
                found[split].append((record, paths[0]))
    for path in files.paths:
        if path not in used:
            tell("unlisted-video", f"{path} is in no split")
    return found


def check(
    found: Found,
    tell: Tell,
    *,
    sample: int,
    until: float,
    progress: ProgressCallback,
    kept_frames: int | None = None,
) -> tuple[int, int, Decoding | None]:
    """(bytes of all videos, number of files opened, what decoding costs); faults go to ``tell``.

    ``sample``: how many are decoded, 0 for all; then the clock does not matter. ``until``: a time.monotonic() at
    which to stop opening files; decoding takes at most half of what is left till then, and at least one file.
    ``kept_frames``: of a clip in a frame store, without its middle one.
    """
    pairs = {path: record for listed in found.values() for record, path in listed}
    sizes = {path: _size(path) for path in pairs}
    readable = []
    for path, size in sizes.items():
        if size == 0:
            tell("empty-file", f"{path} is empty; fetch it again")
        else:
            readable.append(path)
    _check_doubles(found, sizes, tell)
    order = sorted(readable, key=lambda path: hashlib.sha256(path.name.encode()).digest())
    deep = order if sample == 0 else order[:sample]
    spent: list[float] = []
    half = (time.monotonic() + until) / 2  # a few of ActivityNet's long videos may fill it
    opened = 0
    for path in deep:
        if opened and sample and time.monotonic() > half:
            break
        if _opens(pairs[path], path, tell):
            spent += _decode(path, tell)
        opened += 1
        progress(opened, len(deep), "decoded")
    for path in order[opened:]:
        if time.monotonic() > until:
            break
        _opens(pairs[path], path, tell)
        opened += 1
        progress(opened, len(order), "opened")
    return sum(sizes.values()), opened, _decoding(spent, len(pairs), kept_frames)


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(picture.stat().st_size for picture in _pictures(path) if picture.is_file())
    return path.stat().st_size


def _pictures(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in frame_folders.PICTURES)


def _check_doubles(found: Found, sizes: dict[Path, int], tell: Tell) -> None:
    """Equal bytes under two names; only files of one size are read."""
    splits = {path: split for split, listed in found.items() for _, path in listed}
    by_size: dict[int, list[Path]] = {}
    for path, size in sizes.items():
        if size:
            by_size.setdefault(size, []).append(path)
    by_content: dict[bytes, list[Path]] = {}
    for group in by_size.values():
        if len(group) > 1:
            for path in group:
                with contextlib.suppress(OSError):  # told where files are opened
                    by_content.setdefault(_digest(path), []).append(path)
    for first, *others in by_content.values():
        for other in others:
            if splits[first] == splits[other]:
                tell("twin-video", f"{splits[first]}: {first.name} and {other.name} have the same bytes")
            else:
                tell(
                    "doubled-video",
                    f"{first.name} ({splits[first]}) and {other.name} ({splits[other]}) have the same bytes; take one "
                    "out of its split",
                )


def _digest(path: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for file in _pictures(path) if path.is_dir() else [path]:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.digest()


def _opens(record: Record, path: Path, tell: Tell) -> bool:
    """Whether a file is whole and a video as far as its headers tell; its length is compared with the annotation's."""
    if path.is_dir():
        return _folder_is_whole(record, path, tell)
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            end = announced_end(file, size)
    except OSError as error:
        tell("unreadable-video", f"cannot read {path}: expected a video file, got {error.strerror}")
        return False
    if end > size:
        tell(
            "cut-file", f"{path} is cut: its headers announce {end} bytes, and it has {size}; fetch it again"
        )
        return False
    try:
        seconds = clip_seconds(path)
    except VideoError as error:
        tell("unreadable-video", str(error))
        return False
    if record.seconds is not None:
        tolerance = max(TOLERANCE_SECONDS, TOLERANCE_SHARE * record.seconds)
        if seconds < record.seconds - tolerance or (
            not record.longer and seconds > record.seconds + tolerance
        ):
            least = "at least " if record.longer else ""
            tell(
                "wrong-duration",
                f"{path} lasts {seconds:.1f} s: expected {least}{record.seconds:.1f} s by the annotation; cut it again",
            )
    return True


def _folder_is_whole(record: Record, folder: Path, tell: Tell) -> bool:
    try:
        there = frame_folders.count_frames(folder)
    except VideoError as error:
        tell("frames-missing", str(error))
        return False
    if record.frames is not None and there != record.frames:
        tell(
            "frames-missing",
            f"{folder} has {there} pictures: expected num_frame = {record.frames}; extract the frames again",
        )
    return True


def _decode(path: Path, tell: Tell) -> list[float]:
    """[seconds of decoding as training does it], none if it failed."""
    try:
        started = time.perf_counter()
        frame_folders.read_frames(path, lambda total: video.clip_indices(total, FRAMES))
        return [time.perf_counter() - started]
    except VideoError as error:
        tell("unreadable-video", str(error))
        return []


def _decoding(spent: Sequence[float], clips: int, kept_frames: int | None) -> Decoding | None:
    if not spent:
        return None
    mean = float(np.mean(spent))
    store = None if kept_frames is None else clips * (kept_frames + 1) * STORE_SIZE * STORE_SIZE * 3
    return Decoding(len(spent), mean, mean * clips / 3600, store)
