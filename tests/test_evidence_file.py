"""The evidence in git is what the reference's verdicts were judged on, and a file is whole or refused."""

import dataclasses
import json
import os
import re
import shutil

import numpy as np
import pytest

from clipvip_lib import files
from clipvip_lib.errors import ClipVipError
from clipvip_lib.profiles import get_profile
from clipvip_lib.statistics import claims
from clipvip_lib.statistics.claims import NMI, R1, RECALL, statement
from clipvip_lib.statistics.verdicts import NOT_RUN, verdicts
from clipvip_lib.study import evidence, experiments, jobs, outline
from clipvip_lib.study.evidence_file import KEPT, joined, of_run, read, registration, write

SMOKE, SEEDS = get_profile("smoke"), (3, 4)


@pytest.fixture
def stages_have_run(monkeypatch):
    """As if all stages had run for any seeds; the hits of R@1, R@5 and R@10 differ."""
    measures = {m for c in claims.CONTRASTS if claims.metric_of(c) != NMI for m in (c.more, c.less)}
    gaps = [c for c in claims.CONTRASTS if claims.metric_of(c) == NMI]

    def hit_tables(profile, seeds, home=None, metric=RECALL):
        if metric == RECALL:
            return {
                m: np.mean([hit_tables(profile, seeds, home, k)[m] for k in KEPT], axis=0) for m in measures
            }
        chances = [
            np.random.default_rng([seed, i]).random(40) for seed in seeds for i in range(len(measures))
        ]
        tables = np.reshape(chances, (len(seeds), len(measures), 40)) < 0.2 + 0.05 * metric
        return {m: tables[:, i] * 1.0 for i, m in enumerate(sorted(measures))}

    def gap_rows(profile, seeds, home=None):
        draws = {seed: np.random.default_rng(seed).random(9) for seed in seeds}
        return {c: [{"value": 0.1 * seed, "draws": draws[seed], "texts": 50} for seed in seeds] for c in gaps}

    monkeypatch.setattr(evidence, "hit_tables", hit_tables)
    monkeypatch.setattr(evidence, "gap_rows", gap_rows)
    return measures


def test_what_is_read_is_what_the_stages_gave(stages_have_run, tmp_path):
    write(of_run(SMOKE, SEEDS), tmp_path / "e.npz")
    stored = read(tmp_path / "e.npz")
    assert (stored.seeds, stored.profile, stored.metric) == (SEEDS, repr(SMOKE), RECALL)
    assert (
        stored.runs[0]["seeds"] == list(SEEDS) and {"commit", "machine", "precision"} <= stored.runs[0].keys()
    )
    direct = verdicts(evidence.evidence(SMOKE, SEEDS), SEEDS)
    for ours, theirs in zip(verdicts(stored.found(), SEEDS), direct, strict=True):
        assert ours.verdict == theirs.verdict != NOT_RUN
        # hits are kept in half precision: a third of a hit is off by 1e-4
        assert [ours.effect, ours.low, ours.high] == pytest.approx(
            [theirs.effect, theirs.low, theirs.high], abs=2e-2
        )


def test_it_can_be_judged_in_r1_too(stages_have_run):
    first = statement("6").contrasts[0]
    stored = of_run(SMOKE, SEEDS)
    alone = 100 * (stored.hits[1][first.more] - stored.hits[1][first.less])
    assert stored.found(R1)[first] == pytest.approx(alone)
    assert stored.found()[first] != pytest.approx(alone)
    old = dataclasses.replace(stored, hits={1: stored.hits[1]})
    assert old.metric == R1 and old.found()[first] == pytest.approx(alone)


def test_further_seeds_are_joined_but_never_twice_or_of_another_study(stages_have_run, tmp_path):
    few, more = of_run(SMOKE, SEEDS), of_run(SMOKE, [5])
    both = joined(few, more)
    whole = of_run(SMOKE, [*SEEDS, 5])
    assert both.seeds == (3, 4, 5) and len(both.runs) == 2
    assert [v.row() for v in verdicts(both.found(), both.seeds)] == [
        v.row() for v in verdicts(whole.found(), whole.seeds)
    ]
    with pytest.raises(ClipVipError, match=r"seeds \[4\] are in the evidence already.*choose other seeds"):
        joined(few, of_run(SMOKE, [4, 5]))
    with pytest.raises(ClipVipError, match="another profile"):
        joined(few, of_run(get_profile("mini"), [5]))


def test_evidence_of_other_versions_arms_or_places_is_not_joined_and_no_seed_is_left_out(stages_have_run):
    few, more = of_run(SMOKE, SEEDS), of_run(SMOKE, [5])
    assert more.runs[0]["stages"]["finetune"] >= 1 and more.runs[0]["registration"] == registration()
    other = dataclasses.replace(more, runs=(more.runs[0] | {"stages": {"finetune": 99}},))
    with pytest.raises(ClipVipError, match="other versions of the stages"):
        joined(few, other)
    unregistered = dataclasses.replace(more, runs=(more.runs[0] | {"registration": "another"},))
    with pytest.raises(ClipVipError, match="another registration"):
        joined(few, unregistered)
    with pytest.raises(ClipVipError, match="lacks R@10 of .* the same arms in both"):
        joined(dataclasses.replace(few, hits={1: few.hits[1]}), more)
    with pytest.raises(ClipVipError, match=r"seeds \[3, 4, 6\] leave some out"):
        joined(few, of_run(SMOKE, [6]))


