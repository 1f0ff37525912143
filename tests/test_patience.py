"""A waiting test gives up on a process that hangs, never on one that is slow."""

import itertools
import os
import subprocess
import sys
from types import SimpleNamespace

import patience
import psutil
import pytest

BUSY = "while True: pass"
PAUSE = "import signal; signal.pause()"
PARENT = "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {code!r}]);"
PARENT += "print(child.pid, flush=True); print('now it hangs', file=sys.stderr, flush=True); child.wait()"


@pytest.fixture
def hasty(monkeypatch):
    """A moment without a sign of life is enough; what is slow may be taken for what hangs."""
    monkeypatch.setattr(patience, "LOOK", 0.05)
    monkeypatch.setattr(patience, "STILL", 0.2)


@pytest.fixture
def start():
    started = []

    def begin(code: str) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([sys.executable, "-c", code], **pipes))
        return started[-1]

    yield begin
    for process in started:
        patience.kill(process.pid)
        process.communicate()


def test_what_hangs_is_killed_with_its_children_and_told(start, hasty, monkeypatch):
    process = start(PARENT.format(code=PAUSE))
    child = psutil.Process(int(process.stdout.readline()))
    with pytest.raises(AssertionError, match=r"(?s)no sign of life for 0.2 s of .*now it hangs"):
        patience.wait(process)
    assert process.returncode == -9
    monkeypatch.undo()
    patience.until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "its end")


def test_the_work_of_a_descendant_is_a_sign_of_life(start):
    process = start(PARENT.format(code=BUSY))
    watch = patience.Watch(process.pid)
    before, _ = watch.look()
    patience.until(lambda: watch.look()[0] > before + 0.5, "half a second of work", process)


@pytest.mark.parametrize(
    ("share", "written", "waits", "lives"),
    [
        (0.03, 0, False, True),  # of one core: a machine that is thirty times slower
        (0.005, 0, False, False),  # torchrun whose ranks hang
        (0.0, 0, False, False),
        (0.0, 1, False, True),
        (0.0, 0, True, True),
    ],
)
def test_what_is_slow_lives_for_hours(monkeypatch, share, written, waits, lives):
    """By a clock of our own."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    monkeypatch.setattr(patience.Watch, "look", lambda self: (share * now.seconds, waits))
    watch, longest = patience.Watch(), 0.0
    for step in itertools.count(1):
        now.seconds = step * patience.LOOK
        longest = max(longest, watch.still(step // 100 * written))
        if longest >= patience.STILL or now.seconds > 10_000:
            break
    assert (longest < patience.STILL) == lives


def test_a_command_is_run_to_its_end_whatever_its_code():
    done = patience.run([sys.executable, "-c", "import sys; print('out'); sys.exit('err')"])
    assert (done.returncode, done.stdout, done.stderr) == (1, "out\n", "err\n")


def test_what_never_comes_is_not_waited_for(start, hasty):
    with pytest.raises(AssertionError, match="waited for a miracle: no sign of life"):
        patience.until(lambda: False, "a miracle")
    process = start("import sys; sys.exit('no reason')")
    process.wait()
    with pytest.raises(AssertionError, match="ended with 1 before a miracle:\nno reason"):
        patience.until(lambda: False, "a miracle", process)
    patience.until(lambda: True, "nothing", process, os.getpid())
