"""The registration in git is of this study, older than evidence that rests on it, and not written after the fact."""

import dataclasses
import json
import subprocess
from pathlib import Path

import pytest

from clipvip_lib import files
from clipvip_lib.errors import ClipVipError
from clipvip_lib.profiles import get_profile
from clipvip_lib.study import evidence_file, jobs, preregistration, reference
from clipvip_lib.study.preregistration import REGISTRATION, SEEDS


@pytest.fixture(scope="module")
def registered() -> dict:
    return files.read_json(REGISTRATION)


@pytest.fixture(scope="module")
def exploratory() -> evidence_file.Stored:
    return evidence_file.read(reference.FOLDER / reference.EVIDENCE)


def test_statements_rule_sizes_arms_and_versions_are_the_registered_ones(registered):
    """What fails here is another study: register it anew (`make registration`) before it is run, or take it back."""
    today = json.loads(json.dumps(preregistration.fixed(get_profile(preregistration.PROFILE))))
    assert {name: registered[name] for name in today} == today
    assert registered["seeds"] == list(SEEDS) and registered["stop rule"] == preregistration.STOP


def test_another_statement_size_arm_or_version_would_show(registered):
    mini = get_profile("mini")
    for changed in (
        get_profile("mini", **{"finetune.lr": 5e-4}),
        get_profile("mini", **{"world.seed": 0}),
        dataclasses.replace(mini, proxy_counts=(1, 2, 4)),
    ):
        assert any(registered[name] != value for name, value in preregistration.fixed(changed).items())


def git(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True)


def came_after(folder: Path, registration: Path, commit: str) -> bool | None:
    """Whether a run's commit contains the last change of the registration; None where no history tells."""
    written = git(folder, "log", "-1", "--format=%H", "--", str(registration)).stdout.strip()
    if not written:
        return None
    return (
        git(folder, "merge-base", "--is-ancestor", written, commit.removesuffix("+changes")).returncode == 0
    )


def test_the_run_came_after_the_registration():
    """Of all evidence that rests on it."""
    for path in sorted(reference.FOLDER.rglob("*.npz")):
        for run in evidence_file.read(path).runs:
            if run.get("registration") == evidence_file.registration():
                assert came_after(files.CHECKOUT, REGISTRATION, run["commit"]) is not False, path.name


def test_a_run_from_before_the_registration_would_show(tmp_path):
    registration = tmp_path / "registration.json"
    assert git(tmp_path, "init", "-q").returncode == 0
    assert came_after(tmp_path, registration, "HEAD") is None
    commits = []
    for content in ("first", "registered", "run"):
        (registration if content == "registered" else tmp_path / "code").write_text(content)
        git(tmp_path, "add", ".")
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        assert git(tmp_path, *who, "commit", "-qm", content).returncode == 0
        commits.append(git(tmp_path, "rev-parse", "HEAD").stdout.strip())
    found = [came_after(tmp_path, registration, commit) for commit in (*commits, f"{commits[2]}+changes")]
    assert found == [False, True, True, True]


def test_more_seeds_decide_more(registered):
    for chances in registered["power"]["statements"].values():
        for what in ("decided", "no difference"):
            by_seeds = [chances[seeds][what] for seeds in ("8", "16", "24")]
            assert by_seeds == [None] * 3 or (sorted(by_seeds) == by_seeds and by_seeds[-1] <= 1)


@pytest.mark.thorough
def test_power_is_that_of_the_least_favourable_contrast(exploratory):
    [one] = [s for s in preregistration.claims.STATEMENTS if s.id == "6"]
    found, together = exploratory.found(), preregistration.power(exploratory)["statements"]["6"]["16"]
    alone = [
        preregistration._decided(one, preregistration.rule.difference(found[c]), 16) for c in one.contrasts
    ]
    assert together["decided"] == round(min(alone), 2) > 0.8


@pytest.mark.thorough
def test_a_registration_that_evidence_rests_on_is_not_written_again(exploratory, tmp_path, monkeypatch):
    path = tmp_path / "registration.json"
    monkeypatch.setattr(evidence_file, "REGISTRATION", path)
    evidence_file.write(exploratory, tmp_path / reference.EVIDENCE)
    jobs.register(tmp_path, path)
    before = path.read_bytes()
    jobs.register(tmp_path, path)  # nothing rests on it yet
    assert path.read_bytes() == before
    rests = dataclasses.replace(exploratory, runs=({"registration": evidence_file.registration()},))
    for folder in (tmp_path / "conditions", tmp_path):
        file = files.make_folder(folder) / "registered.npz"
        evidence_file.write(rests, file)
        with pytest.raises(ClipVipError, match=r"registered.npz rests on .*before the run"):
            jobs.register(tmp_path, path)
        file.unlink()
    assert path.read_bytes() == before
