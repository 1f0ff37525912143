"""What stages do, on a world of a few clips: files in, files out, numbers that can be checked by hand."""

import json
from dataclasses import asdict

import caption_corpus
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from clipvip_lib.captions.caption_shards import caption_shards
from clipvip_lib.data import corpora
from clipvip_lib.data.shards import read_shard
from clipvip_lib.errors import ClipVipError
from clipvip_lib.profiles import Recipe, get_profile
from clipvip_lib.study import steps

DECODING = {"frames": 4, "size": 16, "antialias": True}


def quiet(done, total, note=""):
    pass


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    for name in ("shard", "msrvtt", "pairs"):
        (folder / name).mkdir()
    steps.write_corpus(
        {"corpus": "hdvila-100m", "seed": 0, "first": 0, "videos": 2}, {}, folder / "shard", quiet
    )
    sizes = {"train": 8, "val": 4, "test": 4}
    steps.write_benchmark({"name": "msrvtt", "seed": 0, "clips": sizes}, {}, folder / "msrvtt", quiet)
    steps.write_images(
        {"name": "caption-pairs", "seed": 0, "first": 0, "count": 5}, {}, folder / "pairs", quiet
    )
    return folder


def test_the_captions_of_a_shard_are_those_of_the_command(tmp_path):
    shard, batches = caption_corpus.write_shard(tmp_path / "shard.tar", 0, 70), []
    captioner = caption_corpus.trained()
    captioner.save(tmp_path / "captioner")
    inputs = {"captioner": tmp_path, "shard": tmp_path}
    result = steps.caption_shard({}, inputs, tmp_path, lambda *row: batches.append(row))
    assert result["captions"] == 70 and batches == [(64, 70, "shard.tar"), (70, 70, "shard.tar")]
    assert caption_corpus.texts(tmp_path / "captions.jsonl") == caption_corpus.expected(0, 70)
    caption_shards([shard], tmp_path / "command", captioner)
    made = (tmp_path / "command" / "shard.captions.jsonl").read_bytes()
    assert (tmp_path / "captions.jsonl").read_bytes() == made

    (tmp_path / "captions.jsonl").unlink()
    caption_corpus.change(shard, "000000069.mp4", b"no video")
    with pytest.raises(ClipVipError, match=r"000000069 of .*shard\.tar"):
        steps.caption_shard({}, inputs, tmp_path, quiet)
    assert not (tmp_path / "captions.jsonl").exists()


def test_a_decoded_shard_keeps_order_keys_and_texts(world, tmp_path):
    result = steps.decode_shard(DECODING, {"shard": world / "shard"}, tmp_path, quiet)
    samples = list(read_shard(world / "shard/shard.tar"))
    assert result == {"clips": 8, "frames": 8 * 5}
    rows = json.loads((tmp_path / "texts.json").read_text())
    assert rows == [{"key": s.key, "text": s.text} for s in samples]
    assert np.load(tmp_path / "frames.npy").shape == (8, 5, 16, 16, 3)


def test_a_decoded_benchmark_has_every_split(world, tmp_path):
    config = {"name": "msrvtt", **DECODING}
    assert steps.decode_benchmark(config, {"benchmark": world / "msrvtt"}, tmp_path, quiet)["clips"] == 16
    for split, count in (("train", 8), ("val", 4), ("test", 4)):
        assert len(np.load(tmp_path / f"{split}.npy")) == count
        assert len(json.loads((tmp_path / f"{split}.json").read_text())) == count
    assert steps._texts(tmp_path, 3) == [
        row["texts"][0] for row in json.loads((tmp_path / "train.json").read_text())[:6:2]
    ]


def test_a_subset_comes_from_its_sources(world, tmp_path):
    result = steps.write_subset({"share": 0.5, "seed": 0}, {"shard-00": world / "shard"}, tmp_path, quiet)
    assert result == {"clips": corpora.CLIPS_PER_VIDEO}


def test_texts_are_read_evenly_from_captions(tmp_path):
    lines = [json.dumps({"key": str(i), "caption": f"c{i}" if i != 4 else ""}) for i in range(11)]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    assert steps._texts(tmp_path, 5) == ["c0", "c2", "c5", "c7", "c9"]


