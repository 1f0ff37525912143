"""Captioning: the loss, training that repeats and resumes exactly, saving, and shards written whole."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from small_captioner import COLOURS, TINY, pairs, weights_equal

from clipvip_lib.captions.captioner import (
    Captioner,
    caption_shard,
    captions_path,
    postprocess,
    read_captions,
)
from clipvip_lib.captions.captioner_training import train_captioner
from clipvip_lib.data.shards import index_shard, read_media
from clipvip_lib.errors import ClipVipError
from clipvip_lib.streams.middle_frames import middle_frame

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tiny() -> Captioner:
    return train_captioner(*pairs(32), TINY, seed=0)[0]


def test_captions_lose_punctuation_and_outer_spaces():
    assert postprocess(" a man's well-known dog, sitting. ") == "a mans wellknown dog sitting"


def test_a_saved_captioner_says_the_same(tiny, tmp_path):
    images = pairs(6)[0]
    loaded = Captioner.load(tiny.save(tmp_path / "ofa"))
    assert weights_equal(tiny, loaded)
    assert loaded.beam == tiny.beam
    assert loaded.caption(images) == tiny.caption(images)
    assert loaded.caption(images, batch=4) == tiny.caption(images)
    assert tiny.caption([]) == []


@pytest.mark.bad_input(
    "captioner: cut weights, another shape, or half a configuration",
    says="`damaged or cut short`, `of another shape` or `not a whole captioner`",
)
def test_a_folder_that_is_no_captioner_is_refused(tiny, tmp_path):
    with pytest.raises(ClipVipError, match="no file"):
        Captioner.load(tmp_path)
    folder = tiny.save(tmp_path / "ofa")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ClipVipError, match="damaged or cut short"):
        Captioner.load(folder)
    (folder / "model.safetensors").write_bytes(whole)
    config = json.loads((folder / "config.json").read_text())
    config["ofa"]["d_model"] = 32
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ClipVipError, match="of another shape"):
        Captioner.load(folder)
    del config["ofa"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ClipVipError, match="not a whole captioner"):
        Captioner.load(folder)


# -------------------------------------------------------------------------------------------------- shards


def video(colours: list[tuple[int, int, int]]) -> bytes:
    """An mp4 of 48 x 32 pixels with one frame for each colour."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=5, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for colour in colours:
            picture = np.broadcast_to(np.array(colour, np.uint8), (32, 48, 3))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def still(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (48, 32), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def shard(tmp_path) -> Path:
    red, blue = COLOURS["red"], COLOURS["blue"]
    files = {}
    for key, media in (("v2", ("mp4", video([blue, blue, red, blue]))), ("v1", ("jpg", still(blue)))):
        files |= {f"{key}.{media[0]}": media[1], f"{key}.txt": b"um so yeah", f"{key}.json": b"{}"}
    return write_tar(tmp_path / "00000.tar", files)


def middle_of(shard: Path) -> dict[str, np.ndarray]:
    return {entry.key: middle_frame(read_media(shard, entry), entry.key) for entry in index_shard(shard)}


def test_the_middle_frame_is_captioned(shard):
    frames = middle_of(shard)
    assert list(frames) == ["v2", "v1"]
    assert np.abs(frames["v2"].mean((0, 1)) - COLOURS["red"]).max() < 12
    assert np.abs(frames["v1"].mean((0, 1)) - COLOURS["blue"]).max() < 12


def test_captions_of_a_shard_are_written_once_in_its_order(tiny, shard):
    seen = []
    assert caption_shard(shard, None, tiny, lambda *row: seen.append(row), batch=1) == 2
    out = captions_path(shard)
    assert out == shard.with_name("00000.captions.jsonl")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["key"] for row in rows] == ["v2", "v1"]
    assert [row["caption"] for row in rows] == tiny.caption([*middle_of(shard).values()])
    assert read_captions(out) == {row["key"]: row["caption"] for row in rows}
    assert [row[:2] for row in seen] == [(1, 2), (2, 2)]
    written = out.stat().st_mtime_ns
    assert caption_shard(shard, None, tiny, lambda *row: seen.append(row)) == 2
    assert seen[-1] == (2, 2, "captioned before")
    assert out.stat().st_mtime_ns == written


def test_a_cut_shard_is_named_and_nothing_is_written(tiny, shard):
    whole = shard.read_bytes()
    with tarfile.open(shard) as tar:
        members = tar.getmembers()
    between = members[3].offset  # a cut that tar readers take for the end
    for cut in (members[0].offset_data + 100, members[1].offset + 200, between, members[-1].offset_data + 10):
        shard.write_bytes(whole[:cut])
        with pytest.raises(ClipVipError, match=r"00000\.tar is damaged .*fetch or write it again"):
            caption_shard(shard, None, tiny)
        assert [path.name for path in shard.parent.iterdir()] == ["00000.tar"]


def test_other_bad_shards_are_named(tiny, tmp_path):
    with pytest.raises(ClipVipError, match=r"no shard .*none\.tar"):
        caption_shard(tmp_path / "none.tar", None, tiny)
    with pytest.raises(ClipVipError, match="holds no sample"):
        caption_shard(write_tar(tmp_path / "empty.tar", {}), None, tiny)
    bad = write_tar(tmp_path / "bad.tar", {"a.mp4": b"no video", "a.txt": b"text", "a.json": b"{}"})
    with pytest.raises(ClipVipError, match="a of "):
        caption_shard(bad, None, tiny)
    assert not captions_path(bad).exists()


@pytest.mark.bad_input("captions: a line that is none", says="`line 2 of`")
def test_a_bad_caption_line_is_named(tmp_path):
    path = tmp_path / "00000.captions.jsonl"
    for line in ("{", '{"key": "a"}', "[1]"):
        path.write_text('{"key": "v", "caption": "a wall"}\n' + line + "\n")
        with pytest.raises(ClipVipError, match="line 2 of"):
            read_captions(path)
    with pytest.raises(ClipVipError, match="cannot read captions"):
        read_captions(tmp_path / "none.jsonl")
