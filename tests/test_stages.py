"""Stages: keys, code versions, resuming, and what a kill leaves."""

import ast
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import patience
import pytest
import small_study
from hypothesis import given, settings
from hypothesis import strategies as st

from clipvip_lib.errors import ClipVipError
from clipvip_lib.workshop import stages as versions
from clipvip_lib.workshop.stages import (
    Stage,
    closure,
    discard,
    empty_bin,
    plain,
    run_stage,
    version,
    version_of,
)

COUNT = "small_study:count"
TESTS = Path(__file__).parent


def stage(name="base", n=3, inputs=None, **config):
    return Stage(name, COUNT, {"n": n, **config}, inputs or {})


def test_a_stage_runs_once_and_says_how(tmp_path):
    first = run_stage(stage(), tmp_path)
    assert first["sum"] == 3
    assert run_stage(stage(), tmp_path) == first
    assert (tmp_path / "stages" / "ran.txt").read_text().count("\n") == 1
    facts = stage().facts(tmp_path)
    assert facts["seconds"] >= 0 and facts["peak_memory_mib"] > 1 and facts["attempts"] == 1
    assert facts["finished"].startswith("20") and "Python" in facts["machine"]
    assert [p.name for p in (tmp_path / "stages").glob("*.partial")] == []


def test_inputs_reach_the_function_as_folders(tmp_path):
    base = stage()
    arm = stage("arm/seed0", 1, {"base": base})
    with pytest.raises(ClipVipError, match=r"needs base .* has not run"):
        run_stage(arm, tmp_path)
    run_stage(base, tmp_path)
    assert run_stage(arm, tmp_path)["sum"] == 4
    assert arm.folder(tmp_path).parent.name == "arm"


def test_the_key_follows_what_can_change_the_result_and_nothing_else(monkeypatch):
    base = stage()
    assert stage("other/name").key == base.key
    assert replace(base, cost=99.0).key == base.key
    assert stage(n=4).key != base.key
    assert stage(inputs={"x": stage("below")}).key != base.key
    assert stage(inputs={"x": stage("below", 9)}).key != stage(inputs={"x": stage("below")}).key
    assert replace(base, imports=("clipvip_lib.losses",)).key == base.key
    with monkeypatch.context() as changed:
        changed.setattr(versions, "library_versions", lambda: {"torch": "0"})
        assert stage().key != base.key
    monkeypatch.setattr(versions, "version_of", lambda function: 2)
    assert stage().key != base.key


@settings(deadline=None)  # the first key reads the function's source
@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.floats(-1e9, 1e9)))
def test_the_key_does_not_depend_on_the_order_of_the_configuration(config):
    turned = dict(reversed(config.items()))
    assert Stage("a", COUNT, config).key == Stage("a", COUNT, turned).key


def test_the_version_is_read_from_the_source_and_is_the_functions():
    assert version_of(COUNT) == small_study.count.version == 1

    @version(7, "another rule")
    def work():
        return "done"

    assert (work.version, work()) == (7, "done")


def test_a_version_that_changed_during_a_run_is_refused(tmp_path, monkeypatch):
    planned = stage()
    assert planned.key
    monkeypatch.setattr(small_study.count, "version", 2)
    with pytest.raises(
        ClipVipError, match=r"the version of small_study:count changed during the run; start it"
    ):
        run_stage(planned, tmp_path)
    assert not planned.partial_folder(tmp_path).exists()


def test_computing_a_key_imports_nothing_heavy():
    code = (
        "import sys; from clipvip_lib.workshop.stages import Stage;"
        "Stage('a', 'small_study:count', {}, {}, ('clipvip_lib.models.checkpoints',)).key;"
        "print([m for m in ('torch', 'numpy', 'small_study', 'clipvip_lib.models') if m in sys.modules])"
    )
    environment = dict(os.environ, PYTHONPATH=str(TESTS))
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (lambda: Stage("../up", COUNT), "stage name"),
        (lambda: Stage("/abs", COUNT), "stage name"),
        (lambda: Stage("a", "small_study:nothing").key, "no function 'nothing'"),
        (lambda: Stage("a", "small_study:profile").key, r"has no version: expected @version\(whole number"),
        (lambda: Stage("a", "no_such_module:f").key, "no module 'no_such_module'"),
        (lambda: Stage("a", "no_such.module:f").key, "no module 'no_such.module'"),
        (lambda: Stage("a", COUNT, {"x": float("nan")}).key, "finite number"),
        (lambda: Stage("a", COUNT, {"x": object()}).key, "JSON value"),
        (lambda: closure([stage("a", 1), stage("a", 2)]), "two different stages are named a"),
        (lambda: stage().result(Path("/nonexistent")), "has not run"),
    ],
)
def test_bad_stages_are_named_in_a_sentence(bad, words):
    with pytest.raises(ClipVipError, match=words) as caught:
        bad()
    assert "\n" not in str(caught.value)


