"""What each stage of the study does: thin functions that join the library's parts and write files.

Every function has the form that ``stages.py`` calls: (config, inputs, folder, progress) -> result. ``inputs`` are
folders of finished stages. ``experiments.py`` says which stages there are, and with which configuration.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clipvip_lib.data import benchmarks, corpora, language
from clipvip_lib.data.frames import FrameStore, still, write_store
from clipvip_lib.data.shards import index_shard, read_media, read_shard
from clipvip_lib.data.some_clips import SomeClips
from clipvip_lib.files import atomic_path, make_folder, read_json, write_json
from clipvip_lib.flops import attention_pairs, count_parameters
from clipvip_lib.models.hub import TOKENIZER
from clipvip_lib.profiles import CaptionerSize, ModelSize, Recipe
from clipvip_lib.progress import ProgressCallback
from clipvip_lib.streams.sidecars import read_sidecar, write_sidecar
from clipvip_lib.workshop.stages import version

SCORINGS = ("simple", "dsl", "qb_norm")
BANK_CLIPS = (
    1_000  # QB-Norm's bank: the first training clips with a text each; all would cost a tenth of a run more
)
ENCODED_AT_ONCE = 64  # clips, and four times as many texts; in other batches features may round otherwise
CHECKPOINT_SECONDS = 20.0  # a kill loses at most about this much of a training
HISTORY = ("step", "loss", "grad_norm", "lr", "logit_scale")  # kept of each step
WORD = r"\w+"  # also of one letter: a caption of an untrained model has nothing else
Inputs = dict[str, Path]


# ------------------------------------------------------------------------------------- the world, as files


@version(1, "first")
def write_images(config: dict, inputs: Inputs, folder: Path, progress: ProgressCallback) -> dict:
    """One shard of still images with texts."""
    count = corpora.write_images(folder / "shard.tar", progress=progress, **config)
    return {"images": count}


@version(1, "first")
def write_corpus(config: dict, inputs: Inputs, folder: Path, progress: ProgressCallback) -> dict:
    """One shard of a post-pretraining corpus."""
    return {"clips": corpora.write_corpus(folder / "shard.tar", progress=progress, **config)}


@version(1, "first")
def write_texts(config: dict, inputs: Inputs, folder: Path, progress: ProgressCallback) -> dict:
    """texts.json of the first clips of a corpus, which need not have been written."""
    rows = [{"key": key, "text": text} for key, text in corpora.corpus_texts(**config)]
    write_json(folder / "texts.json", rows)
    return {"texts": len(rows)}


@version(1, "first")
def write_subset(config: dict, inputs: Inputs, folder: Path, progress: ProgressCallback) -> dict:
    """A random subset of other shards' long videos."""
    sources = [inputs[name] / "shard.tar" for name in sorted(inputs)]
    count = corpora.write_subset(folder / "shard.tar", sources, progress=progress, **config)
    return {"clips": count}


@version(1, "first")
def write_benchmark(config: dict, inputs: Inputs, folder: Path, progress: ProgressCallback) -> dict:
    """A downstream set: videos and annotations."""
    return {"clips": corpora.write_benchmark(folder, progress=progress, **config)}


# -------------------------------------------------------------------------------------------- decoding, once


@version(1, "first")
def decode_shard(config: dict, inputs: Inputs, folder: Path, progress: ProgressCallback) -> dict:
    """frames.npy and texts.json of a shard, in its order."""
    samples = list(read_shard(inputs["shard"] / "shard.tar"))
    sources = ((sample.key, sample.media) for sample in samples)
    decoded = write_store(folder / "frames.npy", sources, len(samples), progress=progress, **config)
    write_json(folder / "texts.json", [{"key": sample.key, "text": sample.text} for sample in samples])
    return {"clips": len(samples), "frames": decoded}


