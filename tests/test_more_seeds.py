"""Further seeds train just what some claims compare."""

import dataclasses

import numpy as np
import pytest

from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import read_json, write_json
from clipvip_lib.profiles import get_profile
from clipvip_lib.statistics import claims
from clipvip_lib.study import evidence, jobs, more_seeds, reference
from clipvip_lib.workshop.stages import closure

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


def test_it_judges_its_claims_and_shows_them_in_the_reference(tmp_path, monkeypatch):
    """Nothing is trained here: evidence on which claim 6 holds, and pages of a reference run that is there."""
    monkeypatch.setattr(jobs, "run_stages", lambda *stages, **options: {})
    table = 30.0 + 100.0 * (np.random.default_rng(0).random((2, 60)) < 0.5)
    found = dict.fromkeys(claims.claim(6).contrasts, table)
    monkeypatch.setattr(evidence, "evidence", lambda *which: found)
    six = claims.verdict(claims.claim(6), found, [0, 1]).row()
    for name, rows in (("04_video_proxy", [six]), ("07_cost", [])):
        results = {"numbers": {"claims": rows}, "profile": "smoke", "beside": {}}
        write_json(tmp_path / "results" / f"{name}.json", results)
        (tmp_path / f"{name}.html").write_text("before<!--reference--><!--/reference-->after")
    assert reference.others(tmp_path) == {}
    stored = {
        "seeds": np.array([0, 1]),
        "profile": np.array(repr(SMOKE)),
        **{
            f"hits/{arm}/{benchmark}/simple": np.full((2, 60), hit)
            for arm, hit in (("proxy-4", 1.0), ("full", 0.5))
            for benchmark in claims.BENCHMARKS
        },
    }
    np.savez(tmp_path / "evidence.npz", **stored)
    for _ in range(2):  # a second time in the same place
        jobs.judge_more_seeds("smoke", "5,6", "6,7", tmp_path)
    written = read_json(tmp_path / "more-seeds.json")
    judged = [(row["id"], row["verdict"], row["seeds"]) for row in written["claims"]]
    assert judged == [(6, "reproduced", [5, 6])]  # of claim 7 nothing ran
    [both] = written["together"]
    assert both["seeds"] == [0, 1, 5, 6] and both["effect"] == pytest.approx((50 + table.mean()) / 2)
    assert written["from"]["seeds"] == [5, 6] and written["from"]["profile"] == "smoke"
    [row] = read_json(tmp_path / "results/04_video_proxy.json")["beside"]["other seeds"]
    others = {"reference": written["claims"][0], "together": both}
    assert row == {"claim": 6, "here": six, "agree": "agree"} | others
    page = (tmp_path / "04_video_proxy.html").read_text()
    assert written["looks"] == [2, 4]  # once at the reference, once at all four seeds, and the same again
    shown = reference.section([row], "other seeds", reference.others(tmp_path)["other seeds"])
    assert page == f"before<!--reference-->{shown}<!--/reference-->after" and "Beside other seeds" in page
    assert "0, 1, 5, 6" in page
    assert (
        "All seeds together: reproduced 6. They were looked at after 2 and 4 seeds, and seeds were added"
        in page
    )
    assert (tmp_path / "07_cost.html").read_text() == "before<!--reference--><!--/reference-->after"

    # The reference's own seeds on a GPU: apart from the others, never joined with the same draws on the CPU.
    cuda = dataclasses.replace(SMOKE, device="cuda")
    monkeypatch.setattr("clipvip_lib.study.plan.runnable_profile", lambda name: cuda)
    monkeypatch.setattr("clipvip_lib.workshop.machine.gpu_names", lambda: ("NVIDIA H200",))
    jobs.judge_more_seeds("smoke", "0,1", "6", tmp_path)
    on_gpu = read_json(tmp_path / "on-gpu.json")
    assert set(on_gpu) == {"from", "gpus", "claims"} and on_gpu["gpus"] == ["NVIDIA H200"]
    assert [r["seeds"] for r in on_gpu["claims"]] == [[0, 1]]
    assert read_json(tmp_path / "more-seeds.json") == written
    found = read_json(tmp_path / "results/04_video_proxy.json")["beside"]
    assert list(found) == ["other seeds", "the same seeds on a GPU"] and found["other seeds"] == [row]
    page = (tmp_path / "04_video_proxy.html").read_text()
    title = "the same seeds on a GPU"
    gpu = reference.section(found[title], title, reference.others(tmp_path)[title])
    assert "Made on NVIDIA H200, " in gpu and "; torch " in gpu and "Made on NVIDIA" not in shown
    assert page == f"before<!--reference-->{shown}{gpu}<!--/reference-->after"
    assert "Every verdict is that of the same seeds on a GPU." in gpu


def test_bad_input_is_named():
    with pytest.raises(ClipVipError, match="11"):
        more_seeds.stages(SMOKE, [0], [11])
    with pytest.raises(ClipVipError, match="whole numbers like 5,6,7, got 'five'"):
        jobs.judge_more_seeds("smoke", "five", "6")
    with pytest.raises(ClipVipError, match="distinct"):
        jobs.judge_more_seeds("smoke", "5,5", "6")
