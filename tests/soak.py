"""A bounded soak: ``python tests/soak.py MINUTES`` (make soak) writes docs/soak.md and fails if anything is wrong.

Videos are read by the thousand, one in twenty of them damaged in its own way, features are searched, and the study runs
at smoke size in a loop in which its main process or one of its workers is killed at random. Then each study is finished
undisturbed, and what its stages made is compared byte for byte with that of a study that nothing disturbed.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import patience
import psutil
from small_clip import WORDS, save_small, write_videos
from test_smoke_results import found
from test_video_fuzz import KINDS, mutated

from clipvip_lib import cli
from clipvip_lib.data.video import VideoError, read_frames, uniform_indices

PAGE = Path(__file__).resolve().parent.parent / "docs" / "soak.md"
READS_A_MINUTE, DAMAGED, SEARCHES = 1000, 20, 200  # one read in twenty is of a damaged file
WARM_SHARE = 0.1  # of the reads and searches: caches and the allocator fill up
MOST_MIB, MOST_DESCRIPTORS = 2.0, 0.5  # per 1,000: more is a leak
KILLS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PAUSE = (1.0, 15.0)  # seconds between two kills
OF_MAIN = 0.3  # share of the kills that hit the main process
KILLING = (
    0.25  # share of the minutes in which the study is killed, at least: on a busy machine all takes longer
)
GRACE = 120.0  # seconds that workers and kernels may outlive the main process: one that imports ends after it
CODES = {
    0,
    1,
    130,
    143,
    -signal.SIGKILL,
}  # of a disturbed run: done, a stage failed, interrupted, stopped, killed


# ------------------------------------------------------------------------------------------------------- measuring


def slope(places: list[float], values: list[float]) -> float:
    """How much values rise per 1,000 places, by least squares."""
    return 1000 * float(np.polyfit(places, values, 1)[0])


@dataclass
class Growth:
    """Memory and open descriptors of this process while something is done again and again."""

    done: int = 0
    at: list[float] = field(default_factory=list)
    mib: list[float] = field(default_factory=list)
    descriptors: list[float] = field(default_factory=list)

    def repeat(self, count: int, do: Callable[[int], None]) -> Growth:
        process = psutil.Process()
        gc.freeze()  # what is there stays: not to be looked through again and again
        for number in range(count):
            do(number)
            self.done += 1
            if self.done >= WARM_SHARE * count and self.done % max(1, count // 50) == 0:
                gc.collect()  # cycles that Python has not yet looked at do not count as a leak
                self.at.append(self.done)
                self.mib.append(process.memory_info().rss / 2**20)
                self.descriptors.append(process.num_fds())
        gc.unfreeze()
        return self

    @property
    def slopes(self) -> tuple[float, float]:
        return slope(self.at, self.mib), slope(self.at, self.descriptors)


def read_videos(count: int, seed: int, faults: list[str]) -> tuple[Growth, int, int]:
    """Read ``count`` videos of all kinds; the growth, and how many damaged ones were refused and read."""
    rng, verdicts = np.random.default_rng(seed), {"refused": 0, "read": 0}
    whole = {kind: make() for kind, make in KINDS.items()}

    def four(video: bytes) -> np.ndarray:
        return read_frames(video, lambda total: uniform_indices(total, 4), "clip")

    expected = {kind: four(video) for kind, video in whole.items()}

    def read(number: int) -> None:
        kind = list(whole)[number % len(whole)]
        damaged = number % DAMAGED == DAMAGED - 1
        try:
            frames = four(mutated(whole[kind], rng) if damaged else whole[kind])
        except VideoError as error:
            verdicts["refused"] += 1
            if not damaged:
                faults.append(f"read {number}: a whole file was refused: {error}")
            return
        except Exception as error:
            faults.append(f"read {number}: {type(error).__name__}: {error}")
            return
        if damaged:
            verdicts["read"] += 1
        elif not np.array_equal(frames, expected[kind]):
            faults.append(f"read {number}: other frames than the first time ({kind})")

    return Growth().repeat(count, read), verdicts["refused"], verdicts["read"]


def search_features(count: int, folder: Path, faults: list[str]) -> Growth:
    """``clipvip search`` again and again in features that ``clipvip embed`` wrote; the answers must not change."""
    weights, out = save_small(folder / "weights"), folder / "features"
    write_videos(folder / "videos", 8)
    said: dict[str, set[str]] = {word: set() for word in WORDS}

    def clipvip(*line: object) -> str:
        stream = io.StringIO()
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(io.StringIO()):
            code = cli.main([str(word) for word in line])
        if code:
            faults.append(f"clipvip {line[0]} ended with {code}")
        return stream.getvalue()

    clipvip("embed", folder / "videos", "--weights", weights, "--out", out)

    def search(number: int) -> None:
        text = WORDS[number % len(WORDS)]
        said[text].add(clipvip("search", text, "--in", out))

    growth = Growth().repeat(count, search)
    faults += [f"search {text!r} had {len(each)} answers" for text, each in said.items() if len(each) > 1]
    return growth


# ---------------------------------------------------------------------------------------------------------- killing


def processes_of(home: Path) -> list[psutil.Process]:
    """The living processes that work on a cache: its run, workers and kernels."""
    there = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("CLIPVIP_HOME") == str(home) and process.pid != os.getpid():
                there.append(process)
    return there


def left_behind(*folders: Path) -> list[Path]:
    """What a finished run must not leave: half-written files, temporary ones, and what was on its way to removal."""
    names = {"tmp", "discarded"}
    return sorted(
        path
        for folder in folders
        for path in folder.rglob("*")
        if ".partial" in path.name or (path.parent.name in names and path.parent.parent == folder)
    )


@dataclass
class Study:
    """The study at smoke size on its own cache and page folder; how often it was killed, and what went wrong."""

    folder: Path
    faults: list[str]
    kills: int = 0
    orphans: int = 0
    longest: float = 0.0  # seconds that a process outlived its run and ended by itself
    half: int = 0

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def start(self) -> subprocess.Popen:
        (self.folder / "home" / "tmp").mkdir(parents=True, exist_ok=True)
        line = [sys.executable, "-m", "clipvip_lib.cli", "reproduce", "--profile", "smoke"]
        with (self.folder / "said.txt").open("w") as said:
            return subprocess.Popen(
                [*line, "--out", self.folder / "out"],
                cwd=self.folder,
                env=os.environ | {"CLIPVIP_HOME": str(self.home), "TMPDIR": str(self.home / "tmp")},
                stdout=said,
                stderr=subprocess.STDOUT,
            )

    def disturb(self, until: float, rng: random.Random) -> bool:
        """Kill the run or one of its workers, and start it again when it ends; whether it was done by itself."""
        run = self.start()
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.wait(min(rng.uniform(*PAUSE), max(0.1, until - time.monotonic())))
            if run.poll() is not None:
                self.ended(run)
                if run.returncode == 0 or time.monotonic() > until:
                    return run.returncode == 0
                run = self.start()
            elif time.monotonic() > until:
                self.kill(psutil.Process(run.pid), signal.SIGTERM)
                run.wait()
                self.ended(run)
                return False
            else:
                others = [each for each in processes_of(self.home) if each.pid != run.pid]
                chosen = rng.choice(others) if others and rng.random() >= OF_MAIN else psutil.Process(run.pid)
                self.kill(chosen, rng.choice(KILLS))

    def kill(self, process: psutil.Process, number: signal.Signals) -> None:
        with contextlib.suppress(psutil.Error):  # it has just ended
            process.send_signal(number)
            self.kills += 1

    def ended(self, run: subprocess.Popen) -> None:
        """Look whether all that belonged to a run has ended too, and how it ended."""
        began = time.monotonic()
        while (left := processes_of(self.home)) and time.monotonic() < began + GRACE:
            time.sleep(0.2)
        self.longest = max(self.longest, time.monotonic() - began)
        self.orphans += len(left)
        for process in left:
            self.faults.append(f"process {process.pid} outlived its run ({process.cmdline()[:5]})")
            patience.kill(process.pid)
        said = (self.folder / "said.txt").read_text(errors="replace")
        if run.returncode not in CODES or "Traceback" in said:
            self.faults.append(f"a run ended with code {run.returncode}: {said[-2000:]}")

    def finish(self) -> dict[str, dict]:
        """Run to the end undisturbed; what the stages made (test_smoke_results.found), and all pages' names."""
        run = self.start()
        run.wait()
        self.ended(run)
        if run.returncode:
            self.faults.append(f"an undisturbed run ended with code {run.returncode}")
        left = left_behind(self.home, self.folder / "out")
        self.half += len(left)
        self.faults += [f"{path.relative_to(self.folder)} was left behind" for path in left]
        return found(self.home) | {page.name: {} for page in sorted((self.folder / "out").glob("*.html"))}


