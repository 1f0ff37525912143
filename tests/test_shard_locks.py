"""Shards are dealt out by locks: each is held by one living process, and none is lost or held twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clipvip_lib.streams.shard_locks import ShardTask, hold, hold_each


def tasks(folder: Path, count: int) -> list[ShardTask]:
    return [ShardTask(folder / f"{n}.tar", folder / f"{n}.captions.jsonl") for n in range(count)]


def test_ranks_begin_with_their_share_and_help_from_the_far_end(tmp_path):
    taken: dict[int, list[str]] = {0: [], 1: []}
    ranks = {rank: hold_each(tasks(tmp_path, 7), rank, 2, lambda: True, lambda left: None) for rank in (0, 1)}
    for rank in (0, 0, 1, 0, 0, 0, 1, 0):  # rank 0 is fast
        held = next(ranks[rank], None)
        if held:
            held.task.out.write_text("")
            held.release()
            taken[rank].append(held.task.shard.stem)
    assert taken == {0: ["0", "2", "4", "6", "5"], 1: ["1", "3"]}
    assert next(ranks[0], None) is None and next(ranks[1], None) is None
    assert list((tmp_path / ".locks").iterdir()) == []


def test_what_is_held_or_done_cannot_be_taken(tmp_path):
    task, other = tasks(tmp_path, 2)
    held = hold(task)
    assert hold(task) is None and hold(other) is not None
    held.release()
    again = hold(task)
    assert again.left_by == f"process {os.getpid()} of {os.uname().nodename}"
    task.out.write_text("")
    again.release()
    again.release()
    assert hold(task) is None


def test_a_rank_waits_for_what_another_holds_and_takes_it_up_when_that_dies(tmp_path):
    mine, others = tasks(tmp_path, 2)
    other, told, looks, taken = hold(others), [], [], []

    def pause() -> bool:
        looks.append(len(taken))
        if len(looks) == 3:
            other.release()  # as the kernel does for a dead process; its task is not done
        return len(looks) < 9

    for held in hold_each([mine, others], 0, 1, pause, told.append):
        taken.append((held.task, len(looks)))
        held.task.out.write_text("")
        held.release()
    assert taken == [(mine, 0), (others, 3)]
    assert looks == [1, 1, 1] and told == [[others]]


@pytest.mark.fault(
    "ranks: a process dies with its task done and its lock held (simulated)",
    sees="nothing",
    keeps="the task; no lock is left",
)
def test_a_process_that_dies_between_its_task_and_its_lock_leaves_nothing(tmp_path):
    mine, others = tasks(tmp_path, 2)
    hold(others)  # never released
    others.out.write_text("")
    for held in hold_each([mine, others], 0, 1, lambda: True, lambda left: None):
        held.task.out.write_text("")
        held.release()
    assert list((tmp_path / ".locks").iterdir()) == []
