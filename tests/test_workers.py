"""Workers: side by side in the right order, failures contained, nothing left behind."""

import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import patience
import psutil
import pytest

from clipvip_lib.errors import ClipVipError
from clipvip_lib.workshop import machine
from clipvip_lib.workshop.board import Board
from clipvip_lib.workshop.stages import Stage
from clipvip_lib.workshop.workers import (
    _remaining_paths,
    _temporary_folder,
    raise_failures,
    run_stages,
    sentence,
    worker_environment,
)

TESTS = Path(__file__).parent
COUNT = "small_study:count"


@pytest.fixture(autouse=True)
def study_on_path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(TESTS))


def stage(name, n=2, inputs=(), cost=1.0, **config):
    return Stage(name, COUNT, {"n": n, "tag": name, **config}, {s.name: s for s in inputs}, cost=cost)


def run(stages, home, stream=None, **options):
    stream = stream or io.StringIO()
    return run_stages(stages, home, board=lambda total, n: Board(total, n, stream=stream), **options)


def test_a_graph_runs_in_order_with_single_threads_and_is_then_found_done(tmp_path):
    base = stage("base")
    arms = [stage(f"arm/{i}", i + 1, [base]) for i in range(3)]
    top = stage("top", 1, arms)
    said = io.StringIO()
    outcomes = run([top], tmp_path, said, workers=2)
    assert {o.status for o in outcomes.values()} == {"done"}
    assert top.result(tmp_path)["sum"] == 1 + (1 + 2 + 3) + 3 * 2
    if not machine.gpus():
        assert top.result(tmp_path)["threads"] == "1"
    assert "[5/5] top done" in said.getvalue()
    again = run([top], tmp_path)
    assert {o.status for o in again.values()} == {"cached"}
    assert not list((tmp_path / "stages").rglob("*.partial"))


@pytest.mark.fault(
    "reproduce: a stage raises, another is killed with SIGKILL",
    sees="`RuntimeError: the count went wrong`, `signal 9`, and of a stage that rests on them `it needs between`",
    keeps="every stage that rests on neither",
)
def test_failures_stop_only_what_rests_on_them(tmp_path):
    base = stage("base")
    raises, dies = stage("raises", 1, [base], mood="raise"), stage("dies", 1, [base], mood="die")
    lost = stage("lost", 1, [stage("between", 1, [raises])])
    fine = stage("fine", 1, [base])
    said = io.StringIO()
    outcomes = run([lost, dies, fine], tmp_path, said, workers=1)
    found = {name: o.status for name, o in outcomes.items()}
    assert found == {
        "base": "done",
        "raises": "failed",
        "between": "skipped",
        "lost": "skipped",
        "dies": "failed",
        "fine": "done",
    }
    assert outcomes["raises"].error == "RuntimeError: the count went wrong"
    assert "Traceback" in outcomes["raises"].log.read_text()
    assert "signal 9" in outcomes["dies"].error
    assert outcomes["lost"].error == "it needs between"
    assert "FAILED" in said.getvalue()
    with pytest.raises(ClipVipError, match=r"failed \(and 1 more\)"):
        raise_failures(outcomes)


def test_a_done_stage_needs_nothing_below_it(tmp_path):
    base = stage("base")
    top = stage("top", 1, [base])
    run([top], tmp_path)
    for file in base.folder(tmp_path).iterdir():
        file.unlink()
    base.folder(tmp_path).rmdir()
    assert run([top], tmp_path)["top"].status == "cached"
    assert not base.done(tmp_path)


def test_the_longest_remaining_path_goes_first(tmp_path):
    short = stage("short", cost=5)
    first = stage("first", cost=1)
    long = stage("long", 1, [first], cost=10)
    assert _remaining_paths([short, first, long]) == {"short": 5, "first": 11, "long": 10}
    run([short, long], tmp_path, workers=1)
    assert (tmp_path / "stages" / "ran.txt").read_text().split() == ["first", "long", "short"]


def parent(home: Path) -> subprocess.Popen:
    code = (
        # A shell that runs the tests in the background has them ignore Ctrl-C, which children inherit.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "import pathlib; import test_workers as t; from clipvip_lib.workshop.workers import run_stages;"
        "both = [t.stage('a', 600, pause=0.05), t.stage('b', 601, pause=0.05)];"
        f"run_stages(both, pathlib.Path({str(home)!r}), workers=2)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], env=dict(os.environ, PYTHONPATH=str(TESTS)), stdout=subprocess.DEVNULL
    )


def alive(home: Path) -> list[int]:
    """Process ids of workers on this cache, and of the warm process that they are copies of."""
    found = []
    for process in psutil.process_iter():
        try:
            if "clipvip_lib.workshop.warm" in process.cmdline() and process.environ()["CLIPVIP_HOME"] == str(
                home
            ):
                found.append(process.pid)
        except (psutil.Error, KeyError):
            continue
    return found