@pytest.mark.parametrize(
    ("text", "first", "every"),
    (
        ("a crimson disc next to a blue star", True, True),
        ("a red circle and a green star", True, False),
        ("a green circle and a red circle", False, False),
        ("on a lawn", False, False),
    ),
)
def test_captions_are_judged_by_the_things_that_they_name(text, first, every):
    judged = steps._named_rightly(text, "blue star + red circle before grass")
    assert judged == {"there": ["blue star", "red circle"], "first_right": first, "all_right": every}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: tests/test_gpu.py trains on it")
def test_every_training_goes_to_the_device_that_it_is_told(world, tmp_path):
    """Without a GPU each ends where its model is moved to one."""
    profile = get_profile("smoke")
    size, recipe = asdict(profile.model), asdict(Recipe(steps=1, batch=4, precision="float32"))
    frames, clip = tmp_path / "frames", tmp_path / "clip"
    frames.mkdir(), clip.mkdir()
    steps.decode_shard(DECODING | {"size": 48}, {"shard": world / "shard"}, frames, quiet)
    told = {"model": size, "recipe": recipe, "seed": 0, "device": "cpu"}
    steps.pretrain_clip(told, {"pairs-0": frames}, clip, quiet)
    arm = told | {
        "attention": "proxy",
        "proxies": 2,
        "group": 4,
        "snapshot": None,
        "snapshots": [],
        "loss": "V-S",
    }
    trainings = {
        steps.pretrain_clip: (told, {"pairs-0": frames}),
        steps.postpretrain: (arm, {"clip": clip, "frames-00": frames}),
        steps.finetune: (arm | {"keep_weights": False}, {"clip": clip}),
        steps.train_captioner: (
            {
                "size": asdict(profile.captioner) | {"batch": 4},
                "seed": 0,
                "device": "cpu",
                "precision": "float32",
            },
            {"pairs": world / "pairs"},
        ),
    }
    for train, (config, inputs) in trainings.items():
        with pytest.raises((AssertionError, RuntimeError), match="CUDA|NVIDIA"):
            train(config | {"device": "cuda"}, inputs, tmp_path, quiet)


def finetuning(world, tmp_path):
    """Configuration and inputs of a fine-tuning of two steps with an evaluation after each."""
    size = asdict(get_profile("smoke").model)
    pairs, decoded = tmp_path / "pairs", tmp_path / "decoded"
    pairs.mkdir(), decoded.mkdir()
    steps.decode_shard(DECODING | {"size": 48}, {"shard": world / "shard"}, pairs, quiet)
    steps.decode_benchmark(
        {"name": "msrvtt", **DECODING, "size": 48}, {"benchmark": world / "msrvtt"}, decoded, quiet
    )
    recipe = asdict(Recipe(steps=2, batch=4, evaluations=2, precision="float32"))
    (tmp_path / "clip").mkdir()
    steps.pretrain_clip(
        {"model": size, "recipe": recipe, "seed": 0, "device": "cpu"},
        {"pairs-0": pairs},
        tmp_path / "clip",
        quiet,
    )
    config = {"model": size, "recipe": recipe, "attention": "proxy", "proxies": 2, "group": 4}
    config |= {"snapshot": None, "keep_weights": True, "seed": 0, "device": "cpu"}
    return config, {"clip": tmp_path / "clip", "frames": decoded}


def test_training_reads_nothing_of_the_test_split(world, tmp_path):
    """Whatever the test split holds, the trained weights, the scores along the way and the choice are the same."""
    config, inputs = finetuning(world, tmp_path)
    decoded, found = inputs["frames"], []
    for name in ("as it is", "another test split"):
        folder = tmp_path / name
        folder.mkdir()
        if found:
            frames = np.load(decoded / "test.npy")
            np.save(decoded / "test.npy", 255 - frames)
            rows = json.loads((decoded / "test.json").read_text())
            for row in rows:
                row["texts"] = ["something else"]
            (decoded / "test.json").write_text(json.dumps(rows))
        result = steps.finetune(config, inputs, folder, quiet)
        found.append((result, load_file(folder / "model" / "model.safetensors")))
        saved = json.loads((folder / "model" / "config.json").read_text())
        assert saved["antialias"] is config["model"]["antialias"] is True  # `clipvip embed` resizes alike
    (before, weights), (after, other) = found
    for key in ("history", "evaluations", "best_step"):
        assert before[key] == after[key]
    assert all(torch.equal(weights[key], other[key]) for key in weights) and set(weights) == set(other)
    assert before["metrics"] != after["metrics"]  # the other split was really read when scoring


