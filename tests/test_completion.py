"""The Tab key in a real bash, which has read what ``clipvip completion bash`` prints."""

import os
import shutil
import subprocess
import sys

import pytest

from clipvip_lib import cli, files

BASH = shutil.which("bash")
#: A line as the Tab key sees it, the last word unfinished; prints what bash would offer.
TAB = """
eval "$(cat)"
complete_line() {
  COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE}
  local how=$(complete -p clipvip) name
  name=${how#*-F }; name=${name%% *}
  "$name" clipvip "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}" 2>/dev/null
  printf '%s\\n' "${COMPREPLY[@]}"
}
complete_line "$@"
"""


@pytest.fixture(scope="module")
def script() -> str:
    pytest.importorskip("shtab")
    line = [sys.executable, "-m", "clipvip_lib.cli", "completion", "bash"]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not BASH, reason="bash is not on PATH")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        (["clipvip", "se"], {"search"}),
        (["clipvip", "c"], {"caption", "check-data", "completion", "convert-texts"}),
        (["clipvip", "embed", "--win"], {"--windows"}),
        (["clipvip", "embed", "--attention", "p"], {"proxy"}),
        (["clipvip", "train", "--stage", ""], {"postpretrain", "finetune"}),
        (["clipvip", "train", "--recipe", "finetune-d"], {"finetune-didemo", "finetune-didemo-b16"}),
        (["clipvip", "reproduce", "--profile", "s"], {"smoke"}),
        (["clipvip", "check-data", "msrv"], {"msrvtt", "msrvtt-7k"}),
        (["clipvip", "bench", "en"], {"encoder"}),
        (["clipvip", "search", "--in", "fea"], {"features"}),
        (["clipvip", "embed", "a-v"], {"a-video.mp4"}),
    ],
)
def test_tab_offers_what_there_is(script, tmp_path, line, offered):
    (tmp_path / "features").mkdir()
    (tmp_path / "a-video.mp4").touch()
    (tmp_path / "feathers.txt").touch()
    told = subprocess.run(
        [BASH, "--norc", "-c", TAB, "bash", *line],
        input=script,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(told.stdout.split()) == offered, told.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_the_same_names(shell, capsys):
    pytest.importorskip("shtab")
    assert cli.main(["completion", shell]) == 0
    told = capsys.readouterr().out
    assert all(word in told for word in ("check-data", "windows", "mean_pool", "msrvtt-7k"))
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=told, text=True, check=True)


@pytest.mark.bad_input("completion: shtab is not installed", says="`pip install shtab`")
def test_without_shtab_a_sentence(tmp_path):
    (tmp_path / "shtab.py").write_text("raise ImportError")
    done = subprocess.run(
        [sys.executable, "-m", "clipvip_lib.cli", "completion", "bash"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{files.CHECKOUT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "run pip install shtab" in done.stderr
