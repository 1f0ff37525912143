"""Frames of a video file: the right ones, upright, as RGB.

One reader for every video of the study, from a path or from the bytes of a tar shard. decord decodes; where
the container shows that decord would count or return other frames than the file shows (container.py: edit
lists, open groups of pictures, other containers and codecs), PyAV decodes from the start in the order
shown. What neither can read reliably is refused by name. Nothing is kept between calls: a decord reader that is
shared by threads or crosses a fork can hang (dmlc/decord issues 194, 269, 294).

Frame indices follow the authors' rule (XPretrain, CLIP-ViP/src/datasets/dataset_video_retrieval.py).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from clipvip_lib.data.container import Look, VideoError, describe, look, open_container

__all__ = ["VideoError", "check_video", "count_frames", "middle_index", "read_frames", "uniform_indices"]

Source = str | Path | bytes
Indices = Sequence[int] | np.ndarray | Callable[[int], Sequence[int] | np.ndarray]


def uniform_indices(total: int, n: int, jitter: np.random.Generator | None = None) -> np.ndarray:
    """Indices of ``n`` frames spread evenly over a video of ``total``: int64 [n], first and last included.

    With ``jitter`` (training only) both ends move inwards at random by up to one interval, total // (n - 1).
    A single frame is the first one without jitter, any one with it. A short video repeats frames.

    Raises VideoError if ``total`` or ``n`` is below 1.
    """
    if n < 1 or total < 1:
        raise VideoError(
            f"expected at least one frame to choose and one to choose from, got n={n}, total={total}"
        )
    first, last = 0, total - 1
    if jitter is not None and n == 1:
        first = int(jitter.integers(total))
    elif jitter is not None:
        # The authors' code lets the ends cross, or leave the video, when n = 2; here they do neither.
        interval = min(total // (n - 1), total - 1)
        first, last = sorted((jitter.integers(interval + 1), last - jitter.integers(interval + 1)))
    return np.linspace(first, last, n).astype(np.int64)


def middle_index(total: int) -> int:
    """Index of the middle frame, the one that is captioned: total // 2."""
    return total // 2


def count_frames(source: Source, name: str | None = None) -> int:
    """Number of frames that the video shows (not always the number it holds).

    ``name`` stands for bytes in errors, for example the key in a shard.

    Raises VideoError as `read_frames` does.
    """
    seen = look(source, name)
    return check_video(source, name) if seen.doubt else seen.frames


def check_video(source: Source, name: str | None = None) -> int:
    """Decode a video from its first to its last frame and return their number; for checks of a corpus.

    Unlike `read_frames` it also finds damage in frames that nobody asks for.

    Raises VideoError for whatever is not a whole, undamaged video.
    """
    return _decode(source, look(source, name), (), describe(source, name))[1]


def read_frames(source: Source, indices: Indices, name: str | None = None) -> np.ndarray:
    """Read N frames of a video: uint8 [N, H, W, 3], RGB, upright, in the order asked for; repeats allowed.

    ``indices`` count the frames that the video shows, from zero, or are a function from their number to
    indices: ``read_frames(path, lambda total: uniform_indices(total, 12))``. ``name`` stands for bytes in
    errors.

    Raises VideoError, naming the file: it is missing, empty, cut, damaged, without frames or not a video; an
    index is not in it; no index is asked for.
    """
    label = describe(source, name)
    seen = look(source, name)
    frames = None
    if not seen.doubt:
        frames = _read_with_decord(source, seen, _checked(_chosen(indices, seen.frames), seen.frames, label))
    return _read_with_pyav(source, seen, indices, label) if frames is None else frames


def _chosen(indices: Indices, total: int) -> Sequence[int] | np.ndarray:
    return indices(total) if callable(indices) else indices


def _checked(indices: Sequence[int] | np.ndarray, total: int, label: str) -> np.ndarray:
    """Indices as int64 [N]; VideoError if there are none or one is outside."""
    indices = np.asarray(indices)
    if indices.ndim != 1 or indices.size < 1 or not np.issubdtype(indices.dtype, np.integer):
        raise VideoError(f"expected a list of at least one frame index for {label}, got {indices.tolist()}")
    outside = indices[(indices < 0) | (indices >= total)]
    if outside.size:
        raise VideoError(
            f"frame {outside[0]} is not in {label}: expected 0 to {total - 1}, it shows {total} frames"
        )
    return indices.astype(np.int64)


