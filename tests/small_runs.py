"""A model, two shards and a benchmark of a few clips, and ``clipvip train`` on them as real processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import patience
import torch

from clipvip_lib.data import corpora, language
from clipvip_lib.data.shards import read_shard
from clipvip_lib.models.clip_tokenizer import ClipTokenizer
from clipvip_lib.models.clip_vip import ClipViP, ClipViPConfig
from clipvip_lib.progress import quiet
from clipvip_lib.streams.sidecars import sidecar_path

CHECKOUT = Path(__file__).resolve().parent.parent
BEFORE: list[str] = []  # what stands before a script that torchrun starts
ENTRY = ["-m", "clipvip_lib.cli"]

#: What a recipe needs to fit the small data; float32, so that runs can be compared.
SMALL = {
    "steps": 6, "batch": 8, "lr": 1e-3, "lr_added": 1e-3, "frames": 3, "kept_frames": 5, "text_tokens": 24,
    "precision": "float32", "evaluations": 3,
}  # fmt: skip


def write_model(folder: Path, seed: int = 0, **changes) -> Path:
    """A CLIP-ViP of two narrow layers, with its tokenizer, as save_pretrained writes it."""
    tokenizer = ClipTokenizer.for_texts(language.vocabulary(), 24)
    torch.manual_seed(seed)
    model = ClipViP(
        ClipViPConfig.small(
            width=16, layers=2, heads=2, image_size=24, patch_size=12, vocab_size=tokenizer.vocab_size,
            context_length=24, embed_dim=16, **({"proxies": 2, "frames": 3} | changes),
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save(folder / "clip_tokenizer.json")
    return folder


def write_shards(folder: Path, videos: Sequence[int] = (4, 2)) -> str:
    """Shards of so many long videos (four clips each), uneven by default, with captions beside; their pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, count in enumerate(videos):
        shard = folder / f"{number:05d}.tar"
        corpora.write_corpus(shard, "hdvila-100m", 0, 10 * number, count, quiet)
        rows = [
            {"key": sample.key, "caption": f"a picture, {sample.text[:20]}"} for sample in read_shard(shard)
        ]
        sidecar_path(shard, "captions").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"{folder}/{{00000..{len(videos) - 1:05d}}}.tar"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def torchrun(ranks: int, *command: str | Path, **options) -> subprocess.Popen:
    """``torchrun --nproc-per-node RANKS COMMAND``."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    launch += ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*launch, *map(str, command)], env=environment(), **(pipes | options))


def settings(**changes) -> list[str]:
    """The small recipe as --set options."""
    return [
        word for name, value in (SMALL | changes).items() for word in ("--set", f"{name}={json.dumps(value)}")
    ]


def train(ranks: int, *options: str | Path) -> subprocess.Popen:
    """``clipvip train`` in as many processes."""
    return torchrun(ranks, *ENTRY, "train", *options)


def children(pid: int) -> list[int]:
    """The processes that a process has started and that live."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def finish(process: subprocess.Popen, code: int | None = 0) -> tuple[str, str]:
    """Wait for a process; its stdout and stderr. Any code but the expected one fails with what was said."""
    out, err = patience.wait(process)
    assert code is None or process.returncode == code, f"exit code {process.returncode}:\n{err[-3000:]}"
    return out, err