@version(1, "first")
def decode_benchmark(config: dict, inputs: Inputs, folder: Path, progress: ProgressCallback) -> dict:
    """SPLIT.npy and SPLIT.json (texts by video) of every split of a downstream set."""
    config = dict(config)
    name, decoded, clips = config.pop("name"), 0, 0
    for split in benchmarks.SPLITS:
        items = benchmarks.load_benchmark(name, inputs["benchmark"], split)
        sources = ((item.video_id, item.path) for item in items)
        decoded += write_store(folder / f"{split}.npy", sources, len(items), progress=progress, **config)
        write_json(
            folder / f"{split}.json", [{"video_id": i.video_id, "texts": list(i.texts)} for i in items]
        )
        clips += len(items)
    return {"clips": clips, "frames": decoded}


# ------------------------------------------------------------------------------------------------- captioner


@version(1, "first")
def train_captioner(config: dict, inputs: Inputs, folder: Path, progress: ProgressCallback) -> dict:
    """OFA trained on the world's caption pairs."""
    from clipvip_lib.captions.captioner_training import train_captioner as train

    samples = list(read_shard(inputs["pairs"] / "shard.tar"))
    captioner, history = train(
        [still(sample.media) for sample in samples],
        [sample.text for sample in samples],
        CaptionerSize(**config["size"]),
        seed=config["seed"],
        device=config["device"],
        precision=config["precision"],
        folder=folder,
        progress=progress,
    )
    captioner.save(folder / "captioner")
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    return {"history": history, "parameters": count_parameters(captioner.model)}


@version(1, "first")
def caption_shard(config: dict, inputs: Inputs, folder: Path, progress: ProgressCallback) -> dict:
    """An OFA caption for the middle frame of every clip of a shard."""
    from clipvip_lib.captions.captioner import Captioner
    from clipvip_lib.streams.middle_frames import middle_frame

    captioner = Captioner.load(inputs["captioner"] / "captioner")
    started = time.monotonic()
    shard = inputs["shard"] / "shard.tar"
    entries, captions = index_shard(shard), []
    # Cut at 64, not evenly as `clipvip caption` does: other batches round otherwise, and captions could change.
    for start in range(0, len(entries), 64):
        group = entries[start : start + 64]
        frames = [middle_frame(read_media(shard, each), f"{each.key} of {shard}") for each in group]
        captions += zip((each.key for each in group), captioner.caption(frames), strict=True)
        progress(len(captions), len(entries), shard.name)
    count = write_sidecar(folder / "captions.jsonl", "captions", captions)
    return {"captions": count, "captions_per_second": count / (time.monotonic() - started)}


@version(1, "first")
def check_captioner(config: dict, inputs: Inputs, folder: Path, progress: ProgressCallback) -> dict:
    """How often captions name things that are there, on scenes never seen: middle frames of clips, and stills.

    Only this check reads the true scene.
    """
    from clipvip_lib.captions.captioner import Captioner
    from clipvip_lib.data import world
    from clipvip_lib.streams.middle_frames import middle_frame

    captioner = Captioner.load(inputs["captioner"] / "captioner")
    items = benchmarks.load_benchmark("msrvtt", inputs["benchmark"], "test")[: config["clips"]]
    truth = read_json(inputs["benchmark"] / "truth.json")
    frames = [middle_frame(item.path) for item in items]
    captions = captioner.caption(frames)
    progress(len(items), len(items), "captioned")
    rows = []
    for item, frame, text in zip(items, frames, captions, strict=True):
        about = {"video_id": item.video_id, "caption": text, "human": item.texts[0]}
        rows.append(about | _named_rightly(text, truth[item.video_id]["scene"]))
        if len(rows) <= config["examples"]:
            np.save(folder / f"{item.video_id}.npy", frame)
    stills = [world.sample_still(world.rng_for("caption-check", i), "test") for i in range(config["stills"])]
    texts = captioner.caption([world.render(still, frames=1)[0] for still in stills])
    checked = [_named_rightly(text, still.scene) for text, still in zip(texts, stills, strict=True)]
    shares = {
        kind: {key: float(np.mean([row[key] for row in judged])) for key in ("first_right", "all_right")}
        | {"images": len(judged)}
        for kind, judged in (("middle frames of clips", rows), ("still images", checked))
    }
    return {"shares": shares, "examples": rows[: config["examples"]]}