def _read_with_decord(source: Source, seen: Look, indices: np.ndarray) -> np.ndarray | None:
    """[N, H, W, 3], or None where decord fails or disagrees with the container, so that PyAV must read."""
    import decord  # 0.15 s; those who only count or decode with PyAV need not wait for it

    decord.logging.set_level(decord.logging.QUIET)
    wanted, back = np.unique(indices, return_inverse=True)
    file = io.BytesIO(source) if isinstance(source, bytes) else str(Path(source).absolute())
    try:
        # A tolerance far below one frame: decord raises instead of repeating what it cannot decode.
        reader = decord.VideoReader(file, ctx=decord.cpu(0), num_threads=1, fault_tol=1e-6)
        if len(reader) != seen.frames:
            return None
        frames = reader.get_batch(wanted).asnumpy()
    except Exception:  # decord's own errors derive from Exception alone; PyAV then says what is wrong
        return None
    if frames.shape[1:3] != seen.size:
        return None
    return frames if len(wanted) == len(indices) and (back == np.arange(len(back))).all() else frames[back]


def _read_with_pyav(source: Source, seen: Look, indices: Indices, label: str) -> np.ndarray:
    """[N, H, W, 3] by decoding everything; only this tells how many frames a doubtful file shows."""
    wanted = _chosen(indices, seen.frames)
    frames, total = _decode(source, seen, wanted, label)
    if callable(indices) and total != seen.frames:
        wanted = _chosen(indices, total)
        frames, total = _decode(source, seen, wanted, label)
    return np.stack([frames[i] for i in _checked(wanted, total, label).tolist()])


def _decode(source: Source, seen: Look, wanted, label: str) -> tuple[dict[int, np.ndarray], int]:
    """(wanted frames by index, number of frames shown)."""
    chosen = set(np.asarray(wanted).ravel().tolist())
    frames: dict[int, np.ndarray] = {}
    total = 0
    to_rgb = VideoReformatter()
    for total, frame in enumerate(_shown(source, seen, label), start=1):
        if total == 1:
            width, height = frame.width, frame.height
        if total - 1 in chosen:
            # One size for all: a stream may change its picture size on the way.
            rgb = to_rgb.reformat(frame, format="rgb24", width=width, height=height, threads=1)
            frames[total - 1] = _upright(rgb.to_ndarray(), frame, label)
    if total == 0:
        raise VideoError(f"no frame of {label} can be decoded: expected at least one; fetch it again")
    return frames, total


def _shown(source: Source, seen: Look, label: str) -> Iterator[av.VideoFrame]:
    """Frames in the order of presentation; those that an edit list hides do not appear."""
    with open_container(source, label) as container:
        stream = container.streams[seen.stream]
        stream.codec_context.thread_count = 1
        try:
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise VideoError(
                        f"{label} is damaged: a frame at {frame.time} s is incomplete; fetch it again"
                    )
                yield frame
        except av.error.FFmpegError as error:
            raise VideoError(f"{label} is damaged or cut: {error.strerror}; fetch it again") from error


def _upright(rgb: np.ndarray, frame: av.VideoFrame, label: str) -> np.ndarray:
    """Apply the display matrix [[a, b], [c, d]]: the point (x, y) is shown at (a x + c y, b x + d y)."""
    side = frame.side_data.get("DISPLAYMATRIX")
    if side is None:
        return rgb
    a, b, _, c, d = np.sign(np.frombuffer(bytes(side), np.int32)[:5]).tolist()
    if abs(a * d - b * c) != 1 or a * b or c * d:
        raise VideoError(
            f"{label} is to be shown at a slant: expected quarter turns only; turn it upright first"
        )
    if a == 0:
        rgb, a, d = rgb.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(rgb[::d, ::a])
