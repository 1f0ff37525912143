"""``clipvip completion``: what makes a shell complete commands, options, names and files at the Tab key.

shtab writes it from the parser, once; argcomplete would start Python at each Tab, half a second here.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from clipvip_lib.say import say

SHELLS = ("bash", "zsh", "fish")
FILES = ("FILE", "SOURCE", "PATTERN", "LMDB", "JSONL", "W", "OFA", "MODEL")
FOLDERS = ("DIR",)


def add(commands) -> None:
    parser = commands.add_parser(
        "completion",
        example='eval "$(clipvip completion bash)"',
        help="print what makes the Tab key complete commands, in bash, zsh or fish",
        description='In ~/.bashrc: eval "$(clipvip completion bash)". In ~/.zshrc, after compinit: eval "$(clipvip '
        'completion zsh)". In fish: mkdir -p ~/.config/fish/completions; clipvip completion fish > '
        "~/.config/fish/completions/clipvip.fish",
    )
    parser.add_argument("shell", choices=SHELLS, help="for which shell")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from clipvip_lib.errors import ClipVipError

    try:
        import shtab
    except ImportError as error:
        raise ClipVipError("completion expected shtab, it is not installed; run pip install shtab") from error
    names = _names()
    for action in _actions(arguments.parser):
        if isinstance(action, argparse._SubParsersAction):
            for listed in action._choices_actions:  # zsh and fish show it beside the name: a line is enough
                action.choices[listed.dest].description = listed.help
        elif action.choices is None and action.dest in names:
            action.choices = names[action.dest]
        elif action.metavar in FILES + FOLDERS:
            action.complete = shtab.DIRECTORY if action.metavar in FOLDERS else shtab.FILE
    for line in shtab.complete(arguments.parser, arguments.shell).splitlines():
        say(line)
    return 0


def _names() -> dict[str, tuple[str, ...]]:
    """What may follow an option that checks its value itself, by the option's name."""
    from clipvip_lib.data.benchmarks import SETS
    from clipvip_lib.models.attentions import ATTENTIONS
    from clipvip_lib.profiles import PROFILES
    from clipvip_lib.training.recipes import RECIPES

    named = {"attention": ATTENTIONS, "profile": PROFILES, "recipe": RECIPES, "benchmark": SETS, "name": SETS}
    return {name: tuple(known) for name, known in named.items()}


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All options, arguments and choices of a command, those of commands included."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from _actions(each)
        yield action
