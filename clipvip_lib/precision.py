"""The precision that a device computes fast in: bfloat16 or float32. The one place that decides between them.

A GPU multiplies bfloat16 in hardware, and so does a processor with AVX-512 BF16 or AMX: two times as fast as float32.
On any other processor PyTorch imitates it, and a product may take fifty times as long as in float32. No list of
processors would stay right, so products are timed instead: a few milliseconds each, once per process.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from clipvip_lib.errors import unknown

if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "float32", "bfloat16")
#: For encoding videos only: products in 8-bit integers (models/int8.py), all else and texts as "auto".
INT8 = "int8"

#: How many times as fast as float32 bfloat16 must multiply. Hardware reaches 1.8 and more, imitation 0.02 to 0.9.
GAIN = 1.2
#: The product that is timed, [ROWS, INNER] x [INNER, COLUMNS]: like those of a mini model's training step.
ROWS, INNER, COLUMNS = 1024, 96, 384
ROUNDS = 5

Rates = Callable[[], Mapping[str, float]]


def choose(precision: str, device: str | torch.device = "cpu", rates: Rates | None = None) -> str:
    """``precision`` itself or, for "auto", the faster one on ``device``: "float32" or "bfloat16".

    rates: where a processor's rates come from, in place of ``product_rates``.
    Raises ClipVipError for a word that is not in PRECISIONS.
    """
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if precision != "auto":
        return precision
    if str(device).startswith("cuda"):
        import torch

        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = gain((rates or product_rates)()) >= GAIN
    return "bfloat16" if fast else "float32"


def beside_int8(precision: str) -> str:
    """What all but int8's products computes in, texts and queries among it: "auto" for "int8", else ``precision``."""
    return "auto" if precision == INT8 else precision


def autocast(precision: str, device: str | torch.device) -> contextlib.AbstractContextManager:
    """What a forward pass runs under: bfloat16 autocast, or nothing. Raises ClipVipError as ``choose`` does."""
    import torch

    if choose(precision, device) == "float32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)


def gain(found: Mapping[str, float]) -> float:
    """How many times as fast as float32 bfloat16 multiplies."""
    return found["bfloat16"] / found["float32"]


@functools.cache
def product_rates() -> Mapping[str, float]:
    """The processor's GFLOP/s on one thread in each precision: the best of some rounds, timed in turns, so that
    whatever else the machine does falls on both."""
    import torch

    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            # Not random numbers: a user's random state must not move.
            operands = {
                name: (
                    torch.full((ROWS, INNER), 0.5, dtype=kind),
                    torch.full((INNER, COLUMNS), 0.5, dtype=kind),
                )
                for name, kind in kinds.items()
            }
            for _ in range(ROUNDS):
                for name, (left, right) in operands.items():
                    started = time.thread_time()
                    left @ right
                    seconds[name].append(time.thread_time() - started)
    finally:
        torch.set_num_threads(threads)
    work = 2 * ROWS * INNER * COLUMNS / 1e9
    return {name: round(work / max(min(taken), 1e-9), 2) for name, taken in seconds.items()}


def in_words(precision: str, device: str | torch.device = "cpu", rates: Rates | None = None) -> str:
    """The precision and why, for people: "float32 (this processor multiplies bfloat16 54 times slower)"."""
    chosen = choose(precision, device, rates)
    if str(device).startswith("cuda"):
        return chosen
    ratio = gain((rates or product_rates)())
    if ratio >= 1:
        return f"{chosen} (this processor multiplies bfloat16 {ratio:.1f} times as fast as float32)"
    return f"{chosen} (this processor multiplies bfloat16 {1 / ratio:.3g} times slower than float32)"


def slower(precision: str, device: str | torch.device = "cpu") -> str | None:
    """A sentence for a user who asks for bfloat16 where it is the slower one; None where it is not."""
    if precision != "bfloat16" or choose("auto", device) == "bfloat16":
        return None
    if str(device).startswith("cuda"):
        return "this GPU only imitates bfloat16; precision float32 is faster"
    ratio = gain(product_rates())
    if ratio < 1:
        return f"this processor multiplies bfloat16 {1 / ratio:.3g} times slower than float32; take precision float32"
    return (
        f"this processor multiplies bfloat16 only {ratio:.2g} times as fast as float32; precision float32 is exact and "
        "costs little more"
    )
