"""Commands as real processes on small and read-only disks, with little memory, with decoders that hang or crash.

They are copies of one warm process (workshop/warm.py), which has imported the libraries: each starts in a moment. What
a copy may do to itself alone, such as mounting a disk, is done in the copy, before the command.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import patience
import pytest

from clipvip_lib.data import container, hangs
from clipvip_lib.workshop.kernel import use_copies
from clipvip_lib.workshop.stages import load_function
from clipvip_lib.workshop.warm import Copy, Warm

MODULES = (
    "fault_runs",
    "clipvip_lib.features.embedding",
    "clipvip_lib.captions.caption_shards",
    "clipvip_lib.training.run",
    "clipvip_lib.data.check",
    "clipvip_lib.study.pipeline",
    "small_study",
)
MOUNT = """
set -e
mount -t tmpfs -o size=16k none "$1"
mount --bind "$2" "$2"
mount -o remount,bind,ro "$2"
"""


class Run:
    """A command that runs, in its own process. ``code``: how it ended, negative for a signal."""

    def __init__(self, copy: Copy, said: Path) -> None:
        self.copy, self.said = copy, said

    def text(self) -> str:
        return self.said.read_text(errors="replace")

    @property
    def pid(self) -> int:
        patience.until(lambda: "\n" in self.text(), "its first line")
        return int(self.text().split("\n", 1)[0])

    def until(self, condition, what: str) -> Run:
        """Wait for something that it does."""
        patience.until(lambda: condition() or self.copy.poll() is not None, what, self.pid, pause=0.005)
        assert self.copy.poll() is None, (
            f"ended with {self.copy.poll()} before {what}:\n{self.text()[-3000:]}"
        )
        return self

    def end(self) -> tuple[int, str]:
        """Its exit code, and what it said on both streams, line by line."""
        patience.until(lambda: self.copy.poll() is not None, "its end", self.pid, pause=0.05)
        return self.copy.poll(), self.text().split("\n", 1)[1]

    def sentence(self, code: int) -> str:
        """What it said last, where it must end with ``code`` and without a traceback."""
        ended, said = self.end()
        assert ended == code and "Traceback" not in said, f"ended with {ended}:\n{said[-3000:]}"
        lines = [line for line in said.splitlines() if line.startswith("clipvip")]
        return lines[-1] if lines else said


class Runs:
    """Starts commands: ``runs("embed", ..., memory=64).sentence(2)``."""

    def __init__(self, folder: Path, modules: Sequence[str] = MODULES, **variables: str) -> None:
        self.folder, self.count = folder, 0
        tests = Path(__file__).parent
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self.environment = os.environ | one_thread | {"PYTHONPATH": f"{tests}:{tests.parent}"}
        self.environment |= variables
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            self.environment.pop(name, None)
        self.warm = Warm(modules, self.environment, folder / "warm.log")

    def __call__(self, *line: object, target: str = "clipvip_lib.cli:main", **circumstances: object) -> Run:
        """circumstances: of ``run``."""
        self.count += 1
        said = self.folder / f"{self.count}.txt"
        given = {
            name: str(value) if isinstance(value, Path) else value for name, value in circumstances.items()
        }
        with said.open("wb") as output:
            copy = self.warm.start(
                "fault_runs:run",
                [target, [str(word) for word in line], given],
                environment=self.environment,
                folder=self.folder,
                output=output.fileno(),
            )
        return Run(copy, said)


@contextlib.contextmanager
def running(folder: Path, *modules: Sequence[str], **variables: str) -> Iterator[Runs]:
    runs = Runs(folder, *modules, **variables)
    try:
        yield runs
    finally:
        runs.warm.end()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with running(tmp_path_factory.mktemp("runs")) as started:
        yield started


@pytest.fixture(scope="session")
def disks(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where a process may mount nothing, even for itself alone."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    try:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", MOUNT, "sh", one, two], capture_output=True, text=True, check=False
        )
    except OSError as error:
        pytest.skip(f"no program unshare here: {error}")
    if done.returncode:
        pytest.skip(f"a process may mount nothing here: {done.stderr.strip()[-200:]}")


# ------------------------------------------------------------------------------------------------- in the copy


def run(target: str, line: list[str], given: dict) -> None:
    """Run a command in these circumstances, and end with its exit code.

    read_only: a folder on a disk that cannot be written. small: a folder on a disk of ``room`` KiB; what is left there
    is copied to ``left``; then the disk grows and the command runs again, and what is there is copied to ``end``.
    memory: MiB that it may take beyond what the libraries take. hangs, crashes: which video's decoder does.
    patience: seconds after which a decoder hangs.
    """
    print(os.getpid(), flush=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main = load_function(target)
    if given.keys() & {"read_only", "small"}:
        alone()
    if folder := given.get("read_only"):
        mount("--bind", folder, folder)
        mount("-o", "remount,bind,ro", folder)
    if folder := given.get("small"):
        mount("-t", "tmpfs", "-o", f"size={given['room']}k", "none", folder)
    if "memory" in given:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + given["memory"] * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    hangs.STUCK_SECONDS = given.get("patience", hangs.STUCK_SECONDS)
    disturb_decoder(given)
    code = ended(main, line)
    if folder := given.get("small"):
        shutil.copytree(folder, given["left"])
        mount("-o", "remount,size=256m", folder)
        print(f"ended with {code}, and again with {ended(main, line)}", flush=True)
        shutil.copytree(folder, given["end"])
    sys.stdout.flush()
    os._exit(code)  # taking torch down would take longer than the command


def nbval(line: list[str]) -> int:
    """pytest with nbval, whose kernels are copies too."""
    use_copies()
    return int(pytest.main(line))


def ended(main: Callable[[list[str]], int], line: list[str]) -> int:
    """The exit code that the interpreter would make of a command."""
    try:
        return main(line)
    except SystemExit as stop:
        return int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1


def alone() -> None:
    """This process's own view of the disks. In a container of a user other than root it is root of a world of its own,
    as ``unshare -r`` makes it."""
    user, group, libc = os.getuid(), os.getgid(), ctypes.CDLL(None, use_errno=True)
    newns, newuser = 0x00020000, 0x10000000
    if libc.unshare(newns | newuser):
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def disturb_decoder(given: dict) -> None:
    """The decoder of the video of this number hangs, or ends its process as a fault in C does."""
    opened, opens = container.av.open, iter(range(10**9))

    def disturbed(*arguments, **options):
        number = next(opens)
        if number == given.get("hangs"):
            threading.Event().wait()
        if number == given.get("crashes"):
            ctypes.string_at(0)
        return opened(*arguments, **options)

    if given.keys() & {"hangs", "crashes"}:
        container.av.open = disturbed
