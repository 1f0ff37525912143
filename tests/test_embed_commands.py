"""`clipvip embed` and `clipvip search` as a person runs them, with real processes and a real kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import patience
import pyarrow.parquet as pq
import pytest
from small_clip import WORDS, save_small, write_videos
from test_clips import sample, write_shard

from clipvip_lib.cli import Parser
from clipvip_lib.commands import embed, search
from clipvip_lib.errors import ClipVipError
from clipvip_lib.features.folder import Features
from clipvip_lib.models.clip_vip import ClipViP


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return save_small(tmp_path_factory.mktemp("weights"))


def run(*line: object) -> int:
    """A command line of these two commands, run in this process."""
    top = Parser(prog="clipvip")
    commands = top.add_subparsers(dest="command", required=True)
    for command in (embed, search):
        command.add(commands)
    arguments = top.parse_args([str(word) for word in line])
    return arguments.run(arguments)


def test_embed_then_search(weights, tmp_path, capsys):
    paths = write_videos(tmp_path / "videos", 5)
    (tmp_path / "videos" / "v00.srt").write_text("1")
    (tmp_path / "texts.txt").write_text("\n".join(WORDS))
    out = tmp_path / "out"
    line = (
        "embed",
        tmp_path / "videos",
        "--texts",
        tmp_path / "texts.txt",
        "--weights",
        weights,
        "--out",
        out,
    )
    assert run(*line) == 0
    said = capsys.readouterr()
    assert f"5 videos in {out / 'features.npy'}, 24 numbers each" in said.out
    assert f"4 texts in {out / 'texts' / 'features.npy'}" in said.out and "embed 5/5" in said.err
    assert "clipvip: left out beside 5 videos: 1 with the suffix .srt (first v00.srt)\n" in said.err
    assert run("search", "a dog runs", "--video", paths[2], "--in", out, "--top", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and lines[0] == "a dog runs" and lines[3] == str(paths[2])
    assert lines[4].split() == ["1", "+1.0000", "v02", str(paths[2])]
    assert run("search", WORDS[1], "--in", out / "texts", "--json", "--top", 1) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["results"][0]["text"] == WORDS[1] and found["results"][0]["rank"] == 1
    assert run(*line) == 0
    assert "embed 5/5 100 %, embedded before" in capsys.readouterr().err
    assert run("embed", paths[0], "--weights", weights, "--out", out) == 0
    assert "; 4 more of an earlier run are not in it" in capsys.readouterr().out


def test_shards_frame_folders_and_switches_reach_the_features(weights, tmp_path, capsys):
    write_shard(tmp_path / "00000.tar", {"000": sample(4), "001": sample(9)})
    write_shard(tmp_path / "00001.tar", {"002": sample(5)})
    pattern, out = str(tmp_path / "{00000..00001}.tar"), tmp_path / "out"
    switches = (
        "--frames 2 --antialias --float16 --attention mean_pool --batch 1 --workers 1 --part 2 --device cpu"
    )
    assert run("embed", pattern, "--weights", weights, "--out", out, *switches.split(), "--ids", "path") == 0
    found = Features(out)
    assert [found.row(i)["key"] for i in range(3)] == ["000", "001", "002"]
    assert found.row(0)["id"] == f"{tmp_path / '00000.tar'}/000" and found.array.dtype == np.float16
    how = {name: found.settings[name] for name in ("frames", "antialias", "attention", "stored", "precision")}
    assert list(how.values()) == [2, True, "mean_pool", "float16", "float32"]
    assert len(list((out / "parts").iterdir())) == 2
    assert run("search", "a dog", "--in", out, "--top", 1) == 0
    assert ".tar (00" in capsys.readouterr().out


@pytest.mark.parametrize("known", [True, False, None])
def test_frames_are_resized_as_in_the_models_training(known, tmp_path, capsys):
    weights = save_small(tmp_path / "weights", antialias=known)
    written = json.loads((weights / "config.json").read_text())
    assert written.get("antialias") is known and ("antialias" in written) == (known is not None)
    (path,) = write_videos(tmp_path / "videos", 1)
    run("embed", path, "--weights", weights, "--out", tmp_path / "a")
    said = "does not say how frames were resized in training; assuming the authors' way, without antialiasing"
    assert (said in capsys.readouterr().err) == (known is None)
    assert Features(tmp_path / "a").settings["antialias"] is bool(known)
    asked = "--no-antialias" if known else "--antialias"
    run("embed", path, "--weights", weights, "--out", tmp_path / "b", asked)
    assert Features(tmp_path / "b").settings["antialias"] is not bool(known)
    assert said not in capsys.readouterr().err
    shown = [Features(tmp_path / name).array for name in "ab"]
    assert np.abs(shown[0] - shown[1]).max() > 1e-4


def test_untrained_weights_are_said(weights, tmp_path, capsys):
    from transformers import CLIPConfig, CLIPModel

    config = ClipViP.from_pretrained(weights).config
    parts = {name: getattr(config, name).to_dict() for name in ("text_config", "vision_config")}
    CLIPModel(CLIPConfig(**parts, projection_dim=24)).save_pretrained(tmp_path / "clip")
    (path,) = write_videos(tmp_path / "videos", 1)
    run("embed", path, "--weights", tmp_path / "clip", "--out", tmp_path / "a")
    assert "weights are not in" not in capsys.readouterr().err
    run("embed", path, "--weights", tmp_path / "clip", "--out", tmp_path / "b", "--attention", "proxy")
    assert "2 weights are not in" in capsys.readouterr().err


@pytest.mark.bad_input("embed, search: options that make no sense", says="one sentence")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("embed --weights W --out O", "expected videos or --texts FILE, got neither"),
        ("embed V --weights W --out O --skip-bad -1", "of at least 0, got '-1'"),
        ("embed V --weights W --out O --device meta", "device 'meta' cannot be used"),
        ("search dog --in O --tag x", "--tag belongs to --weights"),
        ("embed absent.mp4 --weights W --out O", "no file or folder absent.mp4"),
        ("embed V --weights absent --out O", "no file or folder 'absent'"),
        ("embed V --weights W --out O --attention proxi", "did you mean 'proxy'"),
        ("embed V --weights W --out O --device cuda:99", "device 'cuda:99' cannot be used"),
        ("embed V --weights W --out O --part 0", "of at least 1, got '0'"),
        ("embed V --weights W --out O --frames 0", "of at least 1, got '0'"),
        ("embed V --weights W --out O --workers -2", "workers expected 0 or more"),
        ("embed V --weights W --out O --texts absent.txt", "cannot read texts absent.txt"),
        ("embed V --weights W", "the following arguments are required: --out"),
        ("search --in O", "expected a text or --video FILE"),
        ("search dog --in absent", "no features in absent: expected"),
        ("search dog --in T", "no features in T (those of texts are in texts/)"),
        ("search dog --in O --probes 3", "--probes belongs to --faiss"),
    ],
)
def test_bad_input_is_one_sentence(weights, tmp_path, monkeypatch, line, words):
    monkeypatch.chdir(tmp_path)
    write_videos(tmp_path / "V", 1)
    (tmp_path / "W").symlink_to(weights)
    (tmp_path / "T" / "texts").mkdir(parents=True)
    (tmp_path / "T" / "texts" / "meta.json").touch()
    with pytest.raises(ClipVipError) as caught:
        run(*line.split())
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_without_pictures_is_told_before_the_model_is_loaded(weights, tmp_path, monkeypatch):
    (video,) = write_videos(tmp_path / "V", 1)
    assert run("embed", video, "--weights", weights, "--out", tmp_path / "O") == 0
    monkeypatch.setattr("clipvip_lib.features.search.Searcher", None)
    with pytest.raises(ClipVipError, match="V holds no picture: expected V_000.jpg"):
        run("search", "--video", tmp_path / "V", "--in", tmp_path / "O")


def test_an_empty_name_is_not_the_current_folder(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_videos(tmp_path, 1)
    with pytest.raises(ClipVipError, match="got an empty name"):
        run("embed", "", "--weights", weights, "--out", "O")


def test_parquet_without_pyarrow_is_said_before_the_work(weights, tmp_path, monkeypatch):
    write_videos(tmp_path / "V", 1)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ClipVipError, match="run pip install pyarrow"):
        run("embed", tmp_path / "V", "--weights", weights, "--out", tmp_path / "O", "--parquet")
    assert not (tmp_path / "O").exists()


def test_a_parquet_that_lacks_rows_does_not_stay(weights, tmp_path, capsys):
    videos, out = write_videos(tmp_path / "V", 3), tmp_path / "O"
    last = videos[2].rename(tmp_path / "last.mp4")
    given = ("embed", tmp_path / "V", "--weights", weights, "--out", out)
    run(*given, "--parquet")
    run(*given)  # nothing new: it is whole
    assert (out / "features.parquet").is_file() and "removed" not in capsys.readouterr().err
    last.rename(videos[2])
    run(*given)
    assert not (out / "features.parquet").exists()
    assert "features.parquet, which lacked rows; --parquet writes it again" in capsys.readouterr().err
    run(*given, "--parquet")
    assert pq.read_table(out / "features.parquet").num_rows == 3


def test_a_score_that_is_no_number_is_no_json(tmp_path, monkeypatch):
    nan = [{"text": "dog", "results": [{"score": float("nan")}]}]
    monkeypatch.setattr("clipvip_lib.features.search.Searcher.__init__", lambda *_: None)
    monkeypatch.setattr("clipvip_lib.features.search.Searcher.answer", lambda *_: nan)
    monkeypatch.setattr("clipvip_lib.features.folder.Features", lambda folder: SimpleNamespace(settings={}))
    monkeypatch.setattr("clipvip_lib.features.query_settings.weights_of", lambda *_: None)
    with pytest.raises(ValueError, match="not JSON compliant"):
        run("search", "dog", "--in", tmp_path, "--json")


@pytest.mark.fault(
    "embed: SIGKILL",
    sees="of the folder, `not finished; run the same`",
    keeps="every whole part, byte for byte; nothing is done twice",
)
@pytest.mark.slow
def test_a_killed_process_loses_at_most_a_part(weights, tmp_path):
    """SIGKILL in the middle: no half file, no result that looks whole; the next start resumes from the parts."""
    some, many, out = write_videos(tmp_path / "some", 10), tmp_path / "many", tmp_path / "out"
    many.mkdir()
    for i in range(240):
        shutil.copy(some[i % 10], many / f"{i:03d}.mp4")
    code = "import sys; from test_embed_commands import run; run(*sys.argv[1:])"
    line = ["embed", many, "--weights", weights, "--out", out, "--part", 8]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, line)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)},
        stderr=subprocess.DEVNULL,
    )
    patience.until(lambda: len(list(out.glob("parts/*.npz"))) >= 3, "three parts", process, pause=0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = {path: path.read_bytes() for path in out.glob("parts/*.npz")}
    assert 3 <= len(before) < 30 and not (out / "meta.json").exists()
    with pytest.raises(ClipVipError, match="not finished; run the same `clipvip embed` again"):
        Features(out)
    assert run(*line) == 0
    assert all(path.read_bytes() == content for path, content in before.items())
    assert len(list(out.glob("parts/*.npz"))) == 30  # 240 videos in parts of 8: nothing was done twice
    found = Features(out)
    expected = ClipViP.from_pretrained(weights).eval().encode_videos(some)
    assert [found.row(i)["id"] for i in range(240)] == [f"{i:03d}" for i in range(240)]
    assert np.abs(found.array - np.tile(expected, (24, 1))).max() < 1e-6


@pytest.mark.bad_input(
    "embed, search: a file name with a newline and an escape sequence",
    says="the name on one line, without the escape sequence",
)
def test_a_newline_in_a_name_forges_no_line_of_results(weights, tmp_path, capsys):
    (path,) = write_videos(tmp_path / "videos", 1)
    path.rename(path.with_name("v\n    1  +1.0000  forged  x\x1b[31m.mp4"))
    out = tmp_path / "out"
    assert run("embed", tmp_path / "videos", "--weights", weights, "--out", out) == 0
    assert run("search", "a dog\nruns", "--in", out) == 0
    assert run("search", "a dog", "--in", out, "--json") == 0
    said, told = capsys.readouterr()
    lines = said.splitlines()
    assert len(lines) == 4 and lines[1] == "a dog\\nruns" and "v\\n    1  +1.0000  forged" in lines[2]
    assert "\x1b" not in said + told
    assert json.loads(lines[3])["results"][0]["id"] == "v\n    1  +1.0000  forged  x\x1b[31m"


@pytest.mark.fault(
    "search: videos were moved away or replaced after they were embedded",
    sees="below its line, that the file is gone, or changed since it was embedded; with --json in `lost`",
    keeps="the results",
)
def test_a_result_whose_file_is_gone_or_changed_says_so(weights, tmp_path, capsys):
    gone, other, _ = write_videos(tmp_path / "videos", 3)
    out = tmp_path / "out"
    assert run("embed", tmp_path / "videos", "--weights", weights, "--out", out) == 0
    assert run("search", "a dog", "--in", out) == 0
    before = capsys.readouterr()
    assert "since it was embedded" not in before.err
    gone.unlink()
    other.write_bytes(other.read_bytes() + b"0")
    assert run("search", "a dog", "--in", out) == 0
    after = capsys.readouterr()
    assert after.out in before.out
    assert f"clipvip: {gone} is gone since it was embedded: expected a video; put it back" in after.err
    assert f"clipvip: {other} changed since it was embedded" in after.err
    assert run("search", "a dog", "--in", out, "--json") == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert {each["id"] for each in results if "lost" in each} == {gone.stem, other.stem}


def test_texts_that_are_cut_are_counted(weights, tmp_path, capsys):
    write_videos(tmp_path / "videos", 1)
    (tmp_path / "texts.txt").write_text("a dog\n" + "a dog runs " * 9 + "\n" + "somebody cooks " * 9 + "\n")
    out, long = tmp_path / "out", "a dog runs " * 9
    line = (
        "embed",
        tmp_path / "videos",
        "--texts",
        tmp_path / "texts.txt",
        "--weights",
        weights,
        "--out",
        out,
    )
    for _ in range(2):  # also of those that were embedded before
        assert run(*line) == 0
        assert "3 texts, 2 of them cut at 16 tokens in " in capsys.readouterr().out
    assert run("search", long, "a dog", "--in", out) == 0
    said = capsys.readouterr()
    assert said.err.count("clipvip: this text is longer than the model reads") == 1
    assert run("search", long, "a dog", "--in", out, "--json") == 0
    found = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert [row.get("cut") for row in found] == [True, None]


def test_words_that_a_small_vocabulary_lacks_are_named(weights, tmp_path, capsys):
    """All of them look alike to the model, so their scores mean nothing."""
    (tmp_path / "texts.txt").write_text("a dog runs\na zebra\na zebra runs\n")
    out = tmp_path / "out"
    for _ in range(2):  # also of those that were embedded before
        assert run("embed", "--texts", tmp_path / "texts.txt", "--weights", weights, "--out", out) == 0
        assert "3 texts, 2 of them with words that the model does not know in " in capsys.readouterr().out
    asked = ("search", "a zebra jumps", "a dog", "--in", out / "texts")
    assert run(*asked) == 0
    said = capsys.readouterr().err
    assert (
        said.count("does not know") == 1
        and "clipvip: the model does not know these words: zebra, jumps\n" in said
    )
    assert run(*asked, "--json") == 0
    found = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert [row.get("unknown") for row in found] == [["zebra", "jumps"], None]
