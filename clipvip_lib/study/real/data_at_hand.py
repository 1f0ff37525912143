"""Which corpora, benchmarks and weights of the paper size are there. They are looked up, not read through.

Corpora are folders of shards under ``data_root`` by the names that the study gives them, benchmarks folders as
``clipvip check-data`` takes them. The plan and the notebooks use this to say what they lack.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipvip_lib.errors import ClipVipError
from clipvip_lib.profiles import Profile
from clipvip_lib.statistics.claims import BENCHMARKS, CORPORA
from clipvip_lib.streams.sidecars import sidecar_path
from clipvip_lib.study.experiments import LARGEST
from clipvip_lib.study.paper_plan import CAPTION_LINE_BYTES, PAIRS, WEIGHTS, Settings, Work, epoch_clips


@dataclass(frozen=True)
class Need:
    """Data or weights: where they are expected, whether they are there, how much disk they would take."""

    name: str
    where: str
    there: bool
    state: str
    bytes: float = 0.0


def look(profile: Profile, settings: Settings) -> dict[str, Need]:
    """Every corpus, benchmark and weight that the study asks for, by name."""
    root, found = settings.data_root, {}
    for name in (*CORPORA, PAIRS):
        size = 0.0 if name == PAIRS else epoch_clips(profile, name) * settings.assumed.clip_mb * 1e6
        found[name] = _in_root(name, root, f"{name}/*.tar", size)
    for name in BENCHMARKS:
        found[name] = _in_root(name, root, name, 0.0)
    for name, what in WEIGHTS.items():
        path = getattr(settings, name)
        there = path is not None and path.exists()
        where = str(path) if path else f"--set {name}=PATH"
        found[name] = Need(
            what, where, there, "there" if there else "not given" if path is None else "missing"
        )
    if found[LARGEST].there and not found["hdvila-10m"].there:
        found["hdvila-10m"] = dataclasses.replace(
            found["hdvila-10m"], there=True, state=f"to be drawn out of {LARGEST}"
        )
    return found | {"captions": _captions(root, epoch_clips(profile) * CAPTION_LINE_BYTES)}


def _captions(root: Path | None, size: float) -> Need:
    """Captions of the largest corpus: there if every shard has its own, because a training stops at a shard without."""
    need = _in_root(f"captions of {LARGEST}", root, f"{LARGEST}/*.captions.jsonl", size)
    if not need.there:
        return need
    shards = list((root / LARGEST).glob("*.tar"))
    captioned = sum(sidecar_path(shard, "captions").is_file() for shard in shards)
    if captioned == len(shards):
        return need
    return dataclasses.replace(need, there=False, state=f"{captioned:,} of {len(shards):,} shards")


def _in_root(name: str, root: Path | None, pattern: str, size: float) -> Need:
    if root is None:
        return Need(name, pattern, False, "not given: --set data_root=DIR", size)
    if "*" not in pattern:
        return Need(name, pattern, *_benchmark_state(name, root / name), size)
    files = sorted(root.glob(pattern))
    have = sum(file.stat().st_size for file in files)
    if not files:
        return Need(
            name, pattern, False, "missing" if (root / pattern).parent.is_dir() else "no folder", size
        )
    amount = f"{have / 1e9:,.1f} GB" if have >= 1e9 else f"{have / 1e6:,.1f} MB"
    return Need(name, pattern, True, f"{len(files):,} files, {amount}", size)


def _benchmark_state(name: str, folder: Path) -> tuple[bool, str]:
    """Whether a benchmark's splits can be read, and its number of test videos; check-data tells the rest, including how
    to set a validation split aside if a set has none."""
    from clipvip_lib.data.benchmarks import SPLITS, load_benchmark

    if not folder.is_dir():
        return False, "no folder"
    try:
        *_, test = [load_benchmark(name, folder, split) for split in SPLITS]
        return True, f"{len(test):,} test videos"
    except ClipVipError:
        return False, f"not whole: clipvip check-data {name} tells"


def missing_of(notebook: str, rows: Sequence[Work], at_hand: Mapping[str, Need]) -> list[str]:
    """What a notebook (its number) lacks of the data. Captions that are to be made need OFA and the corpus."""
    asked = frozenset().union(*(row.needs for row in rows if notebook in row.notebooks))
    lacks = {name for name in asked if not at_hand[name].there}
    if "captions" in asked and at_hand["captions"].there:
        lacks.discard("ofa")
    lacks.discard("captions")
    return [name for name in at_hand if name in lacks]
