"""What a maintainer runs around the reference: choose rates, try other conditions, judge more seeds, write evidence.

    python -m clipvip_lib.study.jobs rates mini
    python -m clipvip_lib.study.jobs tried mini
    python -m clipvip_lib.study.jobs more-seeds mini 5,6,7 6,7,8,9
    python -m clipvip_lib.study.jobs evidence mini 0,1,2 [FILE]

Each trains what is missing in the cache and writes a file that is kept in git; the Makefile has a target for each.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from clipvip_lib import files
from clipvip_lib.errors import ClipVipError, unknown
from clipvip_lib.statistics import claims
from clipvip_lib.study import evidence, evidence_file, experiments, more_seeds, plan, rates, tried
from clipvip_lib.study.pipeline import only_run
from clipvip_lib.study.publish import show_others
from clipvip_lib.study.reference import FOLDER, ON_GPU, OTHER_SEEDS
from clipvip_lib.workshop import machine
from clipvip_lib.workshop.board import Board
from clipvip_lib.workshop.provenance import provenance
from clipvip_lib.workshop.stages import Stage
from clipvip_lib.workshop.workers import raise_failures, run_stages


def choose_rates(name: str = "mini") -> None:
    """Run all candidates of a profile and write rates.json."""
    profile, home = plan.runnable_profile(name), files.home()
    candidates = experiments.candidates(rates.choosing(profile), rates.SEED)
    _run(stage for by_rate in candidates.values() for stage in by_rate.values())
    found = {}
    for slug, by_rate in candidates.items():
        scores = {
            rate: max(row["score"] for row in stage.result(home)["evaluations"])
            for rate, stage in by_rate.items()
        }
        validation = {f"{rate:g}": score for rate, score in scores.items()}
        chosen = rates.choose(scores, profile.finetune.lr, profile.world.test)
        found[slug] = {"chosen": chosen, "validation": validation}
    known = files.read_json(rates.FILE) if rates.FILE.is_file() else {}
    files.write_json(rates.FILE, known | {name: found})
    for slug, row in found.items():
        print(f"{slug}: {row['chosen']:g} of {row['validation']}")


def try_conditions(name: str = "mini") -> None:
    """Run all trials of a profile and write tried.json."""
    home, rows = files.home(), []
    for trial in tried.TRIALS:  # one after the other: a changed profile has stages of the same names
        profile = plan.runnable_profile(name, **trial.changes)
        _run(stage for found in tried.stages(trial, profile, tried.SEEDS).values() for stage in found)
        rows += tried.measured(trial, profile, tried.SEEDS, home)
    files.write_json(tried.FILE, {"from": provenance(name, tried.SEEDS), "rows": rows})
    for row in rows:
        print(f"claim {row['claim']}, {row['condition']}: {row['contrast']} {row['effect']:+.1f}")


def judge_more_seeds(name: str, seeds: str, numbers_of_claims: str, folder: Path = FOLDER) -> None:
    """Run what is missing, judge, write, and show it in the reference's pages."""
    profile, given = plan.runnable_profile(name), plan.check_seeds(listed(seeds))
    chosen, home = listed(numbers_of_claims), files.home()
    _run(more_seeds.stages(profile, given, chosen))
    found = evidence.evidence(profile, given, home)
    judged = {"claims": [claims.verdict(claims.claim(number), found, given) for number in chosen]}
    file, about = ON_GPU, {"gpus": machine.gpu_names()}
    if profile.device == "cpu":
        more = evidence_file.Stored(given, repr(profile), found, evidence.gap_rows(profile, given, home))
        all_seeds, together = evidence_file.joined(more, folder / evidence_file.NAME)
        judged["together"] = [claims.verdict(claims.claim(number), together, all_seeds) for number in chosen]
        file, about = OTHER_SEEDS, {"looks": _looks(folder, all_seeds, given)}
    rows = {
        name: [verdict.row() for verdict in verdicts if verdict.effect is not None]
        for name, verdicts in judged.items()
    }
    files.write_json(folder / file, {"from": provenance(name, given)} | about | rows)
    show_others(folder)
    for verdict in [*judged["claims"], *(v for v in judged.get("together", ()) if v.effect is not None)]:
        print(f"seeds {', '.join(map(str, verdict.seeds))}: {verdict}")


def _looks(folder: Path, all_seeds: Sequence[int], others: Sequence[int]) -> list[int]:
    """The total numbers of seeds after which verdicts were seen, this time included. Stopping at a welcome result is
    fair only if one says how often one looked. A reference under a new recipe begins without the file."""
    path = folder / OTHER_SEEDS
    before = set(files.read_json(path)["looks"]) if path.is_file() else set()
    now = {len(all_seeds) - len(others), len(all_seeds)} if all_seeds else set()
    return sorted(before | now)


def write_evidence(name: str, seeds: str, file: str = evidence_file.NAME) -> None:
    """Write the file of the reference run, or of other seeds."""
    columns = evidence_file.write(plan.runnable_profile(name), listed(seeds), FOLDER / file)
    print(f"{FOLDER / file}: {columns} columns, {(FOLDER / file).stat().st_size / 1024:.0f} KiB")


JOBS = {
    "rates": choose_rates,
    "tried": try_conditions,
    "more-seeds": judge_more_seeds,
    "evidence": write_evidence,
}


def listed(text: str) -> list[int]:
    """``5,6,7`` as numbers. Raises ClipVipError for anything else."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ClipVipError(
            f"expected whole numbers like 5,6,7, got {text!r}; separate them by commas"
        ) from None


def _run(stages: Iterable[Stage]) -> None:
    """Run stages in the cache, alone. Raises ClipVipError if one fails."""
    home = files.home()
    with only_run(files.make_folder(home)):
        raise_failures(run_stages(list(stages), home, board=lambda total, count: Board(total, count)))


def main(job: str, *given: str) -> None:
    """Run a job by its name. Raises ClipVipError for an unknown one."""
    if job not in JOBS:
        raise unknown("job", job, JOBS)
    JOBS[job](*given)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except ClipVipError as error:
        sys.exit(f"{sys.argv[1]}: {error}")
