"""``clipvip train``: post-pretraining and fine-tuning at any size, on one device or under torchrun on many."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from clipvip_lib.children import end_if_orphaned, end_with_torchrun
from clipvip_lib.commands.arguments import assignment, at_least, load_torch, numbers, path, share
from clipvip_lib.errors import ClipVipError, unknown
from clipvip_lib.models.attentions import ATTENTIONS
from clipvip_lib.omnisource import RELEASED
from clipvip_lib.say import say
from clipvip_lib.stop_signals import StoppedBetweenSteps, StopSignals

STAGES = ("postpretrain", "finetune")
LONGEST_TIMEOUT = 1e7  # seconds, four months


def add(commands) -> None:
    parser = commands.add_parser(
        "train",
        example="clipvip train --stage finetune --weights model/ --benchmark msrvtt --data /data/msrvtt --out run/",
        help="post-pretrain on shards, or fine-tune on a benchmark",
        description="Trains CLIP-ViP by one of the authors' recipes, on one device, or under torchrun on many: the "
        "batch is the global one and is divided over the ranks. Run the same command again to continue a stopped run, "
        "on any number of ranks. Writes OUT/model, which every loader reads, OUT/metrics.jsonl and "
        "OUT/result.json, which is printed too. Exit code: 0 done, 1 a rank was lost, 2 bad input or data, 143 "
        "(130) stopped by SIGTERM (SIGINT).",
    )
    parser.add_argument(
        "--stage",
        required=True,
        choices=STAGES,
        help="post-pretrain on --shards, or fine-tune on --benchmark",
    )
    parser.add_argument(
        "--weights",
        required=True,
        type=path,
        metavar="SOURCE",
        help="a folder, a file, an open_clip name, or a name of the Hugging Face Hub",
    )
    parser.add_argument("--tag", metavar="TAG", help="of an open_clip name: its weights, a tag or a file")
    parser.add_argument("--out", required=True, type=path, metavar="DIR", help="folder of the run")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--shards", metavar="PATTERN", help='tar files to post-pretrain on, such as "path/{00000..00099}.tar"'
    )
    data.add_argument(
        "--captions",
        type=path,
        metavar="DIR",
        help="folder of SHARD.captions.jsonl or, where that is not there, .parquet (default: beside the shards)",
    )
    data.add_argument(
        "--texts",
        nargs="?",
        const=True,
        type=path,
        metavar="DIR",
        help="take texts from SHARD.texts.jsonl, as `clipvip convert-texts` writes them, in DIR (without DIR: beside "
        "the shards) and not from key.txt",
    )
    data.add_argument(
        "--frames-store",
        type=path,
        metavar="DIR",
        help="decode once into this folder and train from there: batches are then the same on any number of ranks "
        "(fine-tuning always does, by default in OUT/frames)",
    )
    data.add_argument(
        "--benchmark",
        metavar="NAME",
        help="to fine-tune on: msrvtt, didemo, activitynet, lsmdc and others (docs/benchmarks.md)",
    )
    data.add_argument("--data", type=path, metavar="DIR", help="the benchmark's folder")
    data.add_argument(
        "--allow-missing",
        type=at_least(0),
        default=0,
        metavar="N",
        help="videos of a split that may be missing (default 0)",
    )
    data.add_argument(
        "--workers",
        type=at_least(0),
        default=0,
        metavar="N",
        help="decoding processes of each rank (default 0)",
    )
    data.add_argument(
        "--skip-share",
        type=share,
        default=0.0,
        metavar="X",
        help="share of the samples that may be bad and are skipped (default: 0)",
    )
    data.add_argument(
        "--damaged",
        choices=("refuse", "accept"),
        default="refuse",
        help="accept damaged videos of --shards with the pictures that the decoder makes up, and name them in "
        "OUT/skipped-*.jsonl (default: refuse)",
    )
    how = parser.add_argument_group("training")
    how.add_argument("--loss", metavar="L", help=f'default: "{RELEASED}" to post-pretrain, V-S to fine-tune')
    how.add_argument("--recipe", metavar="NAME", help="default: postpretrain, or finetune-BENCHMARK")
    how.add_argument(
        "--set",
        action="append",
        type=assignment,
        default=[],
        metavar="FIELD=VALUE",
        help="another value of the recipe, such as batch=256 or chunk=32 (--show lists them); may be repeated",
    )
    how.add_argument("--attention", metavar="A", help=f"{', '.join(ATTENTIONS)} (default: the weights')")
    how.add_argument(
        "--proxies",
        type=at_least(1),
        metavar="M",
        help="number of video proxies (default: the weights', or 4)",
    )
    how.add_argument(
        "--seed",
        type=at_least(0),
        default=0,
        metavar="N",
        help="of new weights and of the order of the data (default 0)",
    )
    how.add_argument(
        "--snapshots", type=numbers, default=[], metavar="N,N", help="steps after which a model is kept"
    )
    how.add_argument("--tensorboard", action="store_true", help="write OUT/tensorboard too")
    how.add_argument(
        "--timeout",
        type=float,
        default=600.0,
        metavar="S",
        help="seconds that ranks wait for each other (default 600)",
    )
    how.add_argument(
        "--show", action="store_true", help="print the recipe, with the source of each value, and end"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    try:
        recipe_name = check(arguments)
        if not arguments.show:
            _expect_files(arguments)
    except ClipVipError:
        if os.environ.get("RANK", "0") != "0":  # every rank would say the same
            return 2
        raise
    if arguments.show:
        return show(arguments, recipe_name)
    ranks = None
    end_with_torchrun(lambda: _say_orphaned(arguments.out))
    try:
        load_torch(aloud=os.environ.get("RANK", "0") == "0")
        from clipvip_lib.training import ranks as distributed

        ranks = distributed.start(arguments.timeout)
        return _train(arguments, recipe_name, ranks)
    except (SystemExit, KeyboardInterrupt) as stop:
        code = 128 + signal.SIGINT if isinstance(stop, KeyboardInterrupt) else stop.code
        if not isinstance(code, int) or code <= 128:
            raise
        # torchrun ends the others when a rank dies: its signal may come while we report the lost rank.
        if ranks is not None and isinstance(stop.__context__, distributed.RankLost):
            return _say_lost(stop.__context__, arguments.out, ranks)
        with StopSignals(patient=True):  # a second signal must not suppress this one's sentence
            _say_stopped(signal.Signals(code - 128).name, arguments.out, ranks)
        return code


def _train(arguments: argparse.Namespace, recipe_name: str, ranks) -> int:
    """The run and its exit code."""
    from transformers.utils import logging

    from clipvip_lib.training import ranks as distributed
    from clipvip_lib.training.run import Options, train_as_told

    # transformers' bar about one file of weights says less than our own lines. The Hub's downloads keep theirs.
    logging.set_tqdm_hook(lambda bar, given, named: bar(*given, **named | {"disable": True}))
    try:
        train_as_told(Options.of(arguments), recipe_name, ranks)
    except distributed.StoppedElsewhere:
        return 2
    except distributed.RankLost as error:
        return _say_lost(error, arguments.out, ranks)
    except ClipVipError as error:
        distributed.say_once(ranks, f"clipvip: {error}")
        return 2
    except StoppedBetweenSteps as stopped:
        name = signal.Signals(stopped.code - 128).name
        distributed.say_once(
            ranks,
            f"clipvip: stopped by {name}: all ranks finished their step, {_kept(arguments.out)}; run the same "
            "command again to continue",
        )
        distributed.stop()
        return stopped.code
    distributed.stop()
    return 0


def _say_lost(error: BaseException, out: str, ranks) -> int:
    """Report that another rank is gone; returns the exit code. torchrun's signal must not suppress the sentence."""
    from clipvip_lib.training.ranks import say_once

    end_if_orphaned()
    with StopSignals(patient=True):
        say_once(ranks, f"clipvip: {error}; {_kept(out)}")
    return 1


