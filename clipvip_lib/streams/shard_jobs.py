"""What the jobs that rewrite or caption shards share: taking up tasks and letting go of them, skipping bad samples."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import json_line, write_bytes
from clipvip_lib.streams.shard_locks import Held, ShardTask, hold_each


@contextlib.contextmanager
def taking(
    tasks: Sequence[ShardTask],
    pause: Callable[[], bool],
    waiting: Callable[[list[ShardTask]], str],
    say: Callable[[str], None],
    rank: int = 0,
    ranks: int = 1,
) -> Iterator[Iterator[Held]]:
    """``with taking(...) as dealt: for held in dealt: ...``: ``hold_each``, said when a dead process had begun a task.

    waiting: what is said of the tasks that others hold. The end of the block lets go of all that was taken: also after
    an error in a process that lives on, such as a notebook's.
    """
    begun: list[Held] = []

    def dealt() -> Iterator[Held]:
        for held in hold_each(tasks, rank, ranks, pause, lambda left: say(waiting(left))):
            begun.append(held)
            if held.left_by:
                say(f"taking up {held.task.shard.name}, which {held.left_by} had begun")
            yield held

    try:
        yield dealt()
    finally:
        for held in begun:
            held.release()


@dataclass
class Skipped:
    """Samples of a shard that cannot be read: at most ``share`` of ``total``, rounded up.

    how: "skipped" or "left out", for the sentences. column: what a row of the list calls the shard.
    """

    shard: Path
    total: int
    share: float
    how: str
    column: str
    rows: list[dict[str, str]] = field(default_factory=list)

    def add(self, key: str, error: ClipVipError) -> None:
        """One more. Raises ClipVipError if these are too many."""
        self.rows.append({self.column: self.shard.name, "key": key, "reason": str(error)})
        allowed = math.ceil(self.share * self.total)
        if len(self.rows) > allowed:
            raise ClipVipError(
                f"{len(self.rows)} of {self.total} samples of shard {self.shard} cannot be read and {allowed} may be "
                f"{self.how}, the last: {error}; fix the shard or allow more with --skip-share"
            ) from error

    def write(self, path: Path, say: Callable[[str], None]) -> None:
        """List them in a file, and say how many they are."""
        write_skipped(path, self.rows)
        if self.rows:
            say(f"{self.how} {len(self.rows)} of {self.total} samples of {self.shard.name}, see {path.name}")


def write_skipped(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """Write JSON lines; without a row, an earlier start's list goes."""
    if lines := b"".join(map(json_line, rows)):
        write_bytes(path, lines)
    else:
        path.unlink(missing_ok=True)