def _named_rightly(text: str, scene: str) -> dict:
    """What a scene holds, whether the first thing that a caption names is there, and whether all are."""
    there, named = scene.split(" before ")[0].split(" + "), language.named_things(text)
    return {
        "there": there,
        "first_right": bool(named) and named[0] in there,
        "all_right": bool(named) and set(named) <= set(there),
    }


# -------------------------------------------------------------------------------------------------- training


@version(1, "first")
def pretrain_clip(config: dict, inputs: Inputs, folder: Path, progress: ProgressCallback) -> dict:
    """The stand-in for OpenAI's CLIP: two towers trained on still images and their texts."""
    import torch

    from clipvip_lib.models.clip_tokenizer import ClipTokenizer
    from clipvip_lib.models.clip_vip import ClipViP
    from clipvip_lib.training.batches import Pairs, StoreBatches

    size, recipe = ModelSize(**config["model"]), Recipe(**config["recipe"])
    tokenizer = ClipTokenizer.for_texts(language.vocabulary(), size.context_length)
    torch.manual_seed(config["seed"])
    model = ClipViP(_clip_config(size, tokenizer.vocab_size, "mean_pool", size.proxies, size.frames))
    model.to(config["device"])
    pairs = Pairs.of(
        FrameStore([inputs[name] / "frames.npy" for name in sorted(inputs)]),
        [[row["text"]] for name in sorted(inputs) for row in read_json(inputs[name] / "texts.json")],
        tokenizer,
    )
    batches = StoreBatches(pairs, "V-S", 1, recipe.batch, config["seed"])
    outcome = _train(model, batches, "V-S", recipe, folder, progress)
    model.eval().save_pretrained(folder / "clip")
    tokenizer.save(folder / "clip" / TOKENIZER)
    return {"history": outcome.history, "parameters": count_parameters(model), "steps": recipe.steps}


class Trained(NamedTuple):
    """What a training leaves: one row per step, one row per evaluation, and the step whose weights the model has."""

    history: list[dict]
    evaluations: list[dict]
    best_step: int


def _train(
    model,
    batches,
    loss: str,
    recipe: Recipe,
    folder: Path,
    progress: ProgressCallback,
    *,
    evaluate: Callable | None = None,
    snapshots: Sequence[int] = (),
) -> Trained:
    """Train on one device. For each of ``snapshots`` (numbers of steps done) folder/step-NNNNNN.pt is kept.

    Terms of a loss are averaged, so that variants share one scale. Raises what ``training.loop.train`` raises.
    """
    from clipvip_lib.precision import choose
    from clipvip_lib.training.loop import train
    from clipvip_lib.training.ranks import Ranks
    from clipvip_lib.training.recipes import TrainRecipe
    from clipvip_lib.training.run_folder import RunFolder, read_metrics
    from clipvip_lib.training.weights import save_state

    fields = dataclasses.asdict(recipe) | {"precision": choose(recipe.precision, model.device)}
    recipe = TrainRecipe(**fields, reduction="mean", flat=True, save_minutes=CHECKPOINT_SECONDS / 60)
    run = RunFolder(make_folder(folder / "run"), {}, Ranks(device=model.device))
    train(
        model, batches, loss, recipe, run=run, progress=progress, evaluate=evaluate, snapshots=snapshots,
        snapshot=lambda step: save_state(model.state_dict(), folder / f"step-{step:06d}.pt"), signals=False,
    )  # fmt: skip
    rows = [{name: row[name] for name in HISTORY} for row in read_metrics(run.metrics)]
    shutil.rmtree(run.path)
    return Trained(rows, run.evaluations, run.best_step() or recipe.steps)


