"""What ``clipvip train`` takes for the same run: the content of its data, a store of its own shards, a whole result."""

import json
import os
import re
import shutil
import signal

import numpy as np
import pytest
import small_runs
import torch
from small_runs import settings

from clipvip_lib import cli
from clipvip_lib.data import corpora
from clipvip_lib.data.shards import expand, read_shard
from clipvip_lib.streams.sidecars import sidecar_path
from clipvip_lib.training import loop, ranks, run, stores
from clipvip_lib.training.ranks import RankLost, Ranks
from clipvip_lib.training.run_folder import alone, read_metrics


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model, a corpus of two shards, another one whose shards and clips have the same names, and a benchmark."""
    folder = tmp_path_factory.mktemp("made")
    small_runs.write_model(folder / "model")
    small_runs.write_shards(folder / "a", (2, 1))
    (folder / "b").mkdir()
    for shard in expand(folder / "a"):
        written = [
            {"__key__": s.key, "mp4": s.media, "txt": s.text.encode() * 99, "json": json.dumps(s.about)}
            for s in read_shard(shard)
        ]
        corpora.write_shard(folder / "b" / shard.name, written)
        shutil.copy(sidecar_path(shard, "captions"), folder / "b")
    corpora.write_benchmark(folder / "set", "msrvtt", 0, {"train": 8, "val": 4, "test": 4}, lambda *_: None)
    return folder


def post(made, corpus, out, *more, **changes):
    given = ["train", "--stage", "postpretrain", "--shards", made / corpus, "--weights", made / "model"]
    return [*map(str, [*given, "--out", out, *more]), *settings(**{"steps": 2} | changes)]


def tune(made, data, out):
    given = ["train", "--stage", "finetune", "--benchmark", "msrvtt", "--data", data, "--out", out]
    return [*map(str, [*given, "--weights", made / "model"]), *settings(steps=2, evaluations=1)]


def told(capsys) -> str:
    """What was said, without the line that every training begins with."""
    return capsys.readouterr().err.removeprefix("clipvip: loading the model\n")


def refused(capsys, line, sentence):
    """The command ends with 2 and one sentence of this kind."""
    capsys.readouterr()
    assert cli.main(line) == 2
    said = [row for row in told(capsys).splitlines() if row.startswith("clipvip:")]
    assert len(said) == 1 and re.search(sentence, said[0]), said


# --------------------------------------------------------------------------------------------------- frame stores


@pytest.mark.bad_input(
    "train: a frame store of another corpus with the same names", says="`give each corpus its own`"
)
def test_a_store_serves_no_other_corpus_with_shards_of_the_same_names(made, tmp_path, capsys):
    kept = ("--frames-store", tmp_path / "store")
    assert cli.main(post(made, "a", tmp_path / "out-a", *kept)) == 0
    refused(capsys, post(made, "b", tmp_path / "out-b", *kept), r"00000\.json.*give each corpus its own")


def test_a_store_of_a_shard_with_an_empty_file_of_a_failed_download_serves_again(made, tmp_path, capsys):
    shutil.copytree(made / "a", tmp_path / "shards")
    second = expand(tmp_path / "shards")[1]
    failed = {
        "__key__": "zz",
        "mp4": b"",
        "txt": b"gone",
        "json": json.dumps({"status": "failed_to_download"}),
    }
    written = [
        {"__key__": s.key, "mp4": s.media, "txt": s.text, "json": json.dumps(s.about)}
        for s in read_shard(second)
    ]
    corpora.write_shard(second, [*written, failed])
    for out in ("one", "two"):
        line = post(made, tmp_path / "shards", tmp_path / out, "--frames-store", tmp_path / "store")
        assert cli.main(line) == 0, told(capsys)
    assert cli.main(post(made, tmp_path / "shards", tmp_path / "stream")) == 0, told(capsys)


@pytest.mark.parametrize("store", (False, True), ids=("stream", "store"))
def test_captions_that_the_loss_does_not_join_are_not_read(made, tmp_path, capsys, store):
    (tmp_path / "captions").mkdir()
    kept = ("--frames-store", tmp_path / "store") if store else ()
    line = post(made, "a", tmp_path / "out", "--loss", "V-S", "--captions", tmp_path / "captions", *kept)
    assert cli.main(line) == 0, told(capsys)


def test_a_store_from_before_sizes_were_kept_is_told_by_its_keys(made, tmp_path, capsys):
    kept = ("--frames-store", tmp_path / "store")
    assert cli.main(post(made, "a", tmp_path / "out-a", *kept)) == 0
    for described in (tmp_path / "store").glob("*.json"):
        found = json.loads(described.read_text())
        del found["bytes"]
        described.write_text(json.dumps(found))
    assert cli.main(post(made, "a", tmp_path / "again", *kept)) == 0
    found["clips"][0]["key"] = "another"
    described.write_text(json.dumps(found))
    refused(capsys, post(made, "a", tmp_path / "b", *kept), "got those of another shard of that name")


@pytest.mark.fault(
    "train: a file of the frame store is gone",
    sees="nothing; it is decoded again",
    keeps="the same file, byte for byte",
)
def test_a_store_that_is_gone_is_decoded_again_and_a_cut_one_is_named(made, tmp_path, capsys):
    kept = ("--frames-store", tmp_path / "store")
    assert cli.main(post(made, "a", tmp_path / "out-a", *kept)) == 0
    store = sorted((tmp_path / "store").glob("*.npy"))[0]
    whole = store.read_bytes()
    store.unlink()
    assert cli.main(post(made, "a", tmp_path / "b", *kept)) == 0
    assert store.read_bytes() == whole
    store.write_bytes(whole[: len(whole) // 2])
    refused(
        capsys, post(made, "a", tmp_path / "c", *kept), r"cannot read the frame store .*npy \(mmap length"
    )
    described = store.with_suffix(".json")
    store.write_bytes(whole)
    found = json.loads(described.read_text())
    np.save(store, np.load(store)[:-1])
    refused(
        capsys,
        post(made, "a", tmp_path / "d", *kept),
        r"npy holds \d+ clips and \d+\.json tells of \d+: expected",
    )
    for clips in (7, [7], [{"key": 1, "text": "a"}], [{"key": "a"}]):
        described.write_text(json.dumps(found | {"clips": clips}))
        refused(
            capsys,
            post(made, "a", tmp_path / "e", *kept),
            "json expected what a frame store holds",
        )


# ----------------------------------------------------------------------------------------------- content of the data


def test_a_run_from_before_flat_weights_is_the_same_run(made, tmp_path, capsys):
    assert cli.main(post(made, "a", tmp_path / "out")) == 0
    assert "recipe.flat" not in json.loads((tmp_path / "out/result.json").read_text())["about"]
    refused(
        capsys, post(made, "a", tmp_path / "out", flat=True), "holds the result of another run .recipe.flat"
    )


def change_texts(data):
    """The same videos with other sentences."""
    path = data / "MSRVTT_data.json"
    found = json.loads(path.read_text())
    for row in found["sentences"]:
        row["caption"] = f"no {row['caption']}"
    path.write_text(json.dumps(found))


def test_a_benchmark_may_move_and_may_not_change(made, tmp_path, capsys):
    data = shutil.copytree(made / "set", tmp_path / "data")
    assert cli.main(tune(made, data, tmp_path / "out")) == 0
    moved = data.rename(tmp_path / "moved")
    assert cli.main(tune(made, moved, tmp_path / "out")) == 0
    path = tmp_path / "out/result.json"
    stored = json.loads(path.read_text())
    change_texts(moved)
    refused(capsys, tune(made, moved, tmp_path / "out"), "holds the result of another run .data's content")
    del stored["about"]["data's content"]  # a run from before it was noted stays the same run
    path.write_text(json.dumps(stored))
    assert cli.main(tune(made, moved, tmp_path / "out")) == 0


@pytest.mark.parametrize("store", (False, True), ids=("stream", "store"))
def test_other_captions_are_another_run_and_moved_ones_are_not(made, tmp_path, capsys, store):
    kept = ("--frames-store", tmp_path / "store") if store else ()
    assert cli.main(post(made, "a", tmp_path / "out", *kept)) == 0
    folder = tmp_path / "captions"
    folder.mkdir()
    for shard in expand(made / "a"):
        shutil.copy(sidecar_path(shard, "captions"), folder)
    line = post(made, "a", tmp_path / "out", *kept, "--captions", folder)
    assert cli.main(line) == 0
    beside = folder / "00000.captions.jsonl"
    beside.write_text(beside.read_text().replace("a picture", "a painting"))
    refused(capsys, line, "holds the result of another run .captions' names and sizes")


# ---------------------------------------------------------------------------------------------- stops and results


@pytest.mark.fault(
    "train: SIGTERM before the first step",
    sees="`checkpoint.pt of step 0 is kept; run the same`, exit code 143",
    keeps="that checkpoint; resumed, the model equals an undisturbed run's",
)
def test_a_stop_before_the_first_step_leaves_the_checkpoint_that_it_names(
    made, tmp_path, monkeypatch, capsys
):
    assert cli.main(post(made, "a", tmp_path / "whole")) == 0

    class StoppedAtOnce(loop.StopSignals):
        def __enter__(self):
            found = super().__enter__()
            os.kill(os.getpid(), signal.SIGTERM)
            return found

    with monkeypatch.context() as patch:
        patch.setattr(loop, "StopSignals", StoppedAtOnce)
        assert cli.main(post(made, "a", tmp_path / "out")) == 143
        assert f"{tmp_path}/out/checkpoint.pt of step 0 is kept; run the same" in capsys.readouterr().err
        assert torch.load(tmp_path / "out/checkpoint.pt", weights_only=True)["step"] == 0
        assert cli.main(post(made, "a", tmp_path / "out")) == 143  # and once more, from it
    assert cli.main(post(made, "a", tmp_path / "out")) == 0
    name = "model/model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.fault(
    "train: SIGTERM while a frame store is decoded",
    sees="`clipvip: stopped by SIGTERM; no checkpoint was written yet; run the same command`, exit code 143",
    keeps="the run can be started again",
)
def test_a_stop_while_stores_are_decoded_is_told_without_a_checkpoint(made, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(stores, "_write", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        assert cli.main(post(made, "a", tmp_path / "out", "--frames-store", tmp_path / "store")) == 143
    said = told(capsys)
    assert said.count("clipvip: ") == 1 and "what was done" not in said
    assert "clipvip: stopped by SIGTERM; no checkpoint was written yet; run the same command" in said
    assert cli.main(post(made, "a", tmp_path / "out", "--frames-store", tmp_path / "store")) == 0


def ends(monkeypatch, error: BaseException) -> None:
    def ending(*_):
        raise error

    monkeypatch.setattr(run, "train_as_told", ending)


@pytest.mark.parametrize(
    ("error", "code", "begins"),
    [
        (SystemExit(143), 143, "stopped by SIGTERM; "),
        (KeyboardInterrupt(), 130, "stopped by SIGINT; "),
        (RankLost("expected 2 ranks"), 1, "expected 2 ranks; "),
    ],
)
def test_what_a_stop_at_any_time_keeps_is_said(made, tmp_path, monkeypatch, capsys, error, code, begins):
    def said_at_the_end() -> str:
        assert cli.main(post(made, "a", tmp_path)) == code
        said = told(capsys)
        assert said.startswith(f"clipvip: {begins}") and said.count("clipvip: ") == 1
        return said

    ends(monkeypatch, error)
    assert "; no checkpoint was written yet" in said_at_the_end()
    (tmp_path / "result.json").write_text("{}")
    assert f"; {tmp_path}/result.json is kept" in said_at_the_end()
    torch.save({"step": 12, "model": {"w": torch.ones(3)}}, tmp_path / "checkpoint.pt")
    assert f"; {tmp_path}/checkpoint.pt of step 12 is kept" in said_at_the_end()
    (tmp_path / "checkpoint.pt").write_bytes(b"half")
    assert f"; {tmp_path}/checkpoint.pt is kept" in said_at_the_end()


@pytest.mark.fault(
    "train: a rank is lost, then torchrun sends SIGTERM (simulated)",
    sees="`clipvip: expected 2 ranks; no checkpoint was written yet`, exit code 1",
    keeps="not looked at by the test",
)
def test_a_signal_in_the_wake_of_a_lost_rank_does_not_take_its_sentence(made, tmp_path, monkeypatch, capsys):
    """torchrun ends the ranks that live on; its signal may come at any moment after the loss."""

    def lost_then_stopped(*_):
        try:
            raise RankLost("expected 2 ranks")
        finally:
            raise SystemExit(143)

    monkeypatch.setattr(run, "train_as_told", lost_then_stopped)
    assert cli.main(post(made, "a", tmp_path)) == 1
    assert told(capsys) == "clipvip: expected 2 ranks; no checkpoint was written yet\n"
    ends(monkeypatch, RankLost("expected 3 ranks"))
    say_once = ranks.say_once
    monkeypatch.setattr(
        ranks, "say_once", lambda *what: (os.kill(os.getpid(), signal.SIGTERM), say_once(*what))
    )
    assert cli.main(post(made, "a", tmp_path)) == 1
    assert told(capsys) == "clipvip: expected 3 ranks; no checkpoint was written yet\n"


def test_an_end_that_is_no_stop_stays_one(made, tmp_path, monkeypatch, capsys):
    ends(monkeypatch, SystemExit(3))
    with pytest.raises(SystemExit) as caught:
        cli.main(post(made, "a", tmp_path))
    assert caught.value.code == 3 and "stopped by" not in told(capsys)


def test_under_torchrun_a_rank_says_who_may_have_sent_the_signal(made, tmp_path, monkeypatch, capsys):
    ends(monkeypatch, SystemExit(143))
    monkeypatch.setattr(ranks, "start", lambda _: Ranks())
    monkeypatch.setenv("RANK", "1")
    assert cli.main(post(made, "a", tmp_path)) == 143
    assert told(capsys) == (
        "clipvip: stopped by SIGTERM, sent by torchrun or another process "
        "(if a rank died, torchrun's report names it); "
        "no checkpoint was written yet; run the same command again to continue\n"
    )
    ends(monkeypatch, KeyboardInterrupt())  # somebody at a terminal, not torchrun
    assert cli.main(post(made, "a", tmp_path)) == 130
    assert "torchrun" not in told(capsys)
    torch.save({"step": 12}, tmp_path / "checkpoint.pt")
    monkeypatch.setattr(ranks, "start", lambda _: os.kill(os.getpid(), signal.SIGTERM))  # not yet joined
    assert cli.main(post(made, "a", tmp_path)) == 143
    assert f"; {tmp_path}/checkpoint.pt is kept; " in told(capsys)


@pytest.mark.fault(
    "train: two runs in one folder",
    sees="`another process is writing to`",
    keeps="the folder; alone, the run can be started",
)
def test_two_runs_at_once_do_not_share_a_folder(made, tmp_path, capsys):
    with alone(tmp_path, Ranks()):
        refused(
            capsys, post(made, "a", tmp_path), "another process is writing to .*expected one run at a time"
        )
        assert list(tmp_path.iterdir()) == []
    assert cli.main(post(made, "a", tmp_path)) == 0


def test_seconds_are_those_of_all_starts(made, tmp_path, monkeypatch):
    own = loop.Step.__call__

    def stopping(step, batch, number):
        if number == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return own(step, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Step, "__call__", stopping)
        assert cli.main(post(made, "a", tmp_path)) == 143
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert len(rows) == 1
    rows[0]["seconds"] = 1000.0  # of the first start
    (tmp_path / "metrics.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert cli.main(post(made, "a", tmp_path)) == 0
    last = read_metrics(tmp_path / "metrics.jsonl")[1]["seconds"]
    seconds = json.loads((tmp_path / "result.json").read_text())["result"]["seconds"]
    assert seconds == pytest.approx(1000 + last, abs=0.01)


@pytest.mark.bad_input(
    "train: a result.json that is none, or whose model is gone",
    says="`expected the result of clipvip train, got other JSON; remove it`",
)
def test_a_result_that_is_none_or_lost_its_model_is_one_sentence(made, tmp_path, capsys):
    line, path = post(made, "a", tmp_path / "out"), tmp_path / "out/result.json"
    assert cli.main(line) == 0
    whole = path.read_text()
    for content in ("{}", "[]", "null", '{"about": {}, "result": null}'):
        path.write_text(content)
        refused(capsys, line, "result.json expected the result of clipvip train, got other JSON; remove it")
    path.write_text(whole)
    shutil.rmtree(tmp_path / "out/model")
    refused(capsys, line, "result.json expected its model in .*out/model, it is gone; put it back, or remove")


@pytest.mark.parametrize("asked", ("999", "-3", "0", "1,3"))
def test_snapshots_that_no_step_writes_are_refused(made, tmp_path, capsys, asked):
    line = post(made, "a", tmp_path / "out", f"--snapshots={asked}")
    refused(capsys, line, "--snapshots:? expected (whole numbers like|numbers of steps from 1 to 2, got)")
    line = post(made, "a", tmp_path / "out", f"--snapshots={asked}", steps=0, samples=16)
    refused(
        capsys,
        line,
        "--snapshots:? expected (whole numbers like|numbers of steps from 1 to (2|the last one), got)",
    )
