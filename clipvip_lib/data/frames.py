"""Decode once: the frames of a set of videos at the model's size, as one file that training maps into memory.

At every scale decoding is the wall of video training (a core decodes 10-20 clips a second at 320 x 240, a GPU
encodes thousands), and an ablation visits the same clips in many arms. A store holds, for each clip, a fixed number
of uniform frames and its middle frame; training draws its frames from the uniform ones, with jitter.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from clipvip_lib.data import frame_folders, transform
from clipvip_lib.data.video import Source, VideoError, clip_indices, uniform_indices
from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import atomic_path
from clipvip_lib.progress import ProgressCallback


def still(picture: bytes, name: str = "a still image") -> np.ndarray:
    """A JPEG, PNG or WebP as uint8 [H, W, 3] RGB. Raises VideoError with its name if it is damaged or cut."""
    try:
        return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise VideoError(
            f"{name} is damaged or cut: expected a whole JPEG, PNG or WebP; fetch it again"
        ) from error


def write_store(
    path: str | Path,
    sources: Iterable[tuple[str, Source]],
    count: int,
    frames: int,
    size: int,
    antialias: bool,
    progress: ProgressCallback,
) -> int:
    """Decode ``count`` videos (files, frame folders, bytes; or pictures, as videos of one frame) into one .npy file.

    It holds uint8 [count, frames + 1, size, size, 3]; a clip's last row is its middle frame (index total // 2).

    Args:
        sources: (name, bytes or path) of each video, in order.
        frames: uniform frames kept of each clip, at least 1.

    Returns the number of frames decoded. Raises VideoError for a file that cannot be read rightly, ClipVipError
    if there are fewer or more sources than ``count``. The file is written whole or not at all.
    """
    if frames < 1:
        raise ClipVipError(f"expected at least 1 frame per clip, got {frames}")

    done = 0
    with atomic_path(path) as partial:
        shape = (count, frames + 1, size, size, 3)
        store = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
        _reserve(partial)
        for name, source in sources:
            if done == count:
                raise ClipVipError(f"expected {count} videos, got more, first {name}; count them again")
            if isinstance(source, bytes) and frame_folders.is_picture(source):
                shown = still(source, name)[None].repeat(frames + 1, 0)
            else:
                shown = frame_folders.read_frames(
                    source, lambda total: clip_indices(total, frames), name=name
                )
            store[done] = transform.resize(shown, size, antialias)
            done += 1
            progress(done, count, "clips decoded")
        if done != count:
            raise ClipVipError(f"expected {count} videos, got {done}; the list was cut")
        store.flush()
        del store
    return count * (frames + 1)


def _reserve(path: Path) -> None:
    """Take a file's room on the disk now: writing to a map of it that finds none would end the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a disk that cannot promise
                    raise


def _mapped(path: str | Path) -> np.ndarray:
    try:
        found = np.lib.format.open_memmap(path, mode="r")
        if found.dtype != np.uint8 or found.ndim != 5 or found.shape[1] < 2:
            raise ValueError("it holds something else")
    except Exception as error:  # numpy reads the header as Python: junk there may raise nearly anything
        words = " ".join(str(error).split()) or type(error).__name__
        why = error.strerror if isinstance(error, OSError) and error.strerror else words
        raise ClipVipError(
            f"cannot read the frame store {path} ({why}): expected the frames of clips as they were decoded; remove it "
            "with what describes it, and run the same again to decode it again"
        ) from error
    return found


class FrameStore:
    """Several stores seen as one list of clips. Files stay on disk and are read page by page.

    Raises ClipVipError for a store that is gone, cut, empty or something else, or one of another shape.
    """

    def __init__(self, paths: Sequence[str | Path]):
        self._parts = [_mapped(path) for path in paths]
        shapes = {part.shape[1:] for part in self._parts}
        if len(shapes) != 1:
            raise ClipVipError(f"expected frame stores of one shape, got {sorted(shapes)}; decode them alike")
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])
        self.lengths = [len(part) for part in self._parts]
        self.frames = self._parts[0].shape[1] - 1

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _clip(self, index: int) -> np.ndarray:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._parts[part][index - self._starts[part]]

    def take(
        self, indices: Sequence[int], frames: int, jitter: np.random.Generator | None = None
    ) -> np.ndarray:
        """Uniform frames of some clips: uint8 [B, frames, size, size, 3]. With ``jitter`` (training) the two ends
        move inwards by up to one interval, for each clip on its own."""
        return np.stack([self._clip(i)[uniform_indices(self.frames, frames, jitter)] for i in indices])

    def middle(self, indices: Sequence[int]) -> np.ndarray:
        """The middle frame of some clips as one-frame videos: uint8 [B, 1, size, size, 3]."""
        return np.stack([self._clip(i)[-1:] for i in indices])