@pytest.mark.fault(
    "a stage: its function raises",
    sees="the error",
    keeps="the partial folder; the next run resumes there and counts two attempts",
)
def test_a_failure_keeps_the_partial_folder_and_the_next_run_resumes_there(tmp_path, monkeypatch):
    failing = stage(n=5, mood="raise")
    with pytest.raises(RuntimeError):
        run_stage(failing, tmp_path)
    assert not failing.done(tmp_path)
    assert (failing.partial_folder(tmp_path) / "count.json").read_text() == "5\n"
    count = small_study.count
    repaired = version(1, "first")(lambda c, i, f, p: count({**c, "mood": ""}, i, f, p))
    monkeypatch.setattr(small_study, "count", repaired)
    assert run_stage(failing, tmp_path)["resumed_at"] == 5
    assert failing.facts(tmp_path)["attempts"] == 2


@pytest.mark.fault(
    "a stage: killed between its last file and the renaming of its folder",
    sees="nothing",
    keeps="the result; the stage does not run again",
)
def test_killed_between_the_last_file_and_the_rename_it_is_not_run_again(tmp_path):
    run_stage(stage(), tmp_path)
    stage().folder(tmp_path).rename(stage().partial_folder(tmp_path))
    assert not stage().done(tmp_path)
    run_stage(stage(), tmp_path)
    assert stage().done(tmp_path)
    assert (tmp_path / "stages" / "ran.txt").read_text().count("\n") == 1


def in_process(home: Path, n: int, pause: float) -> subprocess.Popen:
    code = (
        "from pathlib import Path; from clipvip_lib.workshop.stages import Stage, run_stage;"
        f"run_stage(Stage('base', 'small_study:count', {{'n': {n}, 'pause': {pause}}}), Path({str(home)!r}))"
    )
    return subprocess.Popen([sys.executable, "-c", code], env=dict(os.environ, PYTHONPATH=str(TESTS)))


@pytest.mark.fault(
    "a stage: SIGKILL in the middle",
    sees="one partial folder and nothing else",
    keeps="what was counted; the next run resumes there",
)
def test_sigkill_leaves_one_partial_folder_that_is_resumed(tmp_path):
    slow = stage(n=400, pause=0.02)
    process = in_process(tmp_path, 400, 0.02)
    counted = slow.partial_folder(tmp_path) / "count.json"
    patience.until(lambda: counted.exists() and int(counted.read_text() or 0) >= 5, "five counts", process)
    process.kill()
    process.wait()
    left = sorted(p.name for p in (tmp_path / "stages").iterdir())
    assert left == [slow.partial_folder(tmp_path).name]
    done = int(counted.read_text())
    counted.write_text("398")  # so that the test does not wait for the rest
    assert run_stage(slow, tmp_path)["resumed_at"] == 398 > done >= 5


@pytest.mark.fault(
    "a stage: two processes want it at once", sees="both end with exit code 0", keeps="the stage runs once"
)
def test_two_processes_never_run_the_same_stage(tmp_path):
    both = [in_process(tmp_path, 20, 0.05) for _ in range(2)]
    for process in both:
        patience.wait(process)
    assert [process.returncode for process in both] == [0, 0]
    assert (tmp_path / "stages" / "ran.txt").read_text().count("\n") == 1


def test_discard_forgets_results_and_partial_work(tmp_path):
    run_stage(stage(), tmp_path)
    assert discard(stage(), tmp_path)
    assert not stage().done(tmp_path)
    assert not discard(stage(), tmp_path)
    assert list((tmp_path / "discarded").iterdir()) == []


def test_results_are_json_whatever_numpy_is_in_them():
    value = plain({"a": np.float32(0.5), "b": np.arange(2), 3: (np.int64(1), True, None)})
    assert json.loads(json.dumps(value)) == {"a": 0.5, "b": [0, 1], "3": [1, True, None]}
    with pytest.raises(ClipVipError, match=r"result\['x'\]\[1\] is nan"):
        plain({"x": [1.0, np.nan]}, "result")