@pytest.mark.fault(
    "stages: SIGKILL, SIGTERM or Ctrl-C to the process that runs them",
    sees="it ends, after SIGTERM with exit code 143, and no worker outlives it",
    keeps="the partial folders and nothing else",
)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_its_parent_and_the_cache_is_consistent(tmp_path, number):
    process = parent(tmp_path)
    patience.until(
        lambda: len(list((tmp_path / "stages").rglob("count.json"))) == 2, "both to count", process
    )
    assert len(alive(tmp_path)) == 3  # and the warm process
    process.send_signal(number)
    code = process.wait(300)
    assert code == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: -2}[number]
    patience.until(lambda: not alive(tmp_path), "the end of all workers")
    left = [path.name for path in (tmp_path / "stages").iterdir()]
    assert len(left) == 2 and all(name.endswith(".partial") for name in left)


@pytest.mark.fault(
    "stages: SIGKILL to the process behind all workers",
    sees="`the process behind all workers was killed (signal 9)`",
    keeps="the stages that were not running: they run on another",
)
def test_the_death_of_the_warm_process_fails_what_runs_and_the_rest_runs_on_another(tmp_path):
    slow = [stage("a", 600, pause=0.05), stage("b", 601, pause=0.05)]
    outcomes = {}
    thread = threading.Thread(
        target=lambda: outcomes.update(run([*slow, stage("c", cost=0.1)], tmp_path, workers=2))
    )
    thread.start()
    patience.until(lambda: len(list((tmp_path / "stages").rglob("count.json"))) == 2, "both to count")
    (warm,) = {psutil.Process(pid).ppid() for pid in alive(tmp_path)} - {os.getpid()}
    os.kill(warm, signal.SIGKILL)
    thread.join()
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "a": "failed",
        "b": "failed",
        "c": "done",
    }
    assert outcomes["a"].error.startswith("the process behind all workers was killed (signal 9)")
    patience.until(lambda: not alive(tmp_path), "the end of all workers")


def test_a_worker_keeps_its_environment_and_gets_its_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr("clipvip_lib.workshop.workers.gpus", lambda: ("0", "1"))
    monkeypatch.setattr("clipvip_lib.workshop.workers.cores", lambda: 8)
    found = [worker_environment(tmp_path, slot, 4) for slot in range(4)]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in found] == ["0", "1", "0", "1"]
    assert found[0]["OMP_NUM_THREADS"] == "2"
    monkeypatch.setattr("clipvip_lib.workshop.workers.gpus", tuple)
    assert worker_environment(tmp_path, 0, 4)["OMP_NUM_THREADS"] == "1"


def test_workers_are_counted_from_cores_and_memory():
    assert 1 <= machine.default_workers() <= machine.cores()
    assert machine.default_workers(memory_each_gib=1e6) == 1


def test_errors_are_one_sentence():
    assert sentence(ClipVipError("a clear\nsentence")) == "a clear sentence"
    assert sentence(OSError(2, "No such file or directory", "/x")) == "No such file or directory: /x"
    full = sentence(OSError(28, "No space left on device", "/x"))
    assert full == "No space left on device: /x; free some space or set CLIPVIP_HOME to another folder"
    assert sentence(KeyError()) == "KeyError"
    assert "memory" in sentence(MemoryError())
    with pytest.raises(ClipVipError, match="workers is 0"):
        run_stages([], workers=0)


@pytest.mark.fault(
    "reproduce: a dead run left temporary files in the cache",
    sees="nothing",
    keeps="the cache; the files go with the next run",
)
def test_temporary_files_stay_in_the_cache_and_go_with_the_run(tmp_path):
    dead = tmp_path / "tmp" / "999999999"  # no process has this number
    dead.mkdir(parents=True)
    (dead / "connection.json").write_text("{}")
    assert worker_environment(tmp_path, 0, 1)["TMPDIR"] == str(tmp_path / "tmp" / str(os.getpid()))
    with _temporary_folder(tmp_path):
        assert [folder.name for folder in (tmp_path / "tmp").iterdir()] == [str(os.getpid())]
    run([stage("base")], tmp_path)
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.fault(
    "stages: SIGBUS in a worker, as a full disk under a memory map gives",
    sees="`SIGBUS, most often for lack of room on the disk of`",
    keeps="not looked at by the test",
)
def test_a_worker_ended_by_a_full_disk_says_so(tmp_path):
    outcomes = run([stage("full", 1, mood="bus")], tmp_path)
    assert "SIGBUS, most often for lack of room on the disk of" in outcomes["full"].error


def test_gpus_are_named_as_the_driver_lists_them(monkeypatch):
    listed = "GPU 0: NVIDIA H200 (UUID: GPU-39c4)\nGPU 1: NVIDIA RTX 4090 Laptop GPU (UUID: G)\n  MIG 1g (UUID: M)\n"
    done = subprocess.CompletedProcess([], 0, stdout=listed)
    monkeypatch.setattr(machine.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: done)
    machine.gpu_names.cache_clear()
    assert machine.gpu_names() == ("NVIDIA H200", "NVIDIA RTX 4090 Laptop GPU")
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    machine.gpu_names.cache_clear()
    assert machine.gpu_names() == ()
