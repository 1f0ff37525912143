"""The world's files: real H.264, tar shards and annotations, the same bytes from the same seed, whole or absent."""

import csv
import hashlib
import io
import json
import tarfile

import av
import numpy as np
import pytest

from clipvip_lib.data import corpora, world
from clipvip_lib.data.benchmarks import load_benchmark
from clipvip_lib.data.shards import read_shard
from clipvip_lib.data.video import read_frames
from clipvip_lib.errors import ClipVipError


def quiet(done, total, note=""):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    corpora.write_corpus(folder / "hdvila.tar", "hdvila-100m", 0, 0, 20, quiet)
    corpora.write_corpus(folder / "webvid.tar", "webvid-2.5m", 0, 0, 3, quiet)
    for name in ("msrvtt", "didemo"):
        corpora.write_benchmark(folder / name, name, 0, {"train": 16, "val": 8, "test": 24}, quiet)
    return folder


def test_clips_are_h264_that_the_reader_reads_back(folder):
    sample = next(read_shard(folder / "hdvila.tar"))
    with av.open(io.BytesIO(sample.media)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.frames) == (
            "h264",
            world.PIXELS,
            world.FRAMES,
        )
    drawn = world.render(corpora._corpus_video("hdvila-100m", 0, 0)[0][0])
    read = read_frames(sample.media, range(world.FRAMES))
    assert abs(read.astype(int) - drawn).mean() < 4.0


def test_the_same_seed_gives_the_same_bytes_and_frames(folder, tmp_path):
    corpora.write_corpus(tmp_path / "again.tar", "hdvila-100m", 0, 0, 20, quiet)
    assert (tmp_path / "again.tar").read_bytes() == (folder / "hdvila.tar").read_bytes()
    corpora.write_benchmark(tmp_path / "msrvtt", "msrvtt", 0, {"train": 16, "val": 8, "test": 24}, quiet)
    for path in sorted((folder / "msrvtt").rglob("*.*")):
        again = tmp_path / "msrvtt" / path.relative_to(folder / "msrvtt")
        if path.suffix == ".mp4":
            frames = (read_frames(p, range(world.FRAMES)) for p in (path, again))
            assert len({hashlib.sha256(f).hexdigest() for f in frames}) == 1
        else:
            assert again.read_bytes() == path.read_bytes(), path
    corpora.write_corpus(tmp_path / "other.tar", "hdvila-100m", 1, 0, 20, quiet)
    assert (tmp_path / "other.tar").read_bytes() != (folder / "hdvila.tar").read_bytes()


@pytest.mark.parametrize("size", (32, 48, 96))
def test_encoding_repeats_at_other_sizes(size):
    frames = np.random.default_rng(0).integers(0, 255, (8, size, size, 3), np.uint8)
    assert len({corpora.encode_h264(frames) for _ in range(4)}) == 1


def test_shards_have_the_keys_of_video2dataset(folder):
    with tarfile.open(folder / "hdvila.tar") as tar:
        assert tar.getnames()[:3] == ["v0000000-0.mp4", "v0000000-0.txt", "v0000000-0.json"]
    samples = list(read_shard(folder / "hdvila.tar"))
    assert len(samples) == 20 * world.CLIPS_PER_VIDEO
    assert [s.about["video_id"] for s in samples[:4]] == ["hdvila-100m-0000000"] * 4
    assert all(s.text == s.about["caption"] for s in samples)


def test_the_subset_is_whole_videos_of_the_larger_corpus(folder, tmp_path):
    count = corpora.write_subset(tmp_path / "subset.tar", [folder / "hdvila.tar"], 0.25, 0, quiet)
    large = {s.key: s for s in read_shard(folder / "hdvila.tar")}
    small = list(read_shard(tmp_path / "subset.tar"))
    assert count == len(small) == 5 * world.CLIPS_PER_VIDEO
    assert all(large[s.key] == s for s in small)
    keys = [s.key.rsplit("-", 1)[0] for s in small]
    assert all(keys.count(key) == world.CLIPS_PER_VIDEO for key in keys)


