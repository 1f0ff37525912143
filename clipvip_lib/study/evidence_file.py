"""The evidence behind a run's verdicts in one small file: what every test query gave, for every arm, seed by seed.

Trained stages stay in the cache of the machine that ran them; this file is kept in git beside the reference run, so
that anybody can judge its claims again, by this project's rule or by another, and join further seeds to it.
``make evidence SEEDS=0,1,2,3,4`` writes ``reports/reference/evidence.npz``. Two files of the same kind are beside it:
``more-evidence.npz`` for the other seeds of ``more-seeds.json`` (``FILE=more-evidence.npz``), and
``on-gpu-evidence.npz`` for ``on-gpu.json`` (``PROFILE=mini-gpu``).

A file holds ``seeds`` [S]; ``profile``, its sizes in words; ``hits/ARM/BENCHMARK/SCORING``, float16 [S, Q], expected
hits at 1 (ties share); and for each contrast in NMI ``nmi/NAME/values`` [S], ``nmi/NAME/draws`` [S, R] and
``nmi/NAME/texts``, as ``intervals.pool_draws`` takes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clipvip_lib import files
from clipvip_lib.errors import ClipVipError
from clipvip_lib.profiles import Profile
from clipvip_lib.statistics import claims
from clipvip_lib.statistics.claims import Contrast, Measure
from clipvip_lib.study import evidence
from clipvip_lib.study.reference import FOLDER

NAME, OF_OTHER_SEEDS, OF_A_GPU = "evidence.npz", "more-evidence.npz", "on-gpu-evidence.npz"


def write(profile: Profile, seeds: Sequence[int], path: Path, home: Path | None = None) -> int:
    """Write the evidence of stages that have run, whole or not at all. Returns the number of columns.

    Raises ClipVipError if a claim's stage has not run.
    """
    arrays: dict[str, np.ndarray] = {"seeds": np.array(seeds), "profile": np.array(repr(profile))}
    for measure, table in evidence.hit_tables(profile, seeds, home).items():
        arrays[f"hits/{measure.arm}/{measure.benchmark}/{measure.scoring}"] = table.astype(np.float16)
    for contrast, rows in evidence.gap_rows(profile, seeds, home).items():
        arrays[f"nmi/{contrast.name}/values"] = np.array([row["value"] for row in rows])
        arrays[f"nmi/{contrast.name}/draws"] = np.array([row["draws"] for row in rows], np.float32)
        arrays[f"nmi/{contrast.name}/texts"] = np.array(min(row["texts"] for row in rows))
    with files.atomic_path(path) as partial, partial.open("wb") as stream:
        np.savez_compressed(stream, **arrays)
    missing = [c.name for claim in claims.CLAIMS for c in claim.contrasts if c not in read(path).found]
    if missing:
        path.unlink()
        raise ClipVipError(
            f"no evidence for {missing[0]} and {len(missing) - 1} more of seeds {list(seeds)}: expected a run of them "
            "in the cache; run `clipvip reproduce` first"
        )
    return len(arrays)


class Stored(NamedTuple):
    """What a file holds. found: evidence by contrast, as ``claims.verdict`` takes it; gaps: the rows behind the
    contrasts in NMI, as ``evidence.gap_rows`` gives them."""

    seeds: list[int]
    profile: str
    found: dict[Contrast, object]
    gaps: dict[Contrast, list[dict]]


def read(path: Path = FOLDER / NAME) -> Stored:
    """The evidence in a file that ``write`` wrote.

    Raises ClipVipError if there is no such file, or it is damaged.
    """
    arrays = evidence.arrays(path, "expected a file of `make evidence`; write it again")
    try:
        return _stored(arrays)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise ClipVipError(
            f"{path} holds other arrays than `make evidence` writes ({type(error).__name__}: {error}); write it again"
        ) from error


def _stored(arrays: Mapping[str, np.ndarray]) -> Stored:
    hits = {}
    for name, table in arrays.items():
        kind, *of = name.split("/")
        if kind == "hits":
            arm, benchmark, scoring = of
            hits[Measure(arm, benchmark, scoring=scoring)] = table.astype(float)
    gaps = {}
    for contrast in (c for claim in claims.CLAIMS for c in claim.contrasts if c.metric == "NMI"):
        parts = [arrays.get(f"nmi/{contrast.name}/{part}") for part in ("values", "draws", "texts")]
        if all(part is not None for part in parts):
            values, draws, texts = parts
            gaps[contrast] = [
                {"value": value, "draws": row, "texts": int(texts)}
                for value, row in zip(values, draws, strict=True)
            ]
    found = claims.evidence_from_hits(hits) | {c: evidence.pooled(rows) for c, rows in gaps.items()}
    return Stored(arrays["seeds"].tolist(), str(arrays["profile"]), found, gaps)


def joined(more: Stored, path: Path = FOLDER / NAME) -> tuple[list[int], dict[Contrast, object]]:
    """(seeds, evidence) of a file and of further seeds together, for contrasts that both have.

    Nothing ([], {}) without a file, or if it belongs to another profile: other sizes are another study. Raises
    ClipVipError for a seed that is already in the file, because it would count twice.
    """
    stored = read(path) if path.is_file() else None
    if stored is None or stored.profile != more.profile:
        return [], {}
    if twice := sorted(set(stored.seeds) & set(more.seeds)):
        raise ClipVipError(f"seeds {twice} are in {path} already: expected others; choose other seeds")
    both: dict[Contrast, object] = {
        c: np.concatenate([stored.found[c], more.found[c]])
        for c in more.found
        if c in stored.found and c.metric != "NMI"
    }
    both |= {c: evidence.pooled([*stored.gaps[c], *more.gaps[c]]) for c in more.gaps if c in stored.gaps}
    return [*stored.seeds, *more.seeds], both
