"""A run beside the reference: what the reference expects of a seed, in words, in results and on the page alike."""

import io
import json
import re
import zlib

import numpy as np
import pytest
import small_study

from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import write_json
from clipvip_lib.profiles import PROFILES, get_profile
from clipvip_lib.statistics.claims import CONTRASTS, NMI, R1, STATEMENTS, measures, metric_of, statement
from clipvip_lib.statistics.intervals import from_interval, paired_difference, pool_draws, prediction_interval
from clipvip_lib.statistics.verdicts import CONTRADICTED, OPEN, verdict, verdicts
from clipvip_lib.study import answer, evidence_file, reference
from clipvip_lib.study.pipeline import reproduce

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def tables(effect: float, seeds: int, first: int = 0) -> np.ndarray:
    """Values [seeds, 60]; each seed's number decides its row."""
    return np.stack([np.random.default_rng(first + seed).normal(effect, 6, 60) for seed in range(seeds)])


def rows(name: str, effect: float, seeds: int, first: int = 0) -> list[dict]:
    made = statement(name)
    found = {c: tables(effect, seeds, first) for c in made.contrasts}
    return [verdict(made, found, range(first, first + seeds)).row()]


def of(there: list[dict], seeds: int = 5, **more) -> dict:
    return {
        "statements": there, "seeds": list(range(seeds)), "metric": "average recall", "registered": False,
        "profile": repr(get_profile("mini")), "machines": {},
    } | more  # fmt: skip


def test_an_effect_is_inside_where_the_reference_expects_that_of_a_seed():
    there = rows("6", 5.0, 5)
    low, high = prediction_interval(there[0]["contrasts"][0]["by_seed"])
    for effect, inside in ((5.0, True), (40.0, False)):
        found = reference.beside(rows("6", effect, 1, first=7), of(there))
        check = found["checks"][0]
        assert (check["low"], check["high"]) == pytest.approx((low, high)) and check["inside"] == inside
        assert check["same"] is None and found["statements"] == there
    words = reference.checks_in_words(found["checks"], [7])
    assert words.startswith("Of this run's effects 0 of 2 lie where the reference expects those of one seed")
    assert "outside: proxy-4 over full, msrvtt; proxy-4 over full, didemo." in words


def test_a_seed_that_both_have_gives_the_same_numbers_or_not():
    there = rows("6", 5.0, 5)
    same = reference.checked(rows("6", 5.0, 1), there, range(5))
    assert [row["same"] for row in same] == [True, True]
    assert reference.checks_in_words(same, [0]).endswith("Seeds that both have gave the same numbers.")
    other = reference.checked(rows("6", 5.1, 1), there, range(5))
    assert [row["same"] for row in other] == [False, False]
    assert "Seeds that both have gave other numbers: other processors" in reference.checks_in_words(
        other, [0]
    )


def test_a_seed_does_not_foretell_itself():
    """Seed 0 is far from the others: it counts as outside of them, although the reference holds it too."""
    there = rows("6", 5.0, 8)
    for contrast in there[0]["contrasts"]:
        contrast["by_seed"] = (90.0, *contrast["by_seed"][1:])
    here = rows("6", 5.0, 1)
    for contrast in here[0]["contrasts"]:
        contrast["effect"], contrast["by_seed"] = 90.0, (90.0,)
    found = reference.checked(here, there, range(8))
    assert [(row["inside"], row["same"]) for row in found] == [(False, True)] * 2
    assert reference.checked(here, rows("6", 5.0, 2), range(2)) == []  # one other seed expects nothing


@pytest.mark.parametrize("text", ("", "{", "[]", '{"statements": []}'))
def test_damaged_verdicts_are_a_sentence(tmp_path, text):
    (tmp_path / "verdicts.json").write_text(text)
    with pytest.raises(ClipVipError, match=r"verdicts\.json.*write"):
        reference.read(tmp_path)


def test_an_exploratory_reference_in_r1_is_compared_with_the_runs_r1():
    made = statement("6")
    recall, r1 = ({c: tables(effect, 1) for c in made.contrasts} for effect in (9.0, 5.0))
    own = [verdict(made, recall, [7], r1).row()]
    there = [row | {"metric": R1} for row in rows("6", 5.0, 5)]
    check = reference.beside(own, of(there))["checks"][0]
    assert check["here"] == pytest.approx(r1[made.contrasts[0]].mean()) and check["inside"]


