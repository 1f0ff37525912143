"""What a signal does: a loop takes it as a request and stops between two steps, or an exception is raised; nothing ends
silently."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

WATCHED = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def signals_raise(*numbers: signal.Signals) -> Iterator[None]:
    """These signals raise SystemExit(128 + number) in the main thread, as SIGINT raises KeyboardInterrupt, so that
    what is open is closed and a sentence is said. In another thread nothing changes, and a signal that is ignored
    stays so: nohup does that to SIGHUP, so that a run outlives its terminal."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, leave) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Signals that come in the body act at its end: an exception that is raised while a library of C++ starts (torch)
    aborts the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with StopSignals(patient=True) as held:
        yield
    if held.number:
        signal.raise_signal(held.number)


class StoppedBetweenSteps(SystemExit):
    """A loop saw the wish and has written its checkpoint, which a signal at another time cannot promise."""


class StopSignals:
    """Within ``with StopSignals() as stop:`` the attribute ``stop.number`` is 0, or the signal that came first.

    torchrun forwards its own signals to the ranks, and a terminal sends Ctrl-C to all of them at once, so a rank
    may get a second one: with ``patient`` it is taken for the same wish. Without, a second signal acts as usual.
    """

    def __init__(self, patient: bool = False, watched: Sequence[signal.Signals] = WATCHED):
        self.number, self.patient, self.watched, self._before = 0, patient, watched, {}

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._came) for number in self.watched}
        return self

    def __exit__(self, *_) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _came(self, number: int, _: FrameType | None) -> None:
        self.number = self.number or number
        if not self.patient:
            for each, before in self._before.items():
                signal.signal(each, before)
