"""``clipvip pack`` from the command line."""

from __future__ import annotations

import json
import re

import pytest
import videos

from clipvip_lib.cli import main
from clipvip_lib.data.video import count_frames


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "videos").mkdir()
    for number in range(3):
        (tmp_path / "videos" / f"v{number}.mp4").write_bytes(videos.encode(80 + number))
    return tmp_path / "videos"


def test_it_says_what_was_packed_and_what_was_there(folder, tmp_path, capsys):
    (folder / "notes.md").write_text("x")
    line = ["pack", str(folder), "--out", str(tmp_path / "packs"), "--size", "64"]
    assert main(line) == 0
    out, err = capsys.readouterr()
    assert re.search(r"3 of 3 files packed into .*; 3 clips, 0.\d MB before and 0.\d MB after", out)
    assert "left out beside 3 videos: 1 with the suffix .md" in err
    assert count_frames(tmp_path / "packs" / "v0.mp4") == 23
    assert main(line) == 0
    assert "0 of 3 files packed" in (said := capsys.readouterr().out) and "3 were there" in said
    assert main([*line, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["files"], told["written"], told["found"]) == (3, 0, 3) and told["folder"] == line[3]
    assert main([*line[:3], str(tmp_path / "more"), "--size", "64", "--jitter"]) == 0
    assert count_frames(tmp_path / "more" / "v0.mp4") == 34


@pytest.mark.bad_input("pack: options that make no sense", says="one sentence, exit code 2")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--frames", "0"], "frames expected 1 to 1024, got 0"),
        (["--skip-share", "1.5"], "share to skip"),
        (["--workers", "-1"], "workers expected 0 or more"),
        (["--antialias", "--jitter", "--quality", "60"], "quality expected 0 to 51, got 60"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(folder, tmp_path, capsys, options, words):
    assert main(["pack", str(folder), "--out", str(tmp_path / "packs"), *options]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not (tmp_path / "packs").exists()


def test_a_missing_source_is_one_sentence(tmp_path, capsys):
    assert main(["pack", str(tmp_path / "none"), "--out", str(tmp_path / "packs")]) == 2
    assert "no file or folder" in capsys.readouterr().err
