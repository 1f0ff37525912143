"""The table of equalities: what it records, shows and writes, and that it never passes what differs."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from equality import Equals, largest, relative, where_large

from clipvip_lib.files import digest
from clipvip_lib.study import equality as equality_page

TESTS = Path(__file__).parent
BODY = """
import pytest
from hypothesis import given, strategies as st

def test_one(equals):
    equals("sum", "numpy", 0.25, 1)
    equals("sum", "numpy", 0.5, 1)
    equals("sum", "numpy", 0.125, 1)
    equals("sum", "by hand", 0, 0)

@pytest.mark.parametrize("which", "ba")
def test_other(which, equals):
    equals("product", "numpy", 2e-7, 1e-6)

def test_a_property(equals):
    @given(st.floats(0, 1))
    def check(x):
        equals("any number", "itself", x, 1)
    check()

def test_without_a_row():
    pass
"""


def run(folder: Path, body: str, *options: str) -> subprocess.CompletedProcess:
    """pytest on a test file of its own, with this folder's conftest.py."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_small.py").write_text(body)
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", *options]
    if "-n" in options:
        command[3:3] = ["-p", "xdist.plugin"]
    environment = dict(os.environ, PYTHONPATH=str(TESTS), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.thorough
def test_the_table_is_shown_and_written_alike_by_one_process_and_by_two(tmp_path):
    for path, processes in (("a.json", ()), ("b.json", ("-n", "2"))):
        done = run(tmp_path, BODY, "-v", "--write-equality", path, *processes)
        assert done.returncode == 0, done.stdout
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    written = json.loads((tmp_path / "a.json").read_text())
    assert written.keys() == {"rows", "files", "code", "libraries", "machine"}
    rows = [(row["test"], row["quantity"], row["against"], row["difference"]) for row in written["rows"]]
    assert rows[1:] == [
        ("test_small.py::test_one", "sum", "by hand", 0.0),
        ("test_small.py::test_one", "sum", "numpy", 0.5),
        ("test_small.py::test_other[a]", "product", "numpy", 2e-7),
        ("test_small.py::test_other[b]", "product", "numpy", 2e-7),
    ]
    assert rows[0][:3] == ("test_small.py::test_a_property", "any number", "itself") and rows[0][3] <= 1
    assert all(
        row.keys() == {"quantity", "against", "test", "difference", "tolerance"} for row in written["rows"]
    )
    compared = [equality_page.PACKAGE / name for name in written["files"]]
    assert written["code"] == digest(equality_page.PACKAGE, compared) and "torch" in written["libraries"]
    assert {"losses.py", "models/proxy_attention.py"} <= set(written["files"])
    assert re.search(r"test_one +sum +numpy +5.00e-01 +1e\+00", done.stdout)
    assert "5 equalities written to b.json" in done.stdout


def test_without_v_there_is_no_table(tmp_path):
    done = run(tmp_path, BODY)
    assert done.returncode == 0 and "5.00e-01" not in done.stdout


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (BODY + "\ndef test_bad():\n    assert False\n", "not written: not all tests passed"),
        (BODY.replace("equals(\"product\", \"numpy\", 2e-7", "equals(\"product\", \"numpy\", 2e-3"), "not all tests"),
        ("def test_nothing():\n    pass\n", "no test that ran records an equality"),
    ],
    ids=["another test failed", "a difference is too large", "no row"],
)  # fmt: skip
def test_nothing_is_written_but_from_a_good_run(body, words, tmp_path):
    (tmp_path / "a.json").write_text("older")
    done = run(tmp_path, body, "--write-equality", "a.json")
    assert done.returncode == 1 and words in done.stdout
    assert (tmp_path / "a.json").read_text() == "older"
    assert [p.name for p in tmp_path.glob("*.partial")] == []


def test_a_place_that_cannot_be_written_to_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    done = run(tmp_path, BODY, "--write-equality", "file/a.json")
    assert done.returncode == 1 and "cannot write" in done.stdout and "Traceback" not in done.stdout


@pytest.mark.parametrize("difference", [2.0, math.nan, math.inf])
def test_a_difference_above_the_tolerance_fails_and_says_what(difference):
    properties = []
    with pytest.raises(AssertionError, match=r"sum: expected equality with numpy up to 1, got .* \(row 3\)"):
        Equals(properties)("sum", "numpy", difference, 1, "row 3")
    assert properties[0][1]["tolerance"] == 1


def test_differences():
    a, b = torch.tensor([1.0, -4.0]), torch.tensor([1.5, -4.0])
    assert (largest(a, b), relative(a, b), where_large(a, b)) == (0.5, 0.125, 0.125)
    assert (relative(a, 0 * a), where_large(a / 8, b / 8)) == (4.0, 0.0625)
    assert math.isnan(largest(a, torch.tensor([math.nan, -4.0])))
    with pytest.raises(AssertionError, match=r"expected the shape \[1\], got \[2\]"):
        largest(a, b[:1])
    with pytest.raises(AssertionError, match="nothing to compare"):
        largest(a[:0], b[:0])


# ---- the table of notebook 00 ----


def test_the_committed_table_was_measured_on_this_code():
    document = equality_page.read()
    assert document, f"no {equality_page.FILE}: run make equality"
    assert "is the same today" in equality_page.basis(document), (
        "run make equality: the models' code has changed"
    )
    assert all(row["difference"] <= row["tolerance"] for row in document["rows"])
    against = {row["against"] for row in document["rows"]}
    for wanted in ("the authors' CLIP-ViP, case A", "the authors' OFA, case A", "the authors' OFA, case C"):
        assert wanted in against
    assert any("Hugging Face" in text for text in against) and any("open_clip" in text for text in against)


def test_the_pages_rows_are_the_documents():
    document = equality_page.read()
    rows = equality_page.rows(document)
    assert sum(row["quantities"] for row in rows) == len(document["rows"])
    for row in rows:
        same = [
            (f"{r['difference']:.1e}" if r["difference"] else "0", r["quantity"])
            for r in document["rows"]
            if r["against"] == row["ours equals"]
        ]
        assert (row["by"], row["farthest off"]) in same


def test_code_that_has_changed_is_said():
    document = equality_page.read() | {"code": "0" * 16}
    assert "has changed since: run `make equality` again" in equality_page.basis(document)
    assert equality_page.read(Path("nowhere.json")) is None
