"""Some claims judged once more by other seeds: just the arms that these claims compare are trained.

``make more-seeds SEEDS=5,6,7,8,9 CLAIMS=6,7,8,9`` trains what is missing and writes
``reports/reference/more-seeds.json``; the pages of the reference run end with what it says of their claims.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from clipvip_lib import claims, files
from clipvip_lib.errors import ClipVipError
from clipvip_lib.profiles import Profile, get_profile
from clipvip_lib.study import evidence, experiments
from clipvip_lib.study.reference import FOLDER, OTHER_SEEDS
from clipvip_lib.study.stages import Stage


def stages(profile: Profile, seeds: Sequence[int], numbers_of_claims: Sequence[int]) -> list[Stage]:
    """The scored stages behind every contrast of the claims, each once, a whole seed after the other.

    Raises ClipVipError for a number of no claim.
    """
    chosen = [claims.claim(number) for number in numbers_of_claims]
    measures = {m: None for claim in chosen for contrast in claim.contrasts for _, m in contrast.terms}
    found: dict[str, Stage] = {}
    for seed in seeds:
        for measure in measures:
            if measure.metric == "NMI":
                made = [experiments.language_gap(profile, seed)]
            else:
                made = evidence.stages_of(profile, measure.arm, measure.benchmark, [seed])
            found |= {stage.name: stage for stage in made}
    return list(found.values())


def listed(text: str) -> list[int]:
    """``5,6,7`` as numbers. Raises ClipVipError for anything else."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ClipVipError(
            f"expected whole numbers like 5,6,7, got {text!r}; separate them by commas"
        ) from None


def main(name: str, seeds: str, numbers_of_claims: str, folder: Path = FOLDER) -> int:
    """Run what is missing, judge, write, and show it in the reference's pages. Returns the exit code."""
    from clipvip_lib.study.board import Board
    from clipvip_lib.study.pipeline import only_run
    from clipvip_lib.study.plan import check_seeds
    from clipvip_lib.study.provenance import provenance
    from clipvip_lib.study.publish import show_other_seeds
    from clipvip_lib.study.workers import raise_failures, run_stages

    profile, seeds_given, chosen = get_profile(name), check_seeds(listed(seeds)), listed(numbers_of_claims)
    needed, home = stages(profile, seeds_given, chosen), files.home()
    with only_run(files.make_folder(home)):
        raise_failures(run_stages(needed, home, board=lambda total, count: Board(total, count)))
    verdicts = [v for v in evidence.verdicts(profile, seeds_given, home=home) if v.id in chosen]
    rows = [verdict.row() for verdict in verdicts]
    files.write_json(folder / OTHER_SEEDS, {"from": provenance(name, seeds_given), "claims": rows})
    show_other_seeds(folder)
    for verdict in verdicts:
        print(verdict)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except ClipVipError as error:
        sys.exit(f"more seeds: {error}")
