"""``clipvip check-data``: is a downstream set complete, and how long does reading it take?"""

from __future__ import annotations

import argparse

from clipvip_lib.commands.arguments import new_file

SHOWN = 5  # sentences shown per finding; --json has all


def add(commands) -> None:
    parser = commands.add_parser(
        "check-data",
        example="clipvip check-data msrvtt /data/msrvtt --json found.json",
        help="check a downstream set: what is missing, damaged or doubled, and how long reading takes",
        description="Checks annotations and videos of a downstream set in about a minute and names every fault by a "
        "code word (docs/benchmarks.md). Exit code 0: fine, or warnings only; 1: errors; 2: it could not be checked.",
    )
    parser.add_argument(
        "name", metavar="NAME", help="the set: msrvtt, didemo, activitynet, lsmdc, msvd, vatex, jsonl ..."
    )
    parser.add_argument("root", metavar="DIR", help="folder with its annotations and videos/")
    parser.add_argument("--videos", metavar="DIR", help="folder of the videos, if it is elsewhere")
    parser.add_argument(
        "--allow-missing",
        type=int,
        default=0,
        metavar="N",
        help="up to N missing videos per split are only a warning",
    )
    parser.add_argument(
        "--sample",
        type=int,
        default=32,
        metavar="N",
        help="decode at most N videos (default 32); 0 for all",
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=45.0,
        metavar="S",
        help="stop decoding after half of these seconds, and opening files after all of them (default 45; with "
        "--sample 0 neither stops)",
    )
    parser.add_argument(
        "--json", type=new_file, metavar="FILE", help="write everything that was found as JSON"
    )
    parser.add_argument(
        "--hold-out",
        type=int,
        metavar="N",
        help="first write held_out.txt: N training videos as validation split, for a set that comes without one",
    )
    parser.set_defaults(run=run)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:  # NaN is neither
        raise argparse.ArgumentTypeError(f"expected a number of seconds, 0 or more, got {text!r}")
    return seconds


def run(arguments: argparse.Namespace) -> int:
    import sys

    from clipvip_lib.data.check import check_set
    from clipvip_lib.data.held_out import hold_out
    from clipvip_lib.files import write_json
    from clipvip_lib.progress import Progress
    from clipvip_lib.say import say
    from clipvip_lib.training.recipes import RECIPES, recipe_of

    if arguments.hold_out is not None:
        say(f"wrote {hold_out(arguments.name, arguments.root, arguments.hold_out)}")
    recipe = recipe_of(arguments.name)
    report = check_set(
        arguments.name,
        arguments.root,
        videos=arguments.videos,
        allow_missing=arguments.allow_missing,
        sample=arguments.sample,
        seconds=arguments.seconds,
        kept_frames=RECIPES[recipe].kept_frames,
        progress=Progress("check-data", stream=sys.stderr),
    )
    if arguments.json:
        write_json(arguments.json, report.as_json())
    for line in lines(report, recipe):
        say(line)
    return 1 if report.errors else 0


def lines(report, recipe: str) -> list[str]:
    """The report for people, with the frame store of a fine-tuning by this recipe."""
    from clipvip_lib.data.check import CODES
    from clipvip_lib.progress import duration
    from clipvip_lib.say import counted
    from clipvip_lib.training.recipes import RECIPES

    found = [f"{report.title} ({report.name}), scored by {report.protocol}s"]
    for split, about in report.splits.items():
        distributed = about["as_distributed"]
        note = f"; as distributed {distributed:,}" if distributed not in (None, about["videos"]) else ""
        found.append(
            f"  {split:5} {counted(about['videos'], 'video')}, {counted(about['texts'], 'text')}, "
            f"{about['missing']:,} missing{note}"
        )
    if "val" not in report.splits:
        found.append("  val   none comes with the set; --hold-out N sets training videos aside")
    for finding in report.findings:
        count = len(finding.sentences)
        found.append(f"{finding.severity}: {finding.code} ({count}): {CODES[finding.code]}")
        found += [f"    {sentence}" for sentence in finding.sentences[:SHOWN]]
        if count > SHOWN:
            found.append(f"    and {count - SHOWN} more (--json FILE lists all)")
    found.append(
        f"{counted(report.files, 'file')} of {report.video_bytes / 1e9:.2f} GB, {report.looked_into:,} of them opened"
    )
    if report.decoding:
        d = report.decoding
        found.append(
            f"decoded: {counted(d.clips, 'clip')}, {1 / d.seconds_a_clip:.1f} per second on one core"
        )
        found.append(f"all clips, 12 frames and the middle one: {duration(d.core_hours * 3600)} on one core")
        found.append(
            f"a frame store by {recipe}, {RECIPES[recipe].kept_frames} frames and the middle one at 224 x 224: "
            f"{d.store_bytes / 1e9:.1f} GB"
        )
    warnings = len(report.findings) - len(report.errors)
    found.append(
        f"{counted(len(report.errors), 'kind')} of error, {warnings} of warning, in {duration(report.seconds)}"
        if report.findings
        else f"no fault found, in {duration(report.seconds)}"
    )
    return found
