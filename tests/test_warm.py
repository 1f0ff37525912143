"""The warm process: fit to be forked; its copies work like fresh interpreters, and none outlives the one that asked."""

import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import patience
import psutil
import pytest
import small_study
import test_heap
import videos

from clipvip_lib import files
from clipvip_lib.study.experiments import NOTEBOOKS
from clipvip_lib.study.outline import study_outline
from clipvip_lib.workshop import warm
from clipvip_lib.workshop.board import Board
from clipvip_lib.workshop.page_stage import page_stage
from clipvip_lib.workshop.stages import closure, run_stage
from clipvip_lib.workshop.workers import run_stages, worker_environment

TESTS = Path(__file__).parent
MODULES = ("clipvip_lib.models.clip_vip", "decord")


@pytest.fixture(autouse=True)
def study_on_path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(TESTS))


@pytest.fixture
def start(tmp_path):
    """A function that starts a warm process with some modules imported."""
    started = []

    def begin(*modules):
        process = warm.Warm(modules, worker_environment(tmp_path, 0, 1), tmp_path / "warm.log")
        started.append(process)
        return process

    yield begin
    for process in started:
        process.end()
        process.process.wait()


def call(process, function, *arguments, **options):
    """(child, the connection to it) of a function of this module."""
    mine, its = socket.socketpair()
    connection = Connection(mine.detach())
    with its:
        child = process.start(
            f"test_warm:{function}",
            arguments,
            environment=options.pop("environment", dict(os.environ)),
            folder=TESTS,
            channel=its.fileno(),
            **options,
        )
    return child, connection


def quiet(total: int, workers: int) -> Board:
    return Board(total, workers, stream=io.StringIO())


def runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


# --- fit to be forked --------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_all_that_the_study_imports_leaves_one_thread_and_asks_for_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr("clipvip_lib.workshop.workers.gpus", lambda: ("0",))
    monkeypatch.setattr("clipvip_lib.workshop.workers.cores", lambda: 4)
    outline = study_outline()
    smoke = outline.profile("smoke")
    pages = [
        page_stage(
            name,
            (files.CHECKOUT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"),
            {},
            smoke,
            outline.stages_for(name, smoke, [0]),
        )
        for name in NOTEBOOKS
    ]
    modules = sorted({name for stage in closure(pages) for name in stage.modules()})
    assert {"clipvip_lib.training.loop", "papermill", "sklearn.cluster"} <= set(modules)
    code = """
import json, sys, threading
import torch
from clipvip_lib.workshop import warm

def asked(*_):
    raise SystemExit("an import asked for GPUs")

torch.cuda.is_available = torch.cuda.device_count = torch.cuda._lazy_init = asked
assert warm.preload(json.loads(sys.argv[1])), "an import started a thread"
assert threading.active_count() == 1 and "transformers" in sys.modules
"""
    environment = {**worker_environment(tmp_path, 0, 1), **warm.ENVIRONMENT}
    assert environment["OMP_NUM_THREADS"] == "4"
    command = [sys.executable, "-P", "-c", code, json.dumps(modules)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


@test_heap.glibc
def test_copies_keep_freed_memory(start):
    _, connection = call(start("numpy"), "count_faults")
    assert connection.recv() < test_heap.PAGES / 20


def count_faults(connection: Connection) -> None:
    connection.send(test_heap.faults())


def test_after_an_import_that_starts_a_thread_children_are_fresh_interpreters(start, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(tmp_path)]))
    (tmp_path / "starts_a_thread.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    (tmp_path / "harmless.py").write_text("")
    for modules, forked in ((["harmless"], True), (["harmless", "starts_a_thread"], False)):
        _, connection = call(start(*modules), "imported", "harmless")
        assert connection.recv() is forked


def imported(module: str, connection: Connection) -> None:
    connection.send(module in sys.modules)


# --- copies work -------------------------------------------------------------------------------------------


def decode_and_train(video: str, connection: Connection) -> None:
    """What does not survive a fork once it was used: decoders, torch's operations."""
    connection.send("decord" in sys.modules and "transformers" in sys.modules)
    import av
    import decord
    import torch
    from small_clip import small_model

    def digest(array) -> str:
        return hashlib.sha256(array.tobytes()).hexdigest()

    frames = decord.VideoReader(video, num_threads=1).get_batch(range(0, 60, 7)).asnumpy()
    with av.open(video) as container:
        again = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][0:60:7]
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    clips = torch.from_numpy(frames[:6]).permute(0, 3, 1, 2)[None, :3, :, :32, :32].float() / 255
    model.encode_video(clips).sum().add(model.logit_scale).backward()
    optimizer.step()
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).numpy()
    connection.send([digest(frames), [digest(frame) for frame in again], digest(weights)])


