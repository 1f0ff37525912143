"""The machine at hand: what it is, how much memory a process took, how many workers it can feed."""

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
from pathlib import Path

from clipvip_lib import files, precision

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
    """Processor, cores, system and Python in a line, without a host's name."""
    return f"{processor()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def product_rates(home: Path) -> dict[str, float]:
    """``precision.product_rates`` of this processor, timed once for a cache: a study has one precision from its first
    stage to its last, in all of its processes, and its commands need no torch to know it."""
    path = home / "precision.json"
    # With other instructions, or under another PyTorch, it is another processor.
    taken = [f"{name}={os.environ[name]}" for name in INSTRUCTIONS if name in os.environ]
    key = ", ".join([processor(), f"torch {_version('torch')}", *taken])
    known = files.read_json(path) if path.is_file() else {}
    if key not in known:
        known[key] = dict(precision.product_rates())
        if home.is_dir():  # a plan begins no cache
            files.write_json(path, known)
    return known[key]


def reset_peak_memory() -> None:
    """Start a new measurement of the process's peak memory, where the kernel lets us."""
    # Without it the peak is the process's since it started: an upper bound.
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


def cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its control group (containers)."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, max(1, int(quota) // int(period)))
    return count


@functools.cache
def gpus() -> tuple[str, ...]:
    """Names for CUDA_VISIBLE_DEVICES, one a GPU that torch could use; found without importing torch."""
    if "+cpu" in _version("torch"):
        return ()
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return tuple(name.strip() for name in visible.split(",") if name.strip() not in ("", "-1"))
    return tuple(str(i) for i in range(len(gpu_names())))


@functools.cache
def gpu_names() -> tuple[str, ...]:
    """What the driver calls the machine's GPUs, such as "NVIDIA H200"; none without a driver."""
    if not shutil.which("nvidia-smi"):
        return ()
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(re.findall(r"^GPU \d+: (.*?)(?: \(UUID.*)?$", listed.stdout, re.MULTILINE))


def default_workers(memory_each_gib: float = 2.0) -> int:
    """One worker a core, as far as the free memory feeds them: a mini model leaves a GPU idle most of the time, so
    that workers share it, and a training of real corpora, which takes all GPUs, runs alone (pipeline.py)."""
    count = cores()
    with contextlib.suppress(OSError, TypeError):
        free = int(re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())[1]) / 2**20
        count = min(count, max(1, int(free // memory_each_gib)))
    return count


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