def _clip_config(size: ModelSize, vocab_size: int, attention: str, proxies: int, frames: int):
    """The mini CLIP's configuration under an attention."""
    from clipvip_lib.models.clip_vip import ClipViPConfig

    return ClipViPConfig.small(
        width=size.width,
        layers=size.layers,
        heads=size.heads,
        image_size=size.image_size,
        patch_size=size.patch_size,
        vocab_size=vocab_size,
        context_length=size.context_length,
        embed_dim=size.embed_dim,
        attention=attention,
        proxies=proxies,
        frames=frames,
    )


@version(1, "first")
def postpretrain(config: dict, inputs: Inputs, folder: Path, progress: ProgressCallback) -> dict:
    """CLIP under another attention, trained on a video corpus; weights are kept at every snapshot."""
    import torch

    from clipvip_lib.omnisource import needs
    from clipvip_lib.training.batches import Pairs, StoreBatches, Tokens

    size, recipe, seed = ModelSize(**config["model"]), Recipe(**config["recipe"]), config["seed"]
    model, tokenizer = _adapted(inputs["clip"], config, size, seed)
    model.to(config["device"])
    shards = sorted(name.removeprefix("frames-") for name in inputs if name.startswith("frames-"))
    rows = [row for name in shards for row in read_json(inputs[f"frames-{name}"] / "texts.json")]
    captions = None
    if "C" in needs(config["loss"]):
        found: dict[str, str] = {}
        for name in shards:
            found |= read_sidecar(inputs[f"captions-{name}"] / "captions.jsonl", "captions")
        captions = [found[row["key"]] for row in rows]
    pairs = Pairs.of(
        FrameStore([inputs[f"frames-{name}"] / "frames.npy" for name in shards]),
        [[row["text"]] for row in rows],
        tokenizer,
        captions=None if captions is None else Tokens.of(captions, tokenizer),
        caption_mask=None if captions is None else torch.tensor([bool(text) for text in captions]),
        group=config["group"],
    )
    batches = StoreBatches(pairs, config["loss"], size.frames, recipe.batch, seed)
    outcome = _train(model, batches, config["loss"], recipe, folder, progress, snapshots=config["snapshots"])
    return {
        "history": outcome.history,
        "parameters": count_parameters(model),
        "steps": recipe.steps,
        "clips": len(rows),
        "epochs": recipe.steps * recipe.batch / len(rows),
    }


def _adapted(clip: Path, config: dict, size: ModelSize, seed: int):
    """The mini CLIP under the attention that ``config`` names, and its tokenizer."""
    from clipvip_lib.models.checkpoints import adapt
    from clipvip_lib.models.clip_tokenizer import ClipTokenizer
    from clipvip_lib.models.clip_vip import ClipViP

    model = ClipViP.from_pretrained(clip / "clip")
    model = adapt(
        model, attention=config["attention"], proxies=config["proxies"], frames=size.frames, seed=seed
    )
    return model, ClipTokenizer.load(clip / "clip" / TOKENIZER)


