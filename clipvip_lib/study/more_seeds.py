"""Judges some claims again with other seeds, or on a GPU. Only the arms that these claims compare are trained.

``make more-seeds SEEDS=5,6,7,8,9 CLAIMS=6,7,8,9`` trains what is missing and writes
``reports/reference/more-seeds.json``: the verdicts of these seeds alone, and together with those of the reference run
(evidence_file.py). With ``PROFILE=mini-gpu`` and the reference's own seeds it writes ``on-gpu.json``: the same draws on
another device, which are never joined with the first. The pages of the reference run end with what both say.
"""

from __future__ import annotations

from collections.abc import Sequence

from clipvip_lib.profiles import Profile
from clipvip_lib.statistics import claims
from clipvip_lib.study import evidence, experiments
from clipvip_lib.workshop.stages import Stage


def stages(profile: Profile, seeds: Sequence[int], numbers_of_claims: Sequence[int]) -> list[Stage]:
    """The scored stages behind every contrast of the claims, each once, a whole seed after the other.

    Raises ClipVipError for a number that is not a claim's.
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
