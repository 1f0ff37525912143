"""A folder of numbered pictures, read as the video that they were taken from.

The authors keep ActivityNet and others like this: <clip_id>/<clip_id>_000.jpg, counted from zero with at least three
digits (XPretrain, CLIP-ViP/src/datasets/dataset_video_retrieval.py); ffmpeg counts from one. Both are read, and
frame 0 of the "video" is the first picture. A gap in the numbers is a lost picture, after which every index would
show another moment: such a folder is refused, never read as if it were whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from clipvip_lib.data import video
from clipvip_lib.data.video import Indices, Reading, VideoError

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
_STARTS = (b"\xff\xd8", b"\x89PNG\r\n")
NUMBER = re.compile(r"(\d+)$")


def is_picture(content: bytes) -> bool:
    """Whether bytes begin as a picture of one of these kinds does."""
    return content.startswith(_STARTS) or (content[:4] == b"RIFF" and content[8:12] == b"WEBP")


def frame_files(folder: str | Path, name: str | None = None) -> list[Path]:
    """The pictures of a frame folder in order of their number.

    Raises VideoError, naming the folder (or ``name``): it is not there or holds no numbered picture; numbers begin
    elsewhere than at 0 or 1, have a gap, or stand twice.
    """
    label = str(folder) if name is None else name
    try:
        listed = sorted(file.name for file in Path(folder).iterdir() if file.name.lower().endswith(PICTURES))
    except OSError as error:
        raise VideoError(
            f"cannot read {label}: expected a folder of frames, got {error.strerror}; check the path"
        ) from error
    numbered: dict[int, Path] = {}
    for file in listed:
        found = NUMBER.search(Path(file).stem)
        if found is None:
            raise VideoError(
                f"{label}: expected pictures named like {Path(folder).name}_000.jpg, got {file}; rename or remove it"
            )
        number = int(found[1])
        if number in numbered:
            raise VideoError(
                f"{label}: frame {number} is there twice, as {numbered[number].name} and {file}; remove one"
            )
        numbered[number] = Path(folder) / file
    if not numbered:
        raise VideoError(
            f"{label} holds no picture: expected {Path(folder).name}_000.jpg and so on; fetch it again"
        )
    first = min(numbered)
    if first > 1 or max(numbered) - first + 1 != len(numbered):
        lost = next(n for n in range(min(first, 1), max(numbered)) if n not in numbered)
        raise VideoError(
            f"{label}: frame {lost} is missing among {len(numbered)} pictures numbered {first} to {max(numbered)}; "
            "extract the frames again"
        )
    return [numbered[number] for number in sorted(numbered)]


def count_frames(folder: str | Path, name: str | None = None) -> int:
    """Number of pictures in a frame folder. Raises VideoError as ``frame_files`` does."""
    return len(frame_files(folder, name))


def read_folder(folder: str | Path, indices: Indices, name: str | None = None) -> np.ndarray:
    """Read N frames of a frame folder: uint8 [N, H, W, 3], RGB, in the order asked for; repeats allowed.

    ``indices`` are as for ``video.read_frames``: from zero, or a function from the number of frames to indices.
    Only the pictures asked for are opened.

    Raises VideoError, naming the folder: as ``frame_files`` does; an index is not in it; a picture is damaged, or
    of another size than the first one read.
    """
    return _read_pictures(frame_files(folder, name), indices, str(folder) if name is None else name)


def _read_pictures(files: Sequence[Path], indices: Indices, label: str) -> np.ndarray:
    chosen = video.chosen_indices(indices, len(files))
    wanted = video.expect_indices(chosen, len(files), label, "has {} pictures")
    opened: dict[int, np.ndarray] = {}
    for index in sorted(set(wanted.tolist())):
        picture = _open(files[index], label)
        first = next(iter(opened.values()), picture)
        if picture.shape != first.shape:
            raise VideoError(
                f"{label}: {files[index].name} has {picture.shape[1]} x {picture.shape[0]} pixels, others have "
                f"{first.shape[1]} x {first.shape[0]}; expected one size, extract the frames again"
            )
        opened[index] = picture
    return np.stack([opened[index] for index in wanted.tolist()])


def read_frames(source: str | Path | bytes, indices: Indices, name: str | None = None) -> np.ndarray:
    """``video.read_frames`` for a file or bytes, ``read_folder`` for a folder of pictures: uint8 [N, H, W, 3].

    Raises VideoError as these do.
    """
    return read(source, indices, name).frames


def read(
    source: str | Path | bytes, indices: Indices, name: str | None = None, damaged: str = "refuse"
) -> Reading:
    """`read_frames`, with what else is known of the video. ``damaged`` is for videos, as in ``video.read_frames``; a
    damaged picture of a folder is always refused."""
    if isinstance(source, bytes) or not Path(source).is_dir():
        return video.read(source, indices, name, damaged)
    files = frame_files(source, name)
    return Reading(_read_pictures(files, indices, str(source) if name is None else name), len(files), "")


def _open(file: Path, label: str) -> np.ndarray:
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise VideoError(
            f"{label}: {file.name} is damaged or cut: expected a whole picture; extract it again"
        ) from error
