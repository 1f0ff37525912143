"""The parts of the soak: slopes, leftovers, orphans, a few reads and searches. The soak itself is `make soak`."""

import os
import subprocess
import sys

import pytest
import soak


def test_a_slope_is_found_under_noise_and_a_flat_line_has_none():
    places = list(range(0, 4000, 20))
    rising = [3.0 + 0.002 * place + (-1) ** place for place in places]
    assert soak.slope(places, rising) == pytest.approx(2.0)
    assert soak.slope(places, [7.0] * len(places)) == pytest.approx(0.0, abs=1e-9)


def test_growth_sees_open_files_that_stay(tmp_path):
    held = []
    growth = soak.Growth().repeat(200, lambda number: held.append((tmp_path / "a").open("a")))
    for file in held:
        file.close()
    assert growth.slopes[1] == pytest.approx(1000) and growth.at[0] == 20


def test_what_a_run_left_behind_is_found(tmp_path):
    for name in ("tmp/77", "stages/a-1.partial", "stages/a", "out", "discarded"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("out/00.html.12.partial", "out/tmp", "stages/a/result.json", "discarded/9"):
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in soak.left_behind(tmp_path)]
    assert found == ["discarded/9", "out/00.html.12.partial", "stages/a-1.partial", "tmp/77"]


def test_a_process_that_outlives_its_run_is_counted_and_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "GRACE", 0.5)
    study = soak.Study(tmp_path, [])
    (tmp_path / "said.txt").write_text("Traceback (most recent call last)")
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    left = subprocess.Popen(sleeper, env=os.environ | {"CLIPVIP_HOME": str(study.home)})
    run = subprocess.run([sys.executable, "-c", "raise SystemExit(3)"], check=False)
    study.ended(run)
    assert left.wait() == -9 and study.orphans == 1 and not soak.processes_of(study.home)
    assert f"process {left.pid} outlived its run" in study.faults[0]
    assert "a run ended with code 3: Traceback" in study.faults[1]


@pytest.mark.slow
def test_a_few_reads_and_searches_find_nothing_wrong(tmp_path):
    faults: list[str] = []
    growth, refused, taken = soak.read_videos(60, 0, faults)
    assert (growth.done, refused + taken, faults) == (60, 3, [])
    searches = soak.search_features(8, tmp_path, faults)
    assert (searches.done, faults) == (8, [])
    page = soak.page([("videos read", "60")], 0)
    assert "| videos read | 60 |" in page and "seed 0" in page and len(growth.slopes) == 2
