"""The graph of the study: every claim has its arms, arms of one question differ in one thing, tests stay unseen."""

import pytest

from clipvip_lib.data import world
from clipvip_lib.errors import ClipVipError
from clipvip_lib.profiles import get_profile
from clipvip_lib.statistics import claims
from clipvip_lib.study import experiments
from clipvip_lib.study.experiments import Arm
from clipvip_lib.workshop.stages import closure

MINI = get_profile("mini")


def every_stage(profile=MINI, seeds=(0,)):
    return closure(s for name in experiments.NOTEBOOKS for s in experiments.stages_for(name, profile, seeds))


def test_every_arm_that_a_statement_names_is_in_the_study():
    scored = experiments.scored_arms(MINI)
    for contrast in claims.CONTRASTS:
        if claims.metric_of(contrast) != claims.NMI:
            assert {(m.arm, m.benchmark) for m in (contrast.more, contrast.less)} <= scored.keys(), contrast


def test_a_claims_notebook_runs_the_stages_of_its_arms():
    for claim in claims.CLAIMS:
        own = {stage.name for stage in closure(experiments.stages_for(claim.notebook, MINI, [0]))}
        for contrast in (c for statement in claim.statements for c in statement.contrasts):
            if claims.metric_of(contrast) == claims.NMI:
                assert "language-gap/seed0" in own
                continue
            for measure in (contrast.more, contrast.less):
                arm, step = experiments.scored_arms(MINI)[measure.arm, measure.benchmark]
                assert experiments.finetuned(MINI, arm, measure.benchmark, 0, step).name in own, measure


def test_arms_of_an_ablation_differ_in_one_thing_only():
    def different(stages):
        configs = [dict(stage.config) for stage in stages]
        for config in configs:  # the rate is chosen for each arm, on validation
            config["recipe"] = {key: value for key, value in config["recipe"].items() if key != "lr"}
        return {key for key in configs[0] if len({str(config[key]) for config in configs}) > 1}

    attention = experiments.attention_arms(MINI).values()
    assert different(experiments.postpretrained(MINI, arm, 0) for arm in attention) == {
        "attention",
        "proxies",
    }
    assert different(experiments.finetuned(MINI, arm, "msrvtt", 0) for arm in attention) == {
        "attention",
        "proxies",
    }
    losses = list(experiments.loss_arms().values())
    assert different(experiments.postpretrained(MINI, arm, 0) for arm in losses) == {"loss"}
    texts = experiments.text_arms().values()
    assert different(experiments.postpretrained(MINI, arm, 0) for arm in texts if arm.corpus) == {"loss"}
    assert different(experiments.finetuned(MINI, arm, "msrvtt", 0) for arm in texts) == {"snapshot"}
    corpora = [Arm(corpus=name) for name in claims.CORPORA]
    assert different(experiments.postpretrained(MINI, arm, 0) for arm in corpora) == set()
    seeds = [experiments.finetuned(MINI, experiments.METHOD, "didemo", seed) for seed in (0, 1)]
    assert different(seeds) == {"seed"}


def test_nothing_before_fine_tuning_has_seen_a_benchmark():
    for stage in every_stage():
        if stage.name.startswith(("clip/", "postpretrain/", "captioner", "captions/")):
            upstream = {s.name for s in closure([stage])}
            assert not {n for n in upstream if "msrvtt" in n or "didemo" in n}, stage.name


def test_shared_arms_are_one_stage():
    names = [stage.name for stage in every_stage()]
    assert len(names) == len(set(names))
    scored = experiments.scored_arms(MINI)
    assert scored["proxy-4", "msrvtt"][0] == scored["V-S", "msrvtt"][0]
    assert scored["clip-vip", "didemo"][0] == scored["V-S,C + F-C", "didemo"][0]
    last = experiments.finetuned(MINI, Arm(), "msrvtt", 0, experiments.snapshots(MINI)[-1])
    assert last.key == experiments.finetuned(MINI, Arm(), "msrvtt", 0).key


def test_a_smaller_corpus_is_seen_more_often_for_the_same_steps():
    assert experiments.snapshots(MINI)[-1] == MINI.postpretrain.steps
    sizes = [
        sum(s.config["videos"] for s in experiments.corpus(MINI, n)) for n in ("webvid-2.5m", "hdvila-100m")
    ]
    assert sizes[1] == 40 * sizes[0]


def test_the_world_does_not_depend_on_the_training_seed():
    first, second = ({s.name for s in every_stage(seeds=[seed])} for seed in (0, 1))
    shared = first & second
    assert {name for name in shared if name.startswith(("world/", "frames/", "captions/"))}
    assert all("seed" in name for name in first - shared)


def test_on_a_gpu_whatever_is_trained_is_told_so_and_nothing_else_changes():
    own, gpu = (
        {stage.name: stage for stage in every_stage(get_profile(name))} for name in ("mini", "mini-gpu")
    )
    assert own.keys() == gpu.keys()
    trained = {
        name for name, stage in gpu.items() if "recipe" in stage.config or "stem_steps" in str(stage.config)
    }
    assert {name.split("/")[0] for name in trained} == {
        "captioner",
        "clip",
        "postpretrain",
        "finetune",
        "zero-shot",
    }
    for name, stage in gpu.items():
        if name in trained:
            assert (
                stage.config == own[name].config | {"device": "cuda"} and own[name].config["device"] == "cpu"
            )
        else:
            assert stage.config == own[name].config


def test_unknown_notebooks_and_the_unfinished_profile_are_refused():
    with pytest.raises(ClipVipError, match="unknown notebook '09_more'"):
        experiments.stages_for("09_more", MINI, [0])
    with pytest.raises(ClipVipError, match="needs data at hand"):
        experiments.stages_for("04_video_proxy", get_profile("paper"), [0])


def test_a_batch_holds_whole_videos():
    assert get_profile("mini").group == world.CLIPS_PER_VIDEO
