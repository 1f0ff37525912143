"""`clipvip caption`: real processes, alone and under torchrun, killed and started again; bad input in a sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import caption_corpus as corpus
import patience
import pyarrow.parquet as pq
import pytest

from clipvip_lib import cli
from clipvip_lib.captions.captioners import load_ofa_captioner
from clipvip_lib.commands import caption
from clipvip_lib.data.shards import index_shard
from clipvip_lib.streams.middle_frames import middle_frames

SHARDS, CLIPS = 6, 50
POLL = 2.0  # seconds between a waiting rank's looks

COMMAND = """
import sys
from clipvip_lib import cli
from clipvip_lib.commands import caption
if caption.add not in cli.COMMANDS:
    cli.COMMANDS += (caption.add,)
sys.exit(cli.main())
"""

LOADING = "clipvip: loading the model\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a corpus, a captioner, and its captions by one process."""
    folder = tmp_path_factory.mktemp("place")
    corpus.write_corpus(folder / "corpus", SHARDS, CLIPS)
    corpus.trained().save(folder / "ofa")
    (folder / "command.py").write_text(COMMAND)
    return folder


@pytest.fixture
def line(place, tmp_path) -> list[str]:
    pattern = f"{place}/corpus/{{00000..{SHARDS - 1:05d}}}.tar"
    return f"caption --shards {pattern} --out {tmp_path}/out --weights {place}/ofa --batch 16".split()


@pytest.fixture
def main(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    if caption.add not in cli.COMMANDS:
        monkeypatch.setattr(cli, "COMMANDS", (*cli.COMMANDS, caption.add))
    return cli.main


def start(place: Path, line: list[str], rank: int = 0, ranks: int = 1) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RANK": str(rank), "WORLD_SIZE": str(ranks)}
    command = [sys.executable, str(place / "command.py"), *line]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def assert_whole(out: Path, *, parquet: bool = False) -> None:
    """Every shard once, every sample once, each with what its middle frame shows, and nothing else there."""
    forms = ("jsonl", "parquet") if parquet else ("jsonl",)
    for number in range(SHARDS):
        assert corpus.texts(out / f"{number:05d}.captions.jsonl") == corpus.expected(number, CLIPS)
        if parquet:
            rows = pq.read_table(out / f"{number:05d}.captions.parquet").to_pylist()
            assert [(row["key"], row["caption"]) for row in rows] == corpus.expected(number, CLIPS)
    assert sorted(path.name for path in out.iterdir()) == [
        ".locks",
        *(f"{number:05d}.captions.{form}" for number in range(SHARDS) for form in forms),
        "captions.json",
    ]
    assert [path.name for path in (out / ".locks").iterdir()] == ["folder.lock"]


def unfinished(out: Path) -> set[str]:
    """Captions files that somebody holds and has not written; a lock may outlive its finished file by a moment."""
    held = {path.name.removesuffix(".lock") for path in (out / ".locks").glob("0*.lock")}
    return {name for name in held if not (out / name).exists()}


def stop_in_the_middle(process: subprocess.Popen, out: Path, least_done: int = 1) -> None:
    """Stop (SIGSTOP) a process at a moment when it holds a shard and has not finished it."""

    def stopped() -> bool:
        if len(list(out.glob("*.captions.jsonl"))) < least_done:
            return False
        process.send_signal(signal.SIGSTOP)
        locks = [out / ".locks" / f"{name}.lock" for name in unfinished(out)]
        if any(f"process {process.pid} of" in lock.read_text() for lock in locks):
            return True
        process.send_signal(signal.SIGCONT)
        return False

    patience.until(stopped, "its work on a shard", process, pause=0.002)


@pytest.mark.slow
@pytest.mark.thorough
def test_torchruns_ranks_share_the_work(place, line, tmp_path, main, capsys):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = patience.run([*torchrun, place / "command.py", *line], env=environment)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(row) for row in done.stdout.splitlines()]
    assert sorted((row["rank"], row["ranks"]) for row in rows) == [(0, 2), (1, 2)]
    assert sum(row["written"] for row in rows) == SHARDS
    assert sum(row["captions"] for row in rows) == SHARDS * CLIPS
    assert all(row["shards"] == SHARDS for row in rows)
    assert_whole(tmp_path / "out")
    line[line.index("--out") + 1] = str(tmp_path / "alone")
    assert main(line) == 0
    for path in sorted((tmp_path / "alone").glob("*.json*")):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    said = capsys.readouterr()
    assert json.loads(said.out)["written"] == SHARDS
    assert "images/s" in said.err


