"""What people are told is one line, and nothing in it is obeyed."""

import json
import os
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipvip_lib.data.video import VideoError
from clipvip_lib.errors import ClipVipError, unknown
from clipvip_lib.progress import InPlaceLine
from clipvip_lib.say import say, shown, with_minus
from clipvip_lib.streams.skips import Books

ODD = "a\n    1  +1.0000  forged\r\x1b[2J\x1b]0;title\x07\x9b31m\u2028\u202e\x7f\x00\t\ud800"
TEXT = st.text(st.characters() | st.sampled_from(ODD))


@pytest.mark.bad_input("any text: control characters and marks of direction", says="one line, without them")
@given(TEXT)
def test_what_is_shown_is_one_line_that_nothing_obeys(text):
    found = shown(text)
    assert len(found.splitlines()) <= 1
    assert not any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in found)
    assert not set(found) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    assert shown(found) == found


@given(TEXT)
def test_json_stays_the_same_json(text):
    assert json.loads(shown(json.dumps({text: [text]}, ensure_ascii=False))) == {text: [text]}


def test_other_letters_stay():
    assert shown("naïve 猫 مرحبا 👩‍🔬 a\\b − …") == "naïve 猫 مرحبا 👩‍🔬 a\\b − …"
    assert shown("a\nb\x1b\x9b") == "a\\nb\\u001b\\u009b"


@pytest.mark.parametrize(
    "error", (ClipVipError(f"no file {ODD}"), VideoError(f"{ODD} is cut"), unknown("set", ODD, ["a"]))
)
def test_an_errors_text_is_one_line(error):
    assert str(error) == shown(str(error)) and "forged" in str(error)


def test_lines_progress_and_logs_are_shown(tmp_path, capsys):
    say(ODD)
    say(ODD, sys.stderr)
    line = InPlaceLine(mode="plain")
    line.show(ODD)
    line.say(ODD)
    out, err = capsys.readouterr()
    assert out.splitlines() == [shown(ODD)] * 3 and err.splitlines() == [shown(ODD)]
    Books(0, 1.0, tmp_path / "log").skip(0, tmp_path / ODD[:40], ODD[:-1], ODD[:-1])
    (logged,) = (tmp_path / "log").read_text().splitlines()
    assert json.loads(logged)["reason"] == ODD[:-1] and logged == shown(logged)


def clipvip(line: str, out: str) -> subprocess.CompletedProcess:
    """A command in a shell, with where its output goes."""
    # Unbuffered, argparse would hide that it cannot print.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        f"{sys.executable} -m clipvip_lib.cli {line} {out}",
        shell=True,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.fault(
    "any command: the disk under standard output is full (/dev/full)",
    sees="`clipvip: cannot write to standard output: No space left on device; free some`, exit code 2",
    keeps="not looked at by the test",
)
@pytest.mark.parametrize("line", ("--version", "reproduce --profile smoke --plan", "train --help"))
def test_standard_output_without_room_is_a_sentence(line):
    done = clipvip(line, "> /dev/full")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith(
        "clipvip: cannot write to standard output: No space left on device; free some"
    )
    assert done.stderr.count("\n") == 1


@pytest.mark.fault(
    "any command: the disk under standard error is full (/dev/full)", sees="nothing", keeps="the exit code"
)
@pytest.mark.parametrize("line", ("reproduce --nonsense", "reproduce --profile nothing --plan"))
def test_standard_error_without_room_keeps_the_exit_code(line):
    done = clipvip(line, "2> /dev/full")
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.fault(
    "any command: the reader of its output leaves (a pipe to head)",
    sees="the lines that were asked for, and no error",
    keeps="not looked at by the test",
)
def test_a_reader_that_had_enough_is_no_error():
    done = clipvip("reproduce --profile smoke --plan", "| head -n 1")
    assert done.stdout.count("\n") == 1 and done.stderr == ""


@pytest.mark.fault("progress: standard error has no room (/dev/full)", sees="nothing", keeps="the work")
def test_progress_without_room_stops_nothing():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        line = InPlaceLine(full, mode="terminal")
        for _ in range(3):
            line.show("a")
            line.say("b")
        line.end()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("-0.5 to -0.0", "−0.5 to 0.0"),
        ("proxy-4, V-S and 10-20", "proxy-4, V-S and 10-20"),
        ("(-1.25)", "(−1.25)"),
        ("+0.0 points, +0.04", "0.0 points, +0.04"),
        ("2209.06430 at 1e-4", "2209.06430 at 1e-4"),
    ],
)
def test_one_minus_sign_and_no_signed_zero(text, said):
    assert with_minus(text) == said