@pytest.mark.slow
@pytest.mark.thorough
def test_a_copy_decodes_and_trains_bit_for_bit_as_a_fresh_interpreter(start, tmp_path, monkeypatch):
    path = tmp_path / "video.mp4"
    path.write_bytes(videos.encode(60))
    found = []
    for fresh in (False, True):
        monkeypatch.setattr(warm, "FRESH", fresh)
        process = start(*MODULES)
        for _ in range(2 - fresh):  # what one copy used does not harm the next
            child, connection = call(process, "decode_and_train", str(path))
            assert connection.recv() is not fresh
            found.append(connection.recv())
            assert child.wait() == 0
    assert found[0] == found[1] == found[2]


def test_a_copy_has_the_environment_the_folder_and_the_output_that_it_is_given(start, tmp_path, monkeypatch):
    for fresh in (False, True):
        monkeypatch.setattr(warm, "FRESH", fresh)
        with (tmp_path / f"said-{fresh}").open("wb") as output:
            child, connection = call(
                start(),
                "tell",
                7,
                environment=dict(os.environ, CUDA_VISIBLE_DEVICES="3"),
                output=output.fileno(),
            )
        assert connection.recv() == ["3", str(TESTS), True, "SIG_DFL"]
        assert child.wait() == 7
        assert (tmp_path / f"said-{fresh}").read_text() == "said\n"


def tell(code: int, connection: Connection) -> None:
    print("said")
    own_session = os.getsid(0) == os.getpid()
    facts = [os.environ["CUDA_VISIBLE_DEVICES"], str(Path.cwd()), own_session]
    connection.send([*facts, signal.getsignal(signal.SIGTERM).name])
    sys.exit(code)


FACTS = """import builtins, os, sys, threading
from pathlib import Path
import matplotlib
from matplotlib import pyplot as plt
print(sorted(name for name in globals() if not name.startswith("_")))
print(sys.argv[1], Path(sys.argv[2]).suffix, sys.argv[3:], str(Path.cwd()) in sys.path)
print(Path.cwd().name, matplotlib.get_backend(), os.environ["MPLBACKEND"])
print(sys.modules["__main__"].__dict__ is globals(), __name__)
print(hasattr(builtins, "mark"), matplotlib.rcParams["lines.linewidth"])
builtins.mark = matplotlib.rcParams["lines.linewidth"] = 3"""
DRAW = """fig, axes = plt.subplots()
axes.plot([1, 2])
fig;"""


