"""A validation split for sets that come without one (MSR-VTT 1k-A, ActivityNet Captions).

A checkpoint chosen on the test split, as the authors' code and most others do, makes the test score too high. Here
some training videos are set aside in held_out.txt; whole sources go together where the annotation tells them, so
that no clip of a held-out video's source is trained on.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from clipvip_lib.data.annotations.msrvtt import VALIDATION
from clipvip_lib.data.benchmarks import HELD_OUT, SETS, read_records
from clipvip_lib.errors import ClipVipError, unknown
from clipvip_lib.files import named, write_bytes


def hold_out(name: str, root: str | Path, count: int, seed: int = 0) -> Path:
    """Write held_out.txt: at least ``count`` training videos, chosen by a hash of (seed, source). Returns its path.

    Raises ClipVipError: the set has a validation split, or one was written before; ``count`` is not below the
    number of training videos; and as ``load_benchmark``.
    """
    if name not in SETS:
        raise unknown("benchmark", name, SETS)
    path = Path(root) / HELD_OUT
    if "val" in SETS[name].splits:
        raise ClipVipError(f"{name} comes with a validation split: there is nothing to hold out; use it")
    if any((Path(root) / file).exists() for file in (HELD_OUT, VALIDATION)):
        raise ClipVipError(
            f"{root} has a validation split already ({HELD_OUT} or {VALIDATION}): remove it first"
        )
    records = read_records(name, named(root), "train")
    if not 0 < count < len(records):
        raise ClipVipError(
            f"expected to hold out 1 to {len(records) - 1} of {len(records)} videos, got {count}"
        )
    groups: dict[str, list[str]] = {}
    for record in records:
        groups.setdefault(record.source or record.video_id, []).append(record.video_id)
    chosen: list[str] = []
    for source in sorted(groups, key=lambda each: hashlib.sha256(f"{seed} {each}".encode()).digest()):
        if len(chosen) >= count:
            break
        chosen += groups[source]
    if len(chosen) == len(records):
        raise ClipVipError(
            f"{name}: all training videos are of one source, so none can be held out; fetch the rest"
        )
    order = {record.video_id: place for place, record in enumerate(records)}
    return write_bytes(path, "".join(f"{video}\n" for video in sorted(chosen, key=order.get)).encode())
