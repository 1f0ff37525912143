"""The remaining time: none before there is data, then a range that holds the truth, on simulated machines."""

import heapq
import io
import itertools
import math
import random
import re
from statistics import fmean, median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipvip_lib import files
from clipvip_lib.workshop.board import Board, Running, around, left_text, schedule, time_left
from clipvip_lib.workshop.machine import machine
from clipvip_lib.workshop.stages import Stage

SILENT = ("render", "check_captioner", "measure_cost")  # functions that do not tell how far they are


def study() -> list[Stage]:
    """About a hundred stages with the shape and the declared seconds of the study at mini size."""
    stages = []

    def add(name, function, cost, *inputs):
        stages.append(Stage(name, f"steps:{function}", inputs={s.name: s for s in inputs}, cost=cost))
        return stages[-1]

    shards = [add(f"world/big/{i}", "write_corpus", 20) for i in range(8)]
    pairs = [add(f"world/pairs/{i}", "write_images", 20) for i in range(3)]
    sets = [add(f"world/set{i}", "write_benchmark", 78) for i in range(2)]
    frames = [add(f"frames/big/{i}", "decode_shard", 11, shard) for i, shard in enumerate(shards)]
    stills = [add(f"frames/pairs/{i}", "decode_shard", 12, shard) for i, shard in enumerate(pairs)]
    split = [add(f"frames/set{i}", "decode_benchmark", 39, each) for i, each in enumerate(sets)]
    captioner = add("captioner", "train_captioner", 168, pairs[0])
    captions = [add(f"captions/{i}", "caption_shard", 13, captioner, shard) for i, shard in enumerate(shards)]
    clips = [add(f"clip/seed{i}", "pretrain_clip", 90, *stills) for i in range(3)]
    posts = [
        add(f"postpretrain/{i}", "postpretrain", 72, clips[0], *frames, *(captions if i % 3 == 0 else []))
        for i in range(14)
    ]
    tuned = [
        add(f"finetune/{i}", "finetune", 47, clips[0], split[i % 2], *([posts[i % 14]] if i > 5 else []))
        for i in range(34)
    ]
    zero = [add(f"zero-shot/{i}", "finetune", 4, clips[0], split[i % 2], posts[i]) for i in range(4)]
    more = [
        add("language-gap/seed0", "language_gap", 60, *clips, *frames, *captions, *split),
        add("cost", "measure_cost", 20),
        add("order-probes/seed0", "probe_order", 20, clips[0], *split),
        add("caption-check", "check_captioner", 8, captioner, sets[0]),
    ]
    for i in range(9):
        add(f"page/{i}", "render", 8, *tuned[i::9], *zero[i::9], *more[i::9])
    return stages


def list_schedule(stages, seconds, workers, urgency) -> dict[str, tuple[float, float]]:
    """(start, end) of each stage where every free worker takes the most urgent stage that is ready."""
    waiting, running, done, spans = list(stages), [], set(), {}
    now = 0.0
    while waiting or running:
        ready = [s for s in waiting if all(up.name in done for up in s.inputs.values())]
        for stage in sorted(ready, key=urgency, reverse=True)[: workers - len(running)]:
            waiting.remove(stage)
            spans[stage.name] = (now, now + seconds[stage.name])
            heapq.heappush(running, (now + seconds[stage.name], stage.name))
        now, name = heapq.heappop(running)
        done.add(name)
    return spans


