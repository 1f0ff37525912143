"""Jobs on shards: what a dead process left is taken up, an error lets go of everything, bad samples are counted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from clipvip_lib.errors import ClipVipError
from clipvip_lib.streams.shard_jobs import Skipped, taking
from clipvip_lib.streams.shard_locks import ShardTask, hold


def test_what_was_begun_is_taken_up_by_name_and_an_error_lets_go_of_it(tmp_path):
    tasks = [ShardTask(tmp_path / f"{n}.tar", tmp_path / f"{n}.captions.jsonl") for n in range(3)]
    hold(tasks[1]).release()  # as the kernel does for a dead process: the lock's file says who it was
    said: list[str] = []
    with (
        pytest.raises(RuntimeError, match="the device"),
        taking(tasks, lambda: False, str, said.append) as dealt,
    ):
        assert [next(dealt).task, next(dealt).task] == tasks[:2]
        assert hold(tasks[0]) is None and hold(tasks[1]) is None
        raise RuntimeError("the device fell off")
    assert said == [f"taking up 1.tar, which process {os.getpid()} of {os.uname().nodename} had begun"]
    again = [hold(task) for task in tasks]
    assert all(again)

    waiting = taking(tasks, lambda: False, lambda left: f"waiting for {len(left)}", said.append)
    with waiting as dealt:
        assert list(dealt) == []
    assert said[1:] == ["waiting for 3"]


def test_samples_are_skipped_as_far_as_the_share_rounded_up_allows(tmp_path):
    skipped, log, said = Skipped(Path("a/s.tar"), 10, 0.11, "left out", "source"), tmp_path / "log", []
    skipped.write(log, said.append)
    assert not log.exists() and not said
    reason = ClipVipError("c of s.tar is cut")
    skipped.add("c\u2028", reason), skipped.add("d", reason)
    skipped.write(log, said.append)
    assert said == ["left out 2 of 10 samples of s.tar, see log"]
    assert [json.loads(line) for line in log.read_text().splitlines()] == [
        {"source": "s.tar", "key": key, "reason": str(reason)} for key in ("c\u2028", "d")
    ]
    with pytest.raises(
        ClipVipError,
        match="^3 of 10 samples of shard a/s.tar cannot be read and 2 may be left out, the last: c of s.tar is cut; ",
    ):
        skipped.add("e", reason)
    Skipped(Path("a/s.tar"), 10, 0, "skipped", "shard").write(log, said.append)
    assert not log.exists() and len(said) == 1  # a start that skips none leaves no older list
