"""Some clips of a frame store, seen as a store: a rank's share, a bank of the first thousand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipvip_lib.data.frames import FrameStore


class SomeClips:
    """The clips ``rows`` of a store, in that order."""

    def __init__(self, store: FrameStore, rows: Sequence[int]):
        self.store, self.rows = store, rows

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Sequence[int], frames: int) -> np.ndarray:
        """Uniform frames of some of them: uint8 [B, frames, size, size, 3]."""
        return self.store.take([self.rows[i] for i in indices], frames)
