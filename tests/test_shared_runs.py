"""What is made once for a session: by one of several who ask at a time, whole, and again after a failure."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Semaphore

import pytest
from shared_runs import once


def test_of_several_who_ask_at_a_time_one_makes_it(tmp_path):
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        together.wait()  # nobody asks when all is done
        (folder / "whole").touch()

    def ask() -> Path:
        if asked.acquire(blocking=False):
            return once(tmp_path / "run", make)
        together.wait()
        return once(tmp_path / "run", make)

    asked, together = Semaphore(1), Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        found = [each.result() for each in [pool.submit(ask) for _ in range(4)]]
    assert set(found) == set(made) == {tmp_path / "run"} and len(made) == 1
    assert all((folder / "whole").exists() for folder in found)


def test_what_a_failure_leaves_is_thrown_away(tmp_path):
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("no disk")

    with pytest.raises(RuntimeError, match="no disk"):
        once(tmp_path / "run", fail)
    folder = once(tmp_path / "run", lambda folder: (folder / "whole").touch())
    assert {path.name for path in folder.iterdir()} == {"whole", ".done"}
    assert once(folder, fail) == folder
