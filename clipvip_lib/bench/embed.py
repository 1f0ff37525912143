"""`clipvip bench embed`: how long `clipvip embed` takes for a set of clips, where the time goes, and how much memory.

The model has the released shapes and random weights: time and memory do not depend on their values. The clips are H.264
files of 10 s at 320 x 240, written here (``folder`` names your own), and packs of them (`clipvip pack`). Three things
are timed: decoding alone, the model alone with the frames in memory, and the whole, files to features.npy; by the
clock, and by the processor's time of all threads, which leaves out what other programs take. Peak memory is the
process's, from before the whole on.

``simulate``: in the model's place stands one that takes so many milliseconds a batch and no processor, as a GPU
seems from outside. Then "waits" tells what matters there: the share of the time from the first batch's start to the
last one's end in which it had nothing to do, and the median of what it waited between two batches. 0: as long as
decoding takes, and half as much again.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from clipvip_lib.bench import moving_textures
from clipvip_lib.bench.measure import about, set_threads, wait
from clipvip_lib.data.clips import decode_ahead, list_clips, list_files
from clipvip_lib.data.packed_clip import Packing
from clipvip_lib.features.embedding import Embedder, embed_videos, load_encoder
from clipvip_lib.models.clip_vip import ClipViP, ClipViPConfig
from clipvip_lib.models.encoding import image_size
from clipvip_lib.models.int8 import of_videos
from clipvip_lib.precision import autocast
from clipvip_lib.streams.pack import pack
from clipvip_lib.workshop.machine import peak_memory_mib, reset_peak_memory

DIFFERENT = 4  # files that are encoded; further ones are copies
SECONDS = 10
WIDTH = 512  # of the features of an encoder that is only timed


def measure(
    folder: str | None = None, clips: int = 16, frames: int = 12, patch: int = 32, batch: int | None = None,
    workers: int | None = None, precision: str = "float32", device: str = "cpu", threads: int = 1,
    simulate: int | None = None, config: ClipViPConfig | None = None,
) -> dict:  # fmt: skip
    """Rows for the originals and for packs of them. ``batch``, ``workers``: by default as `clipvip embed`; ``config``:
    of another size than the released one. Raises ClipVipError as ``list_clips`` for ``folder``."""
    set_threads(threads)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        if folder is None:
            _write_clips(work / "videos", clips)
        torch.manual_seed(0)
        config = config or ClipViPConfig(vision_config={"patch_size": patch}, temporal_size=frames)
        ClipViP(config).save_pretrained(work / "weights")
        encoder = load_encoder(work / "weights", device=device)
        batch = batch or (2 if device == "cpu" else 32)
        options = {
            "frames": frames, "batch": batch, "workers": workers, "precision": precision, "antialias": False
        }  # fmt: skip
        originals = list_files([folder or work / "videos"])
        pack(originals, work / "packs", Packing(frames, size=image_size(encoder.model)), workers=workers)
        rows = []
        for kind, source in (("originals", folder or work / "videos"), ("packs", work / "packs")):
            listed = list_clips([source])[:clips]
            rows.append({"clips": kind, **_row(encoder, listed, work / f"out-{kind}", options, simulate)})
    return {
        "what": f"`clipvip embed` of {len(listed)} clips, ViT-B/{config.vision_config.patch_size}, {frames} frames",
        "precision": precision,
        "batch": batch,
        "decoding_threads": workers,
        "rows": rows,
        **about(("transformers", "av"), device),
    }


@dataclass
class Timed:
    """A model's place taken by one that is busy for some seconds a batch. turns: when each began and ended."""

    model: ClipViP
    seconds: float
    turns: list[tuple[float, float]] = field(default_factory=list)

    def __getattr__(self, name: str) -> object:
        return getattr(self.model, name)

    def encode_video(self, pixels: torch.Tensor) -> torch.Tensor:
        started = time.perf_counter()
        time.sleep(self.seconds)
        self.turns.append((started, time.perf_counter()))
        return torch.nn.functional.one_hot(torch.zeros(len(pixels), dtype=torch.long), WIDTH).float()

    def waits(self) -> list[float]:
        """Seconds that it had nothing to do between batches."""
        return [begun - ended for (_, ended), (begun, _) in zip(self.turns, self.turns[1:], strict=False)]


def _row(encoder: Embedder, clips: list, out: Path, options: dict, simulate: int | None) -> dict:
    device, batch = encoder.model.device, options["batch"]
    frames: list[np.ndarray] = []

    def decode() -> None:
        size, workers = image_size(encoder.model), options["workers"]
        found = decode_ahead(clips, options["frames"], size, workers=workers, ahead=2 * batch)
        frames.extend(decoded.frames for decoded in found)

    if simulate is not None:
        return _timed_row(encoder, clips, out, options, simulate, decode)

    model, around = of_videos(encoder.model, options["precision"])

    def encode() -> None:
        with torch.inference_mode(), autocast(around, device):
            for start in range(0, len(frames), batch):
                shown = torch.from_numpy(np.stack(frames[start : start + batch])).to(device)
                model.encode_video(shown).float().cpu()

    # Once before the clock runs: kernels are chosen, libraries loaded.
    embed_videos(encoder, clips[:batch], out.with_name(f"{out.name}-warm"), **options)
    reset_peak_memory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    whole = _timed(lambda: embed_videos(encoder, clips, out, **options), device)
    peak = peak_memory_mib()
    decoding, encoding = _timed(decode, device), _timed(encode, device)
    return {
        "seconds": round(whole[0], 2),
        "processor_seconds": round(whole[1], 2),
        "decoding": round(decoding[0], 2),
        "decoding_processor": round(decoding[1], 2),
        "encoding": round(encoding[0], 2),
        "encoding_processor": round(encoding[1], 2),
        "clips_a_second": round(len(clips) / whole[0], 2),
        "decoding_share": round(decoding[1] / whole[1], 3),
        "peak_MiB": round(peak),
        **(
            {"peak_gpu_MiB": round(torch.cuda.max_memory_allocated(device) / 2**20)}
            if device.type == "cuda"
            else {}
        ),
    }


def _timed_row(
    encoder: Embedder, clips: list, out: Path, options: dict, simulate: int, decode: Callable[[], None]
) -> dict:
    decoding, _ = _timed(decode, torch.device("cpu"))
    batches = -(-len(clips) // options["batch"])
    options = options | {"precision": "float32"}  # it computes nothing
    model = Timed(encoder.model, simulate / 1e3 or 1.5 * decoding / batches)
    whole, _ = _timed(
        lambda: embed_videos(replace(encoder, model=model), clips, out, **options), torch.device("cpu")
    )
    waits = model.waits()
    return {
        "seconds": round(whole, 2),
        "decoding": round(decoding, 2),
        "encoding": round(batches * model.seconds, 2),
        "waits": round(sum(waits) / (model.turns[-1][1] - model.turns[0][0]), 3),
        "wait_ms_a_batch": round(1e3 * statistics.median(waits), 1) if waits else None,
    }


def _write_clips(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(min(count, DIFFERENT)):
        moving_textures.write(
            folder / f"{number:04d}.mp4", number, *moving_textures.HEIGHTS["240p"], SECONDS, 250
        )
    for number in range(DIFFERENT, count):
        (folder / f"{number:04d}.mp4").write_bytes((folder / f"{number % DIFFERENT:04d}.mp4").read_bytes())


def _timed(work: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """(seconds on the clock, seconds of the processor) that ``work()`` takes, all its threads included."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    wait(device)
    return time.perf_counter() - wall, time.process_time() - processor
