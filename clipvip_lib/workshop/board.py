"""What a run shows while its stages run: events, counts, and the remaining time.

The remaining time is a range, and nothing is shown before enough is known. The declared costs of the stages say how
the work is divided. How many seconds a declared second takes on this machine is learned for each kind of stage, from
stages that ran and from the progress of those that run. A kind not seen yet is assumed to differ from the others
about as much as they differ from each other.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TextIO

from clipvip_lib.errors import ClipVipError
from clipvip_lib.progress import InPlaceLine, duration, rate_text
from clipvip_lib.workshop.machine import machine
from clipvip_lib.workshop.stages import Stage

ENOUGH = 0.03  # share of the declared work that must have been seen before a range is shown
NOTICED = 0.05  # a running stage's own pace counts once this share of it is done
KINDS_APART = math.log(3.0)  # how far apart the paces of two kinds are assumed to be, before data say more
STAGES_APART = math.log(1.5)  # the same for two stages of one kind
RUNS_ON = 0.5  # a stage that shows no progress may keep running for this share of the time it has already run
AFTER = 0.02  # part of a stage that comes after its last step


@dataclass
class Running:
    """A stage on a worker: when it started (None: the worker is still starting) and what it last said."""

    stage: Stage
    started: float | None = None
    done: int = 0
    total: int = 0
    note: str = ""
    first: int | None = None  # the count at which it resumed
    first_seen: float | None = None  # when that was; the pace is measured from then

    def rest(self) -> float:
        """The part still to do. Never zero, because a stage also has work after its last step."""
        return max(AFTER, 1 - self.done / self.total) if self.total else 1.0

    def share(self) -> float:
        """The part of the stage done since its first sign of progress."""
        return max(0, self.done - (self.first or 0)) / self.total if self.total else 0.0

    def elapsed(self, now: float) -> float:
        """Seconds since the first sign of progress, or since the start."""
        since = self.started if self.first_seen is None else self.first_seen
        return 0.0 if since is None else max(0.0, now - since)

    def text(self, now: float) -> str:
        parts = [self.stage.name]
        if self.total:
            parts.append(f"{self.done}/{self.total}")
            if self.share() and self.elapsed(now):
                parts.append(rate_text(self.share() * self.total / self.elapsed(now)))
        else:
            parts.append("starting" if self.started is None else duration(now - self.started))
        if self.note:
            parts.append(self.note)
        return " ".join(parts)


class Board:
    """Shows a run: one line per event, and a status line (in place, or every ``every`` seconds in a log).

    record: a function that also gets every event, for a log file.
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
        self._ran: list[tuple[Stage, float]] = []

    def event(self, text: str, minor: bool = False) -> None:
        """Print a lasting line that begins with the count. Minor events appear only where no status line shows them."""
        line = f"[{self.finished}/{self.total}] {text}"
        if not (minor and self._line.mode != "plain"):
            self._line.say(line)
        if self._record:
            self._record(line)

    def cached(self, names: list[str], how: str = "") -> None:
        """Report how many stages were found done, and how; the log file gets their names."""
        self.finished = len(names)
        if self._record:
            for name in names:
                self._record(f"{name} cached")
        if names:
            self.event(f"{len(names)} of {self.total} stages found done (cached{how})")

    def remember(self, stages: Iterable[Stage], home: Path) -> None:
        """Learn from finished stages in a cache, if they ran on this machine and their records can be read."""
        for stage in stages:
            with suppress(ClipVipError):
                facts = stage.facts(home)
                if facts["machine"] == machine():
                    self.ran(stage, facts["seconds"])

    def ran(self, stage: Stage, seconds: float) -> None:
        """Learn from a stage that ran here from start to end."""
        self._ran.append((stage, seconds))

    def status(self, running: Iterable[Running], waiting: Iterable[Stage]) -> None:
        """Show what runs now, if anything does and the last status is not too recent."""
        now = self._clock()
        running = list(running)
        if not running:
            return
        for each in running:
            if each.first is not None and each.first_seen is None:
                each.first_seen = now
        if now - self._last_status < (self.every if self._line.mode == "plain" else 0.5):
            return
        self._last_status = now
        left = self.left(running, list(waiting), now)
        what = "; ".join(each.text(now) for each in running)
        if left:
            what = f"{left_text(*left)} | {what}"
        self._line.show(f"[{self.finished}/{self.total}] {what}")

    def left(self, running: list[Running], waiting: list[Stage], now: float) -> tuple[float, float] | None:
        """The range of seconds to the end, from `time_left`."""
        return time_left(self._ran, running, waiting, self.workers, now)

    def remaining(self, running: list[Running], waiting: list[Stage], now: float) -> float:
        """One number for a plan: the middle of the range, or of the declared costs if nothing is known yet."""
        left = self.left(running, waiting, now)
        if left is None:
            declared = {stage.name: (stage.cost, stage.cost) for stage in waiting}
            left = schedule(declared, waiting, self.workers)
        return math.sqrt(left[0] * left[1])

    def end(self) -> None:
        self._line.end()


# --- the remaining time -----------------------------------------------------------------------------------


