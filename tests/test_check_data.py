"""Every fault is named by its code word, and by no other; whole sets of every kind have none."""

import argparse
import errno
import json
import shutil
from pathlib import Path

import formats
import numpy as np
import pytest
from damaged_sets import VARIANTS, copy_over

from clipvip_lib.cli import Parser
from clipvip_lib.commands import check_data
from clipvip_lib.data import benchmarks, corpora
from clipvip_lib.data.check import CODES, ERRORS, check_set
from clipvip_lib.errors import ClipVipError
from clipvip_lib.training.ranks import Ranks
from clipvip_lib.training.recipes import RECIPES, recipe_of
from clipvip_lib.training.stores import store_split

CLIPS = {"train": 8, "val": 4, "test": 8}


def quiet(done, total, note=""):
    pass


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Every set once; jsonl as frame folders too."""
    folder = tmp_path_factory.mktemp("sets")
    for name in ("msrvtt", "didemo"):
        corpora.write_benchmark(folder / name, name, 0, CLIPS, quiet)
    for name in benchmarks.SETS.keys() - {"msrvtt", "didemo"}:
        source = "msrvtt" if benchmarks.SETS[name].protocol == "sentence" else "didemo"
        formats.rewrite(source, folder / source, name, folder / name, quiet)
    formats.rewrite("msrvtt", folder / "msrvtt", "jsonl", folder / "frames", quiet, "jpg")
    return folder


def codes(report):
    return {finding.code for finding in report.findings}


@pytest.mark.parametrize("name", sorted(benchmarks.SETS))
def test_a_whole_set_has_no_fault(written, name):
    report = check_set(name, written / name, sample=0)
    assert report.findings == []
    assert report.files == report.looked_into == report.decoding.clips == sum(CLIPS.values())
    assert {split: about["videos"] for split, about in report.splits.items()} == CLIPS
    files = [path for path in (written / name / "videos").rglob("*") if path.is_file()]
    assert report.video_bytes == sum(path.stat().st_size for path in files)


def test_whole_frame_folders_have_no_fault(written):
    report = check_set("jsonl", written / "frames", sample=0)
    assert report.findings == []
    assert report.decoding.clips == sum(CLIPS.values())


@pytest.mark.bad_input(
    "benchmark: a set with one fault, in check-data", says="the fault's code, as error or warning"
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_damaged_set_is_named(written, tmp_path, variant):
    name, damage, expected = VARIANTS[variant]
    root = tmp_path / name
    shutil.copytree(written / name, root)
    damage(root)
    report = check_set(name if name != "frames" else "jsonl", root, sample=0)
    assert codes(report) == expected, report.findings
    severities = {finding.code: finding.severity for finding in report.findings}
    assert severities == {code: "error" if code in ERRORS else "warning" for code in expected}
    for finding in report.findings:
        assert finding.sentences
        assert all(len(sentence) > 20 for sentence in finding.sentences)


def test_every_code_has_a_variant():
    tested = {code for _, _, expected in VARIANTS.values() for code in expected}
    assert tested == CODES.keys()
    assert len(VARIANTS) >= 50


@pytest.mark.bad_input("check-data: a frame folder with a link to nothing", says="`unreadable-video`")
def test_a_picture_that_leads_nowhere_is_named(written, tmp_path):
    shutil.copytree(written / "frames", tmp_path / "set")
    picture = sorted((tmp_path / "set").rglob("*_001.jpg"))[0]
    picture.unlink()
    picture.symlink_to("nothing.jpg")
    report = check_set("jsonl", tmp_path / "set", sample=0)
    assert codes(report) == {"unreadable-video"}
    assert picture.parent.name in report.findings[0].sentences[0]


@pytest.mark.fault(
    "check-data: the disk fails under a video (simulated)",
    sees="`expected a video file, got Input/output error`",
    keeps="the check of the other files",
)
def test_a_file_that_cannot_be_opened_is_named(written, tmp_path, monkeypatch):
    """Root may open every file, so the disk is at fault here. It has the size of another, with which it is compared."""
    shutil.copytree(written / "msrvtt", tmp_path / "set")
    copy_over(tmp_path / "set", 16, 17)
    whole = Path.open

    def failing(path, *given, **options):
        if path.name == "video17.mp4":
            raise OSError(errno.EIO, "Input/output error")
        return whole(path, *given, **options)

    monkeypatch.setattr(Path, "open", failing)
    report = check_set("msrvtt", tmp_path / "set", sample=0)
    assert codes(report) == {"unreadable-video"}
    (sentence,) = report.findings[0].sentences
    assert "video17.mp4: expected a video file, got Input/output error" in sentence


# ------------------------------------------------------------------------------------------------------- the command


def command(*arguments):
    top = Parser(prog="clipvip")
    check_data.add(top.add_subparsers())
    parsed: argparse.Namespace = top.parse_args(["check-data", *map(str, arguments)])
    return parsed.run(parsed)


def test_the_command_says_what_it_found(written, tmp_path, capsys):
    shutil.copytree(written / "msrvtt", tmp_path / "set")
    for number in (16, 17, 18):
        (tmp_path / f"set/videos/video{number}.mp4").unlink()
    assert command("msrvtt", tmp_path / "set", "--sample", 2, "--json", tmp_path / "a.json") == 1
    shown = capsys.readouterr()
    assert "MSR-VTT 1k-A (msrvtt), scored by sentences" in shown.out
    assert "test  8 videos, 8 texts, 3 missing; as distributed 1,000" in shown.out
    assert "error: missing-video (3)" in shown.out
    assert "decoded: 2 clips" in shown.out
    assert "a frame store by finetune-msrvtt, 24 frames and the middle one at 224 x 224: 0.1 GB" in shown.out
    assert "check-data 2/2" in shown.err
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["errors"] == 1
    assert len(content["findings"][0]["sentences"]) == 3
    assert content["decoding"]["core_hours"] == pytest.approx(
        content["decoding"]["seconds_a_clip"] * 17 / 3600
    )
    assert content["decoding"]["store_bytes"] == 17 * 25 * 224 * 224 * 3

    assert command("msrvtt", tmp_path / "set", "--allow-missing", 3) == 0
    assert "warning: missing-video (3)" in capsys.readouterr().out
    assert command("msrvtt", tmp_path / "set", "--allow-missing", 2) == 1


@pytest.mark.parametrize("name", ("msrvtt", "activitynet"))
def test_the_disk_is_that_of_the_store_which_training_writes(written, tmp_path, name):
    assert command(name, written / name, "--sample", 1, "--json", tmp_path / "a.json") == 0
    told = json.loads((tmp_path / "a.json").read_text())["decoding"]["store_bytes"]
    items = benchmarks.load_benchmark(name, written / name, "train")
    store_split(items[:1], tmp_path, "train", RECIPES[f"finetune-{name}"], 224, Ranks())
    assert told == sum(CLIPS.values()) * np.load(tmp_path / "train-00000.npy", mmap_mode="r").nbytes


def test_the_disk_in_the_documentation_is_that_of_the_recipes():
    page = (Path(__file__).parent.parent / "docs/benchmarks.md").read_text(encoding="utf-8")
    table = page.partition("| frame store |\n")[2].partition("\n\n")[0].splitlines()[1:]
    names = {"MSR-VTT": "msrvtt", "DiDeMo": "didemo", "ActivityNet": "activitynet", "LSMDC": "lsmdc"}
    names |= {"MSVD": "msvd", "VATEX": "vatex"}
    assert len(table) == len(names)
    for row in table:
        title, clips, *_, told = (cell.strip() for cell in row.strip("|").split("|"))
        count = int(clips.removeprefix("about ").replace(",", ""))
        kept = RECIPES[recipe_of(names[title])].kept_frames
        assert told == f"{count * (kept + 1) * 224 * 224 * 3 / 1e9:.0f} GB", title


def test_many_sentences_are_cut_and_counted(written, tmp_path, capsys):
    shutil.copytree(written / "vatex", tmp_path / "set")
    shutil.rmtree(tmp_path / "set/videos")
    assert command("vatex", tmp_path / "set") == 1
    out = capsys.readouterr().out
    assert "error: missing-video (20)" in out
    assert "and 15 more" in out


def test_time_bounds_what_is_opened(written):
    report = check_set("msrvtt", written / "msrvtt", sample=3, seconds=0.0)
    assert (report.looked_into, report.decoding.clips) == (1, 1)
    report = check_set("msrvtt", written / "msrvtt", sample=3, seconds=1e6)
    assert (report.looked_into, report.decoding.clips) == (20, 3)
    report = check_set("msrvtt", written / "msrvtt", sample=0, seconds=0.0)
    assert (report.looked_into, report.decoding.clips) == (20, 20)


def test_videos_may_be_elsewhere(written, tmp_path):
    shutil.copytree(written / "msrvtt", tmp_path / "set")
    shutil.move(tmp_path / "set/videos", tmp_path / "elsewhere")
    assert codes(check_set("msrvtt", tmp_path / "set")) == {"missing-video"}
    assert codes(check_set("msrvtt", tmp_path / "set", videos=tmp_path / "elsewhere")) == set()
    (tmp_path / "elsewhere").rename(tmp_path / "set/MSRVTT_Videos")
    assert codes(check_set("msrvtt", tmp_path / "set")) == set()


def test_what_cannot_be_checked_is_one_sentence(written, tmp_path):
    with pytest.raises(ClipVipError, match="unknown benchmark 'msrvt'"):
        command("msrvt", tmp_path)
    with pytest.raises(ClipVipError, match="expected a folder with the annotations of vatex"):
        command("vatex", tmp_path / "nowhere")
    with pytest.raises(ClipVipError, match="numbers of 0 or more"):
        command("vatex", written / "vatex", "--sample", -1)
    for seconds in ("nan", "-1", "soon"):
        with pytest.raises(ClipVipError, match=f"expected a number of seconds, 0 or more, got '{seconds}'"):
            command("vatex", written / "vatex", "--seconds", seconds)
    with pytest.raises(ClipVipError, match="expected a file to write, got the folder"):
        command("vatex", written / "vatex", "--json", tmp_path)
    with pytest.raises(ClipVipError, match="expected a file to write, got ''"):
        command("vatex", written / "vatex", "--json", "")


def test_a_validation_split_is_set_aside(written, tmp_path, capsys):
    shutil.copytree(written / "msrvtt-7k", tmp_path / "set")
    held: Path = tmp_path / "set/held_out.txt"
    held.unlink()
    assert command("msrvtt-7k", tmp_path / "set") == 0
    assert "none comes with the set; --hold-out N" in capsys.readouterr().out
    assert command("msrvtt-7k", tmp_path / "set", "--hold-out", 5) == 0
    assert f"wrote {held}" in capsys.readouterr().out
    splits = {
        s: {i.video_id for i in benchmarks.load_benchmark("msrvtt-7k", tmp_path / "set", s)} for s in CLIPS
    }
    assert len(splits["val"]) == 5
    assert not splits["val"] & splits["train"]
    assert len(splits["val"] | splits["train"]) == 12


def test_the_page_has_every_code_and_every_set():
    page = (Path(__file__).parent.parent / "docs/benchmarks.md").read_text(encoding="utf-8")
    rows = {f"| `{code}` | {'error' if code in ERRORS else 'warning'} | {CODES[code]} |" for code in CODES}
    assert rows <= set(page.splitlines())
    for name, known in benchmarks.SETS.items():
        assert f"`{name}`" in page
        for count in known.sizes.values():
            assert f"{count:,}" in page, (name, count)
