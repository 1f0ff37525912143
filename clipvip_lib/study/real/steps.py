"""Stage functions on real corpora: ``clipvip train`` and ``clipvip caption`` as they are, and what they leave.

A training's result has the fields that steps.py gives those of the embedded world, so that one page reads both.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from clipvip_lib.cores import cores
from clipvip_lib.data.benchmarks import SPLITS, load_benchmark
from clipvip_lib.data.shards import NeverFetched, read_sample, scan_shard
from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import read_json, write_json
from clipvip_lib.flops import count_parameters
from clipvip_lib.models.hub import TOKENIZER
from clipvip_lib.retrieval import DIRECTIONS
from clipvip_lib.streams.shard_set import ShardSet
from clipvip_lib.streams.sidecars import read_sidecar, sidecar_path, write_sidecar
from clipvip_lib.training.batches import Pairs
from clipvip_lib.training.evaluation import encode_pairs, ranked, scores, write_ranks
from clipvip_lib.training.ranks import Ranks
from clipvip_lib.training.recipes import TrainRecipe, get_recipe
from clipvip_lib.training.run import REPORTED, load_model
from clipvip_lib.training.run_folder import read_metrics
from clipvip_lib.training.stores import store_split
from clipvip_lib.workshop.stages import version

Inputs = Mapping[str, Path]
ALL_GPUS = "CLIPVIP_ALL_GPUS"  # a worker sees one GPU, a training takes all (workers.py)
RUN = "run"  # of a stage's folder: the output folder of its training
POLL_SECONDS = 1.0


# -------------------------------------------------------------------------------------------- what is there


@version(1, "first")
def link_files(config: dict, inputs: Inputs, folder: Path, progress) -> dict:
    """Links by the files' own names. Raises ClipVipError for two of one name."""
    names = [Path(path).name for path in config["files"]]
    if len(set(names)) < len(names):
        raise ClipVipError(
            f"expected files of different names, got {len(names) - len(set(names))} doubled; rename"
        )
    for name, path in zip(names, config["files"], strict=True):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(Path(path).absolute())
    return {"files": len(names), "shards": sum(name.endswith(".tar") for name in names)}


@version(1, "first")
def take_weights(config: dict, inputs: Inputs, folder: Path, progress) -> dict:
    """Load CLIP's weights strictly and write them, with their tokenizer, as this project's.

    Raises ClipVipError for weights that are not a CLIP, such as a CLIP-ViP with proxies: every arm starts from CLIP.
    """
    plain = {"attention": "mean_pool", "proxies": None, "seed": 0}
    model, tokenizer = _load(config["weights"], get_recipe("postpretrain"), plain)
    model.save_pretrained(folder / "clip")
    tokenizer.save(folder / "clip" / TOKENIZER)
    size = model.config.vision_config.image_size
    return {"image_size": size, "parameters": count_parameters(model)}


@version(1, "first")
def decode_benchmark(config: dict, inputs: Inputs, folder: Path, progress) -> dict:
    """All three splits as frame stores, as ``clipvip train`` reads them."""
    recipe = get_recipe(config["recipe"], **config["changes"])
    size, clips = read_json(inputs["clip"] / "result.json")["result"]["image_size"], {}
    for split in SPLITS:
        items = load_benchmark(config["name"], inputs["benchmark"], split)
        store_split(items, folder, split, recipe, size, Ranks(), progress)
        clips[split] = len(items)
    return {"clips": clips}


# ------------------------------------------------------------------------------------------------- training