# ------------------------------------------------------------------------------------------------------------ the soak


def soak(minutes: float, folder: Path, seed: int) -> tuple[list[tuple[str, str]], list[str]]:
    """Rows of the table, and what went wrong."""
    start, faults, rng = time.monotonic(), [], random.Random(seed)
    undisturbed = Study(folder / "undisturbed", faults)
    whole = undisturbed.finish()
    one_run = time.monotonic() - start
    note(f"an undisturbed run took {one_run:.0f} s and made {len(whole)} results and pages")
    reads, refused, taken = read_videos(round(READS_A_MINUTE * minutes), seed, faults)
    note(f"{reads.done} videos were read")
    searches = search_features(SEARCHES, folder / "search", faults)
    note(f"{searches.done} searches were made")
    studies: list[Study] = []
    equal = 0
    until = start + 60 * minutes - one_run  # the last study must be finished too
    until = max(until, time.monotonic() + KILLING * 60 * minutes)
    while not studies or time.monotonic() < until:
        studies.append(Study(folder / f"killed-{len(studies)}", faults))
        studies[-1].disturb(until, rng)
        result = studies[-1].finish()
        differ = sorted(name for name in whole.keys() | result.keys() if whole.get(name) != result.get(name))
        equal += not differ
        faults += [f"{name} differs from the undisturbed run's" for name in differ]
        note(f"study {len(studies)}: {studies[-1].kills} kills, {len(differ)} differences")
    for what, growth in (("reads", reads), ("searches", searches)):
        mib, descriptors = growth.slopes
        if mib > MOST_MIB or descriptors > MOST_DESCRIPTORS:
            faults.append(f"{what} leak {mib:.2f} MiB and {descriptors:.2f} descriptors per 1,000")
    rows = [
        (
            "videos read",
            f"{reads.done:,}, {len(KINDS)} kinds; {refused + taken:,} damaged, {refused:,} refused",
        ),
        ("memory while reading, MiB per 1,000 reads", f"{reads.slopes[0]:+.3f}"),
        ("open descriptors while reading, per 1,000 reads", f"{reads.slopes[1]:+.3f}"),
        ("searches", f"{searches.done:,}"),
        ("memory while searching, MiB per 1,000 searches", f"{searches.slopes[0]:+.3f}"),
        ("open descriptors while searching, per 1,000 searches", f"{searches.slopes[1]:+.3f}"),
        ("kills of the study or of one of its workers", f"{sum(each.kills for each in studies)}"),
        (
            "processes left after the wait for them",
            f"{sum(each.orphans for each in (undisturbed, *studies))}",
        ),
        ("longest that one took to end, seconds", f"{max(each.longest for each in studies):.1f}"),
        ("half-written files after the last start", f"{sum(each.half for each in (undisturbed, *studies))}"),
        ("studies with the undisturbed one's results, byte for byte", f"{equal} of {len(studies)}"),
        ("whatever else was wrong", f"{len(faults)}"),
        ("minutes", f"{(time.monotonic() - start) / 60:.1f}"),
    ]
    return rows, faults