@version(1, "first")
def held_out_loss(config: dict, inputs: Inputs, folder: Path, progress: ProgressCallback) -> dict:
    """V-S loss of each arm, at the start and at its snapshots, on unseen clips like those of its corpus."""
    import torch

    from clipvip_lib.losses import ocl_loss
    from clipvip_lib.training.batches import Tokens
    from clipvip_lib.training.evaluation import encode_store, encode_tokens
    from clipvip_lib.training.weights import load_state

    size, batch, rows = ModelSize(**config["model"]), config["batch"], []
    settings = {"attention": "mean_pool", "proxies": size.proxies}
    for corpus, kind in config["like"].items():
        frames = inputs[f"frames-{kind}"]
        texts = [row["text"] for row in read_json(frames / "texts.json")]
        store = FrameStore([frames / "frames.npy"])
        for step in (0, *config["snapshots"]):
            model, tokenizer = _adapted(inputs["clip"], settings, size, config["seed"])
            if step:
                load_state(model, inputs[f"arm-{corpus}"] / f"step-{step:06d}.pt")
            model.eval()
            video = torch.from_numpy(encode_store(model, store, size.frames, precision=config["precision"]))
            text = torch.from_numpy(
                encode_tokens(model, Tokens.of(texts, tokenizer), precision=config["precision"])
            )
            scale = model.logit_scale.detach()
            # whole long videos stand side by side, as in a batch of training
            parts = [slice(first, first + batch) for first in range(0, max(1, len(texts) - batch + 1), batch)]
            losses = [float(ocl_loss("V-S", {"V": video[part], "S": text[part]}, scale)) for part in parts]
            rows.append({"corpus": corpus, "step": step, "loss": float(np.mean(losses)), "clips": len(texts)})
            progress(len(rows), len(config["like"]) * (1 + len(config["snapshots"])), "models")
    return {"rows": rows}


@version(2, "the weights' config.json says how frames are resized")
def finetune(config: dict, inputs: Inputs, folder: Path, progress: ProgressCallback) -> dict:
    """Fine-tune on a benchmark's training split, choose the checkpoint on validation, score test once.

    ``recipe.steps`` = 0 scores the given weights as they are (zero-shot).
    """
    from clipvip_lib.training.batches import StoreBatches
    from clipvip_lib.training.evaluation import validation_score
    from clipvip_lib.training.weights import load_state

    size, recipe, seed = ModelSize(**config["model"]), Recipe(**config["recipe"]), config["seed"]
    model, tokenizer = _adapted(inputs["clip"], config, size, seed)
    if config["snapshot"] is not None:
        load_state(model, inputs["start"] / f"step-{config['snapshot']:06d}.pt")
    model.to(config["device"])
    splits = {name: _split(inputs["frames"], name, tokenizer, config["group"]) for name in benchmarks.SPLITS}
    outcome, started = Trained([], [], 0), time.monotonic()
    if recipe.steps:
        batches = StoreBatches(splits["train"], "V-S", size.frames, recipe.batch, seed)

        def validate(model) -> float:
            return validation_score(*_encoded(model, splits["val"], size, recipe))

        outcome = _train(model, batches, "V-S", recipe, folder, progress, evaluate=validate)
    seconds = time.monotonic() - started
    model.eval()
    if config["keep_weights"]:
        model.config.antialias = size.antialias
        model.save_pretrained(folder / "model")
        tokenizer.save(folder / "model" / TOKENIZER)
    return {
        "history": outcome.history,
        "evaluations": outcome.evaluations,
        "best_step": outcome.best_step,
        "parameters": count_parameters(model),
        "seconds_per_step": seconds / recipe.steps if recipe.steps else None,
        "metrics": _score_test(model, splits, size, recipe, folder),
    }


def _split(frames: Path, name: str, tokenizer, group: int):
    """A split of a benchmark as training pairs."""
    from clipvip_lib.training.batches import Pairs

    texts = [row["texts"] for row in read_json(frames / f"{name}.json")]
    return Pairs.of(FrameStore([frames / f"{name}.npy"]), texts, tokenizer, group=group)


def _encoded(model, pairs, size: ModelSize, recipe: Recipe):
    """As ``evaluation.encode_pairs``, on this process alone."""
    from clipvip_lib.training.evaluation import encode_pairs
    from clipvip_lib.training.ranks import Ranks

    return encode_pairs(model, pairs, size.frames, Ranks(), recipe.precision, ENCODED_AT_ONCE)