def test_registered_is_what_was_written_under_the_registration_in_force(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence_file, "REGISTRATION", tmp_path / "registration.json")
    six = statement("6").contrasts[0]
    hits = {1: {m: np.eye(3) for m in (six.more, six.less)}}

    def registered(**run) -> bool:
        evidence_file.write(
            evidence_file.Stored((0, 1, 2), "sizes", (run,), hits, {}), tmp_path / "evidence.npz"
        )
        return reference.judge(tmp_path)["registered"]

    assert not registered() and not registered(registration="")
    for seeds, right in (([0, 1, 2], True), ([0, 1, 2, 3], False)):  # one is missing
        (tmp_path / "registration.json").write_text(json.dumps({"seeds": seeds}))
        assert not registered() and not registered(registration="of another file")
        assert registered(registration=evidence_file.registration()) == right


def test_a_card_says_what_the_reference_says():
    found = reference.beside(rows("6", 5.0, 1), of(rows("6", 5.0, 5) + rows("7a", 5.0, 5)))
    assert reference.sums(found) == [("Video proxies beat full attention.", "holds", "Claim 6 holds")]
    assert reference.sums({}) == []


def test_other_metrics_and_claims_are_not_compared():
    there = rows("6", 5.0, 5) + rows("7a", 5.0, 5)
    found = reference.beside(rows("6", 5.0, 1), of(there))
    assert [row["id"] for row in found["statements"]] == ["6"]
    exploratory = [row | {"metric": R1} for row in there]
    found = reference.beside(rows("6", 5.0, 1), of(exploratory))
    assert found["checks"] == [] and "cannot be checked" in reference.checks_in_words([], [0])
    assert reference.beside([], of(there)) == reference.beside(rows("6", 5.0, 1), None) == {}


def test_a_reference_of_an_earlier_recipe_leads_and_checks_nothing():
    there = of(rows("6", 5.0, 5), profile=repr(get_profile("mini", **{"finetune.lr": 5e-4})))
    assert reference.of_the_same_study(there, "mini") is there
    found = reference.beside(rows("6", 5.0, 1, first=7), there)
    assert [row["id"] for row in found["statements"]] == ["6"] and found["checks"] == []
    assert "by an earlier recipe" in reference.basis(there) and "earlier" not in reference.basis(of([]))
    assert "by the same recipe" in reference.checks_in_words(found["checks"], [7])


@pytest.mark.parametrize(
    ("profile", "same"), (("mini", True), ("mini-gpu", True), ("smoke", False), ("own", False))
)
def test_only_a_run_of_the_same_sizes_is_of_the_same_study(profile, same):
    there = of([])
    assert (reference.of_the_same_study(there, profile) is there) == same
    assert reference.of_the_same_study(there | {"profile": repr(PROFILES["smoke"])}, "mini") is None
    assert reference.of_the_same_study(None, profile) is None


def test_the_evidence_of_a_folder_is_judged(tmp_path):
    hits = {m: tables(0.4, 3) > 0.4 for c in CONTRASTS if metric_of(c) != NMI for m in (c.more, c.less)}
    hits = {measure: table * 1.0 for measure, table in hits.items()}
    gaps = {
        c: [{"value": 0.2 + seed / 100, "draws": [0.1, 0.2, 0.3], "texts": 50} for seed in range(3)]
        for c in CONTRASTS
        if metric_of(c) == NMI
    }
    stored = evidence_file.Stored((0, 1, 2), "sizes", ({"commit": "abc"},), {1: hits}, gaps)
    evidence_file.write(stored, tmp_path / "evidence.npz")
    evidence_file.write(stored, tmp_path / "evidence-on-gpu.npz")
    kept = evidence_file.read(tmp_path / "evidence.npz")
    assert reference.read(tmp_path) is None
    found = reference.judge(tmp_path)
    assert (
        found == reference.read(tmp_path) and found["metric"] == R1 and found["runs"] == [{"commit": "abc"}]
    )
    again = [v.row() for v in verdicts(kept.found(), (0, 1, 2))]
    assert {row["metric"] for row in found["statements"]} == {
        R1,
        NMI,
    }  # not what they would be judged in at best
    for row, other in zip(found["statements"], json.loads(json.dumps(again)), strict=True):
        assert ("to_decide" in row) == (row["verdict"] == OPEN)
        row.pop("to_decide", None)
        assert row == other | {"metric": row["metric"]}
    same = reference.read(tmp_path)
    assert list(same["machines"]) == ["on gpu"] and same["machines"]["on gpu"] == same["statements"]
    assert found["registered"] is False  # the run names no registration
    assert {(row["effect"], row["low"], row["high"]) for row in found["apart"]["on gpu"]} == {(0.0, 0.0, 0.0)}


