"""Further seeds train just what some claims compare."""

import numpy as np
import pytest

from clipvip_lib import claims
from clipvip_lib.errors import ClipVipError
from clipvip_lib.profiles import get_profile
from clipvip_lib.study import evidence, more_seeds
from clipvip_lib.study.stages import closure

SMOKE = get_profile("smoke")


def test_the_arms_of_the_claims_and_no_others():
    found = more_seeds.stages(SMOKE, [5, 6], [6, 7])
    arms = {"proxy-4", "proxy-1", "full", "mean_pool"}
    assert {stage.name.split("/")[2] for stage in found} == arms
    assert len(found) == len(arms) * len(claims.BENCHMARKS) * 2
    assert {stage.name.split("/")[-1] for stage in found} == {"seed5", "seed6"}


def test_every_contrast_of_the_claims_has_its_evidence():
    for number in (4, 8, 10):
        names = {stage.name for stage in more_seeds.stages(SMOKE, [7], [number])}
        for contrast in claims.claim(number).contrasts:
            for _, measure in contrast.terms:
                if measure.metric == "NMI":
                    assert names == {"language-gap/seed7"}
                else:
                    [stage] = evidence.stages_of(SMOKE, measure.arm, measure.benchmark, [7])
                    assert stage.name in names


def test_they_are_the_stages_of_the_study():
    """The same keys: what ran here is found done by a run with these seeds, and the other way round."""
    from clipvip_lib.study.experiments import stages_for

    keys = {stage.name: stage.key for stage in closure(stages_for("08_verdict", SMOKE, [3]))}
    for stage in more_seeds.stages(SMOKE, [3], range(1, 11)):
        assert keys[stage.name] == stage.key


def test_it_judges_the_claims_that_were_asked_for_and_writes_them(tmp_path, monkeypatch):
    monkeypatch.setattr(more_seeds, "FILE", tmp_path / "more-seeds.json")
    monkeypatch.setattr("clipvip_lib.study.workers.run_stages", lambda *stages, **options: {})
    table = np.random.default_rng(0).random((2, 60)) < 0.5
    contrasts = claims.claim(6).contrasts
    monkeypatch.setattr(evidence, "evidence", lambda *which: dict.fromkeys(contrasts, 100.0 * table + 30))
    assert more_seeds.read(more_seeds.FILE) is None
    assert more_seeds.main("smoke", "5,6", "6,7") == 0
    written = more_seeds.read(more_seeds.FILE)
    assert [(row["id"], row["verdict"], row["seeds"]) for row in written["claims"]] == [
        (6, "reproduced", [5, 6]),
        (7, "not run", []),
    ]
    assert written["from"]["seeds"] == [5, 6] and written["from"]["profile"] == "smoke"


def test_bad_input_is_named():
    with pytest.raises(ClipVipError, match="11"):
        more_seeds.stages(SMOKE, [0], [11])
    with pytest.raises(ClipVipError, match="whole numbers like 5,6,7, got 'five'"):
        more_seeds.main("smoke", "five", "6")
    with pytest.raises(ClipVipError, match="distinct"):
        more_seeds.main("smoke", "5,5", "6")