def _score_test(model, splits: dict, size: ModelSize, recipe: Recipe, folder: Path) -> dict:
    """Metrics of both directions under every scoring; ranks.npz keeps what every query gave."""
    from clipvip_lib.training.evaluation import ranked, scores, write_ranks

    features, train = _encoded(model, splits["test"], size, recipe), splits["train"]
    rows = [rows[:1] for rows in train.text_rows[:BANK_CLIPS]]
    bank = dataclasses.replace(train, store=SomeClips(train.store, range(len(rows))), text_rows=rows)
    bank_text, bank_video, _ = _encoded(model, bank, size, recipe)
    found = ranked(*features, SCORINGS, bank_text=bank_text, bank_video=bank_video)
    write_ranks(folder, found, *features[:2])
    return scores(found)


@version(1, "first")
def probe_order(config: dict, inputs: Inputs, folder: Path, progress: ProgressCallback) -> dict:
    """Do all frames tell the motion, and does one? Trained on the training splits, tested on the validation splits."""
    import torch
    from scipy import stats

    from clipvip_lib.statistics import probes

    size = ModelSize(**config["model"])
    model, _ = _adapted(inputs["clip"], {"attention": "mean_pool", "proxies": 1}, size, config["seed"])
    sets = {}
    for split in ("train", "val"):
        parts = []
        for name in config["benchmarks"]:
            frames, truth = inputs[f"frames-{name}"], read_json(inputs[f"truth-{name}"] / "truth.json")
            videos = [truth[row["video_id"]]["events"] for row in read_json(frames / f"{split}.json")]
            states = probes.patch_states(
                model, FrameStore([frames / f"{split}.npy"]), size.frames, config["precision"]
            )
            parts.append((states, probes.motion_table([[e["motion"] for e in events] for events in videos])))
        sets[split] = tuple(torch.cat(column) for column in zip(*parts, strict=True))
    rows = []
    for what, one_frame in (("all frames", False), ("one frame", True)):
        found = probes.probe(
            sets["train"], sets["val"], one_frame=one_frame, seed=config["seed"], epochs=config["epochs"]
        )
        counts = [*zip([" / ".join(pair) for pair in found.pairs], found.right, found.asked, strict=True)]
        for pair, right, asked in [*counts, ("together", sum(found.right), sum(found.asked))]:
            if asked:  # a small world may lack a motion
                low, high = stats.binomtest(right, asked).proportion_ci(method="wilson")
                share = {"share": right / asked, "low": low, "high": high}
                rows.append({"sees": what, "motions": pair, "asked": asked} | share)
        progress(1 + one_frame, 2, what)
    return {"rows": rows, "clips": {name: len(states) for name, (states, _) in sets.items()}}


# ------------------------------------------------------------------------------------------------ text and cost


