"""A small corpus as video2dataset leaves it, and what the tests of the stream share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from clipvip_lib.data.corpora import encode_h264, write_corpus, write_shard
from clipvip_lib.data.world import render, rng_for, sample_video
from clipvip_lib.streams.stream import ClipStream, StreamedClip

VIDEOS = (3, 2, 4, 2, 1)  # long videos of the five shards: 12, 8, 16, 8, 4 clips
CLIPS = 48
SMALL = {"frames": 2, "size": 16}
MP4 = encode_h264(render(sample_video(rng_for(0), "train")[0]))
FAILED = json.dumps({"status": "failed_to_download", "error_message": "ERROR: [youtube]: private video"})
# Damaged samples: what is wrong, and the words that name it
BAD = {
    "cut": ({"mp4": MP4[: len(MP4) // 2]}, r"cut of .*\.tar is cut"),
    "no-text": ({"txt": None}, "no-text .* has no text"),
    "no-media": ({"mp4": None}, "no-media .* has no mp4"),
    "no-json": ({"json": "{"}, r"no-json\.json .* is not JSON"),
    "deep": ({"json": "[" * 100_000}, r"deep\.json .*not JSON that people write \(.*recursion"),
    "deep-no-media": ({"mp4": None, "json": "[" * 100_000}, "deep-no-media .* has no mp4"),
    "page": ({"mp4": b"<html>not found</html>" * 9}, r"page of .*\.tar is not a readable video"),
}


def quiet(done: int, total: int, note: str = "") -> None:
    pass


def make_corpus(folder: Path) -> Path:
    """Five shards of different sizes, and beside them what video2dataset leaves there."""
    first = 0
    for part, videos in enumerate(VIDEOS):
        write_corpus(folder / f"{part:05d}.tar", "hdvila-10m", 0, first, videos, quiet)
        (folder / f"{part:05d}.parquet").write_bytes(b"PAR1")
        (folder / f"{part:05d}_stats.json").write_text("{}")
        first += videos
    return folder


def sample(key: str, **changes: bytes | str | None) -> dict[str, bytes | str]:
    """One sample for write_shard; a change to None leaves that file out."""
    whole = {"__key__": key, "mp4": MP4, "txt": f"text of {key}", "json": '{"status": "success"}'} | changes
    return {name: value for name, value in whole.items() if value is not None}


def make_bad_shard(path: Path) -> Path:
    """Five good samples, the bad ones, and one that could not be fetched."""
    good = [sample(f"good-{i}") for i in range(5)]
    absent = [sample("gone", mp4=None, txt="", json=FAILED)]  # as video2dataset writes it
    write_shard(
        path, good[:3] + [sample(key, **changes) for key, (changes, _) in BAD.items()] + absent + good[3:]
    )
    return path


def keys(stream: ClipStream, count: int) -> list[str]:
    return [next(stream).key for _ in range(count)]


def resumed(shards, states, **options) -> ClipStream:
    """A stream that resumes from positions that went through JSON."""
    stream = ClipStream(shards, **SMALL, **options)
    stream.load_state_dict(json.loads(json.dumps(states)))
    return stream


def same(one: StreamedClip, other: StreamedClip) -> None:
    assert (one.key, one.text, one.caption) == (other.key, other.text, other.caption)
    np.testing.assert_array_equal(one.video, other.video)
    np.testing.assert_array_equal(one.frame, other.frame)
