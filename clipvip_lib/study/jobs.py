"""What a maintainer runs around the reference: register it, add a run's evidence, judge and tell the answer.

    python -m clipvip_lib.study.jobs registration
    python -m clipvip_lib.study.jobs evidence mini 0,1,2 [FILE]
    python -m clipvip_lib.study.jobs condition mini no-order [0,1,2]
    python -m clipvip_lib.study.jobs answer

Each writes files that are kept in git; the Makefile has a target for each.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from clipvip_lib import files
from clipvip_lib.errors import ClipVipError, unknown
from clipvip_lib.profiles import Profile
from clipvip_lib.statistics.claims import STATEMENTS, Statement
from clipvip_lib.study import (
    answer,
    conditions,
    evidence,
    evidence_file,
    figures,
    outline,
    preregistration,
    reference,
)
from clipvip_lib.study.pipeline import only_run
from clipvip_lib.workshop.board import Board
from clipvip_lib.workshop.workers import raise_failures, run_stages


def register(folder: Path = reference.FOLDER, path: Path = preregistration.REGISTRATION) -> None:
    """Write what is fixed before the next reference run, with its power by the spreads of the evidence at hand."""
    found = preregistration.write(evidence_file.read(folder / reference.EVIDENCE), path, folder)
    print(f"{path}: commit it before the run")
    for name, by_seeds in found["power"]["statements"].items():
        print(name, by_seeds[str(len(found["seeds"]))])


def add_evidence(
    name: str, seeds: str, file: str = reference.EVIDENCE, folder: Path = reference.FOLDER
) -> None:
    """Run what the statements need and is not in the cache, add its evidence to a file of the reference, or begin it,
    and judge all again. Raises ClipVipError for a seed that is not registered, because none is added afterwards."""
    if folder / file == reference.FOLDER / reference.EVIDENCE:
        fixed = files.read_json(preregistration.REGISTRATION)["seeds"]
        if late := sorted(set(listed(seeds)) - set(fixed)):
            raise ClipVipError(
                f"seeds {late} are not registered: expected some of {fixed[0]} to {fixed[-1]}, because none is added "
                "afterwards; begin a file of your own"
            )
    _add(outline.runnable_profile(name), listed(seeds), folder / file)
    tell_answer(folder)


def add_condition(name: str, which: str, seeds: str = "", folder: Path = reference.FOLDER) -> None:
    """The same for the headline contrasts under a condition (conditions.py), in a file of its own. seeds: by default as
    many as the condition asks for."""
    chosen = conditions.condition(which)
    numbers = listed(seeds) if seeds else list(range(chosen.seeds))
    profile = chosen.change(outline.runnable_profile(name))
    path = files.make_folder(folder / conditions.FOLDER) / f"{which}.npz"
    _add(
        profile, numbers, path, [statement for statement in conditions.HEADLINES if statement.id in chosen.of]
    )


def _add(
    profile: Profile, seeds: list[int], path: Path, statements: Sequence[Statement] = STATEMENTS
) -> None:
    home = files.home()
    with only_run(files.make_folder(home)):
        wanted = evidence.needed(profile, seeds, statements)
        raise_failures(run_stages(wanted, home, board=lambda total, count: Board(total, count)))
    more = evidence_file.of_run(profile, seeds, home, statements)
    together = evidence_file.joined(evidence_file.read(path), more) if path.is_file() else more
    evidence_file.write(together, path)
    print(f"{path}: seeds {', '.join(map(str, together.seeds))}, {path.stat().st_size / 1024:.0f} KiB")


def tell_answer(folder: Path = reference.FOLDER) -> None:
    """Judge the evidence; write verdicts.json, the figure, and (for the committed reference) README's answer."""
    found = reference.judge(folder)
    shown = answer.figure(found["statements"], found["metric"], found["machines"])
    files.write_bytes(folder / answer.FIGURE, figures.figure_svg(shown).encode())
    readme = files.CHECKOUT / "README.md"
    if folder == reference.FOLDER and readme.is_file():
        files.write_bytes(readme, answer.readme(readme.read_text(encoding="utf-8"), found).encode())
    print(answer.sentence(found))
    for claim, word, said in answer.by_claim(found):
        print(f"claim {claim.id} {word}: {said}")


JOBS = {"registration": register, "evidence": add_evidence, "condition": add_condition, "answer": tell_answer}


def listed(text: str) -> list[int]:
    """``5,6,7`` as distinct numbers. Raises ClipVipError for anything else."""
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise ClipVipError(
            f"expected whole numbers like 5,6,7, got {text!r}; separate them by commas"
        ) from None
    return outline.check_seeds(seeds)


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
