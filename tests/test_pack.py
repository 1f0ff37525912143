"""Shards and folders packed: every reader finds the same samples with the same texts; bad ones are named; kills lose
nothing."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import videos
from damaged_sets import damage_inside
from patience import STILL
from PIL import Image
from stream_cases import BAD, make_bad_shard, make_corpus

from clipvip_lib.data.clips import list_clips, list_files, read_clip
from clipvip_lib.data.packed_clip import Packing
from clipvip_lib.data.shards import index_shard, read_shard
from clipvip_lib.errors import ClipVipError
from clipvip_lib.streams.middle_frames import middle_frames
from clipvip_lib.streams.pack import MADE_BY, pack
from clipvip_lib.streams.sidecars import write_sidecar
from clipvip_lib.streams.stream import ClipStream

N, SIZE = 3, 32
SMALL = Packing(N, size=SIZE, quality=10)
NEAR = 2.5  # grey levels in the mean


@pytest.fixture
def corpus(tmp_path) -> Path:
    return make_corpus(tmp_path / "corpus")


def packed(source: Path, out: Path, packing: Packing = SMALL, **options):
    return pack(list_files([source]), out, packing, workers=2, **options)


def near(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.abs(one.astype(int) - other).mean() < NEAR


def test_training_embedding_and_captioning_read_packed_shards_as_the_originals(corpus, tmp_path):
    out = tmp_path / "packs"
    tally = packed(corpus, out)
    assert (tally.files, tally.written, tally.clips, tally.skipped) == (5, 5, 48, 0)
    shards = sorted(corpus.glob("*.tar"))
    assert [path.name for path in sorted(out.glob("*.tar"))] == [path.name for path in shards]
    for shard in shards:
        for one, other in zip(read_shard(shard), read_shard(out / shard.name), strict=True):
            assert (one.key, one.text, one.about) == (other.key, other.text, other.about)

    options = {"frames": N, "size": SIZE, "shuffle": 10, "jitter": False}  # clipvip train
    with ClipStream(shards, **options) as ours, ClipStream(sorted(out.glob("*.tar")), **options) as theirs:
        for one, other in ((next(ours), next(theirs)) for _ in range(60)):
            assert (one.key, one.text) == (other.key, other.text)
            assert near(one.video, other.video) and near(one.frame, other.frame)

    for one, other in zip(list_clips([corpus]), list_clips([out]), strict=True):  # clipvip embed
        assert one.id == other.id
        assert near(read_clip(one, N, SIZE).frames, read_clip(other, N, SIZE).frames)

    with ThreadPoolExecutor(1) as pool:  # clipvip caption
        for shard in shards:
            found = [
                dict(middle_frames(path, index_shard(path), pool, size=SIZE))
                for path in (shard, out / shard.name)
            ]
            assert found[0].keys() == found[1].keys()
            assert all(np.abs(found[0][key].astype(int) - found[1][key]).mean() < 8 for key in found[0])


def test_folders_keep_names_and_frame_folders_become_videos(tmp_path):
    source, out = tmp_path / "videos", tmp_path / "packs"
    for name in ("a.mkv", "film/1_x_00.00.32.166.avi.mp4", "film/b.mp4"):
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(videos.encode(20, container="matroska" if name == "a.mkv" else "mp4"))
    (source / "c").mkdir()
    for number, picture in enumerate(videos.pictures(9)):
        Image.fromarray(picture).save(source / "c" / f"c_{number:03d}.png")
    packed(source, out)
    clips, packs = list_clips([source]), list_clips([out])
    assert sorted(clip.id for clip in clips) == sorted(clip.id for clip in packs)
    by_id = {clip.id: clip for clip in packs}
    for clip in clips:
        assert by_id[clip.id].path.endswith(".mp4")
        assert near(read_clip(clip, N, SIZE).frames, read_clip(by_id[clip.id], N, SIZE).frames)


def test_captions_and_texts_beside_shards_come_along_also_later(corpus, tmp_path):
    out = tmp_path / "packs"
    keys = [entry.key for entry in index_shard(corpus / "00000.tar")]
    write_sidecar(corpus / "00000.captions.jsonl", "captions", [(key, f"of {key}") for key in keys])
    (corpus / "captions.json").write_text("{}")
    packed(corpus, out)
    name = "00000.captions.jsonl"
    assert (out / name).read_bytes() == (corpus / name).read_bytes() and (out / "captions.json").exists()
    write_sidecar(corpus / "00000.texts.jsonl", "texts", [(key, f"text of {key}") for key in keys])
    write_sidecar(out / name, "captions", [(key, "made from the pack") for key in keys])
    tally = packed(corpus, out)
    assert tally.found == 5 and tally.written == 0 and (out / "00000.texts.jsonl").exists()
    assert "made from the pack" in (out / name).read_text()  # what is there stays
    with ClipStream([out / "00000.tar"], frames=N, size=SIZE, captions=True, texts=True) as stream:
        clip = next(stream)
    assert clip.text == f"text of {clip.key}" and clip.caption == "made from the pack"


@pytest.mark.fault(
    "pack: samples that cannot be read",
    sees="the first one, by name; with --skip-share how many were left out",
    keeps="the reasons in NAME.not_packed.jsonl; all other samples",
)
def test_bad_samples_stop_it_or_are_left_out_and_written_down(tmp_path):
    shard, out, said = make_bad_shard(tmp_path / "bad.tar"), tmp_path / "packs", []
    with pytest.raises(ClipVipError, match=r"1 of 13 samples of shard .*bad.tar cannot be read and 0 may be"):
        packed(shard, out)
    assert [path.name for path in out.iterdir() if not path.name.startswith(".")] == [MADE_BY]
    tally = packed(shard, out, skip_share=0.4, say=said.append)
    log = [json.loads(line) for line in (out / "bad.tar.not_packed.jsonl").read_text().splitlines()]
    unreadable = ["cut", "no-media", "deep-no-media", "page"]  # texts and key.json are not a pack's to judge
    assert [row["key"] for row in log] == unreadable and tally.skipped == 4 and tally.absent == 1
    for row in log:
        assert row["key"] in BAD and row["reason"]
    assert any("left out 4 of 13 samples of bad.tar, see bad.tar.not_packed.jsonl" in each for each in said)
    kept = [entry.key for entry in index_shard(out / "bad.tar")]
    assert kept == [entry.key for entry in index_shard(shard) if entry.key not in unreadable]


def test_bad_files_too(tmp_path):
    source, out = tmp_path / "videos", tmp_path / "packs"
    source.mkdir()
    for name in "abc":
        (source / f"{name}.mp4").write_bytes(videos.encode(9))
    whole = (source / "b.mp4").read_bytes()
    (source / "b.mp4").write_bytes(whole[:300])
    with pytest.raises(
        ClipVipError, match="1 videos cannot be read and 0 may be left out, the last: .*b.mp4"
    ):
        packed(source, out)
    assert packed(source, out, skip_share=0.1).skipped == 1
    (log,) = (out / "b.mp4.not_packed.jsonl").read_text().splitlines()
    assert json.loads(log)["key"] == "b.mp4" and not (out / "b.mp4").exists()
    (source / "b.mp4").write_bytes(whole)  # fetched again
    assert packed(source, out).written == 1
    assert not (out / "b.mp4.not_packed.jsonl").exists()
    assert not list((out / ".locks").glob("*.mp4.lock"))


@pytest.mark.bad_input(
    "pack: a shard of which nothing can be read", says="`no sample of shard`, with the last reason"
)
def test_a_shard_of_nothing_is_not_written(tmp_path):
    from test_clips import write_shard

    shard = write_shard(tmp_path / "s.tar", {"a": {"mp4": b"no video"}})
    with pytest.raises(ClipVipError, match="no sample of shard .*s.tar can be read"):
        packed(shard, tmp_path / "packs", skip_share=0.9)
    assert not list((tmp_path / "packs").glob("*.tar*"))


@pytest.mark.bad_input(
    "pack: a folder that holds originals, or packs of other settings",
    says="`lies in the folder of the packed clips`, or what differs",
)
def test_originals_are_never_overwritten_and_ways_never_mixed(corpus, tmp_path):
    before = {path: path.read_bytes() for path in corpus.iterdir()}
    for out in (corpus, corpus.parent):
        with pytest.raises(ClipVipError, match="lies in the folder of the packed clips"):
            packed(corpus, out)
    assert {path: path.read_bytes() for path in corpus.iterdir()} == before
    out = tmp_path / "packs"
    packed(corpus, out)
    with pytest.raises(ClipVipError, match="made in another way .frames 3 then, 4 now"):
        packed(corpus, out, Packing(4, size=SIZE, quality=10))
    (out / MADE_BY).unlink()
    with pytest.raises(ClipVipError, match=f"holds .*tar but no {MADE_BY}: expected packed clips"):
        packed(corpus, out)


@pytest.mark.fault(
    "pack: killed while it writes",
    sees="nothing half-written; the next start packs the rest",
    keeps="finished shards, byte by byte",
)
def test_a_kill_leaves_nothing_half_written_and_the_rest_is_made(corpus, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "packs"
    packed(corpus, whole)
    command = [
        sys.executable, "-m", "clipvip_lib.cli", "pack", str(corpus), "--out", str(out), "--frames", str(N),
        "--size", str(SIZE), "--quality", "10", "--workers", "1",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + STILL
        while not list(out.glob("*.tar")) and time.monotonic() < end and process.poll() is None:
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert done
    for name in done:
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    tally = packed(corpus, out)
    assert tally.found == len(done) and tally.written == 5 - len(done)
    for path in whole.glob("*.tar"):
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert {name: (out / name).stat().st_mtime_ns for name in done} == done
    assert not list(out.rglob("*.partial"))


def test_two_processes_share_the_shards(corpus, tmp_path):
    out = tmp_path / "packs"
    with ThreadPoolExecutor(2) as pool:
        tallies = list(pool.map(lambda _: packed(corpus, out, poll=0.05), range(2)))
    assert sum(tally.written for tally in tallies) == 5 and sum(tally.clips for tally in tallies) == 48


def test_two_processes_share_the_files_of_a_folder_and_never_wait_for_each_other(tmp_path):
    """Each has files under way when it finds that all others are taken."""
    source, out = tmp_path / "videos", tmp_path / "packs"
    source.mkdir()
    for number in range(8):
        (source / f"{number}.mp4").write_bytes(videos.encode(9))
    with ThreadPoolExecutor(2) as pool:
        tallies = list(pool.map(lambda _: packed(source, out, poll=0.05), range(2)))
    assert sum(tally.written for tally in tallies) == 8 == len(list(out.glob("*.mp4")))


def test_pictures_and_sound(tmp_path):
    from test_clips import jpeg, sample, write_shard

    shard = write_shard(
        tmp_path / "s.tar",
        {"a": {"jpg": jpeg(), "txt": b"still"}, "b": {**sample(9), "m4a": b"sound", "jpg": jpeg()}},
    )
    tally = packed(shard, tmp_path / "packs")
    assert (tally.pictures, tally.clips, tally.others) == (1, 1, 2)
    (still, clip) = index_shard(tmp_path / "packs" / "s.tar")
    assert set(still.files) == {"jpg", "txt"} and set(clip.files) == {"mp4", "txt", "json"}


def test_damage_is_refused_or_accepted_by_name(tmp_path):
    source = tmp_path / "videos"
    source.mkdir()
    (source / "a.mp4").write_bytes(videos.encode(60))
    damage_inside(source / "a.mp4")
    with pytest.raises(ClipVipError, match="a.mp4 is damaged"):
        packed(source, tmp_path / "packs")
    shutil.rmtree(tmp_path / "packs")
    accept = Packing(N, size=SIZE, damaged="accept")
    assert packed(source, tmp_path / "packs", accept).damaged == 1
