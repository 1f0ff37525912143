"""``clipvip train`` in one process: with flat weights the same, resumed bit for bit; sentences for what is wrong."""

import json
import os
import signal
import sys

import caption_corpus
import numpy as np
import pytest
import small_runs
import torch
from small_runs import SMALL, settings

from clipvip_lib import cli, retrieval
from clipvip_lib.data import corpora
from clipvip_lib.data.frames import FrameStore
from clipvip_lib.models.checkpoints import load_checkpoint
from clipvip_lib.models.clip_tokenizer import ClipTokenizer
from clipvip_lib.models.clip_vip import ClipViP
from clipvip_lib.training import run as training_run
from clipvip_lib.training.batches import Pairs, StoreBatches, Tokens
from clipvip_lib.training.evaluation import encode_pairs, encode_store
from clipvip_lib.training.ranks import Ranks
from clipvip_lib.training.recipes import MAX_LOGIT_SCALE, get_recipe
from clipvip_lib.training.run_folder import RunFolder, read_metrics
from clipvip_lib.training.stores import read_stores


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model and shards; the frame store is written by the first test that wants it."""
    folder = tmp_path_factory.mktemp("made")
    small_runs.write_model(folder / "model")
    return folder, small_runs.write_shards(folder / "shards")


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def options(made, out, *more, store=True, **changes):
    folder, pattern = made
    source = ["--frames-store", str(folder / "store")] if store else []
    given = ["--stage", "postpretrain", "--shards", pattern, "--weights", str(folder / "model"), *source]
    return ["train", *given, "--out", str(out), *more, *settings(**changes)]


def stored_pairs(folder, recipe, tokenizer):
    stores = sorted((folder / "store").glob("*.npy"))
    return read_stores(
        stores, lambda name: folder / f"shards/{name}.captions.jsonl", "V-S,C + F-C", tokenizer, recipe, 24
    )


def weights(out, name="model"):
    return (out / name / "model.safetensors").read_bytes()


def rows(out):
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "waited", "clips_per_second")}
        for row in read_metrics(out / "metrics.jsonl")
    ]


def interrupt_after(monkeypatch, step):
    """SIGTERM to this process while it reports a step."""
    report = training_run._Shown.report

    def interrupting(self, row):
        report(self, row)
        if row["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(training_run._Shown, "report", interrupting)


# ----------------------------------------------------------------------------------------------------- whole runs


def test_a_run_leaves_a_model_that_every_loader_reads(made, tmp_path, capsys):
    assert cli.main(options(made, tmp_path / "a", "--snapshots", "2,4")) == 0
    said = capsys.readouterr()
    assert "train 6/6" in said.err and "Writing model" not in said.err  # our bar, none of transformers
    result = json.loads(said.out)
    assert (result["steps"], result["ranks"], result["clips_a_step"]) == (6, 1, 8)
    model, report = load_checkpoint(tmp_path / "a/model")
    assert not report.added
    assert isinstance(ClipViP.from_pretrained(tmp_path / "a/model"), ClipViP)
    assert (
        ClipTokenizer.load(tmp_path / "a/model/clip_tokenizer.json").vocab_size
        == model.config.text_config.vocab_size
    )
    assert (
        weights(tmp_path / "a", "step-000002")
        != weights(tmp_path / "a", "step-000004")
        != weights(tmp_path / "a")
    )
    assert [row["step"] for row in rows(tmp_path / "a")] == [1, 2, 3, 4, 5, 6]
    assert not list((tmp_path / "a").glob("*.pt"))
    assert not list((tmp_path / "a").glob("*.partial"))
    before = weights(tmp_path / "a")
    assert cli.main(options(made, tmp_path / "a")) == 0  # done: says so and trains nothing
    again = capsys.readouterr()
    assert json.loads(again.out) == result and "a was finished before: nothing is trained" in again.err
    assert weights(tmp_path / "a") == before
    assert cli.main(options(made, tmp_path / "a", lr=5e-4)) == 2
    assert "holds the result of another run" in capsys.readouterr().err


@pytest.mark.parametrize("changes", ({}, {"chunk": 3}))
def test_flat_weights_are_the_same_steps(made, tmp_path, changes):
    """Another optimiser's layout: a few flat tensors for hundreds."""
    models = []
    for name, flat in (("a", False), ("b", True)):
        line = options(made, tmp_path / name, reduction="mean", clip_norm=1.0, flat=flat, **changes)
        assert cli.main(line) == 0
        trained, _ = load_checkpoint(tmp_path / name / "model")
        assert trained.config.antialias is False  # the recipe's, for who embeds with it
        models.append(trained.state_dict())
    for name, expected in models[0].items():
        torch.testing.assert_close(models[1][name], expected, rtol=1e-4, atol=2e-5, msg=name)
    for a, b in zip(rows(tmp_path / "a"), rows(tmp_path / "b"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["lr"] == b["lr"]


@pytest.mark.parametrize(
    "changes", ({"chunk": 3}, {"checkpointing": True}, {"chunk": 2, "checkpointing": True})
)
def test_what_saves_memory_changes_nothing(made, tmp_path, changes):
    assert cli.main(options(made, tmp_path / "a")) == 0
    assert cli.main(options(made, tmp_path / "b", **changes)) == 0
    for a, b in zip(rows(tmp_path / "a"), rows(tmp_path / "b"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)


# ------------------------------------------------------------------------------------------------------- resuming


@pytest.mark.fault(
    "train: SIGTERM",
    sees="`stopped by SIGTERM: all ranks finished their step`, exit code 143",
    keeps="the checkpoint; resumed, weights and log equal an undisturbed run's",
)
@pytest.mark.parametrize("store", (True, False), ids=("store", "stream"))
def test_stopped_by_sigterm_and_resumed_is_the_same_bit_for_bit(made, tmp_path, monkeypatch, capsys, store):
    assert cli.main(options(made, tmp_path / "whole", store=store)) == 0
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        handler = signal.getsignal(signal.SIGTERM)
        assert cli.main(options(made, tmp_path / "a", store=store)) == 128 + signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is handler
    said = capsys.readouterr().err
    assert said.count("stopped by SIGTERM: all ranks finished their step") == 1
    assert (tmp_path / "a/checkpoint.pt").exists()
    assert not (tmp_path / "a/model").exists()
    with (tmp_path / "a/metrics.jsonl").open(
        "a"
    ) as file:  # rows after the checkpoint, the last one cut by a kill
        file.write('{"step": 4, "loss": 0.0}\n{"step": 5, "lo')
    assert cli.main(options(made, tmp_path / "a", store=store)) == 0
    assert weights(tmp_path / "a") == weights(tmp_path / "whole")
    assert rows(tmp_path / "a") == rows(tmp_path / "whole")


@pytest.mark.fault(
    "train: half of the checkpoint is left",
    sees="`or half of it; remove it to start from scratch`, exit code 2",
    keeps="the run: with the whole file back, it resumes",
)
def test_a_checkpoint_of_another_run_or_half_of_one_is_refused(made, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        assert cli.main(options(made, tmp_path)) == 143
    capsys.readouterr()
    for more, changes, what in (
        ((), {"lr": 5e-4}, "recipe.lr was 0.001 and is 0.0005"),
        (("--seed", "3"), {}, "seed was 0 and is 3"),
        (("--loss", "V-S"), {}, "loss was 'V-S,C + F-C' and is 'V-S'"),
    ):
        assert cli.main(options(made, tmp_path, *more, **changes)) == 2
        error = capsys.readouterr().err
        assert "cannot resume from" in error
        assert what in error
    content = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(content[: len(content) // 2])
    assert cli.main(options(made, tmp_path)) == 2
    assert "or half of it; remove it to start from scratch" in capsys.readouterr().err
    (tmp_path / "checkpoint.pt").write_bytes(content)
    assert cli.main(options(made, tmp_path, chunk=3)) == 0  # what is free to change


# ----------------------------------------------------------------------------------------------------- fine-tuning


def test_finetuning_chooses_on_validation_and_scores_test_once(made, tmp_path, capsys):
    folder, _ = made
    corpora.write_benchmark(
        tmp_path / "set", "didemo", 0, {"train": 16, "val": 4, "test": 8}, lambda *_: None
    )
    given = ["train", "--stage", "finetune", "--benchmark", "didemo", "--data", str(tmp_path / "set")]
    given += ["--weights", str(folder / "model"), "--out", str(tmp_path / "a")]
    assert cli.main([*given, *settings(steps=0, epochs=4)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 8  # 4 passes over 16 clips in batches of 8
    scores = {row["step"]: row["score"] for row in result["evaluations"]}
    assert sorted(scores) == [3, 5, 8]
    assert result["best_step"] == max(scores, key=lambda step: (scores[step], step))
    assert set(result["test"]) == {"simple", "dsl (transductive)"}
    assert result["test"]["simple"]["text_to_video"]["queries"] == 8
    with np.load(tmp_path / "a/ranks.npz") as kept:
        for said, scoring in (("simple", "simple"), ("dsl (transductive)", "dsl")):
            for direction in retrieval.DIRECTIONS:
                columns = [kept[f"{direction}/{scoring}/{name}"] for name in ("better", "tied", "positives")]
                told = retrieval.metrics(retrieval.QueryRanks(*columns))
                assert result["test"][said][direction] == told
    # the stored model is the one that was scored
    model, _ = load_checkpoint(tmp_path / "a/model")
    store = FrameStore(sorted((tmp_path / "a/frames").glob("test-*.npy")))
    assert len(store) == 8
    video = encode_store(model, store, 3, precision="float32")
    assert np.allclose(np.linalg.norm(video, axis=1), 1, atol=1e-5)
    assert cli.main([*given, "--loss", "V-S,C"]) == 2
    assert "expected the loss V-S" in capsys.readouterr().err


@pytest.mark.fault(
    "train: SIGTERM in fine-tuning, between evaluations",
    sees="exit code 143",
    keeps="the evaluations and the best step; resumed, the weights equal an undisturbed run's",
)
def test_a_finetuning_that_was_stopped_keeps_its_evaluations(made, tmp_path, monkeypatch):
    folder, _ = made
    corpora.write_benchmark(tmp_path / "set", "msrvtt", 0, {"train": 8, "val": 4, "test": 4}, lambda *_: None)
    given = ["train", "--stage", "finetune", "--benchmark", "msrvtt", "--data", str(tmp_path / "set")]
    given += ["--weights", str(folder / "model"), "--frames-store", str(tmp_path / "store"), *settings()]
    # The first score is made the best: a run that forgot it would end with other weights.
    evaluated = RunFolder.evaluated
    monkeypatch.setattr(
        RunFolder, "evaluated", lambda self, step, score, net: evaluated(self, step, score - 1000 * step, net)
    )
    assert cli.main([*given, "--out", str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        assert cli.main([*given, "--out", str(tmp_path / "a")]) == 128 + signal.SIGTERM
    assert cli.main([*given, "--out", str(tmp_path / "a")]) == 0
    whole, resumed = (
        json.loads((tmp_path / out / "result.json").read_text())["result"] for out in ("whole", "a")
    )
    assert [row["step"] for row in whole["evaluations"]] == [2, 4, 6]
    assert whole["best_step"] == 2
    for name in ("evaluations", "best_step", "test"):
        assert resumed[name] == whole[name]
    assert weights(tmp_path / "a") == weights(tmp_path / "whole")


def test_every_text_belongs_to_its_clip(made, tmp_path):
    folder, _ = made
    model, _ = load_checkpoint(folder / "model")
    tokenizer = ClipTokenizer.load(folder / "model/clip_tokenizer.json")
    texts = Tokens.of(["a ball falls", "it is red", "two blue boxes"], tokenizer)
    frames = np.random.default_rng(0).integers(0, 256, (2, 6, 24, 24, 3), np.uint8)
    np.save(tmp_path / "frames.npy", frames)

    def encoded(rows):
        pairs = Pairs(FrameStore([tmp_path / "frames.npy"]), texts, rows)
        return encode_pairs(model, pairs, 3, Ranks(), precision="float32")

    text, video, owner = encoded([[0, 1], [2]])
    assert (len(text), len(video), owner.tolist()) == (3, 2, [0, 0, 1])
    other, _, owner = encoded([[2], [0, 1]])
    assert owner.tolist() == [0, 1, 1]
    np.testing.assert_allclose(other, text[[2, 0, 1]], atol=1e-5)


def test_a_missing_test_clip_is_refused_or_allowed_and_the_score_says_so(made, tmp_path, capsys):
    folder, _ = made
    clips = {"train": 8, "val": 4, "test": 4}
    corpora.write_benchmark(tmp_path / "set", "msrvtt", 0, clips, lambda *_: None)
    (tmp_path / "set/videos/video13.mp4").unlink()
    given = ["train", "--stage", "finetune", "--benchmark", "msrvtt", "--data", str(tmp_path / "set")]
    given += ["--weights", str(folder / "model"), "--out", str(tmp_path / "a"), *settings(steps=2)]
    assert cli.main(given) == 2
    assert "1 of 4 videos" in (error := capsys.readouterr().err) and "first video13" in error, error
    assert cli.main([*given, "--allow-missing", "1"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["missing"] == ["test without 1 of 4 videos"]
    assert result["test"]["simple"]["text_to_video"]["queries"] == 3


# ---------------------------------------------------------------------------------------------------------- batches


def test_shares_of_ranks_are_the_rows_of_the_whole_batch(made, tmp_path):
    folder, _ = made
    loss, recipe = "V-S,C + F-C", get_recipe("postpretrain", **SMALL)
    tokenizer = ClipTokenizer.load(folder / "model/clip_tokenizer.json")
    if not (folder / "store").exists():
        assert cli.main(options(made, tmp_path, steps=1)) == 0
    pairs = stored_pairs(folder, recipe, tokenizer)
    for step in (0, 5):
        whole = StoreBatches(pairs, loss, 3, 8, 7)(step)
        for size in (1, 2, 4):
            parts = [StoreBatches(pairs, loss, 3, 8, 7, Ranks(rank, size))(step) for rank in range(size)]
            assert torch.equal(torch.cat([part.video for part in parts]), whole.video)
            assert torch.equal(torch.cat([part.frame for part in parts]), whole.frame)
            assert torch.equal(torch.cat([part.caption_mask for part in parts]), whole.caption_mask)
            lengths = torch.cat([part.texts.mask.sum(1) for part in parts])
            assert torch.equal(lengths, whole.texts.mask.sum(1))


# ------------------------------------------------------------------------------------------------------ what is wrong


@pytest.mark.bad_input("train: options that make no sense", says="one sentence, exit code 2")
@pytest.mark.parametrize(
    ("given", "sentence"),
    (
        (["--stage", "postpretrain"], "expected --shards PATTERN or --frames-store DIR, got neither"),
        (
            ["--stage", "finetune", "--benchmark", "didemo"],
            "expected --benchmark NAME and --data DIR; add --data DIR",
        ),
        (
            ["--stage", "finetune", "--benchmark", "msvd", "--data", "d"],
            "no recipe of the authors for 'msvd'",
        ),
        (["--stage", "postpretrain", "--shards", "s", "--data", "d"], "takes no --data"),
        (
            ["--stage", "postpretrain", "--shards", "s", "--loss", "V-SC"],
            "unknown loss 'V-SC'.*did you mean 'V-S,C'",
        ),
        (["--stage", "postpretrain", "--shards", "s", "--recipe", "x"], "unknown recipe 'x'"),
        (["--stage", "postpretrain", "--shards", "s", "--set", "lrs=1"], "unknown recipe field 'lrs'.*'lr'"),
        (
            ["--stage", "postpretrain", "--shards", "s", "--set", "batch=0.5"],
            "'batch' expected int like 1024",
        ),
        (
            ["--stage", "postpretrain", "--shards", "s", "--set", "lr=-1"],
            "'lr' expected a number of 0 or more",
        ),
        (["--stage", "postpretrain", "--shards", "s", "--set", "kept_frames=4"], "at least the 12 frames"),
        (
            ["--stage", "postpretrain", "--shards", "s", "--set", "lr=NaN"],
            "'lr' expected a finite number, got nan",
        ),
        (
            ["--stage", "postpretrain", "--shards", "s", "--seed=-1"],
            "--seed: expected a whole number of at least 0, got '-1'",
        ),
        (
            ["--stage", "postpretrain", "--shards", "s", "--timeout=0"],
            "--timeout expected seconds above 0.*got 0",
        ),
        (
            ["--stage", "postpretrain", "--shards", "s", "--timeout=nan"],
            "--timeout expected seconds.*got nan",
        ),
        (["--stage", "postpretrain", "--shards", "s", "--timeout=-5"], "--timeout expected seconds.*got -5"),
        (
            ["--stage", "postpretrain", "--shards", "s", "--timeout=inf"],
            "--timeout expected seconds.*got inf",
        ),
        (
            ["--stage", "finetune", "--benchmark", "didemo", "--data", "d", "--allow-missing=-1"],
            "--allow-missing: expected a whole number of at least 0, got '-1'",
        ),
        (
            ["--stage", "postpretrain", "--shards", "s", "--recipe", "finetune-msrvtt"],
            "--stage postpretrain expected a recipe of its own, got 'finetune-msrvtt'; name one of postpretrain, ",
        ),
        (
            ["--stage", "finetune", "--benchmark", "didemo", "--data", "d", "--recipe", "postpretrain"],
            "--stage finetune expected a recipe of its own, got 'postpretrain'; name one of finetune-",
        ),
    ),
)
def test_wrong_options_are_one_sentence(tmp_path, capsys, monkeypatch, given, sentence):
    import re

    monkeypatch.chdir(tmp_path)
    (tmp_path / "s").touch()
    assert cli.main(["train", *given, "--weights", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    error = error.removeprefix("clipvip: loading the model\n")
    assert re.search(sentence, error), error
    assert error.count("\n") == 1


@pytest.mark.bad_input(
    "train: the captioner's weights for CLIP's", says="`expected a model of type clip or clip_vip`"
)
def test_the_captioners_weights_are_no_clip(made, tmp_path, capsys):
    line = options(made, tmp_path / "out")
    line[line.index("--weights") + 1] = str(caption_corpus.trained().save(tmp_path / "ofa"))
    assert cli.main(line) == 2
    assert "expected a model of type clip or clip_vip" in capsys.readouterr().err


@pytest.mark.fault(
    "train: the loss is not finite",
    sees="`expected a finite number; lower the learning rate (1e+30)`, exit code 2",
    keeps="not looked at by the test",
)
def test_a_loss_that_is_not_finite_stops_with_a_sentence(made, tmp_path, capsys):
    assert cli.main(options(made, tmp_path, lr=1e30, lr_added=1e30)) == 2
    error = capsys.readouterr().err
    assert "expected a finite number; lower the learning rate (1e+30)" in error


@pytest.mark.bad_input(
    "train: a batch of more clips than a benchmark has",
    says="`all that there are`, before anything is decoded",
)
def test_a_batch_of_more_clips_than_there_are_is_told_before_decoding(made, tmp_path, capsys):
    folder, _ = made
    corpora.write_benchmark(tmp_path / "set", "msrvtt", 0, {"train": 8, "val": 4, "test": 4}, lambda *_: None)
    given = ["train", "--stage", "finetune", "--benchmark", "msrvtt", "--data", str(tmp_path / "set")]
    given += ["--weights", str(folder / "model"), "--out", str(tmp_path / "out"), *settings(batch=9)]
    assert cli.main(given) == 2
    assert "a batch of at most 8 clips, all that there are, got 9" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.npy"))


@pytest.mark.bad_input(
    "train: a cut shard, no frame store, no shard", says="`is damaged`, `holds no frame store; add --shards`"
)
def test_data_that_are_not_there_or_damaged_are_named(made, tmp_path, capsys):
    folder, _ = made
    shard = tmp_path / "00000.tar"
    shard.write_bytes((folder / "shards/00000.tar").read_bytes()[:40_000])
    given = [
        "train",
        "--stage",
        "postpretrain",
        "--weights",
        str(folder / "model"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert (
        cli.main([*given, "--shards", str(shard), "--frames-store", str(tmp_path / "store"), *settings()])
        == 2
    )
    assert "00000.tar is damaged" in capsys.readouterr().err
    assert cli.main([*given, "--frames-store", str(tmp_path / "nothing"), *settings()]) == 2
    assert "holds no frame store; add --shards" in capsys.readouterr().err
    assert cli.main([*given, "--shards", str(tmp_path / "x.tar"), *settings()]) == 2
    assert "x.tar" in capsys.readouterr().err


def test_a_store_that_was_decoded_otherwise_is_refused(made, tmp_path, capsys):
    assert cli.main(options(made, tmp_path / "a")) == 0
    capsys.readouterr()
    assert cli.main(options(made, tmp_path / "b", kept_frames=6)) == 2
    assert (
        "was decoded with {'frames': 5, 'size': 24, 'antialias': False}, expected" in capsys.readouterr().err
    )


def test_tensorboard_that_is_not_installed_is_one_sentence(made, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not, where it is
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    assert cli.main(options(made, tmp_path, "--tensorboard")) == 2
    assert "expected the package tensorboard, it is not installed" in capsys.readouterr().err


def test_show_prints_every_value_with_its_source(tmp_path, capsys):
    given = ["--stage", "postpretrain", "--shards", "s", "--weights", "w", "--out", str(tmp_path), "--show"]
    assert cli.main(["train", *given, "--set", "batch=256"]) == 0
    fields = json.loads(capsys.readouterr().out)["fields"]
    assert fields["batch"] == {"value": 256, "source": "--set"}
    assert fields["lr"]["value"] == 5e-6
    assert "XPretrain" in fields["lr"]["source"]


def test_show_prints_what_no_recipe_changes_and_a_training_uses_it(made, tmp_path, monkeypatch, capsys):
    assert cli.main(options(made, tmp_path, "--show")) == 0
    fixed = json.loads(capsys.readouterr().out)["fixed"]
    assert all("XPretrain" in row["source"] for row in fixed.values())
    interrupt_after(monkeypatch, 1)
    assert cli.main(options(made, tmp_path)) == 143
    groups = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["optimizer"]["param_groups"]
    assert groups
    for group in groups:
        assert [*group["betas"], group["eps"]] == [*fixed["betas"]["value"], fixed["eps"]["value"]]
    assert fixed["largest logit_scale"]["value"] == MAX_LOGIT_SCALE
