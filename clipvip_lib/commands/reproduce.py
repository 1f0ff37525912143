"""``clipvip reproduce``: the study's notebooks with every stage they need."""

from __future__ import annotations

import argparse

from clipvip_lib.commands.arguments import assignment, names, numbers, path
from clipvip_lib.errors import ClipVipError


def add(commands) -> None:
    parser = commands.add_parser(
        "reproduce",
        example="clipvip reproduce --profile smoke --only 04,05 --seeds 0-2",
        help="run the notebooks with every stage they need, and write the pages",
        description="Runs the study's notebooks with every stage they need, skips what is done, and "
        "writes one HTML page per notebook, an index and results/*.json. Run it again after an interruption "
        "to continue.",
    )
    parser.add_argument(
        "--profile", default="mini", metavar="P", help="smoke, mini (default), mini-gpu or paper"
    )
    parser.add_argument("--only", type=names, default=[], metavar="04,05", help="only these notebooks")
    parser.add_argument(
        "--seeds",
        type=numbers,
        default=[0],
        metavar="0-2",
        help="seeds of every arm, such as 0,1 or 0-2 (default 0)",
    )
    parser.add_argument(
        "--force",
        action="append",
        default=[],
        metavar="STAGE",
        help="re-run this stage and everything that depends on it; a name, its beginning (finetune) or a pattern "
        "(finetune/*/seed0); may be repeated",
    )
    parser.add_argument(
        "--out",
        type=path,
        metavar="DIR",
        help="folder of pages and results (default: reports/, at smoke reports/smoke/)",
    )
    parser.add_argument(
        "--set",
        action="append",
        type=assignment,
        default=[],
        metavar="NAME=VALUE",
        help="a parameter of the run, such as precision=float32; at paper data_root=DIR, weights=PATH, ofa=PATH, "
        "gpus=N, postpretrain.FIELD=VALUE, finetune.FIELD=VALUE; may be repeated",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read all files of what is found done, and make again what is not as it was written",
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="print stages, data needed, time and disk, and run nothing; takes the same --set, and at paper any "
        "assumption=VALUE",
    )
    parser.add_argument("--json", action="store_true", help="of --plan: print it as one JSON line")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.plan:
        return _plan(arguments)
    if arguments.json:
        raise ClipVipError(
            "--json belongs to --plan: expected both; a run writes its numbers to results/*.json of --out by itself"
        )
    from clipvip_lib.study.pipeline import reproduce

    return reproduce(
        arguments.profile,
        only=arguments.only,
        seeds=arguments.seeds,
        force=arguments.force,
        out=arguments.out,
        set=dict(arguments.set),
        workers=arguments.workers,
        verify=arguments.verify,
    )


def _plan(arguments: argparse.Namespace) -> int:
    if arguments.force or arguments.out or arguments.verify:
        given = "--force" if arguments.force else "--out" if arguments.out else "--verify"
        raise ClipVipError(f"--plan runs and writes nothing: expected no {given}; leave one of the two out")
    from clipvip_lib.study.dry_run import dry_run

    return dry_run(
        arguments.profile,
        only=arguments.only,
        seeds=arguments.seeds,
        set=dict(arguments.set),
        workers=arguments.workers,
        as_json=arguments.json,
    )
