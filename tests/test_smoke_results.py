"""A stage whose results have changed carries another version: the smoke run against a stored one.

A key holds a function's version, not its source (workshop/stages.py), so a version that was not raised would let
caches answer with results of older code. On the kind of processor that stored it, a stage's result and files must be
the same to the byte. On another one, where rounding differs, whole numbers, texts and losses are compared as far as
processors agree on them: that notices less. After a change that is meant: raise the version of the function that the
test names, or of what it rests on, with a word why, and store the new run with ``make smoke-results``.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

STORED = Path(__file__).parent / "smoke_results.json"
TOLERANCE = {"first loss": 1e-3, "last loss": 5e-2}  # relative; rounding grows from step to step
PAGE = "page/"
KIND = ("vendor_id", "cpu family", "model", "CPU implementer", "CPU part")


def found(home: Path) -> dict[str, dict]:
    """{stage: its function, version, inputs and numbers} of a cache, without the pages."""
    stages = {}
    for path in sorted((home / "stages").rglob("result.json")):
        record = json.loads(path.read_text())
        stage, result = record["stage"], record["result"]
        if stage["name"].startswith(PAGE):
            continue
        stages[stage["name"]] = {
            "function": stage["function"].partition(":")[2],
            "version": stage["version"],
            "precision": precision(stage["config"]),
            "inputs": sorted(name.rpartition("-")[0] for name in stage["inputs"].values()),
            "numbers": numbers(result) | texts(path.parent),
            "exact": exact(result, path.parent),
        }
    return stages


def processor() -> str:
    """What decides how sums are rounded: the processor's family and model, what PyTorch makes of it, its version."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    known = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    kind = " ".join(value.strip() for name, value in sorted(known.items()) if name.strip() in KIND)
    return f"{kind}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def exact(result: dict, folder: Path) -> str:
    """A digest of all that a stage made, without times."""
    digest = hashlib.sha256(json.dumps(without_times(result), sort_keys=True).encode())
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "result.json" and path.suffix != ".md":
            digest.update(path.relative_to(folder).as_posix().encode() + content(path))
    return digest.hexdigest()[:16]


def content(path: Path) -> bytes:
    """What a file holds. torch.save writes the name of the temporary file, with a process's number, into its own."""
    if path.suffix != ".pt":
        return path.read_bytes()
    state = torch.load(path, weights_only=True)
    return b"".join(name.encode() + value.numpy().tobytes() for name, value in state.items())


def without_times(value: object) -> object:
    if isinstance(value, dict):
        kept = {name: part for name, part in value.items() if "second" not in name}
        return {name: without_times(part) for name, part in kept.items()}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def precision(config: dict) -> str:
    return config.get("precision") or config.get("recipe", {}).get("precision", "")


def numbers(result: dict) -> dict:
    """Whole numbers at the top, and the first and the last loss."""
    kept = {name: value for name, value in result.items() if type(value) is int}
    if history := result.get("history"):
        kept |= {"first loss": history[0]["loss"], "last loss": history[-1]["loss"]}
    return kept


def texts(folder: Path) -> dict:
    """A digest of the texts that a stage wrote beside decoded frames."""
    files = sorted(path for path in folder.glob("*.json") if path.name != "result.json")
    if not files or not list(folder.glob("*.npy")):
        return {}
    return {"texts": hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]}


def differences(now: dict[str, dict], stored: dict[str, dict], same: bool = False) -> dict[str, list[str]]:
    """{stage: what differs}, of stages whose inputs are as they were: the ones that a change touched first.

    same: whether both ran on one kind of processor, where nothing may differ.
    """

    def differ(name: str) -> list[str]:
        one, other = now[name], stored[name]
        same_precision = one["precision"] == other["precision"]
        changed = ["its bytes"] if same and same_precision and one["exact"] != other["exact"] else []
        return changed + [
            f"{what} was {before} and is {one['numbers'].get(what)}"
            for what, before in other["numbers"].items()
            if not (what in TOLERANCE and not same_precision)
            and not equal(before, one["numbers"].get(what), TOLERANCE.get(what, 0.0))
        ]

    both = now.keys() & stored.keys()
    changed = {name: said for name in sorted(both) if (said := differ(name))}
    return {name: said for name, said in changed.items() if not changed.keys() & set(now[name]["inputs"])}


def equal(before: object, value: object, tolerance: float) -> bool:
    return before == value if not tolerance else value == pytest.approx(before, rel=tolerance)


def store(stages: dict[str, dict], kind: str) -> None:
    lines = [f"  {json.dumps(name)}: {json.dumps(stage)}" for name, stage in stages.items()]
    STORED.write_text(f'{{"processor": {json.dumps(kind)}, "stages": {{\n' + ",\n".join(lines) + "\n}}\n")


def test_results_are_those_of_their_versions(smoke, request):
    now, here = found(smoke.home), processor()
    if request.config.getoption("write_smoke_results"):
        store(now, here)
    document = json.loads(STORED.read_text())
    stored, again = document["stages"], "store the run with `make smoke-results`"
    assert now.keys() == stored.keys(), f"other stages than stored; {again}"
    for name, said in differences(now, stored, here == document["processor"]).items():
        what = f"{name} ({'; '.join(said)}; stages that rest on it are not judged)"
        assert now[name]["version"] != stored[name]["version"], (
            f"{what}: raise the version of {now[name]['function']} and {again}, or repair what changed it"
        )
        raise AssertionError(f"{what}: its version was raised; {again}")
    older = [name for name in now if now[name]["version"] != stored[name]["version"]]
    assert not older, f"versions of {older} are not those stored; {again}"


def stage(version: int = 1, inputs: tuple = (), precision: str = "float32", **numbers) -> dict:
    return {
        "function": "train", "version": version, "precision": precision, "inputs": [*inputs], "numbers": numbers,
        "exact": str(sorted(numbers.items())),
    }  # fmt: skip


def test_the_stage_that_changed_first_is_the_one_that_is_named():
    stored = {"a": stage(clips=8), "b": stage(inputs=("a",), **{"first loss": 2.0}), "c": stage(clips=1)}
    assert differences(stored, stored) == {}
    now = {**stored, "a": stage(clips=9), "b": stage(inputs=("a",), **{"first loss": 2.5})}
    assert differences(now, stored) == {"a": ["clips was 8 and is 9"]}


def test_on_one_kind_of_processor_every_byte_counts(tmp_path):
    (tmp_path / "captions.jsonl").write_text("a cat")
    before = exact({"captions": 1, "captions_per_second": 3.0}, tmp_path)
    assert exact({"captions": 1, "captions_per_second": 4.0}, tmp_path) == before
    assert exact({"captions": 1, "share": 0.5}, tmp_path) != before
    (tmp_path / "captions.jsonl").write_text("a dog")
    assert exact({"captions": 1}, tmp_path) != before
    stored, now = {"a": stage(clips=1) | {"exact": "1"}}, {"a": stage(clips=1) | {"exact": "2"}}
    assert differences(now, stored) == {} and differences(now, stored, same=True) == {"a": ["its bytes"]}


@pytest.mark.parametrize(
    ("loss", "precision", "differs"),
    [(2.0001, "float32", False), (2.01, "float32", True), (2.01, "bfloat16", False), (None, "float32", True)],
)
def test_losses_are_compared_as_far_as_processors_agree(loss, precision, differs):
    stored = {"a": stage(**{"first loss": 2.0})}
    now = {"a": stage(precision=precision, **{"first loss": loss})}
    assert bool(differences(now, stored)) == differs