def test_half_a_run_is_refused(stages_have_run):
    stages_have_run.remove(next(m for m in stages_have_run if m.arm == "full"))
    with pytest.raises(ClipVipError, match=r"no evidence for proxy-4 over full.*clipvip reproduce"):
        of_run(SMOKE, SEEDS)


@pytest.mark.thorough
def test_the_job_runs_what_the_statements_need_and_nothing_else(smoke, tmp_path, monkeypatch, capsys):
    """On the smoke run's stages, of which it must take just those, and train what is missing."""
    shutil.copytree(smoke.home / "stages", tmp_path / "home/stages", copy_function=os.link)
    monkeypatch.setenv("CLIPVIP_HOME", str(tmp_path / "home"))
    profile = outline.runnable_profile("smoke")
    lost = experiments.finetuned(profile, experiments.METHOD, "didemo", 0).folder(tmp_path / "home")
    before = json.loads((lost / "result.json").read_text())["result"]
    shutil.rmtree(lost)
    spare = experiments.finetuned(profile, experiments.Arm("sequential"), "didemo", 0).folder(
        tmp_path / "home"
    )
    shutil.rmtree(spare)
    jobs.add_evidence("smoke", "0", folder=tmp_path)
    after = json.loads((lost / "result.json").read_text())["result"]
    assert after["metrics"] == before["metrics"] and not spare.exists()
    stored = read(tmp_path / "evidence.npz")
    assert stored.seeds == (0,) and set(stored.hits[1]) == set(claims.MEASURES)
    capsys.readouterr()


def test_no_seed_is_added_to_the_registered_run():
    with pytest.raises(ClipVipError, match=r"seeds \[16\] are not registered: expected some of 0 to 15"):
        jobs.add_evidence("mini", "15,16")


def test_the_job_adds_seeds_and_judges_again(stages_have_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jobs, "run_stages", lambda *stages, **options: {})  # as if all had run
    monkeypatch.setenv("CLIPVIP_HOME", str(tmp_path / "home"))
    readme = (files.CHECKOUT / "README.md").read_bytes()
    for seeds in ("0,1", "2"):
        jobs.add_evidence("smoke", seeds, folder=tmp_path)
    assert read(tmp_path / "evidence.npz").seeds == (0, 1, 2)
    found = files.read_json(tmp_path / "verdicts.json")
    assert found["seeds"] == [0, 1, 2] and len(found["statements"]) == len(claims.STATEMENTS)
    assert "<svg" in (tmp_path / "answer.svg").read_text()
    assert "of the paper's 11 claims" in capsys.readouterr().out
    with pytest.raises(ClipVipError, match="in the evidence already"):
        jobs.add_evidence("smoke", "1", folder=tmp_path)
    with pytest.raises(ClipVipError, match="separate them by commas"):
        jobs.add_evidence("smoke", "one", folder=tmp_path)
    with pytest.raises(ClipVipError, match="distinct"):
        jobs.add_evidence("smoke", "3,3", folder=tmp_path)
    stored = read(tmp_path / "evidence.npz")
    write(dataclasses.replace(stored, hits={1: stored.hits[1]}), tmp_path / "evidence-on-gpu.npz")
    with pytest.raises(ClipVipError, match=r"no R@5, R@10: expected the hits behind 'average recall'"):
        jobs.tell_answer(tmp_path)  # a condition of R@1 alone
    assert (
        files.CHECKOUT / "README.md"
    ).read_bytes() == readme  # the project's own is told of its own reference only


def test_no_job_or_another_is_a_sentence():
    for given in ([], ["train"]):
        with pytest.raises(ClipVipError, match="job"):
            jobs.main(*given)


def test_what_the_pages_readme_says_can_be_run(capsys):
    readme = (files.CHECKOUT / "reports" / "README.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    exec(block, {})
    assert len(capsys.readouterr().out.splitlines()) == len(claims.STATEMENTS)


def _arrays(path, **changes):
    np.savez(path, **{"seeds": np.array([0]), "profile": np.array("p"), "runs": np.array("[]"), **changes})


JUNK = {
    "junk": lambda p: p.write_bytes(b"junk" * 99),
    "empty": lambda p: p.write_bytes(b""),
    "an archive cut": lambda p: (_arrays(p), p.write_bytes(p.read_bytes()[:-40])),
    "a turned byte": lambda p: (_arrays(p), p.write_bytes(p.read_bytes().replace(b"NUMPY", b"NUMPX"))),
    "not an archive": lambda p: p.write_bytes(b"{}"),
    "no seeds": lambda p: np.savez(p, profile=np.array("p"), runs=np.array("[]")),
    "a name with too few parts": lambda p: _arrays(p, **{"hits@1/arm": np.zeros((1, 2))}),
    "texts for numbers": lambda p: _arrays(p, **{"hits@1/arm/msrvtt/simple": np.array([["a"]])}),
    "pickled objects": lambda p: _arrays(p, **{"hits@1/arm/msrvtt/simple": np.array([{}])}),
}


@pytest.mark.bad_input("evidence: junk, empty, cut, pickled objects or wrong arrays", says="`write it again`")
@pytest.mark.parametrize("name", JUNK)
def test_evidence_of_junk_is_a_sentence(tmp_path, name):
    path = tmp_path / "e.npz"
    JUNK[name](path)
    with pytest.raises(ClipVipError, match=r"e\.npz .*write it again") as caught:
        read(path)
    assert "\n" not in str(caught.value)
