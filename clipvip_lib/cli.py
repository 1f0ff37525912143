"""``clipvip``: the study from the command line.

A command is a module of ``commands/`` with ``add(commands)``, which adds its parser; heavy modules are
imported when the command runs, so that ``--help`` and a wrong name answer at once. Bad input prints one sentence
on stderr and exits with code 2; a failed stage exits with 1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import signal
import sys
from collections.abc import Sequence

from clipvip_lib import __version__
from clipvip_lib.commands import caption, check_data, convert_texts, embed, reproduce, search, train
from clipvip_lib.errors import ClipVipError
from clipvip_lib.stop_signals import signals_raise

KEPT = "what was done is kept; run the same command to continue"


class Parser(argparse.ArgumentParser):
    """argparse whose errors are sentences like every other error of this project."""

    def error(self, message: str) -> None:
        raise ClipVipError(f"{message}; `{self.prog} --help` shows what there is")


COMMANDS = tuple(each.add for each in (reproduce, check_data, convert_texts, caption, train, embed, search))


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = Parser(prog="clipvip", description="CLIP-ViP as a study that anyone can run.")
    top.add_argument("--version", action="version", version=f"clipvip {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 something failed, 2 bad input or none, 130 interrupted."""
    for stream in (
        sys.stdout,
        sys.stderr,
    ):  # a verdict's minus sign must not stop a terminal of another encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        top = parser()
        arguments = top.parse_args(argv)
        if arguments.command is None:
            top.print_help(sys.stderr)
            return 2
        with signals_raise(signal.SIGTERM):
            return arguments.run(arguments)
    except ClipVipError as error:
        print(f"clipvip: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"clipvip: interrupted; {KEPT}", file=sys.stderr)
        return 130
    except SystemExit as stop:
        if isinstance(stop.code, int) and stop.code > 128:  # SIGTERM, SIGHUP
            with contextlib.suppress(OSError):  # after a SIGHUP the terminal is gone
                name = signal.Signals(stop.code - 128).name
                print(f"clipvip: stopped by {name}; {KEPT}", file=sys.stderr)
        raise


if __name__ == "__main__":
    sys.exit(main())