def _say_orphaned(out: str) -> None:
    """Report that torchrun was killed; the store by which ranks agree who speaks may be gone with it."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        say(
            f"clipvip: torchrun, which started this rank, is gone: the ranks end; {_kept(out, told=False)}; run the "
            "same command again to continue",
            sys.stderr,
        )


def _say_stopped(name: str, out: str, ranks) -> None:
    """Report a signal that ends the run at once: before the first step, or in scoring. ranks: None before they have
    found each other."""
    # A rank cannot know whether another one is gone: torchrun sends the same signal when it is stopped itself.
    sender = (
        ", sent by torchrun or another process (if a rank died, torchrun's report names it)"
        if "RANK" in os.environ and name == "SIGTERM"
        else ""
    )
    kept = _kept(out, told=ranks is not None)
    text = f"clipvip: stopped by {name}{sender}; {kept}; run the same command again to continue"
    if ranks is None:
        say(text, sys.stderr)
        return
    from clipvip_lib.training.ranks import say_once

    say_once(ranks, text)


def _kept(out: str, told: bool = True) -> str:
    """What a run resumes from, as part of a sentence. ``told``: with its step, which only torch can read."""
    checkpoint, result = Path(out, "checkpoint.pt"), Path(out, "result.json")
    if checkpoint.exists():
        step = None
        if told:
            from clipvip_lib.training.run_folder import checkpoint_step

            step = checkpoint_step(checkpoint)
        return f"{checkpoint} is kept" if step is None else f"{checkpoint} of step {step} is kept"
    return f"{result} is kept" if result.exists() else "no checkpoint was written yet"


def check(arguments: argparse.Namespace) -> str:
    """Whether the options go together; returns the recipe's name. Raises ClipVipError."""
    from clipvip_lib.omnisource import terms
    from clipvip_lib.training.recipes import RECIPES, get_recipe

    post = arguments.stage == "postpretrain"
    if post and not (arguments.shards or arguments.frames_store):
        raise ClipVipError(
            "--stage postpretrain expected --shards PATTERN or --frames-store DIR, got neither; add one"
        )
    wanted = {"--benchmark NAME": arguments.benchmark, "--data DIR": arguments.data}
    if not post and (lacks := " and ".join(name for name, given in wanted.items() if not given)):
        raise ClipVipError(f"--stage finetune expected --benchmark NAME and --data DIR; add {lacks}")
    foreign = ("benchmark", "data") if post else ("shards", "captions", "texts")
    if given := [f"--{name}" for name in foreign if getattr(arguments, name)]:
        raise ClipVipError(f"--stage {arguments.stage} takes no {' and no '.join(given)}; leave it out")
    if arguments.damaged == "accept" and (not post or arguments.frames_store):
        raise ClipVipError(
            "--damaged accept expected --shards that are decoded while training, got frames that are stored; leave it "
            "out"
        )
    # NaN is in no interval; a longer time cannot be passed to the ranks.
    if not 0 < arguments.timeout <= LONGEST_TIMEOUT:
        raise ClipVipError(
            f"--timeout expected seconds above 0 and up to {LONGEST_TIMEOUT:g}, got {arguments.timeout}; change it"
        )
    if arguments.loss:
        terms(arguments.loss)
    arguments.loss = arguments.loss or (RELEASED if post else "V-S")
    if not post and arguments.loss != "V-S":
        raise ClipVipError(
            f"--stage finetune expected the loss V-S, got {arguments.loss!r}: a benchmark has no captions"
        )
    name = arguments.recipe or ("postpretrain" if post else f"finetune-{arguments.benchmark}")
    fitting = [recipe for recipe in RECIPES if recipe.startswith(arguments.stage)]
    if name not in RECIPES and not arguments.recipe:
        raise ClipVipError(
            f"no recipe of the authors for {arguments.benchmark!r}: add --recipe, one of {', '.join(fitting)}"
        )
    if name in RECIPES and name not in fitting:
        raise ClipVipError(
            f"--stage {arguments.stage} expected a recipe of its own, got {name!r}; name one of {', '.join(fitting)}"
        )
    get_recipe(name, **dict(arguments.set))
    return name