@pytest.mark.slow
@pytest.mark.thorough
def test_kernels_are_copies_and_find_what_a_fresh_kernel_does(tmp_path, monkeypatch):
    of_copy = "import psutil; print('clipvip_lib.workshop.warm' in psutil.Process().parent().cmdline())"
    body = [FACTS, DRAW, "axes", small_study.SHORT, of_copy]
    small, said = small_study.profile("quick"), {}
    for how, count in {"copies": 2, "fresh": 1, "ordinary": 1}.items():
        home = tmp_path / how
        monkeypatch.setenv("CLIPVIP_HOME", str(home))
        monkeypatch.setattr(warm, "FRESH", how == "fresh")
        pages = [
            page_stage(
                name,
                small_study.write_notebook(tmp_path, name, body).read_text(),
                {"profile": "quick", "seeds": [0]},
                small,
                small_study.stages_for(name, small, [0]),
            )
            for name in small_study.NOTEBOOKS[:count]
        ]
        if how == "ordinary":  # no warm process
            for stage in closure(pages):
                run_stage(stage, home)
        else:
            outcomes = run_stages(pages, home, workers=1, board=quiet)
            assert {outcome.status for outcome in outcomes.values()} == {"done"}, outcomes
        said[how] = [files.read_json(page.folder(home) / "results.json")["said"] for page in pages]
        assert [lines.pop() for lines in said[how]] == [str(how != "ordinary")] * count
    assert said["copies"][0] == said["copies"][1] == said["fresh"][0] == said["ordinary"][0]
    assert "False 1.5" in said["copies"][1]  # the second kernel has no mark of the first


# --- none outlives who asked for it ------------------------------------------------------------------------


def ask(connection: Connection) -> None:
    """Ask for a child that lives long, and live long oneself."""
    child, below = call(warm.ours, "live")
    connection.send([os.getpid(), below.recv()])
    child.wait()


def live(connection: Connection) -> None:
    """With a child of one's own, until the warm process ends."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        connection.send([os.getpid(), process.pid])
        warm.ours.connection.poll(None)
        process.kill()


@pytest.mark.fault(
    "workers: one is killed (SIGKILL) that has started others",
    sees="its exit status; what it started ends too",
    keeps="the other workers",
)
def test_what_a_killed_copy_asked_for_is_killed_with_its_children(start):
    process = start()
    child, connection = call(process, "ask")
    other, connection_of_other = call(process, "live")
    asked, below = connection.recv()
    assert all(map(runs, below))
    os.kill(asked, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    patience.until(lambda: not any(map(runs, below)), "the end of what it asked for")
    assert other.poll() is None
    child.send_signal(signal.SIGTERM)  # to what has ended: nothing happens
    other.terminate()
    assert other.wait() == -signal.SIGTERM
    left = connection_of_other.recv()
    patience.until(lambda: not any(map(runs, left)), "the end of the other and its child")


@pytest.mark.fault(
    "workers: SIGKILL to the process that started them",
    sees="nothing of it runs on",
    keeps="not looked at by the test",
)
def test_nothing_outlives_the_process_that_started_it(tmp_path):
    code = f"""
import os, signal
from pathlib import Path
import test_warm
from clipvip_lib.workshop import warm
folder = Path({str(tmp_path)!r})
process = warm.Warm([], dict(os.environ), folder / "warm.log")
_, connection = test_warm.call(process, "ask")
asked, below = connection.recv()
print(process.process.pid, asked, *below, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    left = list(map(int, done.stdout.split()))
    assert done.returncode == -signal.SIGKILL and len(left) == 4, done.stderr
    patience.until(lambda: not any(map(runs, left)), "the end of the warm process and its copies")


def test_a_dead_warm_process_is_an_error_and_ends_at_once(start):
    process = start()
    child, connection = call(process, "live")
    left = connection.recv()
    process.process.kill()
    process.process.wait()
    with pytest.raises(warm.ENDED):
        child.wait()
    with pytest.raises(warm.ENDED):
        call(process, "live")
    patience.until(lambda: not any(map(runs, left)), "the end of its copy")


def test_it_is_ended_while_it_imports(start, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "takes_long.py").write_text(
        "import pathlib, time\npathlib.Path(__file__).with_suffix('.seen').touch()\ntime.sleep(600)\n"
    )
    process = start("takes_long")
    patience.until((tmp_path / "takes_long.seen").exists, "the start of the import", process.process)
    process.end()
    assert process.process.returncode == -signal.SIGTERM