def test_webvid_is_narrower_and_written_not_spoken(folder):
    assert all("background" in s.text for s in read_shard(folder / "webvid.tar"))
    clips = [clip for i in range(30) for clip in corpora._corpus_video("webvid-2.5m", 0, i)[0]]
    assert {c.background for c in clips} <= set(corpora.NARROW_BACKGROUNDS)
    assert max(len(c.things) for c in clips) <= corpora.NARROW_THINGS


def test_proportions_of_the_corpora():
    assert [corpora.RELATIVE_SIZES[name] for name in ("webvid-2.5m", "hdvila-10m", "hdvila-100m")] == [
        1,
        4,
        40,
    ]


@pytest.mark.parametrize("name", ("msrvtt", "didemo"))
def test_splits_share_no_scene_and_test_repeats_none(folder, name):
    truth = json.loads((folder / name / "truth.json").read_text())
    scenes = {
        split: {row["scene"] for row in truth.values() if row["split"] == split}
        for split in ("train", "val", "test")
    }
    assert not scenes["train"] & scenes["test"]
    assert not scenes["val"] & (scenes["train"] | scenes["test"])
    groups = {(row["scene"], row["group"]) for row in truth.values() if row["split"] == "test"}
    assert len(groups) == len(scenes["test"])


def test_msrvtt_has_clip4clips_files(folder):
    data = json.loads((folder / "msrvtt/MSRVTT_data.json").read_text())
    assert set(data) == {"videos", "sentences"}
    assert set(data["sentences"][0]) == {"video_id", "sen_id", "caption"}
    with (folder / "msrvtt/MSRVTT_JSFUSION_test.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["key", "vid_key", "video_id", "sentence"]
    assert len(rows) == 24
    assert len(load_benchmark("msrvtt", folder / "msrvtt", "train")[0].texts) == 5


def test_didemo_paragraphs_join_the_moments_in_order(folder):
    item = load_benchmark("didemo", folder / "didemo", "test")[0]
    entries = json.loads((folder / "didemo/test_data.json").read_text())
    own = [e["description"] for e in entries if e["video"] == f"{item.video_id}.mp4"]
    assert item.texts == (" ".join(own),)
    assert len(own) == 2
    assert own[1].startswith("then ")


@pytest.mark.fault(
    "embedded world: Ctrl-C while a shard is written", sees="the interruption", keeps="no half shard"
)
def test_an_interrupted_shard_leaves_nothing(tmp_path):
    def stop(done, total, note=""):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        corpora.write_corpus(tmp_path / "cut.tar", "hdvila-100m", 0, 0, 5, stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault(
    "embedded world: Ctrl-C while a benchmark is written",
    sees="the interruption",
    keeps="the clips that were written: the next start leaves them as they are",
)
def test_an_interrupted_benchmark_goes_on(tmp_path, folder):
    def stop(done, total, note=""):
        if done == 10:
            raise KeyboardInterrupt

    sizes = {"train": 16, "val": 8, "test": 24}
    with pytest.raises(KeyboardInterrupt):
        corpora.write_benchmark(tmp_path / "b", "msrvtt", 0, sizes, stop)
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "b/videos").iterdir()}
    corpora.write_benchmark(tmp_path / "b", "msrvtt", 0, sizes, quiet)
    assert len(written) == 10
    assert all(p.stat().st_mtime_ns == at for p, at in written.items())
    again, whole = ((f / "MSRVTT_data.json").read_bytes() for f in (tmp_path / "b", folder / "msrvtt"))
    assert again == whole


def test_sizes_must_be_whole_videos(tmp_path):
    with pytest.raises(ClipVipError, match="multiples of 4"):
        corpora.write_benchmark(tmp_path, "msrvtt", 0, {"train": 6, "val": 4, "test": 4}, quiet)
