"""The command line: one sentence for bad input, exit codes, the arguments that reach the pipeline."""

import os
import signal
import subprocess
import sys

import pytest

from clipvip_lib import cli
from clipvip_lib.errors import ClipVipError


@pytest.fixture
def called(monkeypatch):
    """The arguments that ``reproduce`` gets."""
    import clipvip_lib.study.pipeline as pipeline

    calls = []
    monkeypatch.setattr(
        pipeline, "reproduce", lambda profile, **options: calls.append((profile, options)) or 0
    )
    return calls


def test_every_default_is_the_cheap_one(called):
    assert cli.main(["reproduce"]) == 0
    profile, options = called[0]
    assert profile == "mini"
    assert options == {
        "only": [],
        "seeds": [0],
        "force": [],
        "out": None,
        "set": {},
        "workers": None,
        "verify": False,
    }


def test_arguments_reach_the_pipeline(called):
    line = "reproduce --profile smoke --only 04,05 --seeds 0,1 --force finetune --force page/* --out /tmp/x"
    line += " --set data_root=/data --set n=3 --set names=[1,2] --workers 3"
    assert cli.main(line.split()) == 0
    profile, options = called[0]
    assert profile == "smoke" and options["only"] == ["04", "05"] and options["seeds"] == [0, 1]
    assert options["force"] == ["finetune", "page/*"] and options["workers"] == 3
    assert options["set"] == {"data_root": "/data", "n": 3, "names": [1, 2]}


@pytest.mark.bad_input(
    "reproduce: options that make no sense", says="one sentence, exit code 2; nothing runs"
)
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("reproduce --seeds a", "expected whole numbers like 0,1,2, got 'a'"),
        ("reproduce --seeds ,", "expected whole numbers like 0,1,2, got ','"),
        ("reproduce --seeds=", "expected whole numbers like 0,1,2, got ''"),
        ("reproduce --only=", "expected names like 04,05, got ''"),
        ("reproduce --only ,", "expected names like 04,05, got ','"),
        ("reproduce --out=", "expected a folder, got ''"),
        ("reproduce --set x", "expected NAME=VALUE"),
        ("reproduce --set 1x=2", "expected NAME=VALUE"),
        ("reproduce --workers two", "invalid int value: 'two'"),
        ("reproduce --nonsense", "unrecognized arguments: --nonsense"),
        ("reproduced", "invalid choice: 'reproduced'"),
    ],
)
def test_bad_arguments_are_one_sentence_and_code_2(called, capsys, line, words):
    assert cli.main(line.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("clipvip: ") and words in said and said.count("\n") == 1
    assert called == []


def test_without_a_command_the_help_is_shown(capsys):
    assert cli.main([]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err == cli.parser().format_help() and "reproduce" in said.err


@pytest.mark.fault(
    "any command: Ctrl-C (the command is simulated)",
    sees="`run the same command to continue`, exit code 130",
    keeps="see each command",
)
def test_errors_and_interruptions_of_a_command(monkeypatch, capsys):
    import clipvip_lib.study.pipeline as pipeline

    def raising(error):
        def reproduce(*_, **__):
            raise error

        return reproduce

    monkeypatch.setattr(pipeline, "reproduce", raising(ClipVipError("unknown profile 'x'")))
    assert cli.main(["reproduce"]) == 2
    assert capsys.readouterr().err == "clipvip: unknown profile 'x'\n"
    monkeypatch.setattr(pipeline, "reproduce", raising(KeyboardInterrupt()))
    assert cli.main(["reproduce"]) == 130
    assert "run the same command to continue" in capsys.readouterr().err
    monkeypatch.setattr(pipeline, "reproduce", raising(SystemExit(143)))
    with pytest.raises(SystemExit) as caught:
        cli.main(["reproduce"])
    assert caught.value.code == 143
    assert capsys.readouterr().err.startswith("clipvip: stopped by SIGTERM; what was done is kept")


@pytest.mark.fault(
    "any command: SIGTERM (the command is simulated)",
    sees="`clipvip: stopped by SIGTERM; what was done is kept`, exit code 143",
    keeps="see each command",
)
def test_sigterm_in_the_middle_of_any_command_is_a_sentence(monkeypatch, capsys):
    import clipvip_lib.study.pipeline as pipeline

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(pipeline, "reproduce", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as caught:
        cli.main(["reproduce"])
    assert caught.value.code == 143
    assert capsys.readouterr().err.startswith("clipvip: stopped by SIGTERM; what was done is kept")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.fault(
    "any command: a terminal that cannot show a sign", sees="`?0.3 points`", keeps="the run; exit code 0"
)
def test_a_terminal_of_another_encoding_stops_nothing():
    code = (
        "import sys; from clipvip_lib import cli; from clipvip_lib.study import pipeline;"
        "pipeline.reproduce = lambda *_, **__: print('\u22120.3 points') or 0; sys.exit(cli.main(['reproduce']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=dict(os.environ, PYTHONIOENCODING="latin-1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "?0.3 points\n", "")


def test_the_installed_command_answers_at_once():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "clipvip_lib.cli", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "reproduce" in done.stdout
    assert "torch" not in done.stderr and "clipvip_lib.study" not in done.stderr