def kept(seeds, more: float = 0.0, profile: str = "Profile(name='mini', steps=3)") -> evidence_file.Stored:
    """Evidence in which each seed has hits of its own; ``more`` is added to what proxies find."""
    hits = {}
    for measure in measures(STATEMENTS):
        draws = [
            np.random.default_rng((seed, zlib.crc32(repr(measure).encode()))).random(40) for seed in seeds
        ]
        hits[measure] = np.stack(draws) + (more if measure.arm == "proxy-4" else 0.0)
    return evidence_file.Stored(tuple(seeds), profile, (), {1: hits}, {})


def test_seeds_that_two_machines_share_are_compared_and_no_others():
    here = kept(range(4))
    found = reference.apart(here, kept((3, 9, 1), 0.02, "Profile(name='mini-gpu', steps=3)"), R1)
    moved = {"proxy-4 over full, msrvtt", "proxy-4 over full, didemo"}
    assert moved < {row["contrast"] for row in found}
    for row in found:  # the same seed has the same hits, but for what was added
        if row["contrast"] in moved:
            assert (row["effect"], row["low"], row["high"]) == pytest.approx((2.0, 2.0, 2.0))
        assert row["low"] <= row["effect"] <= row["high"]
    level = sum(abs(row["effect"]) < 1e-9 for row in found)
    made = of(rows("6", 5.0, 3), machines={"on gpu": rows("6", 5.0, 3)})
    said = f"points on average; of {len(found)} differences {level} have a 95 % interval that includes zero"
    assert 0 < level < len(found) and said in answer.caption(made | {"apart": {"on gpu": found}})
    assert "seeds that both have" not in answer.caption(made)
    assert reference.apart(here, kept((7, 8)), R1) == []  # no seed of both
    assert reference.apart(here, kept((1,), profile="Profile(name='mini', steps=4)"), R1) == []


def test_the_answer_says_what_speaks_against_a_claim_that_holds():
    better, worse = (from_interval(e, e - 0.5, e + 0.5, seeds=5) for e in (3.0, -2.0))
    found = {c: better for name in ("1a", "1b", "11b", "11c") for c in statement(name).contrasts}
    found |= {c: worse for name in ("3a", "11a") for c in statement(name).contrasts}
    said = answer.sentence(of([v.row() for v in verdicts(found, range(5))]))
    assert "1 holds in part (claim 11 with 1 of its 3 statements contradicted)" in said
    assert said.endswith("so the fall of the small ones is not over-fitting alone.")
    found |= dict.fromkeys(statement("3a").contrasts, better)
    assert "Read claim 1" not in answer.sentence(of([v.row() for v in verdicts(found, range(5))]))


def test_statements_that_are_one_result_are_told():
    made = [*rows("8d", 2.0, 5), *rows("11b", 2.0, 5), *rows("6", 1.0, 5)]
    assert answer.sentence(of(made)).endswith(" 8d and 11b are one result, asked by two claims.")
    assert "one result" not in answer.sentence(of(made[:1]))


def test_the_answer_counts_claims_and_tells_what_holds():
    six, seven = statement("6"), [statement("7a"), statement("7b")]
    better, level, worse = (from_interval(e, e - 0.5, e + 0.5, seeds=5) for e in (3.0, 0.1, -2.0))
    found = dict.fromkeys(six.contrasts, better) | dict.fromkeys(seven[0].contrasts, level)
    found |= dict.fromkeys(seven[1].contrasts, worse)
    five = statement("5")
    found |= {c: pool_draws([0.3, 0.31, 0.32], np.full((3, 9), 0.3)) for c in five.contrasts}
    made = of([v.row() for v in verdicts(found, range(5))])
    first = answer.sentence(made)
    assert first.startswith(
        "In the reference run, of the paper's 11 claims 2 hold, 1 does not hold and 8 are not run; 4 of"
    )
    assert (
        "4 of their 23 statements are decided (5 seeds, in the average of R@1, R@5 and R@10; explora" in first
    )
    readme = answer.readme("# Title\n<!--answer-->old<!--/answer-->\nend\n", made)
    assert "->old" not in readme and first in readme and readme.endswith("<!--/answer-->\nend\n")
    assert [line.partition(":")[0] for line in readme.splitlines() if line.startswith("* ")][:4] == [
        "* Claim 5 **holds**",
        "* Claim 6 **holds**",
        "* Claim 7 **does not hold**",
        "* Claim 1 **not run**",
    ]
    assert ": Video proxies beat mean pooling, and several beat one (points: 7a +0.1, 7b −2.0).\n" in readme
    assert f"\n\n{answer.how_judged()}\n<!--/answer-->" in readme  # none is open
    told = [{"id": "6", "verdict": OPEN, "to_decide": "40 seeds"}, {"id": "7a", "verdict": CONTRADICTED}]
    assert answer.to_decide(told).endswith("as measured: 6 40 seeds.") and answer.to_decide(told[1:]) == ""
    lead = answer.lead(made)
    assert "7b contradicted, −2.0 pt from −2.5 to −1.5" in lead and lead.count("<li>") == 11
    said = '<li>Video proxies beat full attention (points: 6 +3.0) <span data-verdict="holds">claim 6 holds</span></li>'
    assert said in lead and lead.index('"holds"') < lead.index('"does not hold"') < lead.index('"not run"')
    assert answer.lead(None) == ""
    assert "do not compare" not in lead
    assert "their numbers do not compare with these" in answer.lead(made | {"metric": R1})
    there = [row | {"verdict": OPEN} if row["id"] in ("6", "7b") else row for row in made["statements"]]
    said = answer.caption(made | {"machines": {"on gpu": there}})
    assert " On gpu: the same study with 5 seeds; there 6, 7b are open; no verdict is reversed." in said
    turned = [row | {"verdict": CONTRADICTED} if row["id"] == "6" else row for row in made["statements"]]
    assert "5 seeds; there 6 is contradicted." in answer.caption(made | {"machines": {"on gpu": turned}})
    assert "5 seeds; all verdicts are the same." in answer.caption(
        made | {"machines": {"b": made["statements"]}}
    )