def simulate(slow: dict[str, float], everything: float = 1.0, seed: int = 0, workers: int = 2):
    """(part of the run, true remaining seconds, range) at 100 moments of a run.

    slow: by function, how many times longer than declared it takes; everything: the same for all.
    """
    rng, stages = random.Random(seed), study()
    path = {stage.name: stage.cost for stage in stages}
    for stage in reversed(stages):
        for up in stage.inputs.values():
            path[up.name] = max(path[up.name], up.cost + path[stage.name])
    seconds = {
        s.name: s.cost * everything * slow.get(s.function[6:], 1.0) * rng.lognormvariate(0, 0.15)
        for s in stages
    }
    spans = list_schedule(stages, seconds, workers, lambda stage: path[stage.name])
    total = max(end for _, end in spans.values())
    found = []
    for now in (total * moment / 100 for moment in range(100)):
        ran = [(s, seconds[s.name]) for s in stages if spans[s.name][1] <= now]
        running = [at(s, *spans[s.name], now) for s in stages if spans[s.name][0] <= now < spans[s.name][1]]
        waiting = [s for s in stages if spans[s.name][0] > now]
        found.append((now / total, total - now, time_left(ran, running, waiting, workers, now)))
    return found


def at(stage: Stage, start: float, end: float, now: float) -> Running:
    """A running stage as its parent knows it; those that speak do it 50 times."""
    done = int(50 * (now - start) / (end - start))
    if stage.function[6:] in SILENT or not done:
        return Running(stage, start)
    return Running(stage, start, done, 50, first=1, first_seen=start + (end - start) / 50)


def held(found) -> float:
    """The share of moments at which the truth lay in the range."""
    inside = [left is not None and left[0] <= truth <= left[1] for _, truth, left in found]
    return sum(inside) / len(inside)


SLOW = ("finetune", "postpretrain", "decode_shard", "pretrain_clip", "train_captioner", "language_gap")
MACHINES = [({}, 1.0), ({}, 5.0), *(({function: 8.0}, 1.0) for function in SLOW)]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("slow", "everything"), MACHINES, ids=["as declared", "5 times slower", *SLOW])
def test_the_range_holds_the_truth_from_a_fifth_of_the_run_on(slow, everything, seed):
    found = simulate(slow, everything, seed)
    assert found[0][2] is None  # nothing ran yet: nothing is said
    assert held([each for each in found if each[0] >= 0.2]) >= 0.8
    ranges = [left for _, _, left in found if left is not None]
    assert all(earlier != later for earlier, later in itertools.pairwise(ranges))  # it moves as time does
    assert all(0 <= low <= high for low, high in ranges)


def test_the_range_narrows_and_says_something():
    found = simulate({})
    wide, narrow = (
        median(left[1] / left[0] for part, _, left in found if left and a <= part < b)
        for a, b in ((0.0, 0.2), (0.5, 0.8))
    )
    assert wide < 3 and narrow < 1.8 and narrow < wide


def test_a_slow_kind_that_comes_last_is_learned_from_its_first_stages():
    """Pages are a fiftieth of the declared work. That they take eight times as long shows only once one has run."""
    found = simulate({"render": 8.0})
    assert held([each for each in found if each[0] > 0.92]) >= 0.8


# --- single rules -----------------------------------------------------------------------------------------


def stage(name: str, cost: float = 10.0, *inputs: Stage, function: str = "") -> Stage:
    return Stage(name, f"steps:{function or name}", inputs={s.name: s for s in inputs}, cost=cost)


def test_nothing_is_said_before_a_thirtieth_of_the_work_was_seen():
    tiny, rest = stage("tiny", 1.0), stage("rest", 99.0)
    assert time_left([], [], [tiny, rest], 1, 0.0) is None
    assert time_left([(tiny, 5.0)], [], [rest], 1, 5.0) is None
    assert time_left([(stage("more", 4.0), 15.0)], [], [rest], 1, 15.0) is not None
    early, later = (Running(rest, 0.0, done, 100, first=0, first_seen=0.0) for done in (4, 8))
    assert time_left([], [early], [], 1, 5.0) is None
    low, high = time_left([], [later], [], 1, 10.0)
    assert low < 92 / 8 * 10 < high