@version(2, "1,000 texts of each kind in ten draws, one text encoder")
def language_gap(config: dict, inputs: Inputs, folder: Path, progress: ProgressCallback) -> dict:
    """NMI of every source of texts with every benchmark's captions, in the space of a text encoder and in TF-IDF."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    from clipvip_lib.models.clip_tokenizer import ClipTokenizer
    from clipvip_lib.models.clip_vip import ClipViP
    from clipvip_lib.statistics.language_gap import POOL, gap
    from clipvip_lib.training.batches import Tokens
    from clipvip_lib.training.evaluation import encode_tokens

    listed = {
        name.removeprefix("text-"): _texts(inputs[name], POOL * config["texts"])
        for name in sorted(inputs)
        if name.startswith("text-")
    }
    clip = inputs["clip"] / "clip"
    model, tokenizer = ClipViP.from_pretrained(clip).eval(), ClipTokenizer.load(clip / TOKENIZER)
    encoded = {
        which: encode_tokens(model, Tokens.of(texts, tokenizer), precision=config["precision"])
        for which, texts in listed.items()
    }
    tfidf = TfidfVectorizer(token_pattern=WORD).fit([text for texts in listed.values() for text in texts])
    words = {which: tfidf.transform(texts).toarray().astype(np.float32) for which, texts in listed.items()}
    # NMI depends on the number of texts, so that the smallest pool sets it for all.
    size = min(config["texts"], *map(len, listed.values()))
    found, rows = {}, []
    sources = [name for name in listed if name not in benchmarks.BENCHMARKS]
    spaces = {"text encoder": encoded, "tf-idf": words}
    for (space, features), benchmark, source in itertools.product(
        spaces.items(), benchmarks.BENCHMARKS, sources
    ):
        measured = gap(
            features[source], features[benchmark], size, config["draws"], config["restarts"], config["seed"]
        )
        found[space, benchmark, source] = measured
        rows.append({"space": space, "benchmark": benchmark, "source": source} | _drawn(measured))
        progress(len(rows), len(spaces) * len(benchmarks.BENCHMARKS) * len(sources), "gaps")
    differences = [
        {"space": space, "benchmark": benchmark, "source": source}
        | _drawn(found[space, benchmark, "subtitles"] - measured)
        for (space, benchmark, source), measured in found.items()
        if space == "text encoder" and source != "subtitles"
    ]
    with atomic_path(folder / "features.npz") as partial, partial.open("wb") as stream:
        np.savez_compressed(stream, **{name: f.astype(np.float16) for name, f in encoded.items()})
    return {
        "gaps": rows,
        "differences": differences,
        "examples": {name: texts[:6] for name, texts in listed.items()},
    }


def _drawn(gap) -> dict:
    """A gap as JSON: value, draws (five decimals), texts per draw and kind."""
    return {"value": gap.value, "draws": np.round(gap.draws, 5), "texts": gap.texts}


def _texts(folder: Path, most: int) -> list[str]:
    """Up to ``most`` texts of a decoded shard, a captions file, or a benchmark's training split, evenly drawn; those
    without a word are not texts."""
    if (folder / "captions.jsonl").exists():
        texts: Iterable[str] = read_sidecar(folder / "captions.jsonl", "captions").values()
    elif (folder / "texts.json").exists():
        texts = (row["text"] for row in read_json(folder / "texts.json"))
    else:
        texts = (row["texts"][0] for row in read_json(folder / "train.json"))
    kept: Sequence[str] = [text for text in texts if re.search(WORD, text)]
    stride = max(1, len(kept) // most)
    return list(kept[::stride][:most])


@version(1, "first")
def measure_cost(config: dict, inputs: Inputs, folder: Path, progress: ProgressCallback) -> dict:
    """Seconds of a training step of the video tower by attention and number of frames, forms interleaved."""
    import torch

    from clipvip_lib.models.clip_vip import ClipViP
    from clipvip_lib.precision import autocast

    size = ModelSize(**config["model"])
    arms = [(attention, proxies) for attention, proxies in config["arms"]]
    rows = []
    for frames in config["frames"]:
        models = {}
        for attention, proxies in arms:
            torch.manual_seed(0)
            models[attention, proxies] = ClipViP(_clip_config(size, 64, attention, proxies, frames))
        pixels = torch.randn(config["batch"], frames, 3, size.image_size, size.image_size)
        seconds: dict = {arm: [] for arm in arms}
        for _ in range(config["repeats"] + 1):  # the first round warms up and is dropped
            for arm in arms:
                started = time.perf_counter()
                with autocast(config["precision"], "cpu"):
                    loss = models[arm].encode_video(pixels).float().square().sum()
                loss.backward()
                seconds[arm].append(time.perf_counter() - started)
        patches = (size.image_size // size.patch_size) ** 2
        for attention, proxies in arms:
            rows.append(
                {
                    "attention": attention,
                    "proxies": proxies,
                    "frames": frames,
                    "seconds": float(np.median(seconds[attention, proxies][1:])),
                    "pairs": attention_pairs(attention, proxies, frames, patches),
                    "parameters": count_parameters(models[attention, proxies]),
                }
            )
        progress(len(rows), len(arms) * len(config["frames"]), "forms timed")
    return {"rows": rows, "batch": config["batch"], "threads": torch.get_num_threads()}
