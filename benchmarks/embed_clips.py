"""How long `clipvip embed` takes for a set of clips, where the time goes, and how much memory: prints JSON.

    python benchmarks/embed_clips.py                                     # B/32, 224 px, 12 frames, 32 clips, this CPU
    python benchmarks/embed_clips.py --precision bfloat16 --threads 1
    python benchmarks/embed_clips.py --device cuda --precision bfloat16 --clips 512 --batch 32 --patch 16

The model has the released shapes and random weights: time and memory do not depend on their values. The clips are
H.264 files of 10 s at 25 frames a second, 320 x 240, written here with a moving texture (`--videos` names your own).
Three things are timed: decoding alone, the model alone with the frames in memory, and the whole, files to features.npy;
by the clock, and by the processor's time of all threads, which does not count what other programs take. "decode_share"
is decoding's part of the processor's time of the whole. Peak memory is the process's, from before the whole on.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch

from clipvip_lib.data.clips import decode_ahead, list_clips
from clipvip_lib.features.embedding import embed_videos, load_encoder
from clipvip_lib.models.clip_vip import ClipViP, ClipViPConfig
from clipvip_lib.precision import PRECISIONS, autocast
from clipvip_lib.workshop.machine import machine, peak_memory_mib, reset_peak_memory

DIFFERENT = 8  # files that are encoded; further ones are copies


def write_clips(folder: Path, count: int) -> None:
    """H.264 files with x264's usual settings: a texture that drifts, so that there is motion to decode."""
    folder.mkdir()
    for number in range(min(count, DIFFERENT)):
        noise = np.random.default_rng(number).integers(0, 256, (15, 20, 3), dtype=np.uint8)
        texture = noise.repeat(16, 0).repeat(16, 1)
        with av.open(folder / f"{number:04d}.mp4", "w") as out:
            stream = out.add_stream(
                "libx264", rate=25, options={"preset": "veryfast", "x264-params": "mbtree=0"}
            )
            stream.height, stream.width, stream.pix_fmt = 240, 320, "yuv420p"
            for i in range(250):
                shown = np.ascontiguousarray(np.roll(texture, (i, 2 * i), (0, 1)))
                out.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
            out.mux(stream.encode())
    for number in range(DIFFERENT, count):
        (folder / f"{number:04d}.mp4").write_bytes((folder / f"{number % DIFFERENT:04d}.mp4").read_bytes())


def timed(work, device: torch.device) -> tuple[float, float]:
    """(seconds on the clock, seconds of the processor) that ``work()`` takes, all its threads included."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--videos", help="a folder of your own clips instead")
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--patch", type=int, default=32, help="32 or 16: ViT-B/32 or B/16")
    parser.add_argument("--attention", default="proxy")
    parser.add_argument("--precision", choices=PRECISIONS[1:], default="float32")
    parser.add_argument("--batch", type=int, help="videos encoded together (default: as clipvip embed)")
    parser.add_argument("--workers", type=int, help="threads that decode (default: as clipvip embed)")
    parser.add_argument("--threads", type=int, help="torch's threads")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.videos is None:
            write_clips(folder / "videos", arguments.clips)
        clips = list_clips([arguments.videos or folder / "videos"])[: arguments.clips]
        torch.manual_seed(0)
        vision = {"patch_size": arguments.patch}
        config = ClipViPConfig(
            vision_config=vision, attention=arguments.attention, temporal_size=arguments.frames
        )
        ClipViP(config).save_pretrained(folder / "weights")
        encoder = load_encoder(folder / "weights", device=arguments.device)
        device, batch = encoder.model.device, arguments.batch or (2 if arguments.device == "cpu" else 32)
        options = {"frames": arguments.frames, "batch": batch, "workers": arguments.workers}

        frames = []

        def decode() -> None:
            size = config.vision_config.image_size
            found = decode_ahead(clips, arguments.frames, size, workers=arguments.workers, ahead=2 * batch)
            frames.extend(decoded.frames for decoded in found)

        def encode() -> None:
            with torch.inference_mode(), autocast(arguments.precision, device):
                for start in range(0, len(frames), batch):
                    shown = torch.from_numpy(np.stack(frames[start : start + batch])).to(device)
                    encoder.model.encode_video(shown).float().cpu()

        # Once before the clock runs: kernels are chosen, libraries loaded.
        embed_videos(encoder, clips[:batch], folder / "warm", precision=arguments.precision, **options)
        reset_peak_memory()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        whole = timed(
            lambda: embed_videos(encoder, clips, folder / "out", precision=arguments.precision, **options),
            device,
        )
        peak = {"peak_memory_mib": round(peak_memory_mib())}
        if device.type == "cuda":
            peak["peak_gpu_memory_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
        seconds = {"whole": whole, "decode": timed(decode, device), "encode": timed(encode, device)}

    print(
        json.dumps(
            {
                "model": f"ViT-B/{arguments.patch}, {arguments.attention}, 224 px, {arguments.frames} frames",
                "clips": len(clips),
                "precision": arguments.precision,
                "batch": batch,
                "decoding_threads": arguments.workers,
                **{
                    f"{what}_{clock}": round(value, 2)
                    for (what, pair), clock in itertools.product(
                        seconds.items(), ("seconds", "processor_seconds")
                    )
                    for value in [pair[clock != "seconds"]]
                },
                "clips_a_second": round(len(clips) / whole[0], 2),
                "decode_share": round(seconds["decode"][1] / whole[1], 3),
                **peak,
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
                "torch_threads": torch.get_num_threads(),
                "machine": machine(),
                "versions": {p: importlib.metadata.version(p) for p in ("torch", "transformers", "av")},
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
