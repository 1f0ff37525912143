"""``clipvip``: the study from the command line.

A command is a module of ``commands/`` with ``add(commands)``, which adds its parser; heavy modules are
imported when the command runs, so that ``--help`` and a wrong name answer at once. Bad input prints one sentence
on stderr and exits with code 2; a failed stage exits with 1.
"""

from __future__ import annotations

import argparse
import difflib
import io
import re
import signal
import sys
from collections.abc import Sequence

from clipvip_lib import __version__
from clipvip_lib.commands import (
    bench,
    caption,
    check_data,
    completion,
    convert_texts,
    embed,
    pack,
    reproduce,
    search,
    train,
)
from clipvip_lib.data import crashes
from clipvip_lib.errors import NO_ROOM, ClipVipError, lack_of_memory
from clipvip_lib.say import CannotSay, give_up, say
from clipvip_lib.stop_signals import signals_raise

LESS_MEMORY = "choose a smaller batch or fewer workers, or end other programs"
KEPT = "what was done is kept; run the same command to continue"


class Parser(argparse.ArgumentParser):
    """argparse whose errors are sentences like every other error of this project, with the nearest name that there is.

    example: a command line that its help shows.
    """

    def __init__(self, *arguments, example: str = "", **options) -> None:
        super().__init__(*arguments, **options)
        self.example = example

    def format_help(self) -> str:
        return super().format_help() + (f"\nexample:\n  {self.example}\n" if self.example else "")

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        found, rest = self.parse_known_args(args, namespace)
        if rest:  # told by the command, which knows its options
            for action in self._actions:
                if isinstance(action, argparse._SubParsersAction) and found.command in action.choices:
                    action.choices[found.command].error(f"unrecognized arguments: {' '.join(rest)}")
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return found

    def parse_known_args(self, args=None, namespace=None) -> tuple[argparse.Namespace, list[str]]:
        self._given = [*(sys.argv[1:] if args is None else args)]
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> None:
        known: list[str] = []
        if message.startswith("the following arguments are required"):
            # A misspelt option is the likely reason why one is missing.
            options = (part.partition("=")[0] for part in self._given if part.startswith("--"))
            given = [o for o in options if not any(n.startswith(o) for n in self._option_string_actions)]
            if given:
                message = f"unrecognized arguments: {' '.join(given)}"
        if match := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            known = re.findall(r"[\w-]+", match[2])
        elif match := re.match(r"unrecognized arguments: (--[\w-]+)", message):
            known = [name for name in self._option_string_actions if name.startswith("--")]
        near = difflib.get_close_matches(match[1], known, n=1, cutoff=0.7) if match else []
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ClipVipError(f"{message}{hint}; `{self.prog} --help` shows what there is")


COMMANDS = tuple(
    each.add
    for each in (reproduce, check_data, convert_texts, pack, caption, train, embed, search, bench, completion)
)


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = Parser(prog="clipvip", description="CLIP-ViP as a study that anyone can run.")
    top.add_argument("--version", action="version", version=f"clipvip {__version__}")
    top.set_defaults(parser=top)
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
        with signals_raise(signal.SIGTERM):
            return _run(argv)
    except ClipVipError as error:
        say(f"clipvip: {error}", sys.stderr)
        return 2
    except CannotSay as error:
        say(f"clipvip: cannot write to standard output: {error}; free some space; {KEPT}", sys.stderr)
        return 2
    except Exception as error:
        if lack_of_memory(type(error).__name__, str(error)):
            said = f"the memory does not suffice; {LESS_MEMORY}"
        elif NO_ROOM in str(error):
            said = f"{NO_ROOM}; free some space"
        else:
            raise
        say(f"clipvip: {said}; {KEPT}", sys.stderr)
        return 2
    except KeyboardInterrupt:
        say(f"clipvip: interrupted; {KEPT}", sys.stderr)
        return 130
    except SystemExit as stop:
        # A reader that had enough (SIGPIPE, as of | head) need not be told.
        if isinstance(stop.code, int) and stop.code > 128 and stop.code != 128 + signal.SIGPIPE:
            say(f"clipvip: stopped by {signal.Signals(stop.code - 128).name}; {KEPT}", sys.stderr)
        raise


def _run(argv: Sequence[str] | None) -> int:
    """A command's exit code, once all that it printed has been written. Raises CannotSay if that cannot be."""
    try:
        top = parser()
        arguments = top.parse_args(argv)
        if arguments.command is None:
            top.print_help(sys.stderr)
            return 2
        crashes.armed = True
        return arguments.run(arguments)
    finally:
        try:
            sys.stdout.flush()
        except OSError as error:
            give_up(sys.stdout)
            raise CannotSay(error.strerror or str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
