"""Memory that was freed is used again without the system's help."""

import platform
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clipvip_lib.heap import keep_freed_memory

ROUNDS, TENSORS = 20, 16
PAGES = ROUNDS * TENSORS * 2**20 // 4096  # what the rounds below ask of the system if nothing is kept

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a C library other than glibc")


def faults() -> int:
    """Pages that the system handed out while tensors of 1 MiB came and went together, as in training steps."""
    for number in range(3 + ROUNDS):
        if number == 3:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensors = [np.empty(2**17) for _ in range(TENSORS)]
        for each in range(TENSORS):
            tensors[each].fill(number)
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def faults_after(code: str) -> int:
    """``faults`` of an interpreter that first runs some code."""
    command = [sys.executable, "-c", f"{code}\nimport test_heap\nprint(test_heap.faults())"]
    run = subprocess.run(
        command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True, timeout=300, check=True
    )
    return int(run.stdout)


@glibc
def test_freed_memory_stays_with_the_process():
    assert faults_after("from clipvip_lib.heap import keep_freed_memory\nkeep_freed_memory()") < PAGES / 20
    assert faults_after("") > PAGES / 2  # else there was nothing to keep


@glibc
def test_commands_that_load_a_model_keep_it():
    code = "from clipvip_lib.commands.arguments import load_torch\nload_torch(aloud=False)"
    assert faults_after(code) < PAGES / 20


@pytest.mark.parametrize("error", (None, OSError, TypeError), ids=("macos", "none", "windows"))
def test_another_c_library_is_left_alone(error, monkeypatch):
    def library(name):
        if error:
            raise error
        return object()

    monkeypatch.setattr("ctypes.CDLL", library)
    keep_freed_memory()
