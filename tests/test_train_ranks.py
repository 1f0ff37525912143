"""``clipvip train`` under torchrun: as one rank, stopped, killed, resumed; a failure ends all with one message."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import patience
import psutil
import pytest
import small_runs
from small_runs import finish, settings, torchrun, train
from test_children import lives

from clipvip_lib import cli
from clipvip_lib.data import corpora
from clipvip_lib.data.corpora import write_shard
from clipvip_lib.data.shards import expand, read_shard
from clipvip_lib.progress import quiet
from clipvip_lib.streams.sidecars import sidecar_path, write_sidecar
from clipvip_lib.training.run_folder import read_metrics

pytestmark = pytest.mark.slow
STEPS = 90  # of runs that are interrupted: seconds
ANSWER = "3600"  # seconds for which a lost rank is waited: a test that waits so long has failed before, see patience.py
LONG = {"steps": STEPS, "save_minutes": 0.0}


class Made:
    """Model, data, and the runs of two ranks that other tests compare with."""

    def __init__(self, folder: Path):
        self.folder = folder
        small_runs.write_model(folder / "model")
        self.pattern = small_runs.write_shards(folder / "shards")
        corpora.write_benchmark(folder / "set", "msrvtt", 0, {"train": 16, "val": 4, "test": 8}, quiet)
        self.write_bare_shards()
        listed = folder / "set/MSRVTT_JSFUSION_test.csv"  # seven: not divisible by two ranks
        listed.write_text("".join(listed.read_text().splitlines(keepends=True)[:-1]))
        (folder / "damaged").mkdir()
        for number, cut in enumerate((None, 40_000)):
            content = (folder / "shards/00000.tar").read_bytes()[:cut]
            (folder / f"damaged/{number}.tar").write_bytes(content)

    def write_bare_shards(self) -> None:
        """The same shards without key.txt, as HD-VILA's, with texts and captions beside."""
        bare = self.folder / "bare"
        bare.mkdir()
        for shard in expand(self.pattern):
            samples = list(read_shard(shard))
            written = [{"__key__": s.key, "mp4": s.media, "json": json.dumps(s.about)} for s in samples]
            write_shard(bare / shard.name, written)
            texts = ((s.key, s.text) for s in samples)
            write_sidecar(sidecar_path(bare / shard.name, "texts"), "texts", texts)
            shutil.copy(sidecar_path(shard, "captions"), bare)

    def options(self, out: str, *more: str, store: bool = True, **changes) -> list[str]:
        source = ["--frames-store", self.folder / "store"] if store else []
        given = [
            "--stage",
            "postpretrain",
            "--shards",
            self.pattern,
            "--weights",
            self.folder / "model",
            *source,
        ]
        return [*map(str, [*given, "--out", self.folder / out, *more]), *settings(**changes)]

    def finetune(self, out: str) -> list[str]:
        given = ["--stage", "finetune", "--benchmark", "msrvtt", "--data", self.folder / "set"]
        given += ["--weights", self.folder / "model", "--out", self.folder / out]
        return [*map(str, given), *settings()]

    def runs(self, name: str, ranks: int, runs: dict[str, list[str]]) -> dict[str, list[dict]]:
        """Runs in one start of as many ranks (rank_runs.py); how each ended on each rank."""
        told = self.folder / f"{name}.json"
        told.write_text(json.dumps(runs))
        entry = small_runs.CHECKOUT / "tests/rank_runs.py"
        finish(torchrun(ranks, *small_runs.BEFORE, entry, self.folder, told))
        return {
            run: [json.loads((self.folder / f"{run}.{rank}.json").read_text()) for rank in range(ranks)]
            for run in runs
        }

    def weights(self, out: str) -> bytes:
        return (self.folder / out / "model/model.safetensors").read_bytes()

    def losses(self, out: str) -> list[float]:
        return [row["loss"] for row in read_metrics(self.folder / out / "metrics.jsonl")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Made(tmp_path_factory.mktemp("runs"))


def interrupted(made, out: str, send: int, ranks: int = 2, **how) -> str:
    """Start some ranks, send a signal to the last one after some steps, wait until all have ended; what was said."""
    process = train(ranks, *made.options(out, "--timeout", ANSWER, **LONG, **how))
    rows = made.folder / out / "metrics.jsonl"
    try:
        patience.until(lambda: len(read_metrics(rows)) >= 5, "five steps", process)
        os.kill(pid_of_rank(process.pid, ranks - 1), send)
        _, err = finish(process, code=1)
    finally:
        patience.kill(process.pid)
    assert len(read_metrics(rows)) < STEPS, "the run was over before the signal came"
    return err


def pid_of_rank(torchrun_pid: int, rank: int) -> int:
    for child in small_runs.children(torchrun_pid):
        if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0"):
            return child
    raise AssertionError(f"no rank {rank} under {torchrun_pid}")


@pytest.mark.fault(
    "train: torchrun is killed (SIGKILL), its ranks are left",
    sees="`clipvip: torchrun, which started this rank, is gone: the ranks end`, within 10 seconds",
    keeps="nothing that looks finished: no result.json",
)
@pytest.mark.thorough
def test_ranks_notice_that_torchrun_was_killed_and_the_run_can_go_on(made):
    """33 seconds were seen, to the end of the run; they end within ten, and the next start resumes."""
    steps = 4 * STEPS  # far from their end ten seconds later
    process = train(2, *made.options("orphaned", "--timeout", ANSWER, **LONG | {"steps": steps}))
    rows = made.folder / "orphaned/metrics.jsonl"
    try:
        patience.until(lambda: len(read_metrics(rows)) >= 5, "five steps", process)
        ranks = [psutil.Process(pid_of_rank(process.pid, rank)) for rank in range(2)]
        process.kill()
        start = time.monotonic()
        patience.until(
            lambda: not any(map(lives, ranks)), "the end of the ranks", *(rank.pid for rank in ranks)
        )
        took = time.monotonic() - start
    finally:
        for rank in ranks:
            patience.kill(rank.pid)
    _, err = process.communicate()
    assert took < 10 and len(read_metrics(rows)) < steps
    assert err.count("clipvip: torchrun, which started this rank, is gone: the ranks end") == 1
    assert "Traceback" not in err and not (made.folder / "orphaned/result.json").exists()


@pytest.fixture(scope="module")
def stopped(made):
    return interrupted(made, "stopped", signal.SIGTERM)


@pytest.fixture(scope="module")
def two(made, stopped):
    """Every kind of run on two ranks, in one start of them; the interrupted one resumes."""
    shutil.copytree(made.folder / "stopped", made.folder / "before")
    bare = made.options("two-texts", "--texts", store=False)
    bare[bare.index("--shards") + 1] = f"{made.folder}/bare"
    damaged = made.options("two-damaged", "--loss", "V-S")
    damaged[damaged.index("--shards") + 1] = f"{made.folder}/damaged/{{0..1}}.tar"
    damaged[damaged.index("--frames-store") + 1] = f"{made.folder}/damaged-store"
    return made.runs(
        "two",
        2,
        {
            "stopped": made.options("stopped", **LONG),
            "two-long": made.options("two-long", steps=STEPS),
            "two-store": made.options("two-store"),
            "two-stream": made.options("two-stream", store=False),
            "two-texts": bare,
            "two-finetune": made.finetune("two-finetune"),
            "two-infinite": made.options("two-infinite", lr=1e30, lr_added=1e30),
            "two-odd": made.options("two-odd", batch=7),
            "two-flat": made.options("two-flat", flat=True),
            "two-damaged": damaged,
        },
    )


def test_two_ranks_train_as_one_does(made, two):
    assert two["two-store"] == [{"error": "", "message": ""}] * 2
    assert cli.main(["train", *made.options("one-store")]) == 0
    assert made.losses("two-store") == pytest.approx(made.losses("one-store"), rel=1e-4)


def test_uneven_shards_keep_nobody_waiting_and_samples_are_counted(made, two):
    """16 and 8 clips; 48 are asked for: two whole passes of what each rank is dealt."""
    assert two["two-stream"] == [{"error": "", "message": ""}] * 2
    counts = json.loads((made.folder / "two-stream/result.json").read_text())["result"]["samples_by_rank"]
    assert [count["samples"] for count in counts] == [24, 24]


def test_texts_beside_the_shards_are_those_inside_them(made, two):
    assert two["two-texts"] == [{"error": "", "message": ""}] * 2
    assert made.weights("two-texts") == made.weights("two-stream")


def test_finetuning_scores_a_test_split_that_is_not_divisible_as_one_rank_does(made, two):
    assert two["two-finetune"] == [{"error": "", "message": ""}] * 2
    assert cli.main(["train", *made.finetune("one-finetune")]) == 0
    one, both = (
        json.loads((made.folder / out / "result.json").read_text())["result"]
        for out in ("one-finetune", "two-finetune")
    )
    assert one["test"]["simple"]["text_to_video"]["queries"] == 7
    assert both["test"] == one["test"]
    assert both["evaluations"] == one["evaluations"]


@pytest.mark.fault(
    "train: one of two ranks fails on a damaged shard",
    sees="`1.tar is damaged` on that rank; the other one ends too",
    keeps="not looked at by the test",
)
def test_failures_of_all_or_one_rank_end_all_with_the_reason(two):
    assert [end["error"] for end in two["two-infinite"]] == ["ClipVipError"] * 2
    assert all(
        "expected a finite number; lower the learning rate" in end["message"] for end in two["two-infinite"]
    )
    assert all("a multiple of 2 ranks, got 7" in end["message"] for end in two["two-odd"])
    assert all("flat weights expected one rank, got 2" in end["message"] for end in two["two-flat"])
    failed, other = sorted(two["two-damaged"], key=lambda end: end["error"])
    assert "1.tar is damaged" in failed["message"]
    assert other["error"] == "StoppedElsewhere"


@pytest.mark.fault(
    "train: SIGTERM to one of two ranks",
    sees="`clipvip: stopped by SIGTERM: all ranks finished their step`",
    keeps="the checkpoint and the log",
)
def test_sigterm_to_one_rank_stops_all_after_a_step_with_a_checkpoint(made, stopped, two):
    assert stopped.count("clipvip: stopped by SIGTERM: all ranks finished their step") == 1
    assert "exitcode  : 143" in stopped
    left = sorted(path.name for path in (made.folder / "before").iterdir())  # a copy, taken before it resumed
    assert left == ["checkpoint.pt", "metrics.jsonl"]


def loads_torch(pid: int) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.fault(
    "train: a rank is killed (SIGKILL) before the first step",
    sees="`; no checkpoint was written yet`",
    keeps="nothing, and nothing else is promised",
)
def test_a_rank_that_is_killed_before_the_first_step_leaves_no_promise_of_a_checkpoint(made):
    """Whether a lost connection or torchrun's signal comes first, amid an import or later, none is promised."""
    process = train(2, *made.options("early", steps=100_000, save_minutes=1e6))
    try:
        patience.until((made.folder / "early").is_dir, "the run's folder", process)  # then there are ranks
        ranks = [pid_of_rank(process.pid, rank) for rank in range(2)]
        patience.until(lambda: all(map(loads_torch, ranks)), "torch", process)
        os.kill(ranks[1], signal.SIGKILL)
        _, err = finish(process, code=1)
    finally:
        patience.kill(process.pid)
    assert err.count("; no checkpoint was written yet") == 1
    assert "torchrun's report" in err and "what was done is kept" not in err


@pytest.mark.fault(
    "train: the run that SIGTERM stopped is started again",
    sees="no error",
    keeps="the end: weights and losses equal an undisturbed run's bit for bit",
)
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(made, two):
    assert two["two-long"] == two["stopped"] == [{"error": "", "message": ""}] * 2
    assert made.weights("stopped") == made.weights("two-long")
    assert made.losses("stopped") == made.losses("two-long")


@pytest.mark.fault(
    "train: one of two ranks is killed (SIGKILL), and the run is started again",
    sees="`one of them died or gave no answer within`",
    keeps="the checkpoint, which the message names; the end equals an undisturbed run's bit for bit",
)
@pytest.mark.thorough
def test_a_killed_rank_stops_the_other_and_the_resumed_run_ends_the_same(made, two):
    err = interrupted(made, "killed", signal.SIGKILL)
    lost = f"clipvip: expected 2 ranks, one of them died or gave no answer within {ANSWER} s"
    assert err.count(lost) == 1
    assert re.search(r"start the same command again; \S+/killed/checkpoint.pt of step \d+ is kept", err)
    assert "Signal 9 (SIGKILL) received" in err  # torchrun's report, which names the rank
    assert made.runs("again", 2, {"killed": made.options("killed", **LONG)})["killed"] == two["two-long"]
    assert made.weights("killed") == made.weights("two-long")
    assert made.losses("killed") == made.losses("two-long")


def test_on_another_number_of_ranks_the_batches_are_the_same(made, two):
    """The first steps agree to rounding; then rounding grows, as it does with another number of threads."""
    done = len(read_metrics(made.folder / "before/metrics.jsonl"))
    shutil.copytree(made.folder / "before", made.folder / "fewer")
    assert cli.main(["train", *made.options("fewer", **LONG)]) == 0
    one, both = made.losses("fewer"), made.losses("two-long")
    assert one[:done] == both[:done]
    assert one[done : done + 10] == pytest.approx(both[done : done + 10], rel=1e-3)
    assert len(one) == STEPS


@pytest.mark.fault(
    "train: one of four ranks is killed (SIGKILL), on uneven shards",
    sees="`one of them died or gave no answer within`; torchrun's report says `Signal 9 (SIGKILL) received`",
    keeps="the checkpoint, which the message names; resumed, each rank has seen the number of samples that it should",
)
@pytest.mark.thorough
def test_one_of_four_ranks_is_killed_on_uneven_shards_and_the_run_goes_on(made):
    """Two shards of 16 and 8 clips, shared sample by sample: 6 clips per rank and epoch."""
    err = interrupted(made, "four-killed", signal.SIGKILL, ranks=4, store=False)
    lost = f"clipvip: expected 4 ranks, one of them died or gave no answer within {ANSWER} s"
    assert err.count(lost) == 1
    assert re.search(r"start the same command again; \S+/four-killed/checkpoint.pt of step \d+ is kept", err)
    assert "Signal 9 (SIGKILL) received" in err  # torchrun's report, which names the rank
    before = len(read_metrics(made.folder / "four-killed/metrics.jsonl"))
    done = made.runs(
        "four",
        4,
        {
            "four-killed": made.options("four-killed", store=False, **LONG),
            "four-whole": made.options("four-whole", store=False, **LONG),
        },
    )
    assert done == dict.fromkeys(("four-killed", "four-whole"), [{"error": "", "message": ""}] * 4)
    # Not bit for bit, as with two: DDP averages in another order in the first step of each start.
    killed, whole = made.losses("four-killed"), made.losses("four-whole")
    assert killed[:before] == whole[:before] and len(killed) == len(whole) == STEPS
    assert killed[before : before + 10] == pytest.approx(whole[before : before + 10], rel=1e-3)
    counts = json.loads((made.folder / "four-killed/result.json").read_text())["result"]["samples_by_rank"]
    assert [count["samples"] for count in counts] == [2 * STEPS] * 4
