"""How long OFA takes to caption images, and how much memory: prints JSON with the machine and the versions.

    python benchmarks/caption_images.py --size base --images 8 --threads 1
    python benchmarks/caption_images.py --size base --images 8 --threads 1 --precision bfloat16
    python benchmarks/caption_images.py --size large --images 512 --batch 64 --precision bfloat16 --device cuda

The shapes are the released ones, the weights random: time and memory do not depend on their values, but for one thing:
random weights hardly ever end a caption early, so each takes the whole 17 steps, the dearest case. Images are uint8 at
the captioner's size, as ``clipvip caption`` has them after decoding; copying and scaling are timed too. Peak memory is
the whole process's (Python and torch included): one run, one figure. On a machine that others use too, believe
``cpu_seconds`` (with one thread), not ``seconds``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import resource
import statistics
import sys
import time

import numpy as np
import torch

from clipvip_lib.captions.captioner import Captioner
from clipvip_lib.captions.captioners import SIZE, cast_once
from clipvip_lib.models.beam import BeamSettings, beam_search
from clipvip_lib.models.ofa import OFA, OFA_SIZES, PROMPT, ofa_preprocess
from clipvip_lib.models.ofa_tokenizer import OFATokenizer
from clipvip_lib.precision import PRECISIONS, autocast
from clipvip_lib.workshop.machine import machine


def stand_in_tokenizer(vocab_size: int) -> OFATokenizer:
    """The released vocabulary's size, and its prompt of 8 tokens; the words are invented."""
    words = OFATokenizer.train([PROMPT] * 2, 400)
    return OFATokenizer(words._vocab, words._merges, codes=vocab_size - words.vocab_size)


def peak_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="base", choices=list(OFA_SIZES))
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pixels", type=int, default=SIZE)
    parser.add_argument("--beam", type=int, default=5)
    parser.add_argument("--precision", choices=PRECISIONS[1:], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    parser.add_argument("--repeats", type=int, default=1, help="after one run that warms up, on a GPU")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    before = peak_mib(torch.device("cpu"))
    torch.manual_seed(0)
    with torch.device(device):
        model = OFA(OFA_SIZES[arguments.size])
    parameters = sum(p.numel() for p in model.parameters())
    tokenizer = stand_in_tokenizer(model.config.vocab_size)
    if arguments.precision == "bfloat16":
        cast_once(model)
    beam = BeamSettings(beam_size=arguments.beam)
    captioner = Captioner(model, tokenizer, arguments.pixels, beam, arguments.precision)
    side = (arguments.pixels, arguments.pixels, 3)
    images = np.random.default_rng(0).integers(0, 256, (arguments.images, *side), dtype=np.uint8)

    if device.type == "cuda":  # kernels are chosen and memory is taken at the first run
        captioner.caption(images[: arguments.batch], arguments.batch)
        wait(device)
    seconds, cpu_seconds = [], []
    for _ in range(arguments.repeats):
        start, cpu = time.perf_counter(), time.process_time()
        captioner.caption(images, arguments.batch)
        wait(device)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu)
    peak = peak_mib(device)
    with autocast(arguments.precision, device):
        prompt = tokenizer([PROMPT]).to(device)
        pixels = ofa_preprocess(images[:1], arguments.pixels, device)
        start = time.perf_counter()
        with torch.inference_mode():
            encoded = model.encode(prompt, pixels)
        wait(device)
        encoding = time.perf_counter() - start
        tokens = [len(best[0].tokens) for best in [*beam_search(model, prompt, pixels, beam)]]

    print(
        json.dumps(
            {
                "what": f"captions of {arguments.images} images by OFA-{arguments.size}, random weights",
                "pixels": arguments.pixels,
                "beam": arguments.beam,
                "batch": arguments.batch,
                "dtype": arguments.precision,
                "parameters": parameters,
                "prompt_tokens": prompt.shape[1],
                "encoder_positions": encoded.hidden.shape[1],
                "tokens_of_a_caption": tokens[0],
                "seconds": [round(value, 3) for value in seconds],
                "cpu_seconds": [round(value, 3) for value in cpu_seconds],
                "images_per_second": round(arguments.images / statistics.median(seconds), 4),
                "encoder_seconds_of_one_image": round(encoding, 4),
                "peak_memory_mib": round(peak),
                "memory_before_the_model_mib": round(before),
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
                "threads": torch.get_num_threads(),
                "machine": machine(),
                "torch": torch.__version__,
                "transformers": importlib.metadata.version("transformers"),
                "numpy": np.__version__,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
