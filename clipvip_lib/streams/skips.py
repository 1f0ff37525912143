"""The books on what a rank has seen: samples, those skipped by name, and whether they are too many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import json_line, make_folder

FIRST_CHECK = 100  # samples of an epoch after which the share that was skipped is judged
COUNTED = ("samples", "skipped", "absent", "damaged")


class Books:
    """Counts since the beginning (``total``) and of the current epoch (``epoch``) on one rank.

    share: of an epoch's samples that may be skipped; 0: the first one is an error.
    log: file that gets a JSON line {"shard", "key", "reason", "rank"} for each skipped sample, or None.

    Raises ClipVipError for a share outside 0 to 1 or a log that cannot be written.
    """

    def __init__(self, rank: int, share: float, log: str | Path | None) -> None:
        if not 0.0 <= share <= 1.0:
            raise ClipVipError(
                f"expected skip_share from 0 to 1, got {share}; 0.01 allows one sample in a hundred"
            )
        self.rank, self.share, self.log = rank, share, Path(log) if log is not None else None
        if self.log is not None:
            make_folder(self.log.parent)
        self.total = {**dict.fromkeys(COUNTED, 0), "epochs": 0}
        self.epoch = dict.fromkeys(COUNTED, 0)
        self.round = 0  # clips of this round through the rank's share

    def count(self, what: str) -> None:
        """One more of ``COUNTED``."""
        self.total[what] += 1
        self.epoch[what] += 1
        self.round += what == "samples"

    def skip(self, epoch: int, shard: Path, key: str, reason: str) -> None:
        """Count and log a bad sample. Raises ClipVipError if none may be skipped, or too many were."""
        if not self.share:
            raise ClipVipError(reason)
        self.count("skipped")
        self._write(shard, key, "reason", reason)
        if self.epoch["samples"] + self.epoch["skipped"] >= FIRST_CHECK:
            self._judge(epoch, f"the last was {key} of {shard}: {reason}")

    def accept(self, shard: Path, key: str, damage: str) -> None:
        """Count and log a damaged sample that was delivered."""
        self.count("damaged")
        self._write(shard, key, "damage", damage)

    def _write(self, shard: Path, key: str, what: str, why: str) -> None:
        if self.log is None:
            return
        line = {"shard": str(shard), "key": key, what: why, "rank": self.rank}
        try:
            with self.log.open("ab", buffering=0) as file:  # one write per line: ranks may share the file
                file.write(json_line(line))
        except OSError as error:
            raise ClipVipError(
                f"cannot write the log of skipped samples {self.log}: {error.strerror}; choose another file"
            ) from error

    def end_round(self, epoch: int) -> None:
        """Raises ClipVipError if a whole round gave no clip: there will never be one."""
        if not self.round:
            raise ClipVipError(
                f"rank {self.rank} could read no sample in the whole of epoch {epoch}: expected at least one; look at "
                "the shards and at the log of skipped samples"
            )
        self.round = 0

    def end_epoch(self, epoch: int) -> None:
        """Raises ClipVipError if too many samples of the epoch were skipped."""
        self._judge(epoch, "the epoch is over")
        self.total["epochs"] = epoch + 1
        self.epoch = dict.fromkeys(COUNTED, 0)

    def _judge(self, epoch: int, last: str) -> None:
        skipped = self.epoch["skipped"]
        seen = skipped + self.epoch["samples"]
        if skipped > self.share * seen:
            where = f"; all are in {self.log}" if self.log else ""
            raise ClipVipError(
                f"rank {self.rank} skipped {skipped} of {seen} samples of epoch {epoch} ({skipped / seen:.1%}), "
                f"expected at most {self.share:.1%} (skip_share); {last}{where}; fix the shards or allow more"
            )

    def state(self) -> dict:
        return {"total": dict(self.total), "epoch": dict(self.epoch), "round": self.round}

    def load(self, state: dict) -> None:
        # Positions from before there was "damaged" lack it.
        self.total, self.epoch = {"damaged": 0, **state["total"]}, {"damaged": 0, **state["epoch"]}
        self.round = state["round"]

    def carry(self, states: Sequence[dict], ranks: int) -> None:
        """Continue from the books of another number of ranks: rank 0 keeps the totals, so that sums over ranks stay
        right; the epoch's counts are shared out."""
        self.total = {
            name: sum(state["total"].get(name, 0) for state in states) if self.rank == 0 else 0
            for name in COUNTED
        }
        self.total["epochs"] = min(state["total"]["epochs"] for state in states)
        self.epoch = {name: sum(state["epoch"].get(name, 0) for state in states) // ranks for name in COUNTED}
        self.round = 1  # the rest of an epoch may be empty, or bad, for a rank
