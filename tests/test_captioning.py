"""Captioning: the loss, training that repeats and resumes exactly, saving, and shards written whole."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from clipvip_lib import captioning
from clipvip_lib.captioning import (
    Captioner,
    caption_shard,
    captions_path,
    count_samples,
    label_smoothed_loss,
    postprocess,
    read_captions,
    train_captioner,
)
from clipvip_lib.errors import ClipVipError
from clipvip_lib.profiles import CaptionerSize

torch.set_num_threads(1)
TINY = CaptionerSize(
    d_model=16, layers=1, heads=2, ffn=32, resnet_width=4, image_size=32, vocab_size=300, beam=2, steps=5,
    batch=8, lr=3e-3, warmup=0.2,
)  # fmt: skip
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (30, 60, 220), "white": (240, 240, 240)}


def pairs(count: int) -> tuple[list[np.ndarray], list[str]]:
    """One-coloured noisy pictures and what a person says of them."""
    rng, images, texts = np.random.default_rng(0), [], []
    for i in range(count):
        name = list(COLOURS)[i % len(COLOURS)]
        noise = rng.integers(-20, 20, (40, 48, 3))
        images.append(np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8))
        texts.append(f"a {name} wall.")
    return images, texts


@pytest.fixture(scope="module")
def tiny() -> Captioner:
    return train_captioner(*pairs(32), TINY, seed=0)[0]


def weights_equal(a: Captioner, b: Captioner) -> bool:
    ours, theirs = a.model.state_dict(), b.model.state_dict()
    return all(torch.equal(ours[key], theirs[key]) for key in theirs) and ours.keys() == theirs.keys()


# ---------------------------------------------------------------------------------------------- loss, text


@settings(deadline=None)
@given(
    st.integers(2, 9),
    st.integers(3, 30),
    st.sampled_from([0.0, 0.1, 0.3]),
    st.integers(0, 999),
    st.integers(0, 2),
)
def test_smoothed_loss_is_a_cross_entropy_with_soft_targets(n, vocab, epsilon, seed, pads):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, vocab, generator=rng, dtype=torch.float64)
    labels = torch.randint(0, vocab, (n,), generator=rng)
    labels[labels == 1] = 0
    labels[:pads] = 1
    loss, nll, count = label_smoothed_loss(logits, labels, epsilon)
    soft = torch.full((n, vocab), epsilon / (vocab - 1), dtype=torch.float64)
    soft[torch.arange(n), labels] = 1 - epsilon
    keep = labels != 1
    assert int(count) == n - pads
    torch.testing.assert_close(loss, F.cross_entropy(logits[keep], soft[keep], reduction="sum"))
    torch.testing.assert_close(nll, F.cross_entropy(logits[keep], labels[keep], reduction="sum"))


def test_captions_lose_punctuation_and_outer_spaces():
    assert postprocess(" a man's well-known dog, sitting. ") == "a mans wellknown dog sitting"


# ------------------------------------------------------------------------------------------------ training


def test_a_small_captioner_learns_to_name_what_it_sees():
    images, texts = pairs(64)
    size = dataclasses.replace(TINY, steps=80, batch=16, lr=1e-2)
    captioner, history = train_captioner(images, texts, size, seed=0, dropout=0.0, drop_path=0.0)
    captions = [row for row in history if row["phase"] == "captions"]
    assert captions[-1]["nll"] < 0.2 * captions[0]["nll"]
    assert captions[-1]["words"] < 0.5 * history[0]["words"]
    assert captioner.caption(images[:4]) == [f"a {name} wall" for name in COLOURS]


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tiny):
    torch.manual_seed(123)  # the caller's generator must not matter ...
    before = torch.get_rng_state()
    again = train_captioner(*pairs(32), TINY, seed=0)[0]
    assert torch.equal(torch.get_rng_state(), before)  # ... nor be touched
    assert weights_equal(tiny, again)
    assert not weights_equal(tiny, train_captioner(*pairs(32), TINY, seed=1)[0])


def test_a_killed_training_goes_on_exactly(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(captioning, "CHECKPOINT_SECONDS", -1.0)
    steps = []

    def killed(done: int, total: int, note: str) -> None:
        steps.append(done)
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_captioner(*pairs(32), TINY, seed=0, folder=tmp_path, progress=killed)
    again, history = train_captioner(
        *pairs(32), TINY, seed=0, folder=tmp_path, progress=lambda done, *_: steps.append(done)
    )
    assert steps == [1, 2, 3, 3, *range(4, 11)]  # step 3 was not saved, steps 1 and 2 were not done again
    assert [(row["step"], row["phase"]) for row in history] == [(0, "stem"), (9, "captions")]
    assert weights_equal(tiny, again)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_bad_training_input_is_one_sentence(tmp_path):
    images, texts = pairs(16)
    with pytest.raises(ClipVipError, match="one batch of 8"):
        train_captioner(images[:4], texts[:4], TINY, seed=0)
    with pytest.raises(ClipVipError, match="caption 2 is empty"):
        train_captioner(images, [*texts[:2], " . ", *texts[3:]], TINY, seed=0)
    with pytest.raises(ClipVipError, match="lower lr"):
        train_captioner(images, texts, dataclasses.replace(TINY, lr=1e30), seed=0)
    (tmp_path / "checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(ClipVipError, match="remove it to train from the start"):
        train_captioner(images, texts, TINY, seed=0, folder=tmp_path)


def test_a_saved_captioner_says_the_same(tiny, tmp_path):
    images = pairs(6)[0]
    loaded = Captioner.load(tiny.save(tmp_path / "ofa"))
    assert weights_equal(tiny, loaded)
    assert loaded.beam == tiny.beam
    assert loaded.caption(images) == tiny.caption(images)
    assert loaded.caption(images, batch=4) == tiny.caption(images)
    assert tiny.caption([]) == []


def test_a_folder_that_is_no_captioner_is_refused(tiny, tmp_path):
    with pytest.raises(ClipVipError, match="no file"):
        Captioner.load(tmp_path)
    folder = tiny.save(tmp_path / "ofa")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ClipVipError, match="no whole captioner"):
        Captioner.load(folder)
    (folder / "model.safetensors").write_bytes(whole)
    config = json.loads((folder / "config.json").read_text())
    config["ofa"]["d_model"] = 32
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ClipVipError, match="no whole captioner"):
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


def test_the_middle_frame_is_captioned(shard):
    frames = dict(captioning._middle_frames(shard))
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
    frames = [frame for _, frame in captioning._middle_frames(shard)]
    assert [row["caption"] for row in rows] == tiny.caption(frames)
    assert read_captions(out) == {row["key"]: row["caption"] for row in rows}
    assert [row[:2] for row in seen] == [(1, 2), (2, 2)]
    written = out.stat().st_mtime_ns
    assert caption_shard(shard, None, tiny, lambda *row: seen.append(row)) == 2
    assert seen[-1] == (2, 2, "captioned before")
    assert out.stat().st_mtime_ns == written


def test_a_cut_shard_is_named_with_the_position_and_nothing_is_written(tiny, shard):
    whole = shard.read_bytes()
    with tarfile.open(shard) as tar:
        members = tar.getmembers()
    between = members[3].offset  # a cut that tar readers take for the end
    for cut in (members[0].offset_data + 100, members[1].offset + 200, between, members[-1].offset_data + 10):
        shard.write_bytes(whole[:cut])
        with pytest.raises(ClipVipError, match=r"00000\.tar is cut .*at byte \d+"):
            caption_shard(shard, None, tiny)
        assert [path.name for path in shard.parent.iterdir()] == ["00000.tar"]


def test_other_bad_shards_are_named(tiny, tmp_path):
    with pytest.raises(ClipVipError, match=r"no shard .*none\.tar"):
        count_samples(tmp_path / "none.tar")
    with pytest.raises(ClipVipError, match="holds no sample"):
        count_samples(write_tar(tmp_path / "empty.tar", {}))
    bad = write_tar(tmp_path / "bad.tar", {"a.mp4": b"no video", "a.txt": b"text", "a.json": b"{}"})
    with pytest.raises(ClipVipError, match="a of "):
        caption_shard(bad, None, tiny)
    assert not captions_path(bad).exists()


def test_a_bad_caption_line_is_named(tmp_path):
    path = tmp_path / "00000.captions.jsonl"
    for line in ("{", '{"key": "a"}', "[1]"):
        path.write_text('{"key": "v", "caption": "a wall"}\n' + line + "\n")
        with pytest.raises(ClipVipError, match="line 2 of"):
            read_captions(path)
    with pytest.raises(ClipVipError, match="cannot read captions"):
        read_captions(tmp_path / "none.jsonl")
