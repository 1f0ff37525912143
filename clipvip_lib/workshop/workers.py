"""Independent stages side by side, on worker processes that live as long as the run.

A worker is a copy of the run's warm process (warm.py), which has imported the heavy libraries. It takes many stages.
On a CPU it is single-threaded, because one thread per process measured about three times faster per core than two. A
stage that raises, or whose worker dies, stops only the stages that need it. Workers notice the end of their parent, and
of the warm process, when their connections end, and then end their own children too.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import shutil
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from clipvip_lib import files
from clipvip_lib.cores import cores
from clipvip_lib.errors import NO_ROOM, ClipVipError, lack_of_memory
from clipvip_lib.progress import duration
from clipvip_lib.say import shown
from clipvip_lib.stop_signals import signals_raise
from clipvip_lib.workshop import warm
from clipvip_lib.workshop.board import Board, Running
from clipvip_lib.workshop.machine import default_workers, gpus
from clipvip_lib.workshop.stages import Stage, closure, run_stage, set_aside_if_damaged

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass
class Outcome:
    """What became of a stage. status: ``cached`` (found done), ``done``, ``failed`` or ``skipped``."""

    stage: Stage
    status: str
    seconds: float = 0.0
    error: str = ""  # one sentence
    log: Path | None = None  # the full traceback


def run_stages(
    stages: Iterable[Stage],
    home: Path | None = None,
    *,
    workers: int | None = None,
    verify: bool = False,
    board: Callable[[int, int], Board] = Board,
) -> dict[str, Outcome]:
    """Run the stages and what they need; returns the outcome of each by name.

    Stages found done are skipped; damaged entries are moved aside, and made again. A failing stage does not raise: look
    at the outcomes. ``verify``: look for damage by checksums, not by sizes alone.
    ``board``: called with the number of stages and of workers, gives the display.
    Raises ClipVipError for a number of workers below one or two different stages of one name.
    """
    home = files.make_folder(home or files.home())
    check_workers(workers)
    targets = list(stages)
    stages = closure(targets)
    damaged = {stage.name: said for stage in stages if (said := set_aside_if_damaged(stage, home, verify))}
    outcomes = {stage.name: Outcome(stage, "cached") for stage in stages if stage.done(home)}
    needed = _needed([*targets, *(stage for stage in stages if stage.name in damaged)], outcomes)
    todo = [stage for stage in stages if stage.name in needed]
    count = min(workers or default_workers(), len(todo)) if todo else 0
    display = board(len(outcomes) + len(todo), count)
    display.cached(list(outcomes), ", each file as its checksum says" if verify else "")
    for said in damaged.values():
        display.event(said)
    display.remember((outcome.stage for outcome in outcomes.values()), home)
    if not todo:
        return outcomes
    run = _Run(home, todo, outcomes, count, display)
    with signals_raise(signal.SIGTERM, signal.SIGHUP), _temporary_folder(home):
        try:
            run.loop()
        finally:
            run.stop()
    return {stage.name: outcomes[stage.name] for stage in stages if stage.name in outcomes}


def check_workers(workers: int | None) -> None:
    """Raises ClipVipError for a number of workers below one."""
    if workers is not None and workers < 1:
        raise ClipVipError(f"workers is {workers}: expected 1 or more; leave it out for one per core")


def raise_failures(outcomes: dict[str, Outcome]) -> None:
    """Raises ClipVipError with a sentence about the first failed stage, if any failed."""
    failed = [outcome for outcome in outcomes.values() if outcome.status == "failed"]
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise ClipVipError(f"stage {failed[0].stage.name} failed{more}: {failed[0].error}")


class _Run:
    """The scheduler: which stages wait, which run where, and which is dealt next."""

    def __init__(self, home, todo, outcomes, count, board):
        self.home, self.outcomes, self.count, self.board = home, outcomes, count, board
        self.waiting: dict[str, Stage] = {stage.name: stage for stage in todo}
        self.running: dict[_Worker, Running] = {}
        self.idle: list[_Worker] = []
        self.remaining_path = _remaining_paths(todo)
        self.imports = list(dict.fromkeys(name for stage in todo for name in stage.modules()))
        self.warm: warm.Warm | None = None

    def loop(self) -> None:
        while self.waiting or self.running:
            self.deal()
            ready = wait([worker.connection for worker in self.running], timeout=0.25)
            for worker in [w for w in self.running if w.connection in ready]:
                self.hear(worker)
            self.board.status(self.running.values(), self.waiting.values())
        self.board.end()

    def deal(self) -> None:
        """Give each free worker the ready stage at the head of the longest remaining path."""
        while len(self.running) < self.count:
            ready = [s for s in self.waiting.values() if all(self.has(up) for up in s.inputs.values())]
            if not ready:
                return
            stage = max(ready, key=lambda s: self.remaining_path[s.name])
            worker = self.idle.pop() if self.idle else self.start_worker()
            resumes = stage.partial_folder(self.home).exists()
            if worker.send(stage):
                del self.waiting[stage.name]
                self.running[worker] = Running(stage)
                how = "resumed from its partial folder" if resumes else "started"
                self.board.event(f"{stage.name} {how}", minor=not resumes)
            else:
                worker.connection.close()

    def has(self, stage: Stage) -> bool:
        outcome = self.outcomes.get(stage.name)
        return outcome is not None and outcome.status in ("cached", "done")

    def start_worker(self) -> _Worker:
        busy = {worker.slot for worker in (*self.running, *self.idle)}
        slot = next(i for i in range(self.count) if i not in busy)
        environment = worker_environment(self.home, slot, self.count)
        logs = files.make_folder(self.home / "logs")
        if self.warm is None or self.warm.process.poll() is not None:
            self.warm = warm.Warm(self.imports, environment, logs / "warm.log")
        return _Worker(self.warm, environment, slot, logs / f"worker-{slot}.log")

    def hear(self, worker: _Worker) -> None:
        """Take one message from a worker, or notice its death."""
        running = self.running[worker]
        try:
            kind, *rest = worker.connection.recv()
        except (EOFError, OSError):
            del self.running[worker]
            self.failed(running, worker.epitaph(), "")
            return
        if kind == "began":
            running.started = time.monotonic()
            return
        if kind == "progress":
            running.done, running.total, running.note = rest
            running.first = running.done if running.first is None else running.first
            return
        del self.running[worker]
        self.idle.append(worker)
        if kind == "done":
            seconds = _since(running.started)
            self.board.ran(running.stage, seconds)
            self.outcomes[running.stage.name] = Outcome(running.stage, "done", seconds)
            self.board.finished += 1
            self.board.event(f"{running.stage.name} done in {duration(seconds)}")
        else:
            self.failed(running, *rest)

    def failed(self, running: Running, sentence: str, trace: str) -> None:
        stage = running.stage
        log = self.home / "logs" / (stage.folder_name.replace("/", "__") + ".log")
        with contextlib.suppress(ClipVipError):  # a full disk must not hide the error itself
            files.write_bytes(log, f"{stage.name}: {sentence}\n\n{trace}".encode())
        seconds = _since(running.started)
        self.outcomes[stage.name] = Outcome(stage, "failed", seconds, sentence, log)
        self.board.finished += 1
        self.board.event(f"{stage.name} FAILED after {duration(seconds)}: {sentence} (more in {log})")
        self.skip_dependents()

    def skip_dependents(self) -> None:
        lost = True
        while lost:
            lost = [s for s in self.waiting.values() if any(self.is_lost(up) for up in s.inputs.values())]
            for stage in lost:
                del self.waiting[stage.name]
                cause = next(up.name for up in stage.inputs.values() if self.is_lost(up))
                self.outcomes[stage.name] = Outcome(stage, "skipped", error=f"it needs {cause}")
                self.board.finished += 1
                self.board.event(f"{stage.name} skipped: it needs {cause}")

    def is_lost(self, stage: Stage) -> bool:
        outcome = self.outcomes.get(stage.name)
        return outcome is not None and outcome.status in ("failed", "skipped")

    def stop(self) -> None:
        """End all workers at once; their unfinished work stays in partial folders."""
        self.board.end()
        for worker in (*self.running, *self.idle):
            worker.connection.close()
        if self.warm:
            self.warm.end()


def _since(started: float | None) -> float:
    return 0.0 if started is None else time.monotonic() - started


def _needed(targets: list[Stage], finished: dict[str, Outcome]) -> set[str]:
    """Names of the stages that must run. A stage found done needs nothing, even if its inputs were deleted."""
    needed: set[str] = set()
    waiting = list(targets)
    while waiting:
        stage = waiting.pop()
        if stage.name not in finished and stage.name not in needed:
            needed.add(stage.name)
            waiting.extend(stage.inputs.values())
    return needed


def _remaining_paths(stages: list[Stage]) -> dict[str, float]:
    """For each stage, the cost of the longest chain that starts with it. Expects inputs before dependents."""
    longest = {stage.name: stage.cost for stage in stages}
    for stage in reversed(stages):
        for upstream in stage.inputs.values():
            if upstream.name in longest:
                chain = upstream.cost + longest[stage.name]
                longest[upstream.name] = max(longest[upstream.name], chain)
    return longest


def _temporary_files(home: Path) -> Path:
    return home / "tmp" / str(os.getpid())


@contextlib.contextmanager
def _temporary_folder(home: Path) -> Iterator[None]:
    """The folder for temporary files of this run's workers and kernels. Removes what killed runs left there."""
    own = files.make_folder(_temporary_files(home))
    for folder in own.parent.iterdir():
        if not _runs(folder.name):
            shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _runs(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True


# --- the parent's side of a worker ------------------------------------------------------------------------


class _Worker:
    """A worker process as its parent sees it."""

    def __init__(self, original: warm.Warm, environment: dict[str, str], slot: int, log: Path):
        self.original, self.slot, self.log = original, slot, log
        mine, its = socket.socketpair()
        self.connection = Connection(mine.detach())
        with its, log.open("ab") as output, contextlib.suppress(OSError):  # then sending fails too
            self.process = original.start(
                "clipvip_lib.workshop.workers:work",
                environment=environment,
                folder=Path.cwd(),
                output=output.fileno(),
                channel=its.fileno(),
            )

    def send(self, stage: Stage) -> bool:
        try:
            self.connection.send(stage)
        except OSError:
            return False
        return True

    def epitaph(self) -> str:
        """A sentence on how the worker died."""
        self.connection.close()
        try:
            return how_it_ended("its worker", self.process.wait(warm.GRACE_SECONDS), self.log)
        except TimeoutError:
            self.process.kill()
            return f"its worker closed the connection and was stopped; look into {self.log}"
        except warm.ENDED:
            return how_it_ended(
                "the process behind all workers", self.original.process.wait(), self.original.log
            )


def how_it_ended(what: str, code: int, log: Path) -> str:
    """A sentence on how a process ended, from its exit code (negative for a signal)."""
    if code == -signal.SIGKILL:
        return f"{what} was killed (signal 9), most often for lack of memory; use fewer --workers"
    if code == -signal.SIGBUS:  # a file that is mapped into memory cannot grow
        return (
            f"{what} was ended by SIGBUS, most often for lack of room on the disk of {log.parent.parent}; "
            "free some space or set CLIPVIP_HOME to another folder"
        )
    if code < 0:
        return f"{what} was ended by {signal.Signals(-code).name}; look into {log}"
    return f"{what} ended with exit code {code}; look into {log}"


def worker_environment(home: Path, slot: int, count: int) -> dict[str, str]:
    """Variables to set before a worker imports anything: threads, its GPU, the cache."""
    environment = dict(os.environ, CLIPVIP_HOME=str(home), PYTHONFAULTHANDLER="1", PYTHONUNBUFFERED="1")
    cards = gpus()
    threads = max(1, cores() // count) if cards else 1
    environment.update({name: str(threads) for name in THREAD_VARIABLES})
    environment["OPENBLAS_NUM_THREADS"] = "1"  # it starts threads at numpy's import, and a fork loses them
    environment["TOKENIZERS_PARALLELISM"] = "false"
    environment["PYTHONHASHSEED"] = "0"  # the order of a set must not differ between runs
    # Notebook kernels: this environment's python3, without the user's own kernels and start-up files.
    environment["JUPYTER_PREFER_ENV_PATH"] = "1"
    environment["IPYTHONDIR"] = str(home / "ipython")
    environment["TMPDIR"] = str(_temporary_files(home))  # a killed kernel leaves its connection file
    if cards:
        environment["CUDA_VISIBLE_DEVICES"] = cards[slot % len(cards)]
        environment.setdefault("CLIPVIP_ALL_GPUS", ",".join(cards))  # for trainings under torchrun
    return environment


# --- the worker's own side --------------------------------------------------------------------------------


def work(connection: Connection) -> None:
    """Take stages from the connection until it ends."""
    stages: queue.SimpleQueue[Stage] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, stages), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: _leave(128 + signal.SIGTERM))
    while True:
        stage = stages.get()
        _forget_signals_of_libraries()
        connection.send(("began",))  # the first one waited for the warm process's imports
        try:
            run_stage(stage, files.home(), _Reporter(connection))
            message = ("done",)
        except BaseException as error:
            message = ("failed", sentence(error), traceback.format_exc())
        connection.send(message)