@pytest.mark.fault(
    "caption: SIGKILL in the middle of a shard",
    sees="how many shards `shards were captioned before`, and which one is taken up",
    keeps="the captions of whole shards; the end is whole, each sample once",
)
@pytest.mark.slow
@pytest.mark.thorough
def test_killed_in_the_middle_it_goes_on_where_it_was(place, line, tmp_path):
    out = tmp_path / "out"
    process = start(place, line)
    stop_in_the_middle(process, out)
    process.kill()
    process.communicate()
    found = len(list(out.glob("*.captions.jsonl")))
    assert 1 <= found < SHARDS
    again = start(place, line)
    said, told = patience.wait(again)
    assert again.returncode == 0, told
    row = json.loads(said)
    assert (row["found"], row["written"], row["captions"]) == (
        found,
        SHARDS - found,
        (SHARDS - found) * CLIPS,
    )
    assert f"{found} of {SHARDS} shards were captioned before" in told
    assert f"which process {process.pid} of" in told
    assert_whole(out)


@pytest.mark.fault(
    "caption: one of two ranks is killed (SIGKILL)",
    sees="`waiting for`, then `taking up`",
    keeps="all: the living rank captions the shard, each sample once",
)
@pytest.mark.slow
@pytest.mark.thorough
def test_a_living_rank_takes_up_what_a_killed_one_held(place, line, tmp_path):
    out = tmp_path / "out"
    dies = start(place, line, rank=1, ranks=2)
    lives = None
    try:
        stop_in_the_middle(dies, out)
        held = unfinished(out)
        lives = start(place, line, rank=0, ranks=2)
        for told in lives.stderr:  # what it says up to its waiting
            if "waiting for" in told:
                break
        assert f"(process {dies.pid} of" in told and lives.poll() is None
        done = {f"{number:05d}.captions.jsonl" for number in range(SHARDS)} - held

        def all_but_held() -> bool:
            return {path.name for path in out.glob("*.captions.jsonl")} == done

        patience.until(all_but_held, "the end of what it still has", lives)
        time.sleep(2 * POLL)
        assert lives.poll() is None and all_but_held()
        dies.kill()
        _, told = patience.wait(lives)
    finally:
        for process in (dies, lives):
            if process is not None:
                process.kill()
                process.communicate()
    assert lives.returncode == 0, told
    assert told.count("taking up") == len(held)
    assert_whole(out)


@pytest.mark.slow
@pytest.mark.thorough
def test_two_ranks_write_every_parquet_once(place, line, tmp_path, main):
    """The second finds the first at work, and shards that were captioned without --parquet."""
    out = tmp_path / "out"
    first = [place / "corpus" / "00002.tar" if each.endswith(".tar") else each for each in line]
    assert main(list(map(str, first))) == 0
    ranks = [start(place, [*line, "--parquet"], rank, 2) for rank in range(2)]
    rows = []
    for process in ranks:
        said, told = patience.wait(process)
        assert process.returncode == 0, told
        rows.append(json.loads(said))
    assert sum(row["written"] for row in rows) == SHARDS - 1
    assert_whole(out, parquet=True)


def test_parquet_without_pyarrow_is_said_before_the_work(line, tmp_path, main, capsys, monkeypatch):
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    line[line.index("--weights") + 1] = "none"  # which would be said next
    assert main([*line, "--parquet"]) == 2
    said = capsys.readouterr().err
    assert said == "clipvip: Parquet expected pyarrow, it is not installed; run pip install pyarrow\n"
    assert not (tmp_path / "out").exists()