def _expect_files(arguments: argparse.Namespace) -> None:
    """Raises ClipVipError for weights and data that are not there: now, not after torch was imported by every rank."""
    from clipvip_lib.data.shards import expand
    from clipvip_lib.files import kind_of, make_folder
    from clipvip_lib.models.weight_names import expect_clip

    expect_clip(arguments.weights, arguments.tag, arguments.attention)
    if arguments.shards:
        expand(arguments.shards)
    if arguments.benchmark:
        from clipvip_lib.data.benchmarks import SETS

        if arguments.benchmark not in SETS:
            raise unknown("set", arguments.benchmark, SETS)
    if arguments.data and kind_of(arguments.data) != "folder":
        raise ClipVipError(
            f"no folder {arguments.data!r}: expected the annotations and videos of the set; check the path"
        )
    for name in ("captions", "texts"):
        if isinstance(given := getattr(arguments, name), str) and kind_of(given) != "folder":
            raise ClipVipError(f"no folder {given!r}: expected the {name} of the shards; check --{name}")
    make_folder(arguments.out)


def show(arguments: argparse.Namespace, name: str) -> int:
    """Print a recipe and where its values come from."""
    import dataclasses
    import json

    from clipvip_lib.training.recipes import FIXED, get_recipe, source

    recipe = get_recipe(name, **dict(arguments.set))
    changed = dict(arguments.set)
    rows = {
        field: {"value": value, "source": "--set" if field in changed else source(name, field)}
        for field, value in dataclasses.asdict(recipe).items()
    }
    fixed = {what: {"value": value, "source": said} for what, (value, said) in FIXED.items()}
    print(json.dumps({"recipe": name, "loss": arguments.loss, "fields": rows, "fixed": fixed}, indent=2))
    return 0
