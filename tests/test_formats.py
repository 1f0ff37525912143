"""The world in every set's format: read back, fine-tuned and scored, it gives the numbers of the native files."""

import csv
import dataclasses
import io
import json
import pickle

import formats
import numpy as np
import pytest
import torch

from clipvip_lib.data import benchmarks, corpora
from clipvip_lib.data.benchmarks import SETS, SPLITS, load_benchmark
from clipvip_lib.data.container import look
from clipvip_lib.data.frame_folders import read_frames
from clipvip_lib.data.world import FRAMES
from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import read_json
from clipvip_lib.models.clip_tokenizer import ClipTokenizer
from clipvip_lib.models.clip_vip import ClipViP, ClipViPConfig
from clipvip_lib.profiles import ModelSize, Recipe
from clipvip_lib.study import steps

CLIPS = {"train": 16, "val": 4, "test": 8}
SIZE = ModelSize(width=16, layers=1, heads=2, embed_dim=16, image_size=24, frames=3, cached_frames=4)
RECIPE = Recipe(steps=4, batch=8, evaluations=2, lr=2e-3, precision="float32")
REWRITTEN = sorted(set(SETS) - {"msrvtt", "didemo"})


def quiet(done, total, note=""):
    pass


def native(name):
    return "msrvtt" if SETS[name].protocol == benchmarks.SENTENCE else "didemo"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    for name in ("msrvtt", "didemo"):
        corpora.write_benchmark(folder / name, name, 0, CLIPS, quiet)
    return folder


@pytest.fixture(scope="module")
def clip(world, tmp_path_factory):
    """A small CLIP with its tokenizer, as the study's first stage leaves it."""
    folder = tmp_path_factory.mktemp("clip")
    texts = [
        text
        for name in ("msrvtt", "didemo")
        for i in load_benchmark(name, world / name, "train")
        for text in i.texts
    ]
    tokenizer = ClipTokenizer.for_texts(texts, SIZE.context_length)
    torch.manual_seed(0)
    config = ClipViPConfig.small(
        width=SIZE.width,
        layers=SIZE.layers,
        heads=SIZE.heads,
        image_size=SIZE.image_size,
        patch_size=SIZE.patch_size,
        vocab_size=tokenizer.vocab_size,
        context_length=SIZE.context_length,
        embed_dim=SIZE.embed_dim,
        attention="mean_pool",
        proxies=1,
        frames=SIZE.frames,
    )
    ClipViP(config).save_pretrained(folder / "clip")
    tokenizer.save(folder / "clip" / "clip_tokenizer.json")
    return folder


def numbers(clip, name, root, folder):
    """What fine-tuning and scoring give: history, validation, metrics, and the test features."""
    decoding = {"name": name, "frames": SIZE.cached_frames, "size": SIZE.image_size, "antialias": True}
    for part in ("frames", "tuned"):
        (folder / part).mkdir(parents=True)
    counts = steps.decode_benchmark(decoding, {"benchmark": root}, folder / "frames", quiet)
    config = {
        "model": dataclasses.asdict(SIZE),
        "recipe": dataclasses.asdict(RECIPE),
        "attention": "proxy",
        "proxies": 2,
        "group": 4,
        "snapshot": None,
        "keep_weights": False,
        "seed": 0,
        "device": "cpu",
    }
    inputs = {"clip": clip, "frames": folder / "frames"}
    found = steps.finetune(config, inputs, folder / "tuned", quiet)
    with np.load(folder / "tuned" / "features.npz") as file:
        features = {key: file[key].astype(float) for key in file}
    kept = {key: found[key] for key in ("history", "evaluations", "best_step", "metrics")}
    losses = [row["loss"] for row in kept["history"]]
    return {"counts": counts, "features": features, "losses": losses, **kept}


