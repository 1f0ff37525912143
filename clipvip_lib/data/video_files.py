"""Finds the video that an annotation names: a file with any suffix, in any subfolder, or a folder of frames.

Sets are passed on in many layouts (LSMDC in one folder per film, MSVD as .avi or .mp4, ActivityNet as frames), so the
folder is listed once and looked up by name without suffix. If two candidates match one name, none is chosen.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from clipvip_lib.data.container import VideoError, describe, main_stream, open_container
from clipvip_lib.data.frame_folders import NUMBER, PICTURES

# What the decoder reads, and so what is listed (clips.py, shards.py) and found here. Not .264 and .265: names of clips
# end in such times (LSMDC).
SUFFIXES = (
    ".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".3gp", ".flv", ".ogv", ".ts",
    ".3g2", ".m2ts", ".mts", ".m2t", ".trp", ".tod", ".vob", ".m2p", ".m1v", ".m2v", ".mpe", ".asf", ".f4v", ".qt",
    ".mj2", ".mk3d", ".divx", ".gif", ".ivf", ".h264", ".hevc", ".h265", ".mxf", ".dv", ".nut", ".rm", ".rmvb",
)  # fmt: skip


class VideoFiles:
    """The video files and frame folders under ``folder``, which may be absent (then nothing is found)."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.paths = list(_walk(self.folder, set()))
        self._by_stem: dict[str, list[Path]] = {}
        for path in self.paths:
            self._by_stem.setdefault(_composed(stem(path.name)), []).append(path)

    def find(self, names: Sequence[str]) -> list[Path]:
        """The paths that match the first of ``names`` with any match: none, one, or several.

        A name with a suffix (``a.mov``) is taken exactly if it is there, else with one more (``a.mov.mp4``), else with
        another. A name with folders (``film/clip``) is taken there if it is there, else by its last part.
        """
        for name in names:
            *folders, last = name.split("/")
            found = self._by_stem.get(_composed(stem(last)), [])
            exact = [path for path in found if path.name == last and path.suffix.lower() in SUFFIXES]
            found = exact or self._by_stem.get(_composed(last)) or found
            if folders:
                inside = [path for path in found if list(path.parent.parts[-len(folders) :]) == folders]
                found = inside or found
            if found:
                return found
        return []


def clip_seconds(source: str | Path | bytes, name: str | None = None) -> float:
    """How long a video says that it is, in seconds; its frames are not decoded. ``name`` stands for bytes in errors.

    Raises VideoError if it cannot be opened, has no picture, or tells no length.
    """
    label = describe(source, name)
    with open_container(source, label) as container:
        stream = main_stream(container, label)
        if stream.duration and stream.time_base:
            return float(stream.duration * stream.time_base)
        if container.duration:
            return container.duration / 1_000_000  # FFmpeg's clock of a whole file
    raise VideoError(f"{label} tells no length: expected a duration in its header; write it again")


def stem(name: str) -> str:
    """A file's name without a video's suffix; other dots belong to it."""
    root, dot, suffix = name.rpartition(".")
    return root if f"{dot}{suffix}".lower() in SUFFIXES else name


def _composed(name: str) -> str:
    """A name with letters and accents in one (NFC): file systems and archives may take them apart, and print alike."""
    return unicodedata.normalize("NFC", name)


def _walk(folder: Path, visited: set[tuple[int, int]]) -> Iterator[Path]:
    """Videos and frame folders; a frame folder is known by its first picture and not listed to its end."""
    top = not visited
    try:
        about = folder.stat()
        if (about.st_dev, about.st_ino) in visited:  # a link that leads back
            return
        visited.add((about.st_dev, about.st_ino))
        subfolders, files = [], []
        with os.scandir(folder) as entries:
            for entry in entries:
                name, _, suffix = entry.name.rpartition(".")
                if not top and f".{suffix.lower()}" in PICTURES and NUMBER.search(name):
                    yield folder
                    return
                if stem(entry.name) != entry.name and entry.is_file():  # not a link to nothing
                    files.append(entry.name)
                elif entry.is_dir():
                    subfolders.append(entry.name)
    except OSError:  # absent, or closed to this user: what it holds is missing
        return
    yield from (folder / name for name in sorted(files))
    for name in sorted(subfolders):
        yield from _walk(folder / name, visited)
