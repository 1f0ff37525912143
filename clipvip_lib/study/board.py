"""What a run shows while its stages run: events, counts, and the remaining time.

What is special: the remaining time comes from the declared costs of the stages, scaled by how the measured
seconds compare with them so far, and it never promises less than the longest chain that is still to run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TextIO

from clipvip_lib.progress import InPlaceLine, duration, rate_text
from clipvip_lib.study.stages import Stage


@dataclass
class Running:
    """A stage on a worker: when it started and what it last said."""

    stage: Stage
    started: float
    done: int = 0
    total: int = 0
    note: str = ""
    first: int | None = None  # the count that it resumed at

    def fraction(self) -> float:
        return self.done / self.total if self.total else 0.0

    def text(self, now: float) -> str:
        parts = [self.stage.name]
        if self.total:
            parts.append(f"{self.done}/{self.total}")
            elapsed = now - self.started
            if elapsed > 0 and self.done > (self.first or 0):
                parts.append(rate_text((self.done - (self.first or 0)) / elapsed))
        else:
            parts.append(duration(now - self.started))
        if self.note:
            parts.append(self.note)
        return " ".join(parts)


class Board:
    """Shows a run: a line per event, and a status line (in place, or every ``every`` seconds in a log).

    ``say`` also receives every event for a log file through ``record``.
    """

    def __init__(
        self,
        total: int,
        workers: int,
        *,
        record: Callable[[str], None] | None = None,
        stream: TextIO | None = None,
        mode: str | None = None,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total, self.workers, self.every = total, workers, every
        self.finished = 0
        self._record = record
        self._clock = clock
        self._line = InPlaceLine(stream, mode)
        self._last_status = clock()
        self._measured = 0.0  # seconds of stages that ran to their end
        self._declared = 0.0  # what had been declared for them

    def event(self, text: str, minor: bool = False) -> None:
        """A line that stays, with the count in front; minor ones only where no status line tells the same."""
        line = f"[{self.finished}/{self.total}] {text}"
        if not (minor and self._line.mode != "plain"):
            self._line.say(line)
        if self._record:
            self._record(line)

    def cached(self, names: list[str]) -> None:
        """Tell how many stages were found done; the log file gets their names."""
        self.finished = len(names)
        if self._record:
            for name in names:
                self._record(f"{name} cached")
        if names:
            self.event(f"{len(names)} of {self.total} stages found done (cached)")

    def ran(self, stage: Stage, seconds: float) -> None:
        """Learn from a stage that ran from start to end here."""
        self._measured += seconds
        self._declared += stage.cost

    def status(self, running: Iterable[Running], waiting: Iterable[Stage]) -> None:
        """Show what runs now, if it is time to."""
        now = self._clock()
        if now - self._last_status < (self.every if self._line.mode == "plain" else 0.5):
            return
        self._last_status = now
        running = list(running)
        left = self.remaining(running, list(waiting), now)
        what = "; ".join(each.text(now) for each in running)
        self._line.show(f"[{self.finished}/{self.total}] about {duration(left)} left | {what}")

    def remaining(self, running: list[Running], waiting: list[Stage], now: float) -> float:
        """Seconds to the end: work over workers, or the longest chain where that is longer."""
        measured, declared = self._measured, self._declared
        for each in running:
            if each.fraction() > 0.05:
                measured += now - each.started
                declared += each.stage.cost * each.fraction()
        scale = measured / declared if declared > 0 else 1.0
        own = {each.stage.name: max(0.0, each.stage.cost * (1 - each.fraction())) for each in running}
        own |= {stage.name: stage.cost for stage in waiting}
        chains: dict[str, float] = {}

        def chain(stage: Stage) -> float:
            if stage.name not in chains:
                above = max((chain(upstream) for upstream in stage.inputs.values()), default=0.0)
                chains[stage.name] = above + own.get(stage.name, 0.0)
            return chains[stage.name]

        stages = [*(each.stage for each in running), *waiting]
        longest = max((chain(stage) for stage in stages), default=0.0)
        return scale * max(sum(own.values()) / self.workers, longest)

    def end(self) -> None:
        self._line.end()
