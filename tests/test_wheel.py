"""The study outside a checkout: a wheel is built, installed beside the libraries, and makes a page."""

import html
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import patience
import pytest

from clipvip_lib.files import CHECKOUT

pytestmark = [pytest.mark.slow, pytest.mark.thorough]
BUILT_FROM = ("clipvip_lib", "notebooks", "reports/reference", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The Python of an environment that has the wheel, and the libraries of this one but not its checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in BUILT_FROM:
        kind, target = CHECKOUT / name, source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if kind.is_dir() else shutil.copy
        copy(
            kind,
            target,
            **({"ignore": shutil.ignore_patterns("__pycache__", "*.html")} if kind.is_dir() else {}),
        )
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    options = ["--no-deps", "--no-index"]
    subprocess.run(
        [*pip, "wheel", source, *options, "--no-build-isolation", "-w", folder], check=True, cwd=folder
    )
    venv.create(folder / "env", with_pip=False, symlinks=True)
    python = folder / "env/bin/python"
    [wheel] = folder.glob("*.whl")
    subprocess.run([*pip, "--python", python, "install", wheel, *options], check=True, cwd=folder)
    # A path in a .pth file is taken as it is: the .pth file of the editable checkout in that folder is not read.
    [packages] = (folder / "env/lib").glob("python*/site-packages")
    (packages / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return python


def run(installed: Path, folder: Path, *command: object, **variables: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["JUPYTER_PATH"] = (
        f"{sys.prefix}/share/jupyter"  # nbconvert's templates are among the libraries
    )
    return patience.run(
        [str(installed), "-P", "-m", "clipvip_lib.cli", *map(str, command)],
        cwd=folder,
        env=environment | variables,
    )


def test_a_page_is_made_with_what_the_wheel_brings(installed, smoke, tmp_path):
    """On the stages of the smoke run, which are the same; the page is made again, by the installed code."""
    shutil.copytree(smoke.home / "stages", tmp_path / "home/stages", copy_function=os.link)
    shutil.rmtree(tmp_path / "home/stages/page")
    done = run(
        installed,
        tmp_path,
        "reproduce",
        "--profile",
        "smoke",
        "--only",
        "02",
        CLIPVIP_HOME=str(tmp_path / "home"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith(str(tmp_path / "reports/smoke/index.html"))
    index = html.unescape((tmp_path / "reports/smoke/index.html").read_text())
    assert "of the paper's 11 claims" in index  # the reference's answer came along
    assert "How far are subtitles" in (tmp_path / "reports/smoke/02_language_gap.html").read_text()
    assert re.search(r"^1 stages? run, \d+ found done", done.stdout, re.MULTILINE), done.stdout


def test_it_knows_that_it_is_installed_and_where_it_works(installed, tmp_path):
    asked = "from clipvip_lib import files; print(files.INSTALLED, files.home(), files.shipped('notebooks').is_dir())"
    environment = {n: v for n, v in os.environ.items() if not n.startswith("PYTHON") and n != "CLIPVIP_HOME"}
    said = subprocess.run(
        [installed, "-P", "-c", asked], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert said.stdout.split() == ["True", str(tmp_path / ".clipvip"), "True"], said.stderr