def test_released_weights_and_their_tokenizer(place, line, tmp_path, main, capsys):
    weights, bpe = corpus.write_released(tmp_path)
    line[line.index("--weights") + 1] = str(weights)
    line[line.index("--shards") + 1] = f"{place}/corpus/00001.tar"
    line[line.index("--batch") + 1] = str(CLIPS)
    assert main(line) == 2
    assert "name a folder that has both with --bpe" in capsys.readouterr().err
    assert main([*line, "--bpe", str(bpe), "--size", "32", "--beam", "3", "--max-tokens", "4"]) == 0
    about = json.loads((tmp_path / "out" / "captions.json").read_text())
    assert (about["size"], about["beam_size"], about["max_len_b"], about["precision"]) == (
        32,
        3,
        4,
        "float32",
    )
    found = corpus.texts(tmp_path / "out" / "00001.captions.jsonl")
    again = load_ofa_captioner(weights, bpe=bpe, size=32, beam=3, max_tokens=4)
    tar = place / "corpus" / "00001.tar"
    with ThreadPoolExecutor(1) as pool:
        frames = dict(middle_frames(tar, index_shard(tar), pool))
    assert found == list(zip(frames, again.caption(list(frames.values())), strict=True))
    assert main([*line, "--bpe", str(bpe), "--size", "32", "--precision", "bfloat16"]) == 2
    assert "captions made in another way" in capsys.readouterr().err


def test_bad_samples_and_the_share_that_may_be_skipped(line, tmp_path, main, capsys):
    shard = corpus.write_shard(tmp_path / "bad.tar", 0, 5)
    corpus.change(shard, "000000001.mp4", b"no video")
    line[line.index("--shards") + 1] = str(shard)
    assert main(line) == 2
    said = capsys.readouterr().err
    assert "000000001 of" in said and said.removeprefix(LOADING).count("\n") == 1
    assert main([*line, "--skip-share", "0.2"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["skipped"] == 1
    assert "skipped 1 of 5 samples of bad.tar, see bad.skipped.jsonl" in said.err


@pytest.mark.bad_input("caption: options that make no sense", says="one sentence, exit code 2")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--batch", "0"], "expected a whole number of at least 1, got '0'"),
        (["--skip-share", "1"], "a share to skip of at least 0 and below 1"),
        (["--skip-share", "x"], "a share to skip of at least 0 and below 1, got x"),
        (["--device", "cuda:99"], "device 'cuda:99' cannot be used"),
        (["--device", "gpu"], "device 'gpu' cannot be used"),
        (["--weights", "none.pt"], "no file or folder 'none.pt'"),
        (["--shards", "none/{00000..00003}.tar"], "none/00000.tar"),
        (["--hugging-face", "x"], "not allowed with argument"),
        (["--out="], "expected the name of a file or folder, got ''"),
    ],
)
def test_bad_input_is_one_sentence(line, main, capsys, change, words):
    assert main([*line, *change]) == 2
    said = capsys.readouterr().err.removeprefix(LOADING)
    assert said.startswith("clipvip: ") and words in said and said.count("\n") == 1


def test_ranks_that_make_no_sense(line, main, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(line) == 2
    assert "expected RANK below WORLD_SIZE" in capsys.readouterr().err


def test_weights_must_be_named(main, capsys):
    assert main(["caption", "--shards", "a.tar", "--out", "out"]) == 2
    assert "one of the arguments --weights --hugging-face is required" in capsys.readouterr().err


def test_options_of_ofa_are_no_ones_of_hugging_face(line, main, capsys):
    at = line.index("--weights")
    line[at : at + 2] = ["--hugging-face", "some/model", "--size", "224"]
    assert main(line) == 2
    assert "--bpe and --size belong to OFA" in capsys.readouterr().err
