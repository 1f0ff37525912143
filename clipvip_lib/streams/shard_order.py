"""The order in which one rank sees the samples of a corpus: pure arithmetic, no file is decoded here.

* An epoch is a permutation of the shards, drawn from (seed, epoch). Ranks take whole shards in turn; the shards
  that are left over (fewer than there are ranks) are shared sample by sample. So every sample comes once per epoch
  on exactly one rank, whether shards divide or not, and nobody needs to know how large a shard is.
* Inside a rank, samples pass a shuffle buffer, which is emptied at the end of the epoch.
* Every draw is a hash of (seed, epoch, rank, ranks, number of the draw): there is no generator whose state would
  have to be kept. A position is the epoch, the place in the list of shards, and the addresses in the buffer.

Positions of all ranks can be dealt out again to another number of ranks: what no rank had seen of the current epoch
is seen once by one of the new ones, and then the next epoch begins.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from clipvip_lib.errors import ClipVipError


class Unit(NamedTuple):
    """Samples first, first + step, first + 2 step, ... of a shard."""

    shard: int
    first: int
    step: int


class Drawn(NamedTuple):
    """One sample's place in the order, and what was found there; ``last``: of this round of the rank's share."""

    epoch: int
    round: int
    shard: int
    sample: int
    item: Any
    last: bool = False


def hashed(*path: object) -> int:
    """A number of 64 random-looking bits that depends on nothing but ``path``."""
    return int.from_bytes(
        hashlib.blake2b("/".join(map(str, path)).encode(), digest_size=8).digest(), "little"
    )


def deal(units: Sequence[Unit], rank: int, ranks: int) -> list[Unit]:
    """One rank's part: whole units in turn, and of those left over every ranks-th sample."""
    whole = len(units) // ranks * ranks
    own = list(units[:whole][rank::ranks])
    for place, unit in enumerate(units[whole:]):
        # Turned by one from unit to unit, because the first part of a unit may be one sample longer.
        part = (rank + place) % ranks
        own.append(Unit(unit.shard, unit.first + part * unit.step, unit.step * ranks))
    return own


def epoch_units(shards: int, seed: int, epoch: int, round_: int, rank: int, ranks: int) -> list[Unit]:
    """What one rank sees of an epoch, in the order of the shards."""
    generator = np.random.Generator(np.random.PCG64(hashed(seed, "shards", epoch, round_)))
    return deal([Unit(int(shard), 0, 1) for shard in generator.permutation(shards)], rank, ranks)


