"""A notebook refuses what it does not declare, before anything is loaded."""

import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from clipvip_lib.errors import ClipVipError
from clipvip_lib.study.injected import check_injected, executed_cells

DECLARED = 'profile = "mini"\nseeds = [0]\nat_hand = {}  # where\npoints = 150\nshare = 0.5\nshow = True'
NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


@pytest.mark.parametrize(
    "given",
    (
        'profile = "smoke"\nseeds = [1, 2]',
        'at_hand = {"data_root": "/data"}',
        "points = 3\nshare = 2\nshow = False",
        "share = 0.25",
        "",
    ),
)
def test_declared_parameters_of_their_kind_pass(given):
    check_injected(["import os", DECLARED, f"# Parameters\n{given}"])
    check_injected(
        [DECLARED, "# Parameters\nwhatever = 3", DECLARED, f"# Parameters\n{given}"]
    )  # the last one counts


@pytest.mark.bad_input(
    "notebook: parameters that are unknown or of another kind", says="such as `did you mean 'profile'`"
)
@pytest.mark.parametrize(
    ("given", "words"),
    (
        ("batch_size = 4", "unknown notebook parameter 'batch_size': expected one of profile, seeds"),
        ("profil = 'smoke'", "did you mean 'profile'"),
        ("profile = 3", "profile expected a text such as 'mini', got 3"),
        ("seeds = 3", "seeds expected a list such as .0., got 3"),
        ("points = 'many'", "points expected a whole number such as 150, got 'many'"),
        ("points = 1.5", "points expected a whole number"),
        ("points = True", "points expected a whole number"),
        ("points = 0", "points expected 1 or more, got 0"),
        ("share = float('nan')", "share expected a number such as 0.5"),
        ("show = 1", "show expected True or False"),
        ("at_hand = None", "at_hand expected an object such as"),
    ),
)
def test_others_are_a_sentence(given, words):
    with pytest.raises(ClipVipError, match=words):
        check_injected([DECLARED, f"# Parameters\n{given}"])


def test_without_papermill_nothing_is_looked_at():
    check_injected([])
    check_injected([DECLARED, "batch_size = 4"])
    assert executed_cells() == []


def test_without_a_cell_of_parameters_none_is_known():
    with pytest.raises(ClipVipError, match="unknown notebook parameter 'seeds'"):
        check_injected(["# Parameters\nseeds = [0]"])


@pytest.mark.bad_input(
    "papermill: an unknown parameter, or a wrong value",
    says="`unknown notebook parameter 'batch_size'`; no stage runs",
)
@pytest.mark.parametrize(
    ("parameter", "words"),
    (
        (
            ("batch_size", "4"),
            "unknown notebook parameter 'batch_size': expected one of profile, seeds, at_hand",
        ),
        pytest.param(
            ("seeds", "three"),
            "the notebook parameter seeds expected a list such as [0], got 'three'",
            marks=pytest.mark.thorough,
        ),
    ),
)
def test_papermill_with_a_wrong_parameter_fails_within_seconds(tmp_path, parameter, words):
    """Seconds of the kernel's start and imports included; the smallest run of this notebook takes a minute."""
    run = [sys.executable, "-m", "papermill", NOTEBOOKS / "04_video_proxy.ipynb", tmp_path / "out.ipynb"]
    start = time.monotonic()
    done = subprocess.run(
        [*run, "-k", "python3", "--no-progress-bar", "-p", *parameter],
        env=os.environ | {"CLIPVIP_HOME": str(tmp_path / "home")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0 and words in done.stderr and time.monotonic() - start < 60
    cells = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
    ran = [cell for cell in cells if cell.cell_type == "code" and cell.execution_count]
    assert len(ran) == 3 and not (tmp_path / "home" / "stages").exists()
