"""Progress lines: what a terminal, a log and JupyterLab get."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipvip_lib.progress import InPlaceLine, Progress, detect_mode, duration, quiet, rate_text


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_rate_says_seconds_each_when_slow():
    assert rate_text(12.345) == "12.3/s"
    assert rate_text(0.25) == "4 s each"


def test_a_log_gets_a_plain_line_every_ten_seconds():
    clock, stream = Clock(), io.StringIO()
    progress = Progress("train", stream=stream, mode="plain", every=10, clock=clock)
    for step in range(101):
        progress(step, 100, "loss 2.0")
        clock.now += 0.5
    lines = stream.getvalue().splitlines()
    assert len(lines) == 5  # at 10, 20, 30, 40 and 50 s, where it ends
    assert "\r" not in stream.getvalue()
    assert lines[0] == "train 20/100 20 %, 2/s, 40 s left, loss 2.0"
    assert lines[-1].startswith("train 100/100 100 %, 2/s, took 50 s")


def test_a_terminal_gets_one_line_in_place_that_covers_the_longer_one_before():
    clock, stream = Clock(), io.StringIO()
    progress = Progress("x", stream=stream, mode="terminal", clock=clock)
    for step, note in ((1, "a long note here"), (2, "short"), (3, "")):
        progress(step, 3, note)
        clock.now += 1
    text = stream.getvalue()
    assert text.count("\n") == 1 and text.endswith("\n")
    frames = text.strip("\n").split("\r")[1:]
    assert len(frames) == 3
    assert len(frames[1]) >= len(frames[0].rstrip())


def test_a_resumed_loop_is_not_credited_with_steps_made_before():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(stream=stream, mode="plain", every=0, clock=clock)
    progress(300, 400)
    clock.now += 10
    progress(310, 400)
    assert stream.getvalue().splitlines()[-1].endswith("1/s, 1 min 30 s left")


def test_mode_of_a_stream(monkeypatch):
    assert detect_mode(io.StringIO()) == "plain"
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    assert detect_mode(terminal) == "terminal"
    monkeypatch.setitem(__import__("sys").modules, "ipykernel", object())
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert detect_mode(io.StringIO()) == "plain"  # papermill
    monkeypatch.setenv("JPY_SESSION_NAME", "a.ipynb")
    assert detect_mode(io.StringIO()) == "jupyter"


def test_a_reader_that_left_does_not_stop_the_work():
    stream = io.StringIO()
    line = InPlaceLine(stream, "plain")
    stream.close()
    line.show("nobody reads this")
    quiet(1, 2, "nor this")


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=20), st.integers(0, 1000))
def test_never_fails_whatever_the_counts(counts, total):
    clock = Clock()
    progress = Progress(stream=io.StringIO(), mode="plain", every=0, clock=clock)
    for count in counts:
        progress(count, total)
        clock.now += 0.1