def time_left(
    ran: Iterable[tuple[Stage, float]],
    running: Sequence[Running],
    waiting: Sequence[Stage],
    workers: int,
    now: float,
) -> tuple[float, float] | None:
    """The fewest and the most seconds that the rest is likely to take; None before enough is known.

    ran: stages with the seconds they took. waiting: sorted, inputs before the stages that need them.
    """
    ratios, known = _seen(ran, running, now)
    todo = sum(_cost(each.stage) * each.rest() for each in running) + sum(map(_cost, waiting))
    if not ratios or known < ENOUGH * (known + todo):
        return None

    others = around([math.exp(fmean(map(_log, each))) for each in ratios.values()], KINDS_APART)
    paces = {name: around(each, STAGES_APART) for name, each in ratios.items()}
    own: dict[str, tuple[float, float]] = {}
    for each in running:
        rest, elapsed = _cost(each.stage) * each.rest(), each.elapsed(now)
        low, high = paces.get(kind(each.stage), others)
        if each.share() > NOTICED:  # the range covers both its kind's pace and its own
            alone = elapsed / each.share() * each.rest()
            own[each.stage.name] = min(low * rest, alone), max(high * rest, alone)
        else:  # the longer it runs, the slower it and others of its kind may be
            longer = max(high * rest - elapsed, RUNS_ON * elapsed)
            own[each.stage.name] = max(0.0, low * rest - elapsed), longer
            paces[kind(each.stage)] = low, max(high, (1 + RUNS_ON) * elapsed / _cost(each.stage))
    for stage in waiting:
        low, high = paces.get(kind(stage), others)
        own[stage.name] = low * _cost(stage), high * _cost(stage)
    return schedule(own, [*(each.stage for each in running), *waiting], workers)


def _seen(
    ran: Iterable[tuple[Stage, float]], running: Iterable[Running], now: float
) -> tuple[dict[tuple[str, str], list[float]], float]:
    """For each kind, the seconds per declared second of every stage; and the declared seconds that this rests on."""
    parts = [(stage, _cost(stage), seconds) for stage, seconds in ran]
    for each in running:
        if each.share() > NOTICED:
            parts.append((each.stage, _cost(each.stage) * each.share(), each.elapsed(now)))
    ratios = defaultdict(list)
    for stage, declared, seconds in parts:
        ratios[kind(stage)].append(seconds / declared)
    return ratios, sum(declared for _, declared, _ in parts)


def kind(stage: Stage) -> tuple[str, str]:
    """The kind of a stage: its function and its purpose (``finetune/...``). Stages of one kind share a pace."""
    return stage.function, stage.name.split("/")[0]


def around(ratios: Sequence[float], apart: float) -> tuple[float, float]:
    """Where a further ratio is likely to lie: one standard deviation around the mean of the logarithms.

    ``apart``: a deviation that counts as one more ratio, so that a few ratios that agree by chance are not trusted.
    """
    logs = [_log(ratio) for ratio in ratios]
    middle = fmean(logs)
    width = math.sqrt((apart**2 + sum((each - middle) ** 2 for each in logs)) / (len(logs) + 1))
    return math.exp(middle - width), math.exp(middle + width)


def schedule(
    own: dict[str, tuple[float, float]], stages: Sequence[Stage], workers: int
) -> tuple[float, float]:
    """The range of seconds until all stages are done, from the range of each. Expects inputs before dependents.

    Lower end: no order beats the work divided by the workers, nor the longest chain. Upper end (Graham): if no worker
    idles while a stage is ready, the run takes at most the work divided by the workers, plus the longest chain times
    the share of the other workers.
    """
    chains: dict[str, tuple[float, float]] = {}
    for stage in stages:
        above = [chains[up.name] for up in stage.inputs.values() if up.name in chains] or [(0.0, 0.0)]
        low, high = own[stage.name]
        chains[stage.name] = low + max(each[0] for each in above), high + max(each[1] for each in above)
    longest_low, longest_high = (max((each[i] for each in chains.values()), default=0.0) for i in (0, 1))
    work_low, work_high = (sum(own[stage.name][i] for stage in stages) / workers for i in (0, 1))
    return max(work_low, longest_low), work_high + longest_high * (1 - 1 / workers)


def left_text(low: float, high: float) -> str:
    """``about 12 to 18 min left``: seconds as minutes or hours, widened to round numbers that do not jitter."""
    if high < 60:
        return "less than a minute left"
    first, last = _rounded(low / 60, math.floor), _rounded(high / 60, math.ceil)
    if not first:
        return f"up to {_time(last)} left"
    if first == last:
        return f"about {_time(last)} left"
    start, end = _time(first), _time(last)
    if start.split()[1] == end.split()[1]:
        start = start.split()[0]
    return f"about {start} to {end} left"


def _rounded(minutes: float, towards: Callable[[float], int]) -> int:
    step = 1 if minutes <= 30 else 5 if minutes <= 120 else 30
    return step * towards(minutes / step)


def _time(minutes: int) -> str:
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:g} h"


def _cost(stage: Stage) -> float:
    return max(stage.cost, 0.1)  # a ratio to zero would mean nothing


def _log(ratio: float) -> float:
    return math.log(max(ratio, 1e-6))
