"""Set-up files agree, and name no place that only some machine has."""

import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DIRECT = [Requirement(r) for r in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]]
LOCK_LINES = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line.strip()]


def pins(lines) -> dict[str, str]:
    """name: exact version, of lines like ``torch==2.15.0 ; marker``."""
    found = {}
    for line in lines:
        requirement = Requirement(line)
        specifiers = list(requirement.specifier)
        assert len(specifiers) == 1 and specifiers[0].operator == "==", line
        assert requirement.url is None, line
        found[canonicalize_name(requirement.name)] = specifiers[0].version
    return found


LOCK = pins(LOCK_LINES)
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())
PIP = next(part["pip"] for part in ENVIRONMENT["dependencies"] if isinstance(part, dict))


def test_the_lock_has_only_exact_versions_and_one_of_each_on_any_python():
    names = [canonicalize_name(Requirement(line).name) for line in LOCK_LINES]
    twice = {name for name in names if names.count(name) > 1}
    assert len(LOCK) > len(DIRECT)
    assert not [line for line in LOCK_LINES if Requirement(line).name in twice and ";" not in line]
    assert not twice & {canonicalize_name(r.name) for r in DIRECT}


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda r: r.name)
def test_each_dependency_is_locked_at_a_version_that_the_project_takes(requirement):
    assert requirement.specifier.contains(LOCK[canonicalize_name(requirement.name)])


def test_the_conda_environment_has_the_same_packages_at_the_same_versions():
    pinned = pins(line for line in PIP if not line.startswith("-"))
    assert pinned == {canonicalize_name(r.name): LOCK[canonicalize_name(r.name)] for r in DIRECT}
    options = [line for line in PIP if line.startswith("-")]
    assert options == ["-c requirements.lock", "-e ."]
    python = next(part for part in ENVIRONMENT["dependencies"] if str(part).startswith("python="))
    low = PROJECT["requires-python"].removeprefix(">=")
    assert [int(n) for n in python.removeprefix("python=").split(".")] >= [int(n) for n in low.split(".")]
    assert ENVIRONMENT["channels"] == ["conda-forge"]


@pytest.mark.parametrize(
    "name", ["requirements.lock", "environment.yml", "pyproject.toml", "Makefile", ".ci/run"]
)
def test_no_index_no_host_no_machine(name):
    text = (ROOT / name).read_text()
    assert not re.search(r"index-url|extra-index|find-links|://|\[\[tool\.uv\.index|(?m:^[^#]*@ /)", text)


def test_every_dependency_has_a_reason_beside_it():
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    listed = [line for line in lines if re.match(r'\s+"[A-Za-z0-9_.-]+>=', line)]
    assert len(listed) == len(DIRECT)
    assert all(re.search(r",\s+# \w+", line) for line in listed)


def test_make_alone_lists_the_targets():
    said = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, check=True).stdout
    for target in ("setup", "reproduce", "smoke", "test", "lab", "lint", "clean"):
        assert re.search(rf"^  make {target}\s+\w", said, re.MULTILINE), target


def make(folder: Path, target: str, **environment) -> subprocess.CompletedProcess:
    names = ("Makefile", "requirements.lock", "pyproject.toml")
    for name in names:
        if not (folder / name).exists():
            (folder / name).write_bytes((ROOT / name).read_bytes())
    command = ["make", "-C", str(folder), target]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, start_new_session=True
    )


TOOLS = ("sh", "make", "cat", "cksum", "rm", "awk", "env", "date", "du", "grep")


def only(folder: Path, **tools: str) -> str:
    """A PATH with nothing but basic tools and the given scripts."""
    path = folder / "bin"
    path.mkdir()
    for tool in TOOLS:
        (path / tool).symlink_to(shutil.which(tool))
    for tool, text in tools.items():
        (path / tool).write_text(f"#!/bin/sh\n{text}\n")
        (path / tool).chmod(0o755)
    return str(path)


def test_set_up_without_a_new_python_says_so(tmp_path):
    done = make(tmp_path, "setup", PATH=only(tmp_path, python3="exit 1"))
    assert done.returncode != 0
    assert "no Python 3.11 or newer found" in done.stderr
    assert not (tmp_path / ".venv").exists()


