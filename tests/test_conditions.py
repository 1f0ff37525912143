"""Other conditions change one thing, are kept in files of their own, and are told beside the reference."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest

from clipvip_lib.errors import ClipVipError
from clipvip_lib.profiles import get_profile
from clipvip_lib.statistics.claims import measures
from clipvip_lib.study import conditions, evidence, evidence_file, jobs, outline, robustness
from clipvip_lib.study.conditions import CONDITIONS, HEADLINES

MINI = get_profile("mini")


def leaves(part: object, path: str = "") -> dict[str, object]:
    if not dataclasses.is_dataclass(part):
        return {path: part}
    found: dict[str, object] = {}
    for field in dataclasses.fields(part):
        found |= leaves(getattr(part, field.name), f"{path}.{field.name}".lstrip("."))
    return found


CHANGED = {
    "world-2": "seed", "no-order": "tells_order", "spoken-as-written": "spoken_as_written",
    "spoken-apart": "spoken_as_written", "no-siblings": "group", "frozen-text": "frozen_text",
    "rewritten": "rewritten", "patches-dropped": "patch_drop",
}  # fmt: skip


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_changes_one_thing(name):
    before, after = leaves(MINI), leaves(CONDITIONS[name].change(MINI))
    changed = {path.rpartition(".")[2] for path in before if before[path] != after[path]}
    assert changed == {CHANGED.get(name, "steps")}


def test_doses_are_of_the_studys_amount():
    amounts = [c.change(MINI).finetune.steps for c in CONDITIONS.values() if c.kind == conditions.TUNING]
    assert amounts == [0, 90, 1080]
    amounts = [c.change(MINI).postpretrain.steps for c in CONDITIONS.values() if c.kind == conditions.POST]
    assert amounts == [167, 1500]


def test_headlines_need_a_part_of_the_stages():
    some, every = (
        {stage.name for stage in evidence.needed(MINI, [0], *which)} for which in ((HEADLINES,), ())
    )
    assert some < every and not any(name.startswith("language-gap") for name in some)


@pytest.mark.thorough
def test_a_condition_is_trained_kept_and_told(smoke, tmp_path, monkeypatch, capsys):
    """Without fine-tuning, on the smoke run's stages: models are scored as they are after post-pretraining."""
    shutil.copytree(smoke.home / "stages", tmp_path / "home/stages", copy_function=os.link)
    monkeypatch.setenv("CLIPVIP_HOME", str(tmp_path / "home"))
    jobs.add_condition("smoke", "fine-tuning-none", "0", folder=tmp_path)
    stored = evidence_file.read(tmp_path / "conditions/fine-tuning-none.npz")
    assert set(stored.hits[1]) == set(measures(HEADLINES)) and not stored.gaps
    changed = CONDITIONS["fine-tuning-none"].change(outline.runnable_profile("smoke"))
    assert stored.profile == repr(changed)
    [stage] = evidence.stages_of(changed, "clip4clip", "msrvtt", [0])
    result = json.loads((stage.folder(tmp_path / "home") / "result.json").read_text())["result"]
    assert result["history"] == [] and result["best_step"] == 0
    rows = conditions.effects(tmp_path / "conditions")
    assert [row["statement"] for row in rows] == ["3a", "6", "6", "7a", "7a", "8d", "8d", "10a", "10a"]
    shutil.copy(tmp_path / "conditions/fine-tuning-none.npz", tmp_path / "conditions/no-order.npz")
    with pytest.raises(ClipVipError, match=r"no-order.npz is evidence of another profile: .* 'no-order'"):
        conditions.effects(tmp_path / "conditions")
    with pytest.raises(ClipVipError, match="fine-tuning-quarter"):
        jobs.add_condition("smoke", "fine-tuning-quartr", folder=tmp_path)
    capsys.readouterr()


def rows_of(name: str, effect: float, half: float = 1.0) -> list[dict]:
    table = np.array([[effect - half, effect + half]])
    made = {c: (effect, *table[0]) for s in HEADLINES for c in s.contrasts}
    about = {} if name == "base" else CONDITIONS[name].__dict__ | {"condition": name}
    about = {key: about[key] for key in ("condition", "kind", "what", "dose") if key in about}
    return [about | row for row in conditions.headlines(made, 3, "average recall")]


def test_a_condition_counts_for_the_statements_whose_arms_it_changes():
    """For others the study itself would be told as a second result. Patches are dropped by full attention alone."""
    mini = get_profile("mini")

    def keys(profile, contrast):
        arms = [(measure.arm, measure.benchmark) for measure in (contrast.more, contrast.less)]
        return {stage.key for arm in arms for stage in evidence.stages_of(profile, *arm, [0])}

    full = {s.id for s in HEADLINES if any("full" in (c.more.arm, c.less.arm) for c in s.contrasts)}
    assert set(CONDITIONS["patches-dropped"].of) == full == {"6"}
    for name in CONDITIONS.keys() - {"patches-dropped"}:
        changed = CONDITIONS[name].change(mini)
        own = {s.id for s in HEADLINES if all(keys(mini, c) != keys(changed, c) for c in s.contrasts)}
        assert set(CONDITIONS[name].of) == own, name