def test_both_benchmarks_are_told_where_their_verdicts_differ():
    six, ten = statement("6"), statement("10a")
    better, level = from_interval(5.8, 4.3, 7.4, seeds=5), from_interval(0.3, -1.2, 1.5, seeds=5)
    found = dict.fromkeys(six.contrasts, better) | dict(zip(ten.contrasts, (level, better), strict=True))
    made = of([v.row() for v in verdicts(found, range(5))])
    said = {claim.id: words for claim, _, words in answer.by_claim(made)}
    assert said[6].endswith("(points: 6 +5.8)")
    assert said[10].endswith("(points: 10a +0.3 on mini-MSRVTT and +5.8 on mini-DiDeMo)")


def test_the_figure_shows_the_papers_number_and_other_conditions():
    ten = statement("10a")
    found = dict.fromkeys(ten.contrasts, paired_difference(tables(5.0, 5)))
    row = verdict(ten, found).row()
    elsewhere = row | {"verdict": "open"}
    fig = answer.figure([row], machines={"on gpu": [elsewhere]})
    shown = [text.get_text() for text in fig.axes[0].texts]
    assert shown == ["reproduced", "+5.1", "verdict", "paper", "on gpu"]
    assert len(fig.axes[0].get_lines()) > len(answer.figure([row]).axes[0].get_lines())


RECORD = "study.results()\nstudy.record(headline='judged', claims={rows})"


def run(folder, out, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(small_study.__file__).rpartition("/")[0])
    notebooks = small_study.write_notebooks(folder / "notebooks")
    small_study.write_notebook(notebooks, "00_first", [RECORD.format(rows=rows("6", 5.0, 1))])
    options = {
        "only": ["00"],
        "outline": small_study.OUTLINE,
        "notebooks": notebooks,
        "home": folder / "home",
    }
    assert reproduce("quick", out=out, stream=io.StringIO(), **options) == 0
    page = (out / "00_first.html").read_text()
    return page, json.loads((out / "results" / "00_first.json").read_text()), (out / "index.html").read_text()


@pytest.mark.slow
def test_a_page_leads_with_the_reference_and_the_index_opens_with_the_answer(tmp_path, monkeypatch):
    there = of(rows("6", 5.0, 5))
    write_json(tmp_path / "reference" / "verdicts.json", there)
    monkeypatch.setattr(reference, "FOLDER", tmp_path / "reference")
    monkeypatch.setitem(PROFILES, "quick", get_profile("mini"))
    page, results, index = run(tmp_path, tmp_path / "out", monkeypatch)
    assert [check["same"] for check in results["beside"]["checks"]] == [True, True]
    before, section, after = re.split(r"<!--/?reference-->", page)
    assert "What the reference run found" in section and "Claim 6 holds" in re.sub(r"<[^>]+>", "", section)
    assert "<h1" in before and "judged" in after  # between the title and everything else
    assert "Video proxies beat full attention (points: 6 " in index
    monkeypatch.delitem(PROFILES, "quick")
    page, results, _ = run(tmp_path, tmp_path / "out", monkeypatch)  # another study: nothing to compare
    assert results["beside"] == {} and "What the reference run found" not in page
