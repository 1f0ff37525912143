"""The Tab key in a real bash, zsh and fish, which have read what ``clipvip completion`` prints."""

import os
import pty
import shutil
import subprocess
import sys

import pytest

from clipvip_lib import files

#: A line as the Tab key sees it, the last word unfinished; prints what bash would offer.
BASH = """
eval "$(<"$0")"
complete_line() {
  COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE}
  local how=$(complete -p clipvip) name
  name=${how#*-F }; name=${name%% *}
  "$name" clipvip "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}" 2>/dev/null
  printf '%s\\n' "${COMPREPLY[@]}"
}
complete_line "$@"
"""
#: zsh completes only while somebody types. Tab lists what there is, Ctrl-X then says that it has been listed.
ZSH = """
PROMPT=; unset zle_bracketed_paste; unsetopt beep prompt_sp; LISTMAX=1000
autoload -U compinit; compinit -u -D; eval "$(<$1)"
told() { zle -I; print TO''LD }; zle -N told; bindkey '^X' told; bindkey '^I' list-choices
print REA''DY
"""
LINES = [
    ("clipvip se", {"search"}),
    ("clipvip c", {"caption", "check-data", "completion", "convert-texts"}),
    ("clipvip embed --win", {"--windows"}),
    ("clipvip embed --attention p", {"proxy"}),
    ("clipvip train --stage ", {"postpretrain", "finetune"}),
    ("clipvip train --recipe finetune-d", {"finetune-didemo", "finetune-didemo-b16"}),
    ("clipvip reproduce --profile s", {"smoke"}),
    ("clipvip check-data msrv", {"msrvtt", "msrvtt-7k"}),
    ("clipvip bench en", {"encoder"}),
    ("clipvip search --in fea", {"features"}),
    ("clipvip embed a-v", {"a-video.mp4"}),
]


def bash(script, line: str, folder) -> set[str]:
    command = ["bash", "--norc", "-c", BASH, script, *line.split(" ")]
    return set(run(command, folder).split())


def fish(script, line: str, folder) -> set[str]:
    command = ["fish", "--no-config", "-c", "source $argv[1]; complete -C $argv[2]", script, line]
    return {found.partition("\t")[0].rstrip("/") for found in run(command, folder).splitlines()}


def zsh(script, line: str, folder) -> set[str]:
    terminal, end = pty.openpty()
    environment = os.environ | {"TERM": "dumb", "COLUMNS": "200"}
    streams = {"stdin": end, "stdout": end, "stderr": end, "start_new_session": True}
    process = subprocess.Popen(["zsh", "-f", "-i", "-s", script], cwd=folder, env=environment, **streams)
    os.close(end)

    def read_until(mark: bytes) -> str:
        said = b""
        while mark not in said:
            said += os.read(terminal, 65536)
        return said.partition(mark)[0].decode()

    try:
        os.write(terminal, ZSH.encode())
        read_until(b"READY\r")
        os.write(terminal, line.encode() + b"\t\x18")
        listed = read_until(b"TOLD").splitlines()
    finally:
        os.close(terminal)
        process.wait()
    names = (found.partition(" -- ")[0] for found in listed if found and not found.startswith("clipvip"))
    return {name.rstrip("/") for each in names for name in each.split()}


def run(command: list, folder) -> str:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    pytest.importorskip("shtab")
    folder = tmp_path_factory.mktemp("completion")
    for shell in (bash, zsh, fish):
        told = run([sys.executable, "-m", "clipvip_lib.cli", "completion", shell.__name__], folder)
        (folder / shell.__name__).write_text(told)
    return folder


@pytest.mark.parametrize(("line", "offered"), LINES)
@pytest.mark.parametrize("shell", [bash, zsh, fish], ids=lambda shell: shell.__name__)
def test_tab_offers_what_there_is(scripts, tmp_path, shell, line, offered):
    if not shutil.which(shell.__name__):
        pytest.skip(f"{shell.__name__} is not on PATH")
    (tmp_path / "features").mkdir()
    (tmp_path / "a-video.mp4").touch()
    (tmp_path / "feathers.txt").touch()
    assert shell(scripts / shell.__name__, line, tmp_path) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_the_same_names(scripts, shell):
    told = (scripts / shell).read_text()
    assert all(word in told for word in ("check-data", "windows", "mean_pool", "msrvtt-7k"))


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
