"""Processes end with those that started them."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import patience
import psutil
import pytest

RANK = """
import os, time
from clipvip_lib.children import end_with_torchrun
end_with_torchrun(lambda: open(os.environ["SAID"], "a").write("gone\\n"))
os.write(1, b"%d\\n" % os.getpid())  # at once, whatever PYTHONUNBUFFERED says: two write into one pipe
while True:  # busy
    pass
"""
PARENT = """
import subprocess, sys, time
ranks = [subprocess.Popen([sys.executable, "-c", {rank!r}]) for _ in range(2)]
[rank.wait() for rank in ranks]
"""


RANK_THAT_LOST_ANOTHER = """
import os, time
from clipvip_lib import children
children.LOOK_SECONDS = 3.0
children.end_with_torchrun(lambda: open(os.environ["SAID"], "a").write("gone\\n"))
children.end_if_orphaned()
os.write(1, b"%d\\n" % os.getpid())  # at once, whatever PYTHONUNBUFFERED says: two write into one pipe
while os.getppid() == children._torchrun:
    time.sleep(0.01)
children.end_if_orphaned()
open(os.environ["SAID"], "a").write("another rank is lost\\n")
"""


@contextlib.contextmanager
def started(said, rank=RANK, **variables) -> Iterator[tuple[subprocess.Popen, list[psutil.Process]]]:
    """A parent and the two ranks that it started; none of them outlives the test."""
    line = [sys.executable, "-c", PARENT.format(rank=rank)]
    environment = os.environ | {"SAID": str(said)} | variables
    ranks = []
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            while len(ranks) < 2:
                ranks.append(psutil.Process(int(process.stdout.readline())))
            yield process, ranks
        finally:
            for pid in [process.pid, *(rank.pid for rank in ranks)]:
                patience.kill(pid)


def lives(process: psutil.Process) -> bool:
    """Not so if it has ended and nobody has asked how."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.fault(
    "any ranks: torchrun is killed (SIGKILL) while they are busy",
    sees="the ranks end within 10 seconds",
    keeps="not looked at by the test",
)
@pytest.mark.parametrize("rank", [RANK, RANK_THAT_LOST_ANOTHER], ids=["busy", "lost another rank"])
def test_ranks_end_soon_after_a_torchrun_that_was_killed(tmp_path, rank):
    with started(tmp_path / "said", rank, TORCHELASTIC_RUN_ID="none") as (process, ranks):
        process.kill()
        process.wait()
        start = time.monotonic()
        patience.until(lambda: not any(map(lives, ranks)), "the end", *(rank.pid for rank in ranks))
        assert time.monotonic() - start < 10
    assert (tmp_path / "said").read_text() == "gone\n" * 2


def test_what_torchrun_did_not_start_may_outlive_its_parent(tmp_path):
    """A shell that started a run in the background may end."""
    with started(tmp_path / "said") as (process, ranks):
        process.kill()
        process.wait()
        time.sleep(4)
        assert all(map(lives, ranks)) and not (tmp_path / "said").exists()
