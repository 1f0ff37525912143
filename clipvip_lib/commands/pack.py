"""``clipvip pack``: shards and folders rewritten with just the frames that are wanted."""

from __future__ import annotations

import argparse

from clipvip_lib.commands.arguments import path, share
from clipvip_lib.say import counted, say


def add(commands) -> None:
    parser = commands.add_parser(
        "pack",
        example="clipvip pack '/data/webvid/{00000..00099}.tar' --out packs/ --json",
        help="rewrite shards or folders with just the wanted frames, which decode 5 to 24 times faster",
        description="Writes every clip as a short video of its wanted frames and its middle frame, at the model's "
        "size, under the same name; texts, key.json and captions are kept. All commands read packs as they read "
        "originals, and get the same frames. What is done is skipped, so run it again after an interruption to "
        "continue; several machines may run it on one folder. A downstream set's annotations are not copied.",
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help='shards ("path/{00000..00099}.tar"), folders, frame folders, video files',
    )
    parser.add_argument("--out", required=True, type=path, metavar="DIR", help="folder of the packs")
    parser.add_argument(
        "--frames",
        type=int,
        default=12,
        metavar="N",
        help="frames that the model sees of a clip (default 12); for fine-tuning, those that the frame store keeps",
    )
    parser.add_argument(
        "--jitter",
        action="store_true",
        help="keep three times as many, so that training may begin and end a clip at other frames (2.6 times the disk)",
    )
    parser.add_argument(
        "--size", type=int, default=224, metavar="PIXELS", help="side of a frame (default 224)"
    )
    parser.add_argument(
        "--antialias",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="resize with Pillow as CLIP does, or in the authors' way, as the model will be trained (default: the "
        "authors' way)",
    )
    parser.add_argument(
        "--quality",
        type=int,
        default=20,
        metavar="QP",
        help="H.264's quantiser, smaller is better and larger on disk (default 20)",
    )
    parser.add_argument(
        "--skip-share",
        type=share,
        default=0.0,
        metavar="SHARE",
        help="share of a shard's samples, or of the files, that may be left out if they cannot be read (default: 0)",
    )
    parser.add_argument(
        "--damaged",
        choices=("refuse", "accept"),
        default="refuse",
        help="accept damaged videos with the pictures that the decoder makes up (default: refuse)",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="threads (default: one per core, at most 16)"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON line")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    import dataclasses
    import json
    import sys

    from clipvip_lib.data.clips import list_files
    from clipvip_lib.data.packed_clip import JITTER_STEPS, Packing
    from clipvip_lib.progress import Progress
    from clipvip_lib.streams.pack import pack

    packing = Packing(
        frames=arguments.frames,
        steps=JITTER_STEPS if arguments.jitter else 1,
        size=arguments.size,
        antialias=arguments.antialias,
        quality=arguments.quality,
        damaged=arguments.damaged,
    )
    files = list_files(arguments.sources)
    if note := files.note():
        say(f"clipvip: {note}", sys.stderr)
    tally = pack(
        files,
        arguments.out,
        packing,
        skip_share=arguments.skip_share,
        workers=arguments.workers,
        progress=Progress("pack", stream=sys.stderr),
        say=lambda text: say(f"clipvip pack: {text}", sys.stderr),
    )
    if arguments.json:
        say(json.dumps({"folder": arguments.out, **dataclasses.asdict(tally)}))
    else:
        say(_summary(tally, arguments.out))
    return 0


def _summary(tally, out: str) -> str:
    told = [f"{tally.written} of {counted(tally.files, 'file')} packed into {out}"]
    if tally.found:
        told.append(f"{tally.found} {'was' if tally.found == 1 else 'were'} there")
    if tally.clips:
        told.append(
            f"{counted(tally.clips, 'clip')}, {tally.before / 1e6:.1f} MB before and {tally.after / 1e6:.1f} MB after, "
            f"frames differ by {tally.error:.1f} grey levels in the mean"
        )
    for count, what in (
        (tally.pictures, "pictures kept as they are"),
        (tally.absent, "samples never fetched"),
        (tally.skipped, "clips left out (*.not_packed.jsonl)"),
        (tally.damaged, "damaged clips accepted"),
        (tally.others, "further files of samples not kept, such as sound"),
    ):
        if count:
            told.append(f"{what}: {count}")
    return f"{'; '.join(told)}; {tally.seconds:.1f} s"
