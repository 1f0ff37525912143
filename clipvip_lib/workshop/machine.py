"""The machine at hand: what it is, how much memory a process used, how many workers it can run."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from clipvip_lib import files, precision
from clipvip_lib.cores import cores

#: Variables that take instructions away from PyTorch and from oneDNN.
INSTRUCTIONS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")


@functools.cache
def processor() -> str:
    """The processor's model."""
    model = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model
        )
    except OSError:
        model = platform.processor() or model
    return model


def machine() -> str:
    """Processor, cores, system and Python in one line, without the host's name."""
    return f"{processor()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def product_rates(home: Path) -> dict[str, float]:
    """``precision.product_rates`` of this processor, timed once per cache. So a study keeps one precision from its
    first stage to its last, in all its processes, and its commands know it without importing torch."""
    path = home / "precision.json"
    # With other instructions, or under another PyTorch, it counts as another processor.
    taken = [f"{name}={os.environ[name]}" for name in INSTRUCTIONS if name in os.environ]
    key = ", ".join([processor(), f"torch {installed(['torch'])['torch']}", *taken])
    known = files.read_json(path) if path.is_file() else {}
    if key not in known:
        known[key] = dict(precision.product_rates())
        if home.is_dir():  # a plan does not create a cache
            files.write_json(path, known)
    return known[key]


def reset_peak_memory() -> None:
    """Start a new measurement of the process's peak memory, where the kernel allows it."""
    # Otherwise the peak counts from the start of the process: an upper bound.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib() -> float:
    """Peak resident memory of this process in MiB since the last reset."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024
    except (OSError, TypeError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


@functools.cache
def gpus() -> tuple[str, ...]:
    """Names for CUDA_VISIBLE_DEVICES, one per GPU that torch could use; found without importing torch."""
    if "+cpu" in installed(["torch"])["torch"]:
        return ()
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return tuple(name.strip() for name in visible.split(",") if name.strip() not in ("", "-1"))
    return tuple(str(i) for i in range(len(gpu_names())))


@functools.cache
def gpu_names() -> tuple[str, ...]:
    """The driver's names of the machine's GPUs, such as "NVIDIA H200"; empty without a driver."""
    if not shutil.which("nvidia-smi"):
        return ()
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(re.findall(r"^GPU \d+: (.*?)(?: \(UUID.*)?$", listed.stdout, re.MULTILINE))


def default_workers(memory_each_gib: float = 2.0) -> int:
    """One worker per core, or fewer if free memory is short. The number of GPUs does not count: a mini model leaves a
    GPU idle most of the time, so workers share it. A training on real corpora takes all GPUs and runs alone
    (pipeline.py)."""
    count = cores()
    with contextlib.suppress(OSError, TypeError):
        free = int(re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())[1]) / 2**20
        count = min(count, max(1, int(free // memory_each_gib)))
    return count


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Versions of installed packages, read without importing them; "none" for one that is not there."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found
