"""The evidence in git is what the reference's verdicts were judged on, and a file is whole or refused."""

import re

import numpy as np
import pytest

from clipvip_lib import files
from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import read_json
from clipvip_lib.profiles import get_profile
from clipvip_lib.statistics import claims
from clipvip_lib.study import evidence, evidence_file
from clipvip_lib.study.reference import CLAIMS, FOLDER, ON_GPU, OTHER_SEEDS

SMOKE, SEEDS = get_profile("smoke"), [3, 4]


def require_verdicts(rows, found, seeds):
    for row, verdict in zip(rows, claims.verdicts(found, seeds), strict=True):
        again = verdict.row()
        numbers = [again.pop(name) for name in ("effect", "low", "high")]
        # hits are kept in half precision: a third of a hit, three videos level, is off by 1e-4
        assert numbers == pytest.approx([row.pop(name) for name in ("effect", "low", "high")], abs=2e-3)
        assert again == row


def test_the_verdicts_of_the_reference_follow_from_its_file():
    seeds, _, found, _ = evidence_file.read()
    require_verdicts(read_json(FOLDER / CLAIMS), found, seeds)


def test_the_verdicts_of_other_seeds_and_of_all_follow_from_both_files():
    judged, more = read_json(FOLDER / OTHER_SEEDS), evidence_file.read(FOLDER / evidence_file.OF_OTHER_SEEDS)
    require_verdicts(judged["claims"], more.found, more.seeds)
    seeds, both = evidence_file.joined(more)
    require_verdicts(judged["together"], both, seeds)


def test_the_verdicts_on_a_gpu_follow_from_its_file():
    seeds, profile, found, _ = evidence_file.read(FOLDER / evidence_file.OF_A_GPU)
    require_verdicts(read_json(FOLDER / ON_GPU)["claims"], found, seeds)
    assert (seeds, profile) == evidence_file.read()[:2]  # the same study, the same seeds


@pytest.fixture
def stages_have_run(monkeypatch):
    rng = np.random.default_rng(0)
    contrasts = [c for claim in claims.CLAIMS for c in claim.contrasts]
    measures = {m for c in contrasts if c.metric == "R@1" for _, m in c.terms}
    hits = {m: (rng.random((2, 40)) < 0.5) * 1.0 for m in sorted(measures)}
    rows = {
        c: [{"value": rng.random(), "draws": list(rng.random(9)), "texts": 50 + seed} for seed in SEEDS]
        for c in contrasts
        if c.metric == "NMI"
    }
    monkeypatch.setattr(evidence, "hit_tables", lambda *which: dict(hits))
    monkeypatch.setattr(evidence, "gap_rows", lambda *which: dict(rows))
    return hits


def test_what_is_read_is_what_the_stages_gave(stages_have_run, tmp_path):
    assert evidence_file.write(SMOKE, SEEDS, tmp_path / "e.npz") > 50
    seeds, profile, found, _ = evidence_file.read(tmp_path / "e.npz")
    assert seeds == SEEDS and profile == repr(SMOKE)
    direct = claims.verdicts(evidence.evidence(SMOKE, SEEDS), SEEDS)
    for ours, theirs in zip(claims.verdicts(found, seeds), direct, strict=True):
        assert ours.verdict == theirs.verdict != "not run"
        assert ours.effect == pytest.approx(theirs.effect, abs=1e-6)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-5)


def test_further_seeds_are_joined_but_never_twice_or_of_another_study(stages_have_run, tmp_path):
    path = tmp_path / "e.npz"
    evidence_file.write(SMOKE, SEEDS, path)
    contrast, gap = claims.claim(6).contrasts[0], claims.claim(5).contrasts[0]
    rows = [{"value": 3.0, "draws": [2.0] * 9, "texts": 40}]
    further = {contrast: np.full((1, 40), 10.0), gap: evidence.pooled(rows)}, {gap: rows}

    def joined(profile, seeds, path):
        return evidence_file.joined(evidence_file.Stored(seeds, repr(profile), *further), path)

    seeds, found = joined(SMOKE, [9], path)
    assert seeds == [3, 4, 9] and list(found) == [contrast, gap] and found[contrast].shape == (3, 40)
    assert (found[contrast][2] == 10).all()
    stored = evidence_file.read(path)
    assert found[contrast][:2] == pytest.approx(stored.found[contrast])
    assert found[gap].seeds == 3 and found[gap].queries == 40
    assert found[gap].effect == pytest.approx((2 * stored.found[gap].effect + 3.0) / 3)
    with pytest.raises(ClipVipError, match=r"seeds \[4\] are in .* choose other seeds"):
        joined(SMOKE, [4, 5], path)
    assert joined(get_profile("mini"), [9], path) == ([], {})
    assert joined(SMOKE, [9], tmp_path / "none") == ([], {})


def test_half_a_run_leaves_no_file(stages_have_run, tmp_path):
    stages_have_run.pop(next(m for m in stages_have_run if m.arm == "full"))
    with pytest.raises(ClipVipError, match=r"no evidence for proxy-4 over full.*clipvip reproduce"):
        evidence_file.write(SMOKE, SEEDS, tmp_path / "e.npz")
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_one_sentence(tmp_path):
    for name, content in (("absent", None), ("text", b"no file of numpy"), ("empty", b"")):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ClipVipError, match="expected a file of `make evidence`"):
            evidence_file.read(tmp_path / name)


def test_what_the_pages_readme_says_can_be_run(capsys):
    readme = (files.CHECKOUT / "reports" / "README.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    exec(block, {})
    assert capsys.readouterr().out.count("claim ") >= len(claims.CLAIMS)


def _arrays(path, **changes):
    np.savez(path, **{"seeds": np.array([0]), "profile": np.array("p"), **changes})


JUNK = {
    "junk": lambda p: p.write_bytes(b"junk" * 99),
    "empty": lambda p: p.write_bytes(b""),
    "an archive cut": lambda p: (_arrays(p), p.write_bytes(p.read_bytes()[:-40])),
    "a turned byte": lambda p: (_arrays(p), p.write_bytes(p.read_bytes().replace(b"NUMPY", b"NUMPX"))),
    "not an archive": lambda p: p.write_bytes((FOLDER / CLAIMS).read_bytes()),
    "no seeds": lambda p: np.savez(p, profile=np.array("p")),
    "a name with too few parts": lambda p: _arrays(p, **{"hits/arm": np.zeros((1, 2))}),
    "texts for numbers": lambda p: _arrays(p, **{"hits/arm/msrvtt/simple": np.array([["a"]])}),
    "pickled objects": lambda p: _arrays(p, **{"hits/arm/msrvtt/simple": np.array([{}])}),
}


@pytest.mark.parametrize("name", JUNK)
def test_evidence_of_junk_is_a_sentence(tmp_path, name):
    path = tmp_path / "e.npz"
    JUNK[name](path)
    with pytest.raises(ClipVipError, match=r"e\.npz .*write it again") as caught:
        evidence_file.read(path)
    assert "\n" not in str(caught.value)
