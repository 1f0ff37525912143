"""The middle frame of every clip of a shard (index total // 2), read and decoded ahead in threads: what is captioned.

Threads are enough: PyAV decodes, and PIL resizes, without Python's lock. A sample that cannot be
read does not end the shard: it comes back as the reason, for its reader to judge.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path

import numpy as np

from clipvip_lib.data.frame_folders import is_picture
from clipvip_lib.data.frames import still
from clipvip_lib.data.shards import Entry, read_media
from clipvip_lib.data.transform import resize
from clipvip_lib.data.video import middle_index, read_frames
from clipvip_lib.errors import ClipVipError


def middle_frame(media: str | Path | bytes, name: str | None = None, size: int | None = None) -> np.ndarray:
    """The middle frame of a video (a file or its bytes), or a picture itself (its bytes): uint8 [H, W, 3].

    ``size``: bring it to [size, size, 3], as OFA does. Raises VideoError with its name if it cannot be
    read.
    """
    if isinstance(media, bytes) and is_picture(media):
        frame = still(media, name or "a still image")
    else:
        frame = read_frames(media, lambda total: [middle_index(total)], name)[0]
    return frame if size is None else resize(frame, size, antialias=True)


def middle_frames(
    shard: str | Path, entries: Sequence[Entry], pool: Executor, ahead: int = 8, size: int | None = None
) -> Iterator[tuple[str, np.ndarray | ClipVipError]]:
    """Key and middle frame of each sample of a shard (``index_shard``), in order, or the reason why it has none.

    ``pool`` reads and decodes, ``ahead`` samples before the reader. Raises ClipVipError if a key is there twice.
    """
    pending: deque[tuple[str, Future]] = deque()
    seen: set[str] = set()
    for entry in entries:
        if entry.key in seen:
            raise ClipVipError(
                f"shard {shard} holds sample {entry.key} twice: expected each once; write the shard again"
            )
        seen.add(entry.key)
        pending.append((entry.key, pool.submit(_try, Path(shard), entry, size)))
        if len(pending) > ahead:
            yield pending[0][0], pending.popleft()[1].result()
    for key, future in pending:
        yield key, future.result()


def _try(shard: Path, entry: Entry, size: int | None) -> np.ndarray | ClipVipError:
    try:
        return middle_frame(read_media(shard, entry), f"{entry.key} of {shard}", size)
    except ClipVipError as error:
        return error
