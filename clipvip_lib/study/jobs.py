"""What a maintainer runs around the reference: choose rates, add a run's evidence, judge and tell the answer.

    python -m clipvip_lib.study.jobs rates mini
    python -m clipvip_lib.study.jobs evidence mini 0,1,2 [FILE]
    python -m clipvip_lib.study.jobs answer

Each writes files that are kept in git; the Makefile has a target for each.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from clipvip_lib import files
from clipvip_lib.errors import ClipVipError, unknown
from clipvip_lib.study import answer, evidence_file, experiments, figures, plan, rates, reference
from clipvip_lib.study.pipeline import only_run
from clipvip_lib.workshop.board import Board
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


def add_evidence(
    name: str, seeds: str, file: str = reference.EVIDENCE, folder: Path = reference.FOLDER
) -> None:
    """Add the evidence of a run that is done to a file of the reference, or begin it, and judge all again."""
    path = folder / file
    more = evidence_file.of_run(plan.runnable_profile(name), listed(seeds))
    together = evidence_file.joined(evidence_file.read(path), more) if path.is_file() else more
    evidence_file.write(together, path)
    print(f"{path}: seeds {', '.join(map(str, together.seeds))}, {path.stat().st_size / 1024:.0f} KiB")
    tell_answer(folder)


def tell_answer(folder: Path = reference.FOLDER) -> None:
    """Judge the evidence; write verdicts.json, the figure, and (for the committed reference) README's answer."""
    found = reference.judge(folder)
    shown = answer.figure(found["statements"], found["metric"], found["conditions"])
    files.write_bytes(folder / answer.FIGURE, figures.figure_svg(shown).encode())
    readme = files.CHECKOUT / "README.md"
    if folder == reference.FOLDER and readme.is_file():
        files.write_bytes(readme, answer.readme(readme.read_text(encoding="utf-8"), found).encode())
    print("\n".join(answer.sentences(found)))


JOBS = {"rates": choose_rates, "evidence": add_evidence, "answer": tell_answer}


def listed(text: str) -> list[int]:
    """``5,6,7`` as distinct numbers. Raises ClipVipError for anything else."""
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise ClipVipError(
            f"expected whole numbers like 5,6,7, got {text!r}; separate them by commas"
        ) from None
    return plan.check_seeds(seeds)


def _run(stages: Iterable[Stage]) -> None:
    """Run stages in the cache, alone. Raises ClipVipError if one fails."""
    home = files.home()
    with only_run(files.make_folder(home)):
        raise_failures(run_stages(list(stages), home, board=lambda total, count: Board(total, count)))


def main(job: str = "", *given: str) -> None:
    """Run a job by its name. Raises ClipVipError for an unknown one, or none."""
    if job not in JOBS:
        raise unknown("job", job, JOBS)
    JOBS[job](*given)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except ClipVipError as error:
        sys.exit(f"{' '.join(sys.argv[1:2]) or 'jobs'}: {error}")