@pytest.mark.fault(
    "a stage: a killed attempt left half files",
    sees="nothing; the stage resumes",
    keeps="whole files; half ones do not reach the result",
)
def test_half_written_files_of_a_killed_attempt_do_not_reach_the_result(tmp_path):
    partial = stage().partial_folder(tmp_path)
    (partial / "videos").mkdir(parents=True)
    for name in ("frames.npy.4711.partial", "videos/v.mp4.4711.partial"):
        (partial / name).write_bytes(b"half")
    (partial / "step-000010.partial").mkdir()
    (partial / "step-000010.partial/model.safetensors.4711.partial").write_bytes(b"half")
    (partial / "count.json").write_text("2")
    (partial / "attempts.jsonl").write_text('{"started": 0.0, "spent_before": 0.0, "pid": 1}\n{"star')
    assert run_stage(stage(), tmp_path)["resumed_at"] == 2
    assert sorted(p.name for p in stage().folder(tmp_path).rglob("*")) == [
        "count.json",
        "result.json",
        "videos",
    ]
    assert stage().facts(tmp_path)["attempts"] == 2


def test_the_bin_is_emptied(tmp_path):
    left = tmp_path / "discarded" / "1-2"
    left.mkdir(parents=True)
    empty_bin(tmp_path)
    empty_bin(tmp_path)
    assert not left.exists()


def test_every_library_that_the_science_computes_with_is_part_of_a_key():
    """What only moves bytes or text unchanged is listed here, with all others the key must change."""
    carries = {"safetensors", "huggingface_hub", "open_clip", "regex", "ftfy", "psutil"}
    carries |= {"braceexpand", "lmdb", "pyarrow", "faiss", "shtab"}
    package = Path(versions.__file__).parents[1]
    found = set()
    for file in package.rglob("*.py"):
        if (
            not {package / part for part in ("study", "workshop", "bench")} & {*file.parents}
            or file.name == "steps.py"
        ):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and not node.level:
                    names = [node.module]
                found |= {name.split(".")[0] for name in names}
    others = found - sys.stdlib_module_names - {"clipvip_lib"} - carries
    named = {{"PIL": "pillow", "sklearn": "scikit-learn"}.get(name, name) for name in others}
    assert named == set(versions.LIBRARIES)
    assert "none" not in versions.library_versions().values()


def empty(path):
    path.write_bytes(b"")


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def turn(path):
    """Another content of the same size."""
    content = path.read_bytes()
    path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])


DAMAGES = {
    "record emptied": ("result.json", empty, "is not JSON"),
    "record gone": ("result.json", Path.unlink, "result.json is not there"),
    "record cut": ("result.json", cut, "is not JSON"),
    "record a list": ("result.json", lambda p: p.write_text("[1]"), "is not that of this stage"),
    "record of another": (
        "result.json",
        lambda p: p.write_text('{"result": {}, "stage": {}}'),
        "is not that of",
    ),
    "payload emptied": ("count.json", empty, "count.json has 0 bytes, expected 2"),
    "payload gone": ("count.json", Path.unlink, "count.json: No such file"),
}


@pytest.mark.fault(
    "cache: an entry's record is emptied, cut, gone or of another stage, or its payload is emptied or gone",
    sees="what is damaged, where it was moved, and `the stage runs again`",
    keeps="the damaged entry, moved aside as it was; the result is made again and is equal",
)
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_entry_is_moved_aside_said_and_made_again(tmp_path, capsys, name):
    file, damage, words = DAMAGES[name]
    first = run_stage(stage(), tmp_path)
    damage(stage().folder(tmp_path) / file)
    kept = {p.name: p.read_bytes() for p in stage().folder(tmp_path).iterdir()}
    assert not stage().done(tmp_path) and words in stage().damage(tmp_path)
    with pytest.raises(ClipVipError, match=r"the entry .* of stage base is damaged .*moves it aside"):
        stage().result(tmp_path)
    assert run_stage(stage(), tmp_path) == first and stage().done(tmp_path)
    said = capsys.readouterr().err
    (aside,) = (tmp_path / "damaged").iterdir()
    assert words in said and f"moved to {aside}, the stage runs again\n" in said
    assert {p.name: p.read_bytes() for p in aside.iterdir()} == kept
    assert run_stage(stage(), tmp_path) == first and len(list((tmp_path / "damaged").iterdir())) == 1