@pytest.mark.fault(
    "study: Ctrl-C in fine-tuning, behind an evaluation",
    sees="the next start resumes behind the checkpoint",
    keeps="the evaluations; losses, scores and the choice equal an undisturbed run's",
)
def test_a_finetuning_that_was_killed_behind_an_evaluation_ends_as_an_undisturbed_one(world, tmp_path):
    config, inputs = finetuning(world, tmp_path)
    done = []

    def killed(step, total, note=""):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        steps.finetune(config, inputs, tmp_path / "killed", killed)
    resumed = steps.finetune(config, inputs, tmp_path / "killed", lambda step, *_: done.append(step))
    assert done == [2]
    whole = steps.finetune(config, inputs, tmp_path / "whole", quiet)
    for key in ("history", "evaluations", "best_step", "metrics"):
        assert resumed[key] == whole[key]


def test_the_held_out_loss_is_that_of_the_batch_at_the_start_and_at_each_snapshot(world, tmp_path):
    """One batch of eight clips, by hand: the mean cross-entropy of both directions."""
    from clipvip_lib.data.frames import FrameStore
    from clipvip_lib.models.checkpoints import adapt
    from clipvip_lib.models.clip_tokenizer import ClipTokenizer
    from clipvip_lib.models.clip_vip import ClipViP
    from clipvip_lib.training.weights import save_state

    smoke = get_profile("smoke")
    size = asdict(smoke.model) | {"image_size": 16, "patch_size": 8, "frames": 4}
    for name in ("still", "clip", "frames", "arm", "out"):
        (tmp_path / name).mkdir()
    steps.decode_shard(DECODING | {"frames": 1}, {"shard": world / "pairs"}, tmp_path / "still", quiet)
    recipe = asdict(Recipe(steps=1, batch=4, precision="float32"))
    config = {"model": size, "recipe": recipe, "seed": 0, "device": "cpu"}
    steps.pretrain_clip(config, {"pairs": tmp_path / "still"}, tmp_path / "clip", quiet)
    steps.decode_shard(DECODING, {"shard": world / "shard"}, tmp_path / "frames", quiet)

    clip = ClipViP.from_pretrained(tmp_path / "clip/clip")
    model = adapt(clip, attention="mean_pool", proxies=4, frames=4, seed=0)
    tokenizer = ClipTokenizer.load(tmp_path / "clip/clip/clip_tokenizer.json")
    with torch.no_grad():
        model.logit_scale.add_(1)
    save_state(model.state_dict(), tmp_path / "arm/step-000003.pt")

    config = {
        "model": size, "snapshots": [3], "batch": 8, "like": {"a": "b"}, "seed": 0, "precision": "float32"
    }  # fmt: skip
    inputs = {"clip": tmp_path / "clip", "arm-a": tmp_path / "arm", "frames-b": tmp_path / "frames"}
    rows = steps.held_out_loss(config, inputs, tmp_path / "out", quiet)["rows"]
    assert [(row["corpus"], row["step"], row["clips"]) for row in rows] == [("a", 0, 8), ("a", 3, 8)]

    texts = [row["text"] for row in json.loads((tmp_path / "frames/texts.json").read_text())]
    store = FrameStore([tmp_path / "frames/frames.npy"])
    start = adapt(
        ClipViP.from_pretrained(tmp_path / "clip/clip"), attention="mean_pool", proxies=4, frames=4, seed=0
    )
    for row, each in zip(rows, (start, model), strict=True):
        with torch.no_grad():
            text = each.eval().encode_text(tokenizer(texts)[0], tokenizer(texts)[1])
            video = each.encode_video(torch.from_numpy(store.take(range(8), 4)))
            logits = each.logit_scale.exp() * text @ video.T
            own = torch.arange(8)
            both = (
                torch.nn.functional.cross_entropy(logits, own),
                torch.nn.functional.cross_entropy(logits.T, own),
            )
        assert row["loss"] == pytest.approx(float(sum(both)) / 2, rel=1e-5)
    assert rows[0]["loss"] != pytest.approx(rows[1]["loss"], rel=1e-3)
