"""The command line: one sentence for bad input, exit codes, the arguments that reach the pipeline."""

import os
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest
from test_clips import write_shard

from clipvip_lib import cli, files
from clipvip_lib.commands.arguments import _has_driver
from clipvip_lib.commands.bench import BENCHES
from clipvip_lib.errors import ClipVipError
from clipvip_lib.features.writer import FeatureWriter


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
        ("reproduce --seeds a", "expected whole numbers like 0,1,2 or 0-2, got 'a'"),
        ("reproduce --seeds ,", "expected whole numbers like 0,1,2 or 0-2, got ','"),
        ("reproduce --seeds=", "expected whole numbers like 0,1,2 or 0-2, got ''"),
        ("reproduce --seeds 2-0", "expected whole numbers like 0,1,2 or 0-2, got '2-0'"),
        ("reproduce --seeds 0-9999999999", "expected whole numbers like 0,1,2 or 0-2, got '0-9999999999'"),
        ("reproduce --only=", "expected names like 04,05, got ''"),
        ("reproduce --only ,", "expected names like 04,05, got ','"),
        ("reproduce --out=", "expected the name of a file or folder, got ''"),
        ("reproduce --set x", "expected NAME=VALUE"),
        ("reproduce --set 1x=2", "expected NAME=VALUE"),
        ("reproduce --workers two", "invalid int value: 'two'"),
        ("reproduce --nonsense", "unrecognized arguments: --nonsense"),
        ("reproduced", "did you mean reproduce?"),
        ("reproduce --profle smoke", "unrecognized arguments: --profle smoke; did you mean --profile?"),
        ("reproduce --nonsense", "`clipvip reproduce --help` shows what there is"),
        ("embed clips --wieghts=w --out o", "unrecognized arguments: --wieghts; did you mean --weights?"),
        ("embed clips --out o", "the following arguments are required: --weights"),
    ],
)
def test_bad_arguments_are_one_sentence_and_code_2(called, capsys, line, words):
    assert cli.main(line.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("clipvip: ") and words in said and said.count("\n") == 1
    assert called == []


def test_seeds_may_be_a_range(called):
    assert cli.main(["reproduce", "--seeds", "0-2,7"]) == 0
    assert called[0][1]["seeds"] == [0, 1, 2, 7]


COMMANDS = (
    "reproduce",
    "check-data",
    "convert-texts",
    "pack",
    "caption",
    "train",
    "embed",
    "search",
    "bench",
)


@pytest.mark.parametrize("command", [*COMMANDS, *(f"bench {name}" for name in BENCHES)])
def test_every_help_has_an_example_that_is_right(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([*command.split(), "--help"])
    example = capsys.readouterr().out.rpartition("example:\n")[2].strip()
    words = shlex.split(example)
    names = command.split()
    assert words[: 1 + len(names)] == ["clipvip", *names]
    assert cli.parser().parse_args(words[1:]).command == names[0]


FEATURES = {
    "kind": "videos",
    "weights": "gone",
    "pretrained_tag": None,
    "checksum": "0",
    "attention": "proxy",
}
FEATURES |= {"precision": "float32", "stored": "float32", "frames": 3, "antialias": False}


def without_driver(line: str):
    return pytest.param(
        f"{line} --device cuda:1",
        "device 'cuda:1' cannot be used (no driver of an NVIDIA GPU was found)",
        marks=pytest.mark.skipif(_has_driver(), reason="a driver is here"),
    )


@pytest.mark.bad_input(
    "any command: a path, name or option that is wrong",
    says="one sentence within a second, before torch is imported",
)
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("reproduce --only 99", "unknown notebook '99'"),
        ("reproduce --profile nope", "unknown profile 'nope'"),
        ("reproduce --profile smoke --force nope", "unknown stage 'nope'"),
        ("reproduce --profile smoke --set nope=1", "unknown notebook parameter 'nope'"),
        ("reproduce --profile smoke --set data_root=/x", "--set data_root=...: expected --profile paper"),
        ("reproduce --plan --profile nope", "unknown profile 'nope'"),
        ("reproduce --plan --profile smoke --set nope=1", "unknown notebook parameter 'nope'"),
        ("check-data nope .", "unknown"),
        ("check-data msrvtt absent", "absent"),
        ("convert-texts --shards absent.tar --csv absent.csv", "absent"),
        ("caption --shards absent.tar --weights W --out O", "absent.tar"),
        ("caption --shards s.tar --weights absent --out O", "no file or folder 'absent'"),
        ("caption --shards s.tar --weights W --out O --device tpu", "device 'tpu' cannot be used"),
        ("caption --shards s.tar --weights W --out O", "W has no vocab.json and no merges.txt"),
        ("caption --shards s.tar --weights W --out O --bpe absent", "absent has no vocab.json"),
        ("caption --shards s.tar --weights W --bpe B --out s.tar", "cannot write to s.tar"),
        ("caption --shards s.tar --hugging-face some/model --out O", "HF_HUB_OFFLINE is set"),
        ("train --stage postpretrain --shards s.tar --weights absent --out O", "no file or folder 'absent'"),
        ("train --stage postpretrain --shards s.tar --weights ViT-B-23 --out O", "did you mean 'ViT-B-32'"),
        ("train --stage postpretrain --shards absent.tar --weights W --out O", "first absent.tar"),
        (
            "train --stage postpretrain --shards s.tar --weights W --out O --attention proxi",
            "did you mean 'proxy'",
        ),
        ("train --stage postpretrain --shards s.tar --weights W --out O --set stps=3", "stps"),
        (
            "train --stage postpretrain --shards s.tar --weights W --out O --loss V-S,X",
            "did you mean 'V-S,C'",
        ),
        (
            "train --stage postpretrain --shards s.tar --weights W --out O --recipe postpretran",
            "did you mean",
        ),
        ("train --stage postpretrain --shards s.tar --weights W --out s.tar", "cannot write to s.tar"),
        (
            "train --stage postpretrain --shards s.tar --weights W --out O --captions absent",
            "no folder 'absent'",
        ),
        (
            "train --stage postpretrain --shards s.tar --weights W --out O --texts absent",
            "no folder 'absent'",
        ),
        ("train --stage postpretrain --shards s.tar --weights some/model --out O", "HF_HUB_OFFLINE is set"),
        ("train --stage postpretrain --shards s.tar --weights E --out O", "E expected model.safetensors or"),
        (
            "train --stage finetune --benchmark msrvt --recipe finetune-msrvtt --data . --weights W --out O",
            "msrvt",
        ),
        ("train --stage finetune --benchmark msrvtt --data absent --weights W --out O", "no folder 'absent'"),
        ("embed absent.mp4 --weights W --out O", "no file or folder absent.mp4"),
        ("embed W/config.json --weights W --out new", "W/config.json is not a readable video"),
        ("embed s.tar --weights absent --out O", "no file or folder 'absent'"),
        ("embed s.tar --weights W --out O --attention proxi", "did you mean 'proxy'"),
        ("embed s.tar --weights W --out W/config.json", "cannot write to W/config.json"),
        ("embed s.tar --weights W --out O --windows 0.01", "windows of at least 0.1 s"),
        (
            "embed v#t=5.mp4 --weights W --out F --windows 2",
            "has #t= in it: expected that in the ids of windows",
        ),
        (
            "embed s.tar --weights W --out O --windows 2",
            "window was None and is 2.0; stride was None and is 2.0",
        ),
        (
            "embed s.tar --weights W --out O --float16 --frames 4",
            "float32 and is float16; frames was 3 and is 4",
        ),
        ("embed s.tar --weights W --out O --frames 0", "a whole number of at least 1, got '0'"),
        ("embed s.tar --weights W --out O --skip-bad -1", "--skip-bad"),
        ("embed s.tar --weights ViT-B-32 --out O", "expected pretrained_tag, its weights; tags: openai, "),
        ("embed s.tar --weights ViT-B-32 --tag opanai --out O", "has no weights 'opanai'"),
        ("embed s.tar --weights hf-hub:some/model --out O", "HF_HUB_OFFLINE is set"),
        ("embed s.tar --weights E --out O", "E expected model.safetensors or pytorch_model.bin"),
        ("search dog --in absent", "no features in absent"),
        ("reproduce --json", "--json belongs to --plan"),
        ("search --video absent.mp4 --in O", "cannot read 'absent.mp4'"),
        ("search --video s.tar --in O", "s.tar is not a readable video"),
        ("search dog --in O --top 0", "a whole number of at least 1, got '0'"),
        ("search dog --in O --html found.html/", "that ends in .html"),
        ("search '' --in O", "a text or a video to look for, got ''"),
        ("search --in O --token abc", "--token belongs to --serve"),
        ("search dog --in O --html x.mp4", "that ends in .html"),
        ("search dog --in O", "that made these features are gone"),
        ("search dog --in O --weights absent", "no file or folder 'absent'"),
        ("bench embed --folder absent", "no file or folder absent"),
        ("bench caption --size giant", "invalid choice: 'giant'"),
        ("bench caption --device tpu", "device 'tpu' cannot be used"),
        ("search --in O --serve 0.0.0.0:0", "expected --token"),
        without_driver("search dog --in O"),
        without_driver("embed s.tar --weights W --out F"),
        without_driver("caption --shards s.tar --weights W --out F"),
        without_driver("bench embed"),
        ("embed s.tar --weights C --out F", "of type clip or clip_vip, its config.json says 'ofa'"),
        (
            "train --stage postpretrain --shards s.tar --weights C --out F",
            "of type clip or clip_vip, its config.json says 'ofa'",
        ),
        ("search dog --in O --weights C", "of type clip or clip_vip, its config.json says 'ofa'"),
        ("reproduce --profile smoke --out s.tar", "s.tar"),
    ],
)
def test_what_is_wrong_is_told_before_torch_is_imported(tmp_path, line, words):
    for folder in ("W", "E", "B", "C"):
        (tmp_path / folder).mkdir()
    for name in (*("W/config.json", "E/config.json", "W/model.safetensors"), "B/vocab.json", "B/merges.txt"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "C/config.json").write_text('{"ofa": {}}')  # a captioner of the study
    (tmp_path / "C/model.safetensors").write_text("{}")
    write_shard(tmp_path / "s.tar", {"0": {"mp4": b"a video", "txt": b"a text"}})
    (tmp_path / "v#t=5.mp4").write_bytes(b"a video")
    with FeatureWriter(tmp_path / "O", FEATURES) as writer:
        writer.add({"id": "v", "path": "v.mp4"}, "1", np.eye(4, dtype=np.float32)[0])
        writer.join(["v"])
    code = "import sys\nfrom clipvip_lib import cli\ncode = cli.main(sys.argv[1:])\n"
    code += "print('torch' in sys.modules, code)"
    home = {
        **os.environ,
        "CLIPVIP_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(files.CHECKOUT),
    }
    done = subprocess.run(
        [sys.executable, "-c", code, *shlex.split(line)],
        env=home,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert words in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == "False 2\n"


AMID = """
import os, signal, sys
from clipvip_lib import cli
from clipvip_lib.commands.arguments import _has_driver

class Amid:  # a signal in the midst of the import of torch
    def find_spec(self, name, path, target=None):
        if name == "torch.distributed":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Amid())
try:
    code = cli.main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
print("torch" in sys.modules, code)
"""


@pytest.mark.fault(
    "train, embed: SIGTERM in the midst of the import of torch",
    sees="`stopped by SIGTERM`, and no C++ abort: the import ends before the command does",
    keeps="nothing was begun",
)
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train --stage postpretrain --shards s.tar --weights W --out O", "no checkpoint was written yet"),
        ("embed s.tar --weights W --out O", "stopped by SIGTERM"),
    ],
)
def test_a_signal_amid_the_import_of_torch_acts_after_it(tmp_path, line, words):
    (tmp_path / "W").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "W" / name).write_text("{}")
    write_shard(tmp_path / "s.tar", {"0": {"mp4": b"a video", "txt": b"a text"}})
    done = subprocess.run(
        [sys.executable, "-c", AMID, *line.split()],
        env={**os.environ, "PYTHONPATH": str(files.CHECKOUT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert words in done.stderr and "stopped by SIGTERM" in done.stderr
    assert done.stdout == "True 143\n"


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
