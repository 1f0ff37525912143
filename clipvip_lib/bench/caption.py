"""`clipvip bench caption`: how long OFA takes to caption images, and how much memory.

The shapes are the released ones, the weights random: time and memory do not depend on their values, but for one thing:
random weights hardly ever end a caption early, so each takes the whole 17 steps, the dearest case. Images are uint8 at
the captioner's size, as `clipvip caption` has them after decoding; copying and scaling are timed too. Peak memory is
the whole process's (Python and torch included): one run, one figure.
"""

from __future__ import annotations

import statistics

import numpy as np
import torch

from clipvip_lib.bench.measure import about, seconds_of, set_threads
from clipvip_lib.captions.captioner import Captioner
from clipvip_lib.captions.captioners import SIZE, cast_once
from clipvip_lib.flops import count_parameters
from clipvip_lib.models.beam import BeamSettings, beam_search
from clipvip_lib.models.ofa import OFA, OFA_SIZES, PROMPT, OFAConfig, ofa_preprocess
from clipvip_lib.models.ofa_tokenizer import OFATokenizer
from clipvip_lib.precision import autocast
from clipvip_lib.workshop.machine import peak_memory_mib, reset_peak_memory


def measure(
    repeats: int = 1, size: str = "base", images: int = 8, batch: int = 8, pixels: int = SIZE, beam: int = 5,
    precision: str = "float32", device: str = "cpu", threads: int = 1, config: OFAConfig | None = None,
) -> dict:  # fmt: skip
    """One row; ``repeats`` after one run that warms up, on a GPU. size: of ``OFA_SIZES``; ``config`` in its place."""
    set_threads(threads)
    place = torch.device(device)
    before = peak_memory_mib()
    torch.manual_seed(0)
    with torch.device(place):
        model = OFA(config or OFA_SIZES[size])
    parameters = count_parameters(model)
    tokenizer = _stand_in(model.config.vocab_size)
    if precision == "bfloat16":
        cast_once(model)
    settings = BeamSettings(beam_size=beam)
    captioner = Captioner(model, tokenizer, pixels, settings, precision)
    shown = np.random.default_rng(0).integers(0, 256, (images, pixels, pixels, 3), dtype=np.uint8)
    cuda = place.type == "cuda"
    if cuda:  # kernels are chosen and memory is taken at the first run
        captioner.caption(shown[:batch], batch)
        torch.cuda.reset_peak_memory_stats(place)
    reset_peak_memory()
    seconds = [seconds_of(lambda: captioner.caption(shown, batch), place) for _ in range(repeats)]
    peak = torch.cuda.max_memory_allocated(place) / 2**20 if cuda else peak_memory_mib()
    with autocast(precision, place), torch.inference_mode():
        prompt = tokenizer([PROMPT]).to(place)
        one = ofa_preprocess(shown[:1], pixels, place)
        encoding = seconds_of(lambda: model.encode(prompt, one), place)
        tokens = len(next(iter(beam_search(model, prompt, one, settings)))[0].tokens)
    took = statistics.median(seconds)
    row = {
        "precision": precision,
        "seconds": round(took, 3),
        "seconds_min": round(min(seconds), 3),
        "seconds_max": round(max(seconds), 3),
        "images_a_second": round(images / took, 4),
        "encoder_seconds_of_one": round(encoding, 4),
        "peak_MiB": round(peak),
    }
    return {
        "what": f"captions of {images} images of {pixels} pixels by OFA-{size}, random weights",
        "beam": beam,
        "batch": batch,
        "parameters": parameters,
        "tokens_of_a_caption": tokens,
        "memory_before_the_model_MiB": round(before),
        "rows": [row],
        **about(("transformers", "numpy"), device),
    }


def _stand_in(vocab_size: int) -> OFATokenizer:
    """The released vocabulary's size, and its prompt of 8 tokens; the words are invented."""
    words = OFATokenizer.train([PROMPT] * 2, 400)
    return OFATokenizer(words._vocab, words._merges, codes=vocab_size - words.vocab_size)
