"""``clipvip``: the study from the command line.

A command is a function that adds its parser; heavy modules are imported when the command runs, so that
``--help`` and a wrong name answer at once. Bad input is one sentence on stderr and exit code 2, a failed
stage is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import signal
import sys
from collections.abc import Sequence

from clipvip_lib import __version__
from clipvip_lib.errors import ClipVipError

KEPT = "what was done is kept, run the same command to go on"


class Parser(argparse.ArgumentParser):
    """argparse whose errors are sentences like every other error of this project."""

    def error(self, message: str) -> None:
        raise ClipVipError(f"{message}; `{self.prog} --help` shows what there is")


def numbers(text: str) -> list[int]:
    """``0,1,2`` as numbers."""
    try:
        return [int(part) for part in names(text)]
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"expected whole numbers like 0,1,2, got {text!r}") from None


def names(text: str) -> list[str]:
    """``04,05`` as names; at least one, for a variable that is empty by mistake must not mean everything."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise argparse.ArgumentTypeError(f"expected names like 04,05, got {text!r}")
    return found


def folder(text: str) -> str:
    """A folder's name, which is not empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"expected a folder, got {text!r}")
    return text


def assignment(text: str) -> tuple[str, object]:
    """``name=value``; the value is JSON where it can be (numbers, lists, true), else text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, such as data_root=/data, got {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def add_reproduce(commands) -> None:
    parser = commands.add_parser(
        "reproduce",
        help="run the notebooks with all they rest on, and write the pages",
        description="Runs the study's notebooks with all the stages they rest on, skips what is done, and "
        "writes one HTML page a notebook, an index and results/*.json. Started again after an interruption "
        "it goes on.",
    )
    parser.add_argument("--profile", default="mini", metavar="P", help="smoke, mini (default) or paper")
    parser.add_argument("--only", type=names, default=[], metavar="04,05", help="only these notebooks")
    parser.add_argument(
        "--seeds", type=numbers, default=[0], metavar="0,1", help="seeds of every arm (default 0)"
    )
    parser.add_argument(
        "--force",
        action="append",
        default=[],
        metavar="STAGE",
        help="run this stage again, with what rests on it; a name, its beginning (finetune) or a pattern "
        "(finetune/*/seed0); may be repeated",
    )
    parser.add_argument(
        "--out", type=folder, metavar="DIR", help="folder of pages and results (default: reports/)"
    )
    parser.add_argument(
        "--set",
        action="append",
        type=assignment,
        default=[],
        metavar="NAME=VALUE",
        help="a further parameter of the notebooks; may be repeated",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one a core, or one a GPU)"
    )
    parser.set_defaults(run=run_reproduce)


def run_reproduce(arguments: argparse.Namespace) -> int:
    from clipvip_lib.study.pipeline import reproduce

    return reproduce(
        arguments.profile,
        only=arguments.only,
        seeds=arguments.seeds,
        force=arguments.force,
        out=arguments.out,
        set=dict(arguments.set),
        workers=arguments.workers,
    )


COMMANDS = (add_reproduce,)


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = Parser(prog="clipvip", description="CLIP-ViP as a study that anyone can run.")
    top.add_argument("--version", action="version", version=f"clipvip {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in COMMANDS:
        add(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 something failed, 2 bad input, 130 interrupted."""
    for stream in (
        sys.stdout,
        sys.stderr,
    ):  # a verdict's minus sign must not stop a terminal of another encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        arguments = parser().parse_args(argv)
        return arguments.run(arguments)
    except ClipVipError as error:
        print(f"clipvip: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"clipvip: interrupted; {KEPT}", file=sys.stderr)
        return 130
    except SystemExit as stop:
        if isinstance(stop.code, int) and stop.code > 128:  # SIGTERM, SIGHUP: workers.py
            with contextlib.suppress(OSError):  # of a SIGHUP the terminal is gone
                name = signal.Signals(stop.code - 128).name
                print(f"clipvip: stopped by {name}; {KEPT}", file=sys.stderr)
        raise


if __name__ == "__main__":
    sys.exit(main())
