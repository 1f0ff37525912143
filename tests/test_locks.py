"""A lock is held by one living process, or by nobody."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import patience
import pytest

from clipvip_lib.errors import ClipVipError
from clipvip_lib.locks import Lock, Taken

HOLDS = """
import sys, time
from clipvip_lib.locks import Lock
with Lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(3600)
"""


@pytest.fixture(params=("a folder", "a file"))
def path(request, tmp_path) -> Path:
    return tmp_path if request.param == "a folder" else tmp_path / "below" / "lock"


@pytest.mark.fault(
    "any lock: two processes want it",
    sees="`is held by`, and `wait for it`",
    keeps="the first one's work; then the second takes the lock",
    cases=2,
)
def test_who_comes_second_is_refused_until_the_first_lets_go(path):
    with Lock(path) as first, pytest.raises(Taken, match="is held by .*; wait for it") as refused:
        Lock(path)
    assert refused.value.holder.startswith(f"process {os.getpid()} of ") == (not path.is_dir())
    first.release()  # a second time
    with Lock(path) as second:
        assert second.left_by.startswith(f"process {os.getpid()} of ") == (not path.is_dir())


@pytest.mark.fault(
    "any lock: its holder is stopped, then killed (SIGKILL)",
    sees="while it lives, that it is held",
    keeps="the lock: the next process takes it",
    cases=2,
)
def test_a_process_that_is_killed_holds_nothing(path):
    process = subprocess.Popen([sys.executable, "-c", HOLDS, path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(Taken):
        Lock(path)
    os.kill(process.pid, signal.SIGSTOP)  # it lives, and holds it
    with pytest.raises(Taken):
        Lock(path)
    process.kill()
    patience.wait(process)
    with Lock(path, wait=True) as lock:
        assert path.is_dir() or lock.left_by.startswith(f"process {process.pid} of ")


@pytest.mark.bad_input(
    "output: a pipe or a device where a lock is to be", says="`expected a file, got a pipe`"
)
def test_a_pipe_and_a_device_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "lock")
    (tmp_path / "device").symlink_to(os.devnull)
    for wait in (False, True):
        for name in ("lock", "device"):
            with pytest.raises(
                ClipVipError, match=f"cannot lock .*{name}: expected a file, got a pipe or a dev"
            ):
                Lock(tmp_path / name, wait=wait)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["device", "lock"]


@pytest.mark.fault(
    "any lock: a file system without locks (simulated)",
    sees="`expected a file system with locks, got No locks available`",
    keeps="not looked at by the test",
)
def test_a_file_that_cannot_be_opened_and_a_file_system_without_locks_are_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ClipVipError, match="cannot write to .*file: expected a writable folder"):
        Lock(tmp_path / "file" / "lock")

    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ClipVipError, match="expected a file system with locks, got No locks available"):
        Lock(tmp_path)
