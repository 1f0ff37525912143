"""Where a page's numbers come from: commit, versions, profile, seeds, precision, machine, time."""

from __future__ import annotations

import datetime
import functools
import subprocess
from collections.abc import Iterable

from clipvip_lib import __version__, files
from clipvip_lib.workshop.machine import installed, machine

SHOWN = ("torch", "transformers", "numpy", "av", "matplotlib", "pandas")


@functools.cache
def commit() -> str:
    """The checkout's commit, with ``+changes`` if files differ from it; ``none`` outside git."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "none"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(files.CHECKOUT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


@functools.cache
def versions() -> dict[str, str]:
    """Versions of this project and of the libraries behind its numbers and figures."""
    return {"clipvip_lib": __version__} | installed(SHOWN)


def provenance(profile: str, seeds: Iterable[int], precision: str = "") -> dict[str, object]:
    """The facts as JSON values. precision: that of the models, in words."""
    return {
        "commit": commit(),
        "profile": profile,
        "seeds": list(seeds),
        **({"precision": precision} if precision else {}),
        "versions": versions(),
        "machine": machine(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def provenance_lines(facts: dict) -> list[tuple[str, str]]:
    """The facts as (label, text), for people."""
    return [
        ("commit", facts["commit"]),
        ("profile", facts["profile"]),
        ("seeds", ", ".join(map(str, facts["seeds"]))),
        *([("precision", facts["precision"])] if "precision" in facts else []),
        ("versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())),
        ("machine", facts["machine"]),
        ("time", facts["time"]),
    ]