@pytest.mark.fault(
    "cache: a record or a payload is changed without a change of size, looked at in full",
    sees="`count.json has another checksum than it was written with` or `result.json was changed`",
    keeps="not looked at by the test",
)
@pytest.mark.parametrize("file", ("count.json", "result.json"))
def test_what_has_its_size_is_found_by_its_checksum(tmp_path, file):
    run_stage(stage(), tmp_path)
    path = stage().folder(tmp_path) / file
    if file == "count.json":
        turn(path)
    else:
        path.write_text(path.read_text().replace('"sum": 3', '"sum": 4'))
    assert stage().done(tmp_path) and not stage().damage(tmp_path)
    assert stage().damage(tmp_path, full=True) in (
        "count.json has another checksum than it was written with",
        "result.json was changed",
    )


def test_an_entry_from_before_there_were_checksums_is_whole(tmp_path):
    run_stage(stage(), tmp_path)
    path = stage().folder(tmp_path) / "result.json"
    record = json.loads(path.read_text())
    del record["files"], record["sha256"]
    path.write_text(json.dumps(record))
    assert stage().done(tmp_path) and not stage().damage(tmp_path, full=True)


@pytest.mark.fault(
    "cache: a payload is empty and its folder not yet renamed, as a power cut may leave them",
    sees="the stage runs again",
    keeps="the damaged folder, moved aside; the result is made again and is equal",
)
def test_a_damaged_entry_that_was_never_renamed_is_made_again(tmp_path):
    """A power cut between the last file and the rename."""
    first = run_stage(stage(), tmp_path)
    stage().folder(tmp_path).rename(stage().partial_folder(tmp_path))
    empty(stage().partial_folder(tmp_path) / "count.json")
    assert run_stage(stage(), tmp_path) == first
    (aside,) = (tmp_path / "damaged").iterdir()
    assert {p.name for p in aside.iterdir()} == {"count.json", "result.json"}


def test_everything_is_on_the_disk_before_the_rename(tmp_path, monkeypatch):
    done, sync, rename = [], os.fsync, Path.rename
    monkeypatch.setattr(
        os, "fsync", lambda h: done.append(str(Path(f"/proc/self/fd/{h}").readlink())) or sync(h)
    )
    monkeypatch.setattr(Path, "rename", lambda a, b: done.append(f"{a} -> {b}") or rename(a, b))
    run_stage(stage(), tmp_path)
    partial, folder = stage().partial_folder(tmp_path), stage().folder(tmp_path)
    at = done.index(f"{partial} -> {folder}")
    record = next(i for i, path in enumerate(done) if Path(path).name.startswith("result.json"))
    assert str(partial / "count.json") in done[:record] and done[record + 1] == str(partial)
    assert record < at and done[at + 1 :] == [str(folder.parent)]


@pytest.mark.fault(
    "cache: the clock was set back (an attempt and a finished stage of tomorrow)",
    sees="nothing; the stage resumes, and is not run again once it is done",
    keeps="the result; no time is counted below zero",
)
def test_a_clock_that_was_set_back_costs_nothing(tmp_path):
    partial = stage().partial_folder(tmp_path)
    partial.mkdir(parents=True)
    tomorrow = time.time() + 86_400
    (partial / "attempts.jsonl").write_text(json.dumps({"started": tomorrow, "spent_before": 0.0}) + "\n")
    assert run_stage(stage(), tmp_path)["sum"] == 3
    assert stage().facts(tmp_path)["attempts"] == 2 and 0 <= stage().facts(tmp_path)["seconds"] < 60
    for path in tmp_path.rglob("*"):
        os.utime(path, (tomorrow, tomorrow))
    before = stage().facts(tmp_path)
    run_stage(stage(), tmp_path)
    assert stage().facts(tmp_path) == before


@pytest.mark.fault("cache: the note of attempts is junk", sees="nothing", keeps="the stage's result")
def test_a_note_of_attempts_that_is_junk_is_no_note(tmp_path):
    partial = stage().partial_folder(tmp_path)
    partial.mkdir(parents=True)
    (partial / "attempts.jsonl").write_text(
        '[1]\n"x"\n{}\n{"started": null, "spent_before": 0}\n' + "[" * 9999
    )
    assert run_stage(stage(), tmp_path)["sum"] == 3 and stage().facts(tmp_path)["attempts"] == 1
