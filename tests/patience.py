"""Waiting for other processes as long as they live, however slow the machine: a limit is for what hangs.

A process lives while its output grows, or while it and its descendants use a processor or wait for a disk. A process
that does none of this for STILL seconds counts as hanging: it is killed, and the test fails with what it had said.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable

import psutil

STILL = 300.0  # seconds without a sign of life
SHARE = 0.02  # of one core, since the last sign: a process that only polls uses less
LOOK = 2.0  # seconds between two looks, each of which costs milliseconds


class Watch:
    """Signs of life of processes and their descendants."""

    def __init__(self, *pids: int) -> None:
        self.pids, self.said = pids, 0
        self.sign, self.spent = time.monotonic(), self.look()[0]

    def look(self) -> tuple[float, bool]:
        """Seconds of processor time, and whether one of them waits for a disk."""
        spent, waits = 0.0, False
        for process in [each for pid in self.pids for each in tree(pid)]:
            with contextlib.suppress(psutil.Error):  # it has just ended
                times = process.cpu_times()
                spent += times.user + times.system + times.children_user + times.children_system
                waits |= process.status() == psutil.STATUS_DISK_SLEEP
        return spent, waits

    def still(self, said: int = 0) -> float:
        """Seconds since the last sign; ``said`` is how much output there is by now."""
        spent, waits = self.look()
        now = time.monotonic()
        # Less than before: one of them has ended, and nobody counts its time on.
        used = abs(spent - self.spent) >= SHARE * (now - self.sign) > 0
        if used or waits or said > self.said:
            self.sign, self.spent, self.said = now, spent, said
        return now - self.sign


def tree(pid: int) -> list[psutil.Process]:
    """A process and its descendants, those that still are."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def kill(pid: int) -> None:
    """Kill a process and its descendants, sessions of their own included."""
    for process in tree(pid):
        with contextlib.suppress(psutil.Error):
            process.kill()


def wait(process: subprocess.Popen) -> tuple[str, str]:
    """Wait for a process to end; what it wrote into its pipes."""
    watch = Watch(process.pid)
    while True:
        try:
            return process.communicate(timeout=LOOK)
        except subprocess.TimeoutExpired as waited:
            if watch.still(sum(len(part or "") for part in (waited.stdout, waited.stderr))) < STILL:
                continue
        kill(process.pid)
        said = "\n".join(part[-3000:] for part in process.communicate() if part)
        raise AssertionError(f"no sign of life for {STILL:g} s of {process.args}:\n{said}")


def run(command: list, **options) -> subprocess.CompletedProcess:
    """Run a command to its end; stdout and stderr are text, and any exit code is returned."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(list(map(str, command)), **(pipes | options)) as process:
        try:
            out, err = wait(process)
        except BaseException:
            kill(process.pid)
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def until(
    condition: Callable[[], object], what: str, *of: subprocess.Popen | int, pause: float = 0.02
) -> None:
    """Wait until something is so, as long as the processes that it waits for live (without any: STILL seconds)."""
    watch = Watch(*(each if isinstance(each, int) else each.pid for each in of))
    looked = time.monotonic()
    while not condition():
        ended = [each for each in of if not isinstance(each, int) and each.poll() is not None]
        if ended and not condition():
            raise AssertionError(f"ended with {ended[0].returncode} before {what}:\n{left(ended[0])}")
        if time.monotonic() - looked >= LOOK:
            assert watch.still() < STILL, f"waited for {what}: no sign of life for {STILL:g} s"
            looked = time.monotonic()
        time.sleep(pause)


def left(process: subprocess.Popen) -> str:
    """The end of what a process that has ended left in its pipes."""
    return "\n".join(part[-3000:] for part in process.communicate() if part)
