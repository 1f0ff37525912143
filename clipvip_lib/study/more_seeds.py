"""Some claims judged once more by other seeds, or on a GPU: just the arms that these claims compare are trained.

``make more-seeds SEEDS=5,6,7,8,9 CLAIMS=6,7,8,9`` trains what is missing and writes
``reports/reference/more-seeds.json``: the verdicts of these seeds alone, and together with those of the reference run
(evidence_file.py). With ``PROFILE=mini-gpu`` and the reference's own seeds it writes ``on-gpu.json``: the same draws on
another device, which are never joined with the first. The pages of the reference run end with what both say.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from clipvip_lib import claims, files
from clipvip_lib.errors import ClipVipError
from clipvip_lib.profiles import Profile
from clipvip_lib.study import evidence, evidence_file, experiments
from clipvip_lib.study.reference import FOLDER, ON_GPU, OTHER_SEEDS
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
    from clipvip_lib.study.machine import gpu_names
    from clipvip_lib.study.pipeline import only_run
    from clipvip_lib.study.plan import check_seeds, runnable_profile
    from clipvip_lib.study.provenance import provenance
    from clipvip_lib.study.publish import show_others
    from clipvip_lib.study.workers import raise_failures, run_stages

    profile, seeds_given = runnable_profile(name), check_seeds(listed(seeds))
    chosen = listed(numbers_of_claims)
    needed, home = stages(profile, seeds_given, chosen), files.home()
    with only_run(files.make_folder(home)):
        raise_failures(run_stages(needed, home, board=lambda total, count: Board(total, count)))
    found = evidence.evidence(profile, seeds_given, home)
    judged = {"claims": [claims.verdict(claims.claim(number), found, seeds_given) for number in chosen]}
    file, about = ON_GPU, {"gpus": gpu_names()}
    if profile.device == "cpu":
        more = evidence_file.Stored(
            seeds_given, repr(profile), found, evidence.gap_rows(profile, seeds_given, home)
        )
        all_seeds, together = evidence_file.joined(more, folder / evidence_file.NAME)
        judged["together"] = [claims.verdict(claims.claim(number), together, all_seeds) for number in chosen]
        file, about = OTHER_SEEDS, {"looks": _looks(folder, all_seeds, seeds_given)}
    rows = {
        name: [verdict.row() for verdict in verdicts if verdict.effect is not None]
        for name, verdicts in judged.items()
    }
    files.write_json(folder / file, {"from": provenance(name, seeds_given)} | about | rows)
    show_others(folder)
    for verdict in [*judged["claims"], *(v for v in judged.get("together", ()) if v.effect is not None)]:
        print(f"seeds {', '.join(map(str, verdict.seeds))}: {verdict}")
    return 0


def _looks(folder: Path, all_seeds: Sequence[int], others: Sequence[int]) -> list[int]:
    """The numbers of seeds together after which verdicts were seen, this time included: whoever stops when he likes
    what he sees must say how often he looked. A reference under a new recipe begins without the file."""
    path = folder / OTHER_SEEDS
    before = set(files.read_json(path)["looks"]) if path.is_file() else set()
    now = {len(all_seeds) - len(others), len(all_seeds)} if all_seeds else set()
    return sorted(before | now)


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except ClipVipError as error:
        sys.exit(f"more seeds: {error}")
