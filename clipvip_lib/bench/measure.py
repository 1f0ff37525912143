"""How a benchmark measures: forms of one piece of work in turns, beside a matrix product, so that ratios hold.

Other programs on the machine slow everything; forms that take turns are slowed alike. With one thread on a CPU seconds
are the process's own, which leave out what others take, though not what they take of caches and memory. So believe
ratios, and shares of the product's rate, of one run; not seconds of two.
"""

from __future__ import annotations

import importlib.metadata
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from clipvip_lib.progress import Progress
from clipvip_lib.workshop.machine import machine

if TYPE_CHECKING:
    import torch

Form = Callable[[], object]
PRODUCT = "matrix product"
SIDE = {"cpu": 2048, "cuda": 8192}  # of the product's square matrices


def in_turns(
    forms: Mapping[str, Form], repeats: int, device: str | torch.device = "cpu"
) -> dict[str, list[float]]:
    """Seconds of each form, ``repeats`` times, in turns; each has run once before, which does not count."""
    found: dict[str, list[float]] = {name: [] for name in forms}
    progress, turns = Progress("runs", stream=sys.stderr), [*forms] * (1 + repeats)
    for done, name in enumerate(turns):
        progress(done, len(turns), name)
        if done < len(forms):
            forms[name]()
        else:
            found[name].append(seconds_of(forms[name], device))
    progress(len(turns), len(turns))
    return found


def seconds_of(work: Form, device: str | torch.device = "cpu") -> float:
    """Seconds that ``work()`` takes, by the clock that fits the device."""
    clock = fair_clock(device)
    wait(device)
    started = clock()
    work()
    wait(device)
    return clock() - started


def fair_clock(device: str | torch.device) -> Callable[[], float]:
    """The clock that other programs do not disturb, where there is one."""
    import torch

    alone = str(device).startswith("cpu") and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter


def wait(device: str | torch.device) -> None:
    """Until a GPU has done what it was given."""
    if str(device).startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


def product(device: str | torch.device, precision: str) -> tuple[Form, float]:
    """A large matrix product in a precision, and its FLOPs: what the device can reach."""
    import torch

    side = SIDE["cuda" if str(device).startswith("cuda") else "cpu"]
    dtype = getattr(torch, precision)
    a = torch.randn(side, side, device=device, dtype=dtype)
    return lambda: a @ a, 2.0 * side**3


def product_rate(device: str | torch.device, precision: str, repeats: int = 5) -> float:
    """FLOP/s of that product, the median of some; measured where forms cannot take turns with it."""
    form, flops = product(device, precision)
    return flops / statistics.median(in_turns({PRODUCT: form}, repeats, device)[PRODUCT])


def spread(seconds: Sequence[float], scale: float = 1.0, digits: int = 3) -> dict[str, float]:
    """Median, smallest and largest."""
    return {
        "median": round(scale * statistics.median(seconds), digits),
        "min": round(scale * min(seconds), digits),
        "max": round(scale * max(seconds), digits),
    }


def set_threads(threads: int) -> None:
    """Of torch in this process."""
    import torch

    torch.set_num_threads(threads)


def about(packages: Iterable[str], device: str | torch.device = "cpu") -> dict[str, object]:
    """What every report tells: the machine, how busy it was, threads, versions."""
    import torch

    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    versions = {name: importlib.metadata.version(name) for name in ("torch", *packages)}
    cuda = str(device).startswith("cuda")
    return {
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "machine": machine(),
        "load": load,
        "threads": torch.get_num_threads(),
        "versions": versions,
    }