@version(1, "first")
def postpretrain(config: dict, inputs: Inputs, folder: Path, progress) -> dict:
    """``clipvip train --stage postpretrain`` on a corpus; a model is kept at every snapshot."""
    options = ["--stage", "postpretrain", "--shards", inputs["corpus"] / "*.tar", "--loss", config["loss"]]
    options += ["--weights", inputs["clip"] / "clip", "--snapshots", ",".join(map(str, config["snapshots"]))]
    if "captions" in inputs:
        options += ["--captions", inputs["captions"]]
    if any(inputs["corpus"].glob("*.texts.jsonl")):
        options += ["--texts", inputs["corpus"]]
    options += ["--skip-share", config["skip_share"]]
    # As many as the machine can feed: a stream's clips and their order do not depend on the number.
    options += ["--workers", max(0, cores() // config["gpus"] - 1)]
    done = _train(options, "postpretrain", config, folder, progress)
    # What comes before a shard's damage: the training continued past it, as far as --skip-share allowed.
    entries = (entry for shard in inputs["corpus"].glob("*.tar") for entry in scan_shard(shard)[0])
    clips = sum(entry.has_media for entry in entries)
    seen = done["steps"] * done["clips_a_step"]
    return _outcome(folder, done) | {"steps": done["steps"], "clips": clips, "epochs": seen / clips}


@version(1, "first")
def finetune(config: dict, inputs: Inputs, folder: Path, progress) -> dict:
    """``clipvip train --stage finetune``: checkpoint by validation, test scored once; ranks.npz keeps ranks."""
    name, start = config["name"], _start(config, inputs)
    options = ["--stage", "finetune", "--benchmark", name, "--data", inputs["benchmark"]]
    options += ["--weights", start, "--frames-store", inputs["frames"]]
    done = _train(options, f"finetune-{name}", config, folder, progress)
    for name in ("ranks.npz", "features.npz", "model"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(Path(RUN, name))
    kept = {key: done[key] for key in ("evaluations", "best_step")}
    metrics = {
        f"{direction}/{scoring}": done["test"][said][direction]
        for said, scoring in REPORTED.items()
        for direction in DIRECTIONS
    }
    kept |= {"seconds_per_step": done["seconds"] / done["steps"], "metrics": metrics}
    return _outcome(folder, done) | kept


@version(1, "first")
def zero_shot(config: dict, inputs: Inputs, folder: Path, progress) -> dict:
    """Score the test split with the weights as they are."""
    recipe = get_recipe(f"finetune-{config['name']}", **config["recipe"])
    model, tokenizer = _load(_start(config, inputs), recipe, config)
    size = model.config.vision_config.image_size
    items = load_benchmark(config["name"], inputs["benchmark"], "test")
    store = store_split(items, inputs["frames"], "test", recipe, size, Ranks())
    pairs = Pairs.of(store, [item.texts for item in items], tokenizer)
    features = encode_pairs(model, pairs, recipe.frames, Ranks(), recipe.precision)
    found = ranked(*features, REPORTED.values())
    write_ranks(folder, found, *features)
    none = {"history": [], "evaluations": [], "best_step": 0}
    return none | {"parameters": count_parameters(model), "metrics": scores(found)}


def _start(config: dict, inputs: Inputs) -> Path:
    """The weights that a training starts from."""
    if config["snapshot"] is None:
        return inputs["clip"] / "clip"
    return inputs["start"] / RUN / f"step-{config['snapshot']:06d}"


def _train(options: Sequence[object], recipe: str, config: dict, folder: Path, progress) -> dict:
    """Run ``clipvip train``; returns its result."""
    options = ["train", *options, "--recipe", recipe, "--seed", config["seed"], "--out", folder / RUN]
    options += ["--attention", config["attention"]]
    if config["attention"] == "proxy":
        options += ["--proxies", config["proxies"]]
    for name, value in config["recipe"].items():
        options += ["--set", f"{name}={json.dumps(value)}"]
    written, steps = folder / RUN / "metrics.jsonl", config["recipe"].get("steps", 0)

    def look() -> None:
        rows = read_metrics(written) if written.exists() else []
        if rows:
            progress(len(rows), max(steps, len(rows)), f"loss {rows[-1]['loss']:.3f}")

    _command(options, config["gpus"], folder, look)
    return read_json(folder / RUN / "result.json")["result"]


def _outcome(folder: Path, done: dict) -> dict:
    """Losses and size of a training."""
    rows = read_metrics(folder / RUN / "metrics.jsonl")
    history = [{"step": row["step"], "loss": row["loss"]} for row in rows]
    return {"history": history, "parameters": done["parameters"]}


def _command(options: Sequence[object], ranks: int, folder: Path, look=lambda: None) -> None:
    """``clipvip`` with these options as a process of its own, under torchrun for several ranks.

    Raises ClipVipError with the sentence that the command ended with.
    """
    many = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    )
    command = [sys.executable, *many, "-m", "clipvip_lib.cli", *map(str, options)]
    environment = dict(os.environ)
    if environment.get(ALL_GPUS):
        environment["CUDA_VISIBLE_DEVICES"] = environment[ALL_GPUS]
    said = folder / "said.log"
    with said.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)
        try:
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                look()
        finally:
            if process.poll() is None:
                process.terminate()  # it writes a checkpoint
                process.wait()
    if process.returncode:
        text = said.read_text(errors="replace")
        sentences = re.findall(r"clipvip: (.+)", text) or [f"exit code {process.returncode}: {text[-300:]}"]
        raise ClipVipError(sentences[-1])


@version(1, "first")
def caption_corpus(config: dict, inputs: Inputs, folder: Path, progress) -> dict:
    """``clipvip caption`` on a corpus: one sidecar per shard; shards that are done are skipped."""
    shards = sorted(inputs["corpus"].glob("*.tar"))

    def look() -> None:
        progress(len(list(folder.glob("*.captions.jsonl"))), len(shards), "shards captioned")

    options = [
        "caption",
        "--shards",
        inputs["corpus"] / "*.tar",
        "--weights",
        config["weights"],
        "--out",
        folder,
        "--skip-share",
        config["skip_share"],
    ]
    started = time.monotonic()
    _command(options, config["gpus"], folder, look)
    written = (sidecar_path(shard, "captions", folder) for shard in shards)
    count = sum(len(read_sidecar(path, "captions")) for path in written)
    return {"captions": count, "captions_per_second": count / (time.monotonic() - started)}


def _load(weights: str | Path, recipe: TrainRecipe, config: Mapping):
    """A model under an arm's attention and its tokenizer, as ``clipvip train`` loads them."""
    names = {name: config[name] for name in ("attention", "proxies", "seed")}
    if names["attention"] != "proxy":
        names["proxies"] = None
    model, tokenizer = load_model(str(weights), recipe, **names)
    return model.eval(), tokenizer


# ---------------------------------------------------------------------------------------------------- texts


@version(1, "first")
def shard_texts(config: dict, inputs: Inputs, folder: Path, progress) -> dict:
    """Texts of a corpus, from a few shards evenly chosen; those beside a shard win over its own."""
    shards = _some(sorted(inputs["corpus"].glob("*.tar")), config["shards"])
    rows = [
        {"key": key, "text": text}
        for shard in shards
        for key, text in _first(_texts_of(shard), config["texts"])
    ]
    write_json(folder / "texts.json", rows)
    return {"texts": len(rows)}


def _texts_of(shard: Path) -> Iterator[tuple[str, str]]:
    """Key and text of each clip that could be fetched."""
    beside = sidecar_path(shard, "texts").is_file()
    for entry, text, _ in ShardSet([shard], {"texts": None} if beside else {}).open(0):
        with contextlib.suppress(NeverFetched):
            sample = read_sample(shard, entry, text)
            yield sample.key, sample.text


@version(1, "first")
def caption_texts(config: dict, inputs: Inputs, folder: Path, progress) -> dict:
    """Captions of a corpus, from a few shards evenly chosen."""
    sidecars = sorted((inputs.get("captions") or inputs["corpus"]).glob("*.captions.jsonl"))
    rows = [
        row
        for sidecar in _some(sidecars, config["shards"])
        for row in _first(iter(read_sidecar(sidecar, "captions").items()), config["texts"])
    ]
    return {"texts": write_sidecar(folder / "captions.jsonl", "captions", rows)}


@version(1, "first")
def benchmark_texts(config: dict, inputs: Inputs, folder: Path, progress) -> dict:
    """The training split's texts of a downstream set."""
    items = load_benchmark(config["name"], inputs["benchmark"], "train")
    write_json(folder / "train.json", [{"video_id": i.video_id, "texts": list(i.texts)} for i in items])
    return {"texts": len(items)}


def _some(found: list[Path], most: int) -> list[Path]:
    count = min(most, len(found))
    return [found[len(found) * i // count] for i in range(count)]


def _first(rows: Iterator, most: int) -> list:
    return [row for row, _ in zip(rows, range(most), strict=False)]