def _listen(connection: Connection, stages: queue.SimpleQueue) -> None:
    """Pass on what the parent sends. When the parent or the warm process ends, this process ends at once."""
    original = warm.ours.connection.fileno()
    heard = select.poll()
    heard.register(connection.fileno(), select.POLLIN)
    heard.register(original, 0)  # only its end: its messages are for the stage that asked
    while True:
        try:
            if original in dict(heard.poll()):
                _leave(1)
            stages.put(connection.recv())
        except (EOFError, OSError):
            _leave(0)
        except BaseException:
            traceback.print_exc()
            _leave(1)


def _leave(code: int) -> None:
    for child in descendants():
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)
    os._exit(code)


def descendants() -> list[int]:
    """Process ids of all descendants of this process (trainings and their ranks, loaders)."""
    try:
        import psutil

        return [child.pid for child in psutil.Process().children(recursive=True)]
    except (ImportError, OSError):
        return []


def _forget_signals_of_libraries() -> None:
    # papermill's event loop takes SIGINT; only the parent decides when a worker ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Reporter:
    """The progress of a stage in a worker: at most ten messages per second go to the parent."""

    def __init__(self, connection: Connection):
        self.connection, self.last = connection, 0.0

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if now - self.last >= 0.1 or done >= total:
            self.last = now
            self.connection.send(("progress", int(done), int(total), str(note)))


def sentence(error: BaseException) -> str:
    """An error in one line, for people: a ClipVipError's own words; other errors start with their kind."""
    words = shown(" ".join(Exception.__str__(error).split()))
    if isinstance(error, ClipVipError):
        return words
    if lack_of_memory(type(error).__name__, words):
        return "it ran out of memory; use fewer --workers"
    if isinstance(error, OSError) and error.strerror:
        advice = (
            "; free some space or set CLIPVIP_HOME to another folder" if error.errno in files.FULL else ""
        )
        return f"{error.strerror}{f': {error.filename}' if error.filename else ''}{advice}"
    if NO_ROOM in words:
        return f"{NO_ROOM}; free some space or set CLIPVIP_HOME to another folder"
    return f"{type(error).__name__}: {words[:300]}" if words else type(error).__name__