@pytest.fixture(scope="module")
def expected(world, clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("native")
    return {name: numbers(clip, name, world / name, folder / name) for name in ("msrvtt", "didemo")}


def assert_same(found, wanted):
    """Equal to the last digit."""
    for key, array in wanted["features"].items():
        np.testing.assert_array_equal(found["features"][key], array)
    for key in wanted.keys() - {"features"}:
        assert found[key] == wanted[key], key


@pytest.mark.parametrize("name", [*REWRITTEN, "didemo"])
def test_fine_tuned_numbers_are_those_of_the_native_files(world, clip, expected, tmp_path, name):
    source = native(name)
    assert formats.rewrite(source, world / source, name, tmp_path / "set", quiet) == sum(CLIPS.values())
    assert_same(numbers(clip, name, tmp_path / "set", tmp_path), expected[source])


def test_the_numbers_come_from_training(expected):
    for name, wanted in expected.items():
        assert wanted["counts"]["clips"] == sum(CLIPS.values()), name
        assert len(set(wanted["losses"])) == RECIPE.steps
    assert expected["msrvtt"]["losses"] != expected["didemo"]["losses"]


@pytest.mark.parametrize("name", ("activitynet", "jsonl"))
def test_png_folders_give_the_same_numbers_and_jpeg_nearly(world, clip, expected, tmp_path, name):
    source = native(name)
    for layout in ("png", "jpg"):
        formats.rewrite(source, world / source, name, tmp_path / layout, quiet, layout)
        found = numbers(clip, name, tmp_path / layout, tmp_path / f"{layout}-numbers")
        wanted = expected[source]
        if layout == "png":
            assert_same(found, wanted)
        else:  # pixels differ by 1 of 255 on average, losses in the third digit
            assert found["losses"] != wanted["losses"]
            np.testing.assert_allclose(found["losses"], wanted["losses"], rtol=0.02)
            np.testing.assert_allclose(found["features"]["video"], wanted["features"]["video"], atol=0.05)


@pytest.mark.parametrize("name", sorted(SETS))
def test_texts_and_frames_are_kept_in_order(world, tmp_path, name):
    source = native(name)
    formats.rewrite(source, world / source, name, tmp_path, quiet)
    for split in SPLITS:
        old, new = load_benchmark(source, world / source, split), load_benchmark(name, tmp_path, split)
        assert [item.texts for item in new] == [item.texts for item in old]
        for before, after in zip(old[:2], new[:2], strict=True):
            np.testing.assert_array_equal(
                read_frames(after.path, range(FRAMES)), read_frames(before.path, range(FRAMES))
            )


def test_each_file_looks_as_in_the_set(world, tmp_path):
    for name in SETS:
        formats.rewrite(native(name), world / native(name), name, tmp_path / name, quiet)
    text = (tmp_path / "lsmdc/LSMDC16_challenge_1000_publictect.csv").read_text()
    columns = text.splitlines()[1].split("\t")
    assert columns[0] == "0003_The_World_00.01.00.000-00.01.02.333"
    assert columns[3:5] == ["00.01.00.000", "00.01.02.333"]
    avi = tmp_path / "lsmdc/videos/0003_The_World" / f"{columns[0]}.avi"
    assert avi.read_bytes()[8:12] == b"AVI "
    assert look(avi).frames == FRAMES

    captions = pickle.loads((tmp_path / "msvd/raw-captions.pkl").read_bytes())
    ids = (tmp_path / "msvd/train_list.txt").read_text().split()
    assert len(ids) == CLIPS["train"]
    assert all(isinstance(word, str) for sentence in captions[ids[0]] for word in sentence)

    videos = read_json(tmp_path / "activitynet/train.json")
    first = next(iter(videos.values()))
    assert set(first) == {"duration", "timestamps", "sentences"}
    assert len(first["timestamps"]) == len(first["sentences"]) == 2
    assert first["timestamps"][-1][1] == first["duration"]

    entry = read_json(tmp_path / "vatex/vatex_public_test_english_v1.1.json")[0]
    assert set(entry) == {"videoID", "enCap", "chCap"}
    assert entry["videoID"].endswith("_000010_000012")
    halves = read_json(tmp_path / "vatex-1500/vatex_validation_v1.0.json")
    assert len(halves) == CLIPS["val"] + CLIPS["test"]

    listed = list(csv.reader(io.StringIO((tmp_path / "msrvtt-7k/MSRVTT_train.7k.csv").read_text())))
    assert listed[0] == ["video_id"]
    assert len(listed) == 1 + CLIPS["train"] + CLIPS["val"]
    assert not (tmp_path / "msrvtt-7k/MSRVTT_val.csv").exists()

    line = json.loads((tmp_path / "jsonl/train.jsonl").read_text().splitlines()[0])
    assert (line["clip_id"], len(line["text"])) == ("clip00000", 5)


def test_what_cannot_be_written_is_refused(world, tmp_path):
    with pytest.raises(
        ClipVipError, match="msrvtt has sentences and didemo paragraphs: expected sets of one"
    ):
        formats.rewrite("msrvtt", world / "msrvtt", "didemo", tmp_path, quiet)
    with pytest.raises(ClipVipError, match="unknown benchmark 'lsmcd'.*did you mean 'lsmdc'"):
        formats.rewrite("msrvtt", world / "msrvtt", "lsmcd", tmp_path, quiet)
    with pytest.raises(ClipVipError, match="unknown layout 'gif'"):
        formats.rewrite("msrvtt", world / "msrvtt", "lsmdc", tmp_path, quiet, "gif")
    assert not list(tmp_path.iterdir())