def test_kinds_that_were_seen_lie_closer_than_those_that_were_not():
    ran = [(stage(f"a/{i}", function="a"), 20.0) for i in range(4)]
    seen = time_left(ran, [], [stage("a/5", function="a")], 1, 0.0)
    unseen = time_left(ran, [], [stage("b")], 1, 0.0)
    assert unseen[0] < seen[0] < 20 < seen[1] < unseen[1]
    other = [*ran, (stage("c"), 200.0)]  # kinds differ on this machine: the unseen one may too
    assert time_left(other, [], [stage("b")], 1, 0.0)[1] > 1.5 * unseen[1]


@pytest.mark.parametrize("share", [0, 0.6, 1.0])
def test_a_stage_that_hangs_pushes_the_estimate_up(share):
    """It stopped at a share of its steps; all else is done. (Seen: "1 min 12 s left" for ten minutes.)"""
    ran = [(stage(f"a/{i}", function="a"), 10.0) for i in range(20)]
    hangs = Running(stage("a/20", function="a"), 0.0, int(50 * share), 50 if share else 0)
    hangs.first = hangs.first_seen = 0 if share else None
    ranges = [time_left(ran, [hangs], [], 2, float(now)) for now in range(60, 1260, 60)]
    assert all(earlier[1] < later[1] for earlier, later in itertools.pairwise(ranges))
    if share < 1:
        assert ranges[-1][1] > 300 and len({left_text(*each) for each in ranges}) > 5


def test_a_silent_stage_that_runs_long_makes_the_waiting_ones_of_its_kind_longer():
    ran = [(stage("a"), 10.0)]
    first, others = stage("page/0", function="page"), [stage(f"page/{i}", function="page") for i in (1, 2)]
    early, late = (time_left(ran, [Running(first, 0.0)], others, 1, now) for now in (1.0, 100.0))
    assert early[1] < 100 < 200 < late[1]


def test_a_resumed_stage_is_judged_by_what_it_did_here():
    resumed = Running(stage("a", 100.0), 0.0, 60, 100, first=50, first_seen=5.0)  # 10 of 100 in 20 seconds
    low, high = time_left([], [resumed], [], 1, 25.0)
    assert low < 80 < high < 120


costs = st.floats(0.1, 100)


@given(st.data(), st.integers(1, 4))
def test_no_schedule_leaves_the_range(data, workers):
    """Whatever the graph, the seconds within their ranges and the order in which ready stages are taken."""
    stages: list[Stage] = []
    for i in range(data.draw(st.integers(1, 12))):
        inputs = [each for each in stages if data.draw(st.booleans())]
        stages.append(stage(f"s{i}", 1.0, *inputs))
    low = {each.name: data.draw(costs) for each in stages}
    high = {name: value * data.draw(st.floats(1, 4)) for name, value in low.items()}
    true = {name: low[name] + data.draw(st.floats(0, 1)) * (high[name] - low[name]) for name in low}
    urgency = {each.name: data.draw(costs) for each in stages}
    spans = list_schedule(stages, true, workers, lambda each: urgency[each.name])
    fewest, most = schedule({name: (low[name], high[name]) for name in low}, stages, workers)
    assert fewest * (1 - 1e-9) <= max(end for _, end in spans.values()) <= most * (1 + 1e-9)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20), st.floats(1e-3, 1e3))
def test_the_machines_speed_scales_the_range(ratios, speed):
    low, high = around(ratios, 1.0)
    assert low < math.exp(fmean(map(math.log, ratios))) < high
    assert around([speed * each for each in ratios], 1.0) == pytest.approx((speed * low, speed * high))


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0, 59, "less than a minute left"),
        (30, 61, "up to 2 min left"),
        (12 * 60 + 50, 17 * 60 + 10, "about 12 to 18 min left"),
        (720, 720, "about 12 min left"),
        (13 * 60, 31 * 60, "about 13 to 35 min left"),
        (59 * 60, 121 * 60, "about 55 min to 2.5 h left"),
        (190 * 60, 230 * 60, "about 3 to 4 h left"),
    ],
)
def test_the_range_in_words(low, high, text):
    assert left_text(low, high) == text


