"""The code of the documentation's pages, box by box, and what a reader does with it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from clipvip_lib.files import CHECKOUT

FENCE = r'^```(?P<kind>\w*)(?: title="(?P<file>[^"]+)")?\n(?P<code>.*?)^```$'
PARTS = re.compile(rf"{FENCE}|^#+ (?P<title>[^\n]+)$", re.MULTILINE | re.DOTALL)


class Box(NamedTuple):
    """A box of code. file: the one that it writes or changes; None: it is run."""

    kind: str
    file: str | None
    code: str


def sections(page: str) -> dict[str, list[Box]]:
    """The boxes below each heading of a page, by the heading."""
    found: dict[str, list[Box]] = {}
    for part in PARTS.finditer((CHECKOUT / page).read_text(encoding="utf-8")):
        if part["title"]:
            boxes = found[part["title"]] = []
        else:
            boxes.append(Box(*part.group("kind", "file", "code")))
    return found


def copy_of_the_checkout(folder: Path) -> Path:
    """What a reader changes: the code, its tests and their documents."""
    for name in ("clipvip_lib", "tests", "docs"):
        shutil.copytree(CHECKOUT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md"):
        shutil.copy(CHECKOUT / name, folder / name)
    return folder


def follow(box: Box, folder: Path) -> None:
    """Do in a copy of the checkout what a box says: change its file, or run it."""
    if box.file is None:
        run(box, folder)
    elif box.kind == "diff":
        path = folder / box.file
        old, new = (
            "".join(line[1:] or "\n" for line in box.code.splitlines(True) if line[0] in kept)
            for kept in (" -\n", " +\n")
        )
        content = path.read_text(encoding="utf-8")
        assert content.count(old) == 1, (
            f"{box.file} has these lines {content.count(old)} times, not once:\n{old}"
        )
        path.write_text(content.replace(old, new), encoding="utf-8")
    else:
        assert not (folder / box.file).exists(), box.file
        (folder / box.file).write_text(box.code, encoding="utf-8")


def run(box: Box, folder: Path) -> str:
    """What a box of Python, or of commands, prints; the first that fails, fails."""
    commands = folder / "bin"
    if not commands.exists():  # as in an activated .venv, of this copy
        commands.mkdir()
        for name, module in (("python", ""), ("clipvip", " -m clipvip_lib.cli")):
            (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{module} "$@"\n')
            (commands / name).chmod(0o755)
    line = {"python": [sys.executable, "-W", "error", "-c"], "bash": ["bash", "-ec"]}[box.kind]
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PATH": path, "PYTHONPATH": str(folder), "CLIPVIP_HOME": str(folder / ".clipvip")}
    done = subprocess.run(
        [*line, box.code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{box.code}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout
