"""How many processor cores this process may use."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def cores() -> int:
    """By its affinity and by the quota of its control group (containers)."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, max(1, int(quota) // int(period)))
    return count
