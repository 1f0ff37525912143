"""A run of ``clipvip train`` from its options to its result: weights, data, training, scores, files."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from clipvip_lib.data.benchmarks import SPLITS, Items, load_benchmark
from clipvip_lib.data.shards import expand, media_of, scan_shard
from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import make_folder, write_json
from clipvip_lib.flops import count_parameters
from clipvip_lib.models.checkpoints import TEMPORAL, load_clip_vip
from clipvip_lib.models.clip_tokenizer import ClipTokenizer
from clipvip_lib.models.clip_vip import ClipViP
from clipvip_lib.models.encoding import tokenizer_of
from clipvip_lib.omnisource import needs
from clipvip_lib.precision import choose, slower
from clipvip_lib.progress import Progress, quiet
from clipvip_lib.retrieval import DIRECTIONS
from clipvip_lib.say import say
from clipvip_lib.streams.shard_set import ShardSet
from clipvip_lib.streams.sidecars import find_sidecar
from clipvip_lib.streams.stream import ClipStream
from clipvip_lib.training.batches import (
    BatchSource,
    Pairs,
    StoreBatches,
    StreamBatches,
    expect_batch,
    own_rows,
)
from clipvip_lib.training.evaluation import encode_pairs, ranked, scores, validation_score, write_ranks
from clipvip_lib.training.loop import train
from clipvip_lib.training.ranks import Ranks, together
from clipvip_lib.training.recipes import FREE, TrainRecipe, get_recipe
from clipvip_lib.training.run_folder import RunFolder, alone, read_metrics
from clipvip_lib.training.step import expect_switches
from clipvip_lib.training.stores import read_stores, store_shards, store_split

#: The scorings of a test split, by what a run's result calls them.
REPORTED = {"simple": "simple", "dsl (transductive)": "dsl"}


@dataclass(frozen=True)
class Options:
    """The options of ``clipvip train``, by their names there. texts: a folder; True, beside the shards; or None."""

    stage: str
    weights: str
    out: str
    loss: str
    shards: str | None = None
    captions: str | None = None
    texts: str | bool | None = None
    frames_store: str | None = None
    benchmark: str | None = None
    data: str | None = None
    allow_missing: int = 0
    workers: int = 0
    skip_share: float = 0.0
    damaged: str = "refuse"
    set: Sequence[tuple[str, object]] = ()
    tag: str | None = None
    attention: str | None = None
    proxies: int | None = None
    seed: int = 0
    snapshots: Sequence[int] = ()
    tensorboard: bool = False

    @classmethod
    def of(cls, arguments: object) -> Options:
        """From the attributes of parsed arguments; further ones are left out."""
        return cls(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(cls)})


def train_as_told(options: Options, recipe_name: str, ranks: Ranks) -> None:
    """Run, or resume, what the options of ``clipvip train`` say; the result is printed as JSON on the main rank.

    Raises what ``loop.train`` raises, and ClipVipError for options, weights or data that are not right.
    """
    needs(options.loss)
    recipe = get_recipe(recipe_name, **dict(options.set))
    # One for all ranks, and by name: a run resumed elsewhere keeps it.
    recipe = dataclasses.replace(recipe, precision=ranks.collect(choose(recipe.precision, ranks.device))[0])
    if ranks.main and (said := slower(recipe.precision, ranks.device)):
        say(f"clipvip: {said}", sys.stderr)
    own_rows(recipe.batch, ranks)
    expect_switches(recipe, ranks)
    _expect_snapshots(options.snapshots, recipe.steps)
    out = make_folder(options.out)
    model, tokenizer = load_model(
        options.weights,
        recipe,
        tag=options.tag,
        attention=options.attention,
        proxies=options.proxies,
        seed=options.seed,
    )
    model.config.antialias = recipe.antialias  # saved with the model: who embeds with it resizes alike
    job = _postpretraining if options.stage == "postpretrain" else _finetuning
    with contextlib.ExitStack() as stack:
        stack.enter_context(alone(out, ranks))
        shown = stack.enter_context(_Shown(ranks, out / "tensorboard" if options.tensorboard else None))
        recipe, source, content, evaluate, score = job(
            options, recipe, model, tokenizer, ranks, shown.progress
        )
        stack.callback(source.close)
        _expect_snapshots(options.snapshots, recipe.steps)
        run = RunFolder(out, _about(options, recipe) | content, ranks)
        if (done := run.finished()) is None:
            train(
                model,
                source,
                options.loss,
                recipe,
                run=run,
                progress=shown.progress("train"),
                evaluate=evaluate,
                snapshots=options.snapshots,
                snapshot=lambda step: run.save_model(f"step-{step:06d}", model, tokenizer),
                report=shown.report,
            )
            done = {
                "stage": options.stage,
                "recipe": recipe_name,
                "steps": recipe.steps,
                "clips_a_step": recipe.batch,
                "ranks": ranks.size,
                "parameters": count_parameters(model),
                # Of the steps of all starts; what a kill undid is done again and counts once.
                "seconds": round(sum(row["seconds"] for row in read_metrics(run.metrics)), 2),
                "model": str(out / "model"),
                **({"evaluations": run.evaluations, "best_step": run.best_step()} if evaluate else {}),
                **score(model),
            }
            run.save_model("model", model, tokenizer)
            with together(ranks):
                if ranks.main:
                    if tokenizer.cut:
                        say(
                            f"clipvip: {tokenizer.cut} of {tokenizer.seen} texts that this start read were longer than "
                            f"{tokenizer.context_length} tokens and were cut",
                            sys.stderr,
                        )
                    write_json(run.result, {"result": done, "about": run.about})
            run.clear()
        elif ranks.main:
            say(f"clipvip: {out} was finished before: nothing is trained", sys.stderr)
    if ranks.main:
        say(json.dumps(done))


def load_model(
    weights: str | Path,
    recipe: TrainRecipe,
    *,
    tag: str | None = None,
    attention: str | None = None,
    proxies: int | None = None,
    seed: int = 0,
) -> tuple[ClipViP, ClipTokenizer]:
    """The model of the weights, under the attention that is asked for (None: their own), and its tokenizer."""
    asked = {"attention": attention, "proxies": proxies}
    options = {name: value for name, value in asked.items() if value is not None}
    options |= {"pretrained_tag": tag, "seed": seed}
    model, report = load_clip_vip(weights, **options)
    if TEMPORAL in report.added and model.config.temporal_size != recipe.frames:
        model, report = load_clip_vip(weights, **options, frames=recipe.frames)
    text = model.config.text_config
    length = min(recipe.text_tokens, text.max_position_embeddings)
    return model, ClipTokenizer(length, tokenizer_of(model, weights).vocabulary)


def _about(options: Options, recipe: TrainRecipe) -> dict:
    """What must be the same when a run resumes."""
    fields = {name: value for name, value in dataclasses.asdict(recipe).items() if name not in FREE}
    named = (
        "stage",
        "weights",
        "tag",
        "attention",
        "proxies",
        "seed",
        "loss",
        "shards",
        "benchmark",
        "frames_store",
    )
    about = {name: getattr(options, name) for name in named} | {f"recipe.{k}": v for k, v in fields.items()}
    # Only where it is given: runs from before this option are the same runs without it.
    if not recipe.flat:
        about.pop("recipe.flat")
    about |= {"damaged": options.damaged} if options.damaged != "refuse" else {}
    return about | ({"texts": options.texts} if options.texts else {})


def _expect_snapshots(asked: Sequence[int], steps: int) -> None:
    """Raises ClipVipError for a snapshot that no step writes. ``steps`` = 0: their number is not known yet."""
    if outside := [number for number in asked if not 1 <= number <= (steps or number)]:
        raise ClipVipError(
            f"--snapshots expected numbers of steps from 1 to {steps or 'the last one'}, got {outside[0]}; leave it out"
        )


# ------------------------------------------------------------------------------------------------------ stages


class Job(NamedTuple):
    """A stage made ready. ``content``: a digest of its data: data move, and a path says little of what it holds."""

    recipe: TrainRecipe
    source: BatchSource
    content: Mapping[str, str]
    evaluate: Callable[[ClipViP], float] | None
    score: Callable[[ClipViP], dict]


def _postpretraining(
    options: Options,
    recipe: TrainRecipe,
    model: ClipViP,
    tokenizer: ClipTokenizer,
    ranks: Ranks,
    progress: Callable[[str], Progress],
) -> Job:
    """Shards as streams, or decoded once into frame stores."""
    size = model.config.vision_config.image_size
    shards = expand(options.shards) if options.shards else []
    if shards and not options.texts:
        _expect_texts(shards[0])
    if options.frames_store:
        pairs, sources = _stored(options, shards, recipe, size, tokenizer, ranks, progress)
        recipe = recipe.for_data(len(pairs.store))
        source = StoreBatches(pairs, options.loss, recipe.frames, recipe.batch, options.seed, ranks)
        return Job(recipe, source, _captions_content(options, sources), None, lambda _: {})
    stream = ClipStream(
        shards,
        frames=recipe.frames,
        size=size,
        antialias=recipe.antialias,
        seed=options.seed,
        rank=ranks.rank,
        ranks=ranks.size,
        workers=options.workers,
        skip_share=options.skip_share,
        damaged=options.damaged,
        skip_log=Path(options.out) / f"skipped-{ranks.rank:05d}.jsonl",
        captions=(joined := "C" in needs(options.loss)),
        captions_dir=options.captions if joined else None,
        texts=bool(options.texts),
        texts_dir=_folder_of_texts(options),
    )

    def counted(_: ClipViP) -> dict:
        return {"samples_by_rank": ranks.collect(dict(stream.counts))}

    recipe = recipe.for_data(None)
    source = StreamBatches(stream, tokenizer, options.loss, recipe.batch, ranks)
    return Job(recipe, source, _captions_content(options, shards), None, counted)


def _stored(
    options: Options,
    shards: Sequence[Path],
    recipe: TrainRecipe,
    size: int,
    tokenizer: ClipTokenizer,
    ranks: Ranks,
    progress: Callable[[str], Progress],
) -> tuple[Pairs, list[Path]]:
    """Frame stores, decoded from the shards where they are not there yet, with the texts of the shards' sidecars; and
    the shards, or where those of a store alone would stand."""
    folder, texts = Path(options.frames_store), _folder_of_texts(options)
    if shards:
        listed = ShardSet(shards, {"texts": texts} if options.texts else {})
        store_shards(listed, folder, recipe, size, ranks, progress("decode"))
    stores = [folder / f"{shard.stem}.npy" for shard in shards] or sorted(folder.glob("*.npy"))
    if not stores:
        raise ClipVipError(f"{folder} holds no frame store; add --shards PATTERN to decode some into it")
    shard_of = {shard.stem: shard for shard in shards}

    def beside(kind: str, where: str | None) -> Callable[[str], Path]:
        return lambda name: find_sidecar(shard_of.get(name, folder / f"{name}.tar"), kind, where)

    captions = beside("captions", options.captions)
    written = beside("texts", texts) if options.texts else None
    pairs = read_stores(stores, captions, options.loss, tokenizer, recipe, size, written)
    return pairs, [shard_of.get(store.stem, store.with_suffix(".tar")) for store in stores]


def _captions_content(options: Options, shards: Sequence[Path]) -> dict[str, str]:
    """Names and sizes of the captions that the loss reads: a corpus of them is too large to be read twice."""
    if "C" not in needs(options.loss):
        return {}
    sidecars = [find_sidecar(shard, "captions", options.captions) for shard in shards]
    return {"captions' names and sizes": _digest([[path.name, path.stat().st_size] for path in sidecars])}


def _items_content(splits: Mapping[str, Items]) -> dict[str, str]:
    """Videos and texts of a benchmark, and what is missing, so that --allow-missing is another run where it matters."""
    rows = {
        name: [[(item.video_id, item.texts) for item in items], items.missing]
        for name, items in splits.items()
    }
    return {"data's content": _digest(rows)}


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _folder_of_texts(options: Options) -> str | None:
    """The folder that --texts names; None: beside the shards (or --texts was not given)."""
    return None if options.texts is True else options.texts


def _expect_texts(shard: Path) -> None:
    """Raises ClipVipError if a shard's clips bring no text at all: HD-VILA's do not, and --texts was forgotten."""
    clips = [entry for entry in scan_shard(shard)[0] if media_of(entry)[0]]
    if clips and not any(entry.files.get("txt", (0, 0))[1] for entry in clips):
        raise ClipVipError(
            f"no clip of shard {shard} has a text in it: expected KEY.txt with one; `clipvip convert-texts` writes "
            "texts beside shards, add --texts to train on them"
        )


def _finetuning(
    options: Options,
    recipe: TrainRecipe,
    model: ClipViP,
    tokenizer: ClipTokenizer,
    ranks: Ranks,
    progress: Callable[[str], Progress],
) -> Job:
    """Train on the training split, choose on validation, score the test split once, in the end."""
    folder = Path(options.frames_store or Path(options.out) / "frames")
    size = model.config.vision_config.image_size
    splits: dict[str, Pairs] = {}
    listed = {
        split: load_benchmark(options.benchmark, options.data, split, options.allow_missing)
        for split in SPLITS
    }
    expect_batch(recipe.batch, len(listed["train"]))  # told before anything is decoded
    notes = []
    for split, items in listed.items():
        store = store_split(items, folder, split, recipe, size, ranks, progress("decode"))
        splits[split] = Pairs.of(store, [item.texts for item in items], tokenizer)
        notes += [f"{split} {items.note()}"] if items.note() else []
    recipe = recipe.for_data(len(splits["train"].store))

    def encoded(model: ClipViP, split: str):
        return encode_pairs(model, splits[split], recipe.frames, ranks, recipe.precision)

    def evaluate(model: ClipViP) -> float:
        return validation_score(*encoded(model, "val"))

    def score(model: ClipViP) -> dict:
        features = encoded(model, "test")
        found = ranked(*features, REPORTED.values())
        with together(ranks):
            if ranks.main:
                write_ranks(Path(options.out), found, *features)
        numbers = scores(found)
        test = {
            said: {direction: numbers[f"{direction}/{scoring}"] for direction in DIRECTIONS}
            for said, scoring in REPORTED.items()
        }
        return {"test": test, **({"missing": notes} if notes else {})}

    source = StoreBatches(splits["train"], "V-S", recipe.frames, recipe.batch, options.seed, ranks)
    return Job(recipe, source, _items_content(listed), evaluate, score)


class _Shown:
    """What a person follows: lines on stderr from the main rank, and TensorBoard where it was asked for."""

    def __init__(self, ranks: Ranks, board: Path | None):
        self.ranks, self.board = ranks, None
        if board is not None and ranks.main:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ClipVipError(
                    "--tensorboard expected the package tensorboard, it is not installed; install it or leave the "
                    "switch out, metrics.jsonl has the same numbers"
                ) from error
            self.board = SummaryWriter(str(board))

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, *_) -> None:
        if self.board:
            self.board.close()

    def progress(self, label: str) -> Progress | Callable:
        return Progress(label, stream=sys.stderr) if self.ranks.main else quiet

    def report(self, row: dict) -> None:
        if self.board:
            for name, value in row.items():
                if name != "step":
                    self.board.add_scalar(f"train/{name}", value, row["step"])