def note(text: str) -> None:
    print(f"soak: {text}", flush=True)


def page(rows: list[tuple[str, str]], seed: int) -> str:
    """The page in Markdown."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "av", "numpy"))
    machine = os.environ.get("SOAK_MACHINE") or f"{os.cpu_count()} cores, {platform.machine()}"
    table = "".join(f"| {name} | {value} |\n" for name, value in rows)
    return (
        f"# A soak\n\n{__doc__.split(chr(10) * 2, 1)[1]}\n"
        "Slopes are by least squares, after the first tenth. `make soak MINUTES=20` writes this page; it fails if\n"
        f"memory rises by more than {MOST_MIB:g} MiB per 1,000, or anything else is wrong.\n\n"
        f"| what | measured |\n| --- | --- |\n{table}\n"
        f"{machine}; Python {platform.python_version()}, {libraries}; seed {seed}.\n"
    )


def main(minutes: float = 20.0, seed: int = 0, keep: Path | None = None) -> int:
    """Soak in a temporary folder, which stays if anything was wrong. Returns the exit code."""
    folder = Path(tempfile.mkdtemp(prefix="clipvip-soak-"))
    rows, faults = soak(minutes, folder, seed)
    for name, value in rows:
        print(f"{name:<60} {value}")
    (keep or PAGE).write_text(page(rows, seed), encoding="utf-8")
    if faults:
        print(
            "\n".join(["", *faults[:50], f"{len(faults)} faults; all is kept in {folder}"]), file=sys.stderr
        )
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(float, sys.argv[1:2]), *map(int, sys.argv[2:3])))