@given(st.floats(0, 1e6), st.floats(1, 10))
def test_the_words_hold_the_range(low, times):
    text = left_text(low, low * times)
    found = re.fullmatch(r"about (\S+)( \S+)? to (\S+) (\S+) left", text)
    if found:
        units = {"min": 60, "h": 3600}
        last = units[found[4]]
        first = units[found[2].strip()] if found[2] else last
        assert float(found[1]) * first <= low <= low * times <= float(found[3]) * last


# --- the display ------------------------------------------------------------------------------------------


def test_the_status_line_has_the_count_and_what_runs_and_later_a_range():
    now, said = [0.0], io.StringIO()
    board = Board(3, 1, stream=said, mode="plain", clock=lambda: now[0])
    first, second, third = (stage(f"a/{i}", 100.0, function="a") for i in range(3))
    running = Running(first, 0.0)
    now[0] = 11.0
    board.status([running], [second, third])
    board.ran(first, 100.0)
    board.finished = 1
    now[0] = 100.0
    board.status([Running(second, 100.0)], [third])
    lines = said.getvalue().splitlines()
    assert lines[0] == "[0/3] a/0 11 s"
    assert re.fullmatch(r"\[1/3\] about 2 to 5 min left \| a/1 0 s", lines[1])


def test_a_stage_whose_worker_is_still_starting_has_no_clock():
    """Its clock would run while the worker imports libraries, and jump back to zero when the stage begins."""
    running = Running(stage("a"))
    assert [running.text(now) for now in (1.0, 9.0)] == ["a starting"] * 2 and running.elapsed(9.0) == 0
    running.started = 9.5
    assert running.text(12.5) == "a 3 s" and running.elapsed(12.5) == 3


def test_no_status_is_shown_when_nothing_runs():
    now, said = [0.0], io.StringIO()
    board = Board(2, 1, stream=said, mode="plain", clock=lambda: now[0])
    board.ran(stage("a", 100.0), 100.0)
    now[0] = 60.0
    board.status([], [])
    board.status([], [stage("b", 1.0)])
    assert said.getvalue() == ""


def test_the_pace_counts_from_the_first_sign_of_progress():
    now = [0.0]
    board = Board(1, 1, stream=io.StringIO(), mode="plain", clock=lambda: now[0])
    running = Running(stage("a"), 0.0, 50, 100, first=50)
    now[0] = 8.0
    board.status([running], [])
    assert running.first_seen == 8.0
    running.done = 60
    assert running.text(13.0) == "a 60/100 2/s"


def test_a_plan_gets_one_number_from_the_declared_seconds_or_from_the_range():
    board = Board(4, workers=2, stream=io.StringIO())
    a, b = stage("a", 10.0), stage("b", 4.0)
    waiting = [a, b, stage("c", 6.0, b)]
    assert 10 <= board.remaining([], waiting, 0.0) <= 15
    for each in waiting:
        board.ran(each, 2 * each.cost)  # everything takes twice as long as declared
    low, high = board.left([], waiting, 0.0)
    assert low < 20 < board.remaining([], waiting, 0.0) < 30 < high


def test_what_a_cache_holds_is_remembered_where_it_ran_on_this_machine(tmp_path):
    done = [Stage(name, "small_study:count", cost=10.0) for name in ("here", "elsewhere")]
    for each, where in zip(done, (machine(), "another machine"), strict=True):
        record = {"result": {}, "stage": {"seconds": 20.0, "machine": where, "key": each.key}}
        files.write_json(files.make_folder(each.folder(tmp_path)) / "result.json", record)
    board, waiting = Board(3, 1, stream=io.StringIO()), [stage("next")]
    board.remember(done, tmp_path)
    assert board.left([], waiting, 0.0) == time_left([(done[0], 20.0)], [], waiting, 1, 0.0)