@dataclass
class Order:
    """An endless iterator over `Drawn` for one rank.

    open_shard: from a shard's number to its samples; called when the order comes to it.
    shuffle: samples in the buffer; below 2, samples keep the order of their shards.
    rounds: False: one round through the rank's share is an epoch. True: rounds, each dealt out again, continue until
        ``start_epoch``.
    """

    shards: int
    open_shard: Callable[[int], Sequence[Any]]
    seed: int
    rank: int
    ranks: int
    shuffle: int
    rounds: bool = False

    def __post_init__(self) -> None:
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Forget what is left of the current epoch and begin another."""
        self.epoch, self.round = epoch, 0
        self._begin()

    def _begin(self, carried: list[Unit] | None = None) -> None:
        self._carried = carried  # of an epoch that other ranks began; else None
        self._units = carried if carried is not None else self._own_units(self.epoch, self.round)
        self._unit, self._taken, self._draws = 0, 0, 0  # _taken: of the current unit
        self._open: Sequence[Any] | None = None
        self._buffer: list[tuple[int, int, Any]] = []

    def _own_units(self, epoch: int, round_: int) -> list[Unit]:
        return epoch_units(self.shards, self.seed, epoch, round_, self.rank, self.ranks)

    def __iter__(self) -> Order:
        return self

    def __next__(self) -> Drawn:
        """Raises ClipVipError if a whole round has no sample for this rank, and what ``open_shard`` raises."""
        self._fill()
        if not self._buffer:
            self._next_round()  # another epoch's leftovers may hold a sample for this rank
            self._fill()
        if not self._buffer:
            raise ClipVipError(
                f"rank {self.rank} of {self.ranks} finds no sample in {self.shards} shards: expected at least one "
                "for each rank; use fewer ranks or more shards"
            )
        shard, sample, item = self._pop()
        drawn = Drawn(self.epoch, self.round, shard, sample, item)
        self._fill()
        if not self._buffer:
            self._next_round()
            return drawn._replace(last=True)
        return drawn

    def _pop(self) -> tuple[int, int, Any]:
        self._draws += 1
        if self.shuffle < 2:
            return self._buffer.pop(0)
        draw = hashed(self.seed, self.epoch, self.round, self.rank, self.ranks, self._draws)
        at = draw % len(self._buffer)
        self._buffer[at], self._buffer[-1] = self._buffer[-1], self._buffer[at]
        return self._buffer.pop()

    def _next_round(self) -> None:
        if self.rounds:
            self.round += 1
        else:
            self.epoch += 1
        self._begin()

    def _fill(self) -> None:
        while len(self._buffer) < max(1, self.shuffle) and self._unit < len(self._units):
            unit = self._units[self._unit]
            if self._open is None:
                self._open = self.open_shard(unit.shard)
            sample = unit.first + self._taken * unit.step
            if sample < len(self._open):
                self._buffer.append((unit.shard, sample, self._open[sample]))
                self._taken += 1
            else:
                self._unit, self._taken, self._open = self._unit + 1, 0, None

    # ----------------------------------------------------------------------------------------- positions

    def state(self) -> dict:
        """The position as JSON: a few numbers and two for each sample in the buffer."""
        return {
            "epoch": self.epoch,
            "round": self.round,
            "carried": None if self._carried is None else [list(unit) for unit in self._carried],
            "unit": self._unit,
            "taken": self._taken,
            "draws": self._draws,
            "buffer": [[shard, sample] for shard, sample, _ in self._buffer],
        }

    def load(self, state: dict) -> None:
        """Go to a position. The shards that its buffer names are opened."""
        self.epoch, self.round = state["epoch"], state["round"]
        carried = state["carried"]
        self._begin(None if carried is None else [Unit(*unit) for unit in carried])
        self._unit, self._taken, self._draws = state["unit"], state["taken"], state["draws"]
        self._buffer = self._found(state["buffer"])

    def find(self, places: Sequence[Sequence[int]]) -> list[Any]:
        """The items at some (shard, sample); each shard is opened once.

        Raises ClipVipError for a sample that its shard does not have: the shard has changed.
        """
        opened = {shard: self.open_shard(shard) for shard in sorted({shard for shard, _ in places})}
        for shard, sample in places:
            if sample >= len(opened[shard]):
                raise ClipVipError(
                    f"shard number {shard} has {len(opened[shard])} samples, the position that is resumed names sample "
                    f"{sample}: expected unchanged shards; begin again"
                )
        return [opened[shard][sample] for shard, sample in places]

    def _found(self, places: Sequence[Sequence[int]]) -> list[tuple[int, int, Any]]:
        return [(*place, item) for place, item in zip(places, self.find(places), strict=True)]

    def carry(self, states: Sequence[dict], pending: Sequence[Sequence[Sequence[int]]]) -> None:
        """Continue from the positions of another number of ranks.

        states: what ``state`` gave on each of the old ranks; pending: for each, the (epoch, shard, sample) that had
        left the order but reached nobody.

        If all stand before the same epoch, it begins as usual. Else they may be in different epochs; all that
        none of them has seen, up to the end of the latest epoch, becomes one rest, which is dealt out.
        """
        epoch = max(state["epoch"] for state in states)
        if all(_stands_before(epoch, *each) for each in zip(states, pending, strict=True)):
            self.start_epoch(epoch)
            return
        units: list[Unit] = []
        places: list[Sequence[int]] = []
        for rank, (state, undelivered) in enumerate(zip(states, pending, strict=True)):
            places += [place[1:] for place in undelivered] + state["buffer"]
            units += _rest(state, self.shards, self.seed, rank, len(states))
            for later in range(state["epoch"] + 1, epoch + 1):
                units += epoch_units(self.shards, self.seed, later, 0, rank, len(states))
        self.epoch, self.round = epoch, 0
        self._begin(deal(sorted(units, key=lambda unit: unit.step), self.rank, self.ranks))
        self._buffer = self._found(places[self.rank :: self.ranks])
        self._fill()
        if not self._buffer:  # nothing of the rest is for this rank
            self._next_round()


def _stands_before(epoch: int, state: dict, pending: Sequence[Sequence[int]]) -> bool:
    """Has nobody got a sample of this epoch, nor lacks one of an earlier?"""
    ahead = all(place[0] == epoch for place in pending)
    return ahead and (state["epoch"], state["draws"], state["carried"]) == (epoch, len(pending), None)


def _rest(state: dict, shards: int, seed: int, rank: int, ranks: int) -> list[Unit]:
    """The units that the order has not come to, and the current one from its next sample."""
    carried = state["carried"]
    if carried is None:
        units = epoch_units(shards, seed, state["epoch"], state["round"], rank, ranks)
    else:
        units = [Unit(*unit) for unit in carried]
    rest = units[state["unit"] :]
    if rest:
        now = rest[0]
        rest[0] = Unit(now.shard, now.first + state["taken"] * now.step, now.step)
    return rest
