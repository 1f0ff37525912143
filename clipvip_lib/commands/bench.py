"""``clipvip bench``: how fast this machine is at each part of the work, beside others' ways to do it."""

from __future__ import annotations

import argparse
import sys

from clipvip_lib.commands.arguments import at_least, device, load_torch, new_file
from clipvip_lib.precision import INT8
from clipvip_lib.say import say

PRECISION = ("float32", "bfloat16")
SIZES = ("tiny", "medium", "base", "large", "huge")


NUMBER = {"type": at_least(1), "metavar": "N"}
OPTIONS = {
    "repeats": {**NUMBER, "help": "times that each form runs, in turns (default: 1 to 11, by benchmark)"},
    "folder": {"metavar": "DIR", "help": "your own videos or shards instead of generated ones"},
    "clips": {**NUMBER, "help": "at most so many clips, given or generated (default: 20, for embed 16)"},
    "batch": {**NUMBER, "help": "videos or images at once (default: 2; train, ranks and caption 8)"},
    "frames": {**NUMBER, "help": "frames of a video (default 12)"},
    "patch": {"type": int, "choices": (16, 32), "help": "ViT-B/32 (default) or B/16"},
    "precision": {"choices": PRECISION, "help": "default: float32"},
    "threads": {**NUMBER, "help": "of torch (default 1, whose time other programs hardly disturb)"},
    "device": {"type": device, "help": "cpu (default), cuda"},
    "processes": {**NUMBER, "help": "at most so many (default 4)"},
    "workers": {**NUMBER, "help": "threads that decode (default: as embed)"},
    "simulate": {
        "type": at_least(0),
        "metavar": "MS",
        "help": "a timed encoder in the model's place: MS per batch, 0: half as much again as decoding takes",
    },
    "quality": {"type": at_least(0), "metavar": "QP", "help": "of the packs (default 20)"},
    "backward": {"action": "store_true", "help": "the gradient of its weights, too"},
    "chunk": {"type": at_least(0), "metavar": "N", "help": "gradient caching: clips at a time"},
    "checkpointing": {"action": "store_true", "help": "compute layers again in the backward pass"},
    "compile": {"action": "store_true", "help": "torch.compile"},
    "size": {"choices": SIZES, "help": "of OFA (default: base)"},
    "images": {**NUMBER, "help": "to caption (default 8)"},
    "beam": {**NUMBER, "help": "hypotheses per image (default 5)"},
    "rows": {**NUMBER, "help": "features that are searched (default 200,000; a million takes 1 GB of disk)"},
    "queries": {**NUMBER, "help": "asked together (default 32)"},
    "probes": {**NUMBER, "help": "cells of the index that are searched (default 32)"},
}
MODEL = ("batch", "frames", "precision", "threads", "device")
#: Each benchmark, a module of bench/: what it measures, and its options.
BENCHES = {
    "decode": (
        "12-frame samples per second and core, of originals and packs, beside decord and torchcodec",
        ("repeats", "folder", "clips", "quality"),
    ),
    "pack": (
        "codings of a pack: bytes, time to decode, error; beside the originals by PyAV and decord",
        ("repeats", "folder", "clips"),
    ),
    "attention": (
        "one layer's attention, beside the authors' formulation, a mask, full attention",
        ("repeats", *MODEL),
    ),
    "encoder": (
        "the video encoder, beside the authors' formulation, Hugging Face's CLIP and open_clip",
        ("repeats", "patch", *MODEL, "backward"),
    ),
    "train": ("a training step", ("repeats", "patch", *MODEL, "chunk", "checkpointing", "compile")),
    "ranks": (
        "a training step of 1, 2, 4 .. processes here, predicted as --plan does and measured",
        ("repeats", "batch", "frames", "patch", "processes"),
    ),
    "embed": (
        "`clipvip embed`, of originals and packs",
        ("folder", "clips", "workers", "patch", "simulate", *MODEL),
    ),
    "caption": (
        "captioning with OFA",
        ("repeats", "size", "images", "beam", "batch", "precision", "threads", "device"),
    ),
    "search": (
        "`clipvip search` among many rows, exact and by FAISS",
        ("rows", "queries", "probes", "threads"),
    ),
    "study": ("the training steps of the mini study", ("repeats", "precision")),
}


def add(commands) -> None:
    parser = commands.add_parser(
        "bench",
        example="clipvip bench decode --folder my-videos/ --json decode.json",
        help="measure speed on this machine, beside other ways to do the same",
        description="Each benchmark runs the forms it compares in turns and prints medians with the smallest and the "
        "largest and, where it applies, the share of a matrix product's rate. Believe ratios of one run; ours are in "
        "docs/benchmarks.md.",
    )
    benches = parser.add_subparsers(dest="bench", metavar="NAME", required=True)
    for name, (what, options) in BENCHES.items():
        example = f"clipvip bench {name} --json {name}.json"
        each = benches.add_parser(name, example=example, help=what, description=what)
        for option in options:
            more = {"choices": (*PRECISION, INT8)} if (name, option) == ("embed", "precision") else {}
            each.add_argument(f"--{option}", default=None, **OPTIONS[option] | more)
        each.add_argument(
            "--json", type=new_file, metavar="FILE", help="write everything that was measured as JSON"
        )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    import importlib
    import json

    from clipvip_lib.data.clips import list_clips
    from clipvip_lib.files import write_json

    if (folder := getattr(arguments, "folder", None)) is not None:
        list_clips([folder])  # tells a wrong path before torch is imported
    _expect_device(getattr(arguments, "device", None))
    given = {name: getattr(arguments, name) for name in BENCHES[arguments.bench][1]}
    given = {name: value for name, value in given.items() if value is not None and value is not False}
    load_torch(aloud=False)
    say("clipvip: measuring; other programs disturb it", sys.stderr)
    found = importlib.import_module(f"clipvip_lib.bench.{arguments.bench}").measure(**given)
    if arguments.json is not None:
        write_json(arguments.json, found)
    for line in table(found["rows"]):
        say(line)
    say(json.dumps({name: value for name, value in found.items() if name != "rows"}))
    return 0


def _expect_device(name: str | None) -> None:
    if name is None:
        return
    from clipvip_lib.features.embedding import device_of

    device_of(name)


def table(rows: list[dict]) -> list[str]:
    """Rows as a table in Markdown, so that it can be pasted."""
    columns = list(rows[0])
    lines = [columns, *([_shown(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    text = [
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |"
        for line in lines
    ]
    return [text[0], f"|{'|'.join('-' * (width + 2) for width in widths)}|", *text[1:]]


def _shown(value: object) -> str:
    return "-" if value is None else str(value)