def test_what_a_condition_teaches_is_a_sentence():
    base = rows_of("base", 3.0)
    assert robustness.sentences(rows_of("no-order", 5.0), base) == [
        "No caption tells the order of events (3 seeds). Still shown: 3a +5.0, 6 on msrvtt +5.0, 6 on didemo +5.0, 7a "
        "on msrvtt +5.0, 7a on didemo +5.0, 8d on msrvtt +5.0, 8d on didemo +5.0, 10a on msrvtt +5.0, 10a on didemo "
        "+5.0."
    ]
    [gone] = robustness.sentences(rows_of("fine-tuning-quarter", 0.5), base)
    assert gone.startswith("Amount of fine-tuning, 0.25 times as many steps (3 seeds). Not shown: 3a +0.5, 6")
    [turned] = robustness.sentences(rows_of("frozen-text", -4.0), base)
    assert ". Turned round: 3a −4.0, 6 on msrvtt −4.0, 6 on didemo −4.0, 7a on" in turned
    [none] = robustness.sentences(rows_of("frozen-text", -4.0), rows_of("base", 0.5))
    assert none.endswith("(3 seeds). The reference shows none of the contrasts.")


def test_a_page_tells_what_rival_explanations_change_of_its_own_statements():
    base = rows_of("base", 3.0)
    rows = [*rows_of("no-order", 5.0), *rows_of("frozen-text", -4.0)]
    found = {"conditions": rows, "headlines": base}
    said = robustness.on_page(found, [{"id": "8c"}, {"id": "8d"}])
    assert said.count("<li>") == 2 and "8d V-S,C + F-C beats V-S: on mini-MSRVTT (reference +3.0)" in said
    assert "Turned round: 8d on mini-MSRVTT −4.0, 8d on mini-DiDeMo −4.0." in said and "3a" not in said
    assert robustness.on_page(found, [{"id": "4a"}]) == "" == robustness.on_page({}, [{"id": "8d"}])


def test_a_statement_says_under_how_many_conditions_it_stays():
    rows = [*rows_of("no-order", 5.0), *rows_of("rewritten", 0.5), *rows_of("frozen-text", -4.0)]
    told = dict(line.split(" ", 1) for line in robustness.by_statement(rows, rows_of("base", 3.0)))
    assert list(told) == [statement.id for statement in HEADLINES]
    assert told["3a"].endswith(
        "on msrvtt (reference +3.0) the same sign under 2 of 3 conditions, shown under 1, the opposite under 1 "
        "(frozen text)."
    )
    assert told["6"].count("the same sign under 2 of 3") == 2 and "; on didemo (reference +3.0)" in told["6"]
    below = dict(line.split(" ", 1) for line in robustness.by_statement(rows, rows_of("base", -3.0)))
    assert (
        "the same sign under 1 of 3 conditions, shown under 1, the opposite under 1 (no order)" in below["3a"]
    )
    unclear = dict(line.split(" ", 1) for line in robustness.by_statement(rows, rows_of("base", 0.5)))
    assert unclear["3a"].endswith(
        ": on msrvtt (reference +0.5, not shown) shown above zero under 1 (no order), below under 1 (frozen text) of 3 "
        "conditions."
    )
    assert robustness.by_statement(rows_of("rewritten", 0.5), rows_of("base", 0.5))[0].endswith(
        "shown above zero under none, below under none of 1 conditions."
    )


def test_the_title_of_a_figure_is_what_it_shows():
    base = rows_of("base", 3.0)
    rows = [*rows_of("fine-tuning-none", -9.0), *rows_of("fine-tuning-three-times", 1.0)]
    assert robustness.by_dose(rows, base) == (
        "Amount of fine-tuning from 0 to 3 times the study's moves 3a most, from −9.0 to +1.0 points"
    )
    both = robustness.by_dose([*rows, *rows_of("post-pretraining-third", 2.0)], base)
    assert both.endswith(
        "; amount of post-pretraining from 0.33 to 1 times the study's moves no contrast by more than chance does"
    )
    both = robustness.by_dose([*rows, *rows_of("post-pretraining-third", 0.0)], base)
    assert both.endswith(
        "; amount of post-pretraining from 0.33 to 1 times the study's moves 3a most, from 0.0 to +3.0 points"
    )
    worlds = [*rows_of("no-order", 5.0), *rows_of("rewritten", 0.5), *rows_of("frozen-text", -4.0)]
    assert robustness.by_world(worlds, base) == (
        "Of the effects that the reference shows, 18 of 27 keep their sign in other worlds and where a rival "
        "explanation is true; it is shown for 9, and the opposite for 9"
    )


def test_the_index_shows_conditions_once_there_are_some():
    base = rows_of("base", 3.0)
    assert robustness.lead({"conditions": [], "headlines": base}) == ""
    some = [
        *rows_of("fine-tuning-quarter", 1.0),
        *rows_of("post-pretraining-third", 2.0),
        *rows_of("no-order", 5.0),
    ]
    shown = robustness.lead({"conditions": some, "headlines": base})
    assert shown.count("<figure") == 2 and shown.count("<li>") == len(HEADLINES) + len(
        {r["what"] for r in some}
    )
    assert "No statement is judged on these" in shown
