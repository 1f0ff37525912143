"""The evidence behind verdicts in one small file: what every test query gave, for every arm, seed by seed.

Trained stages stay in the cache of the machine that ran them; this file is kept in git, so that anybody can judge the
statements again, by this project's rule or by another, and join further seeds to it. ``make evidence SEEDS=0,1,2``
adds the seeds of a run to ``reports/reference/evidence.npz``.

A file holds ``seeds`` [S]; ``profile``, its sizes in words; ``runs``, JSON: which seeds came from which commit and
machine; ``hits@K/ARM/BENCHMARK/SCORING``, float16 [S, Q], the chance that the video is among the first K (ties share);
and for each contrast in NMI ``nmi/NAME/values`` [S], ``nmi/NAME/draws`` [S, R] and ``nmi/NAME/texts``, as
``intervals.pool_draws`` takes them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipvip_lib import files
from clipvip_lib.errors import ClipVipError
from clipvip_lib.profiles import Profile
from clipvip_lib.statistics import verdicts as rule
from clipvip_lib.statistics.claims import (
    CONTRASTS,
    NMI,
    R1,
    RECALL,
    STATEMENTS,
    Contrast,
    Measure,
    Statement,
    measures,
    metric_of,
)
from clipvip_lib.study import evidence
from clipvip_lib.study.evidence import PLACES
from clipvip_lib.workshop.provenance import provenance
from clipvip_lib.workshop.stages import closure

KEPT = PLACES[RECALL]
REGISTRATION = files.shipped("reports", "reference", "registration.json")


@dataclass(frozen=True)
class Stored:
    """What a file holds. runs: rows of provenance; hits: by K, then by measure [S, Q]; gaps: the rows behind the
    contrasts in NMI, as ``evidence.gap_rows`` gives them."""

    seeds: tuple[int, ...]
    profile: str
    runs: tuple[dict, ...]
    hits: dict[int, dict[Measure, np.ndarray]]
    gaps: dict[Contrast, list[dict]]

    @property
    def columns(self) -> set[str]:
        """Names of all that it holds for every seed."""
        hits = {f"R@{k} of {measure}" for k, tables in self.hits.items() for measure in tables}
        return hits | {contrast.name for contrast in self.gaps}

    @property
    def metric(self) -> str:
        """The metric in which it can be judged: the average recall, or R@1 if it holds no other hits."""
        return RECALL if all(self.hits.get(k) for k in KEPT) else R1

    def found(self, metric: str | None = None) -> dict[Contrast, object]:
        """Evidence by contrast, as ``verdicts.verdict`` takes it; retrieval in this metric (default: its own).

        Raises ClipVipError if the file lacks hits of that metric."""
        places = PLACES[metric or self.metric]
        if absent := [f"R@{k}" for k in places if not self.hits.get(k)]:
            raise ClipVipError(
                f"evidence of seeds {list(self.seeds)} holds no {', '.join(absent)}: expected the hits behind "
                f"{metric or self.metric!r}; write it again from a run of today, or take the file away"
            )
        tables = {m: np.mean([self.hits[k][m] for k in places], axis=0) for m in self.hits[places[0]]}
        return rule.evidence_from_hits(tables) | {c: evidence.pooled(rows) for c, rows in self.gaps.items()}


def of_run(
    profile: Profile,
    seeds: Sequence[int],
    home: Path | None = None,
    statements: Sequence[Statement] = STATEMENTS,
) -> Stored:
    """The evidence of stages that have run, for some statements. Raises ClipVipError if one lacks some."""
    asked = {contrast for statement in statements for contrast in statement.contrasts}
    kept = set(measures(statements))
    hits = {
        k: {m: table for m, table in evidence.hit_tables(profile, seeds, home, k).items() if m in kept}
        for k in KEPT
    }
    facts = {name: value for name, value in provenance(profile.name, seeds).items() if name != "profile"}
    stored = Stored(
        tuple(seeds),
        repr(profile),
        (
            facts
            | {
                "precision": profile.precision,
                "stages": versions(profile, seeds, statements),
                "registration": registration(),
            },
        ),
        hits,
        {c: rows for c, rows in evidence.gap_rows(profile, seeds, home).items() if c in asked},
    )
    found = stored.found()
    if missing := [contrast.name for contrast in CONTRASTS if contrast in asked and contrast not in found]:
        raise ClipVipError(
            f"no evidence for {missing[0]} and {len(missing) - 1} more of seeds {list(seeds)}: expected a run of them "
            "in the cache; run `clipvip reproduce` first"
        )
    return stored


def registration() -> str:
    """A checksum of the registration in force, kept with evidence when it is written; empty if there is none."""
    return hashlib.sha256(REGISTRATION.read_bytes()).hexdigest() if REGISTRATION.is_file() else ""


def is_registered(stored: Stored) -> bool:
    """Whether evidence was made under the registration in force, and its seeds are those registered."""
    if not REGISTRATION.is_file():
        return False
    made_under = {run.get("registration") for run in stored.runs}
    return made_under == {registration()} and list(stored.seeds) == files.read_json(REGISTRATION)["seeds"]


def versions(
    profile: Profile, seeds: Sequence[int], statements: Sequence[Statement] = STATEMENTS
) -> dict[str, int]:
    """Versions of the functions behind the evidence: results of another version are of another study."""
    wanted = closure(evidence.needed(profile, seeds, statements))
    return {stage.function.partition(":")[2]: stage.version for stage in wanted}


def joined(first: Stored, second: Stored) -> Stored:
    """Two files as one.

    Raises ClipVipError for seeds that are in both, because they would count twice; for another profile or other
    versions of stages, because that is another study; for arms or places that one of them lacks; and for seeds that
    are not consecutive, because none may be left out.
    """
    if twice := sorted(set(first.seeds) & set(second.seeds)):
        raise ClipVipError(f"seeds {twice} are in the evidence already: expected others; choose other seeds")
    if first.profile != second.profile:
        raise ClipVipError(
            f"evidence of another profile: expected {first.profile}, got {second.profile}; other sizes are another "
            "study, so keep it in a file of its own"
        )
    if first.runs[-1].get("stages") != second.runs[-1].get("stages"):
        raise ClipVipError(
            "evidence of other versions of the stages (another commit): expected one study; begin a file of its own"
        )
    if len({run.get("registration", "") for run in first.runs + second.runs}) > 1:
        raise ClipVipError(
            "evidence of another registration: expected one for all seeds, fixed before the run; "
            "begin a file of its own"
        )
    if lost := sorted(first.columns ^ second.columns):
        raise ClipVipError(
            f"one evidence lacks {lost[0]} and {len(lost) - 1} more: expected the same arms in both"
        )
    seeds = sorted(first.seeds + second.seeds)
    if seeds != list(range(seeds[0], seeds[0] + len(seeds))):
        raise ClipVipError(f"seeds {seeds} leave some out: expected consecutive ones; add those between")
    hits = {
        k: {m: np.concatenate([table, second.hits[k][m]]) for m, table in tables.items()}
        for k, tables in first.hits.items()
    }
    gaps = {c: [*rows, *second.gaps[c]] for c, rows in first.gaps.items()}
    return Stored(first.seeds + second.seeds, first.profile, first.runs + second.runs, hits, gaps)


def write(stored: Stored, path: Path) -> None:
    """Write a file, whole or not at all."""
    arrays: dict[str, np.ndarray] = {
        "seeds": np.array(stored.seeds),
        "profile": np.array(stored.profile),
        "runs": np.array(json.dumps(stored.runs)),
    }
    for k, tables in stored.hits.items():
        for measure, table in tables.items():
            name = f"hits@{k}/{measure.arm}/{measure.benchmark}/{measure.scoring}"
            arrays[name] = table.astype(np.float16)
    for contrast, rows in stored.gaps.items():
        arrays[f"nmi/{contrast.name}/values"] = np.array([row["value"] for row in rows])
        arrays[f"nmi/{contrast.name}/draws"] = np.array([row["draws"] for row in rows], np.float32)
        arrays[f"nmi/{contrast.name}/texts"] = np.array(min(row["texts"] for row in rows))
    with files.atomic_path(path) as partial, partial.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def read(path: Path) -> Stored:
    """The evidence in a file that ``write`` wrote. Raises ClipVipError if there is no such file, or it is damaged."""
    arrays = evidence.arrays(path, "expected a file of `make evidence`; write it again")
    try:
        runs = tuple(json.loads(str(arrays["runs"])))
        gaps = {contrast: rows for contrast in CONTRASTS if (rows := _gaps(arrays, contrast))}
        return Stored(tuple(arrays["seeds"].tolist()), str(arrays["profile"]), runs, _hits(arrays), gaps)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise ClipVipError(
            f"{path} holds other arrays than `make evidence` writes ({type(error).__name__}: {error}); write it again"
        ) from error


def _hits(arrays: Mapping[str, np.ndarray]) -> dict[int, dict[Measure, np.ndarray]]:
    found: dict[int, dict[Measure, np.ndarray]] = {}
    for name, table in arrays.items():
        kind, *of = name.split("/")
        if kind.startswith("hits@"):
            found.setdefault(int(kind.removeprefix("hits@")), {})[Measure(*of)] = table.astype(float)
    return found


def _gaps(arrays: Mapping[str, np.ndarray], contrast: Contrast) -> list[dict]:
    parts = [arrays.get(f"nmi/{contrast.name}/{part}") for part in ("values", "draws", "texts")]
    if metric_of(contrast) != NMI or any(part is None for part in parts):
        return []
    values, draws, texts = parts
    return [
        {"value": value, "draws": row, "texts": int(texts)} for value, row in zip(values, draws, strict=True)
    ]
