"""A corpus of small shards and a captioner that tells their clips apart, for the tests of captioning a corpus."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import tarfile
from pathlib import Path

import av
import numpy as np
from PIL import Image
from small_captioner import COLOURS, TINY, pairs

from clipvip_lib.captions.captioner import Captioner
from clipvip_lib.captions.captioner_training import train_captioner
from clipvip_lib.files import make_folder
from clipvip_lib.models.ofa import OFA, OFAConfig
from clipvip_lib.models.ofa_tokenizer import BINS, CODES, OFATokenizer

NAMES = list(COLOURS)


def trained() -> Captioner:
    """Says "a red wall" of red; after 80 steps, two seconds."""
    return train_captioner(*pairs(32), dataclasses.replace(TINY, stem_steps=10, steps=80), seed=0)[0]


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


def colour(shard: int, clip: int) -> str:
    """The colour of a clip's middle frame; the frames around it have others."""
    return NAMES[(shard + clip * (clip + 1) // 2) % len(NAMES)]


def write_shard(path: Path, number: int, clips: int) -> Path:
    """Every third clip is a still, the others are videos of three colours."""
    files: dict[str, bytes] = {}
    for clip in range(clips):
        key, name = f"{number:05d}{clip:04d}", colour(number, clip)
        others = [COLOURS[other] for other in NAMES if other != name]
        if clip % 3 == 2:
            files[f"{key}.jpg"] = still(COLOURS[name])
        else:
            files[f"{key}.mp4"] = video([others[0], others[1], COLOURS[name], others[2]])
        files |= {f"{key}.txt": b"um so yeah", f"{key}.json": b'{"status": "success"}'}
    return write_tar(path, files)


def write_corpus(folder: Path, shards: int, clips: int) -> list[Path]:
    make_folder(folder)
    return [write_shard(folder / f"{n:05d}.tar", n, clips) for n in range(shards)]


def change(tar: Path, pattern: str, other: bytes | None) -> Path:
    """Write a shard again with every file whose name matches replaced by ``other``, or left out."""
    files: dict[str, bytes] = {}
    with tarfile.open(tar) as source:
        for member in source:
            hit = re.fullmatch(pattern, member.name)
            if not hit or other is not None:
                files[member.name] = other if hit else source.extractfile(member).read()
    return write_tar(tar, files)


def texts(path: Path) -> list[tuple[str, str]]:
    """Key and caption of every line, repeated ones too."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(row["key"], row["caption"]) for row in rows]


def expected(number: int, clips: int) -> list[tuple[str, str]]:
    return [(f"{number:05d}{clip:04d}", f"a {colour(number, clip)} wall") for clip in range(clips)]


def write_released(folder: Path) -> tuple[Path, Path]:
    """A random OFA as fairseq's .pt, and a folder with vocab.json and merges.txt: how released weights come."""
    import torch
    from test_ofa_weights import fairseq_file

    words = OFATokenizer.train(pairs(8)[1], 300)
    entries = {**words._vocab, "<mask>": len(words._vocab)}
    bpe = make_folder(folder / "bpe")
    (bpe / "vocab.json").write_text(json.dumps(entries))
    (bpe / "merges.txt").write_text("\n".join(["#version: 0.2", *words._merges]) + "\n")
    config = OFAConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32, decoder_ffn_dim=32,
        encoder_attention_heads=2, decoder_attention_heads=2, resnet_type="resnet18", resnet_width=4,
        vocab_size=len(entries) + CODES + BINS, max_position_embeddings=40,
    )  # fmt: skip
    torch.manual_seed(0)
    fairseq_file(OFA(config).eval(), folder / "caption_base.pt")
    return folder / "caption_base.pt", bpe
