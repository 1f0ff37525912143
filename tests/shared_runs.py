"""What is dear and made once for a whole session of tests, by whichever of its processes asks first."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import patience
import pytest

from clipvip_lib.locks import Lock


def once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder that is filled once; what a process left that died or failed at it is thrown away."""
    done = folder / ".done"
    with Lock(folder.with_suffix(".lock"), wait=True):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def session_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all processes of a session; each worker of xdist has its own below it."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if hasattr(request.config, "workerinput") else own


class Smoke:
    """`clipvip reproduce --profile smoke` on an empty cache, from a folder that is not the checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home, self.out = folder, folder / "home", folder / "out"

    def reproduce(self) -> subprocess.CompletedProcess:
        command = [
            sys.executable,
            "-m",
            "clipvip_lib.cli",
            "reproduce",
            "--profile",
            "smoke",
            "--out",
            self.out,
        ]
        return patience.run(command, cwd=self.folder, env=os.environ | {"CLIPVIP_HOME": str(self.home)})

    def make(self) -> None:
        """The first run; a failure is kept too, and told by the tests."""
        done = self.reproduce()
        (self.folder / "first.json").write_text(json.dumps([done.returncode, done.stdout, done.stderr]))

    @property
    def first(self) -> subprocess.CompletedProcess:
        return subprocess.CompletedProcess([], *json.loads((self.folder / "first.json").read_text()))


@pytest.fixture(scope="session")
def smoke(session_folder: Path) -> Smoke:
    """The smoke run."""
    return Smoke(once(session_folder / "smoke", lambda folder: Smoke(folder).make()))