FAKE_PYTHON = r"""
case "$*" in
  *"-m venv"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python;;
  *--version*) echo Python 3.12.0;;
esac
echo "$*" >> calls.txt
"""
FAKE_UV = """
echo "uv $*" >> calls.txt
if [ -n "$FAIL" ]; then exit 1; fi
if [ -n "$KILL" ]; then kill -9 0; fi
case "$*" in *--quiet*) ;; *) echo "Resolved 2 packages" >&2; echo " + six==1.17.0" >&2;; esac
case "$*" in *"uv venv"*|"venv "*) mkdir -p .venv/bin; cp "$(command -v python3)" .venv/bin/python;; esac
"""


@pytest.mark.fault(
    "make setup: the installer fails",
    sees="`setup: failed; correct what it says`",
    keeps="nothing that looks set up",
)
@pytest.mark.fault(
    "make setup: SIGKILL", sees="the next start says `starting afresh`", keeps="nothing half installed"
)
def test_set_up_is_skipped_when_nothing_changed_and_survives_failure_and_kill(tmp_path):
    path = only(tmp_path, python3=FAKE_PYTHON, uv=FAKE_UV)
    for tool in ("mkdir", "cp"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    calls, stamp = tmp_path / "calls.txt", tmp_path / ".venv" / ".clipvip-setup"
    first = make(tmp_path, "setup", PATH=path)
    assert first.returncode == 0, first.stderr
    assert stamp.exists() and "-r requirements.lock" in calls.read_text()
    assert "Resolved 2 packages" in first.stderr and "six" not in first.stderr  # not one line per package
    assert re.search(r"installing took \d+ s\n.*\n.*\nsetup: compiling took \d+ s\n", first.stdout)
    assert re.search(r"setup: done in \d+ s; on disk: \S+\s+\.venv$", first.stdout, re.MULTILINE)
    calls.unlink()
    assert make(tmp_path, "setup", PATH=path).returncode == 0
    assert not calls.exists()  # nothing changed: nothing done
    (tmp_path / "requirements.lock").write_text("six==1.17.0\n")
    failed = make(tmp_path, "setup", PATH=path, FAIL="1")
    assert failed.returncode != 0 and "setup: failed; correct what it says" in failed.stderr
    assert not stamp.exists()
    assert make(tmp_path, "setup", PATH=path, KILL="1").returncode == -9
    (tmp_path / ".venv" / "half").write_text("installed")
    again = make(tmp_path, "setup", PATH=path)
    assert again.returncode == 0 and "starting afresh" in again.stdout
    assert stamp.exists() and not (tmp_path / ".venv" / "half").exists()


def test_set_up_without_cuda_leaves_out_its_libraries_and_asks_for_another_torch(tmp_path):
    uv = FAKE_UV + 'if [ -n "$UV_TORCH_BACKEND" ]; then echo "backend $UV_TORCH_BACKEND" >> calls.txt; fi'
    path = only(tmp_path, python3=FAKE_PYTHON, uv=uv)
    for tool in ("mkdir", "cp"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    refused = make(tmp_path, "setup", PATH=path, TORCH="gpu")
    assert refused.returncode != 0 and "expected TORCH=cpu or none, got gpu" in refused.stderr
    done = make(tmp_path, "setup", PATH=path, TORCH="cpu")
    assert done.returncode == 0, done.stderr
    assert "-r .venv/cpu.lock\nbackend cpu" in (tmp_path / "calls.txt").read_text()
    again = make(tmp_path, "setup", PATH=path, TORCH="cpu")
    assert again.returncode == 0 and "to make it again with TORCH=cpu, remove it first" in again.stdout
    assert make(tmp_path, "setup", PATH=path, TORCH="gpu").returncode != 0
    gone = LOCK.keys() - pins((tmp_path / ".venv" / "cpu.lock").read_text().splitlines())
    linux = [Requirement(r) for r in metadata.requires("torch") if 'platform_system == "Linux"' in r]
    assert {"triton", "cuda-toolkit", *(canonicalize_name(r.name) for r in linux)} <= gone
    assert all(name.startswith(("cuda", "nvidia", "triton")) for name in gone)


def test_the_same_times_are_named_wherever_a_reader_looks_for_them():
    for name in ("README.md", "Makefile", "notebooks/00_start_here.ipynb"):
        said = " ".join((ROOT / name).read_text().split())
        for time in ("22 minutes", "27 minutes", "1 hour 15 minutes"):
            assert time in said, (name, time)
