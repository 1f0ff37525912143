"""The dry run: the plan at paper size follows from profile, arms, arithmetic and assumptions; nothing is written."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re

import pytest
import small_study

from clipvip_lib import cli, flops, scaling
from clipvip_lib.data import corpora
from clipvip_lib.errors import ClipVipError
from clipvip_lib.profiles import get_profile
from clipvip_lib.progress import duration, quiet
from clipvip_lib.statistics.claims import BENCHMARKS, CORPORA, LOSS_ARMS
from clipvip_lib.study import dry_run, experiments, paper_plan
from clipvip_lib.study.paper_plan import Settings, finetuning_steps, works
from clipvip_lib.study.real import data_at_hand
from clipvip_lib.study.real.profile import RealProfile, planned
from clipvip_lib.training.recipes import RECIPES
from clipvip_lib.workshop.stages import closure, run_stage

PAPER = get_profile("paper")
ASSUMED = scaling.Assumptions()
NONE = Settings()


def post(rows: list[paper_plan.Work]) -> dict[str, paper_plan.Work]:
    return {row.what.split()[1]: row for row in rows if row.what.startswith("post-pretrain")}


@pytest.fixture
def lines_of(tmp_path, monkeypatch, capsys):
    """``clipvip reproduce --plan`` in an empty folder, with a cache that is not there yet; its lines."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIPVIP_HOME", str(tmp_path / "home"))

    def lines(*arguments: str) -> list[str]:
        assert cli.main(["reproduce", "--plan", *arguments]) == 0
        said = capsys.readouterr()
        assert said.err == ""
        return said.out.splitlines()

    return lines


# ---------------------------------------------------------------------------------------------------- the work


def test_every_arm_of_the_study_is_in_the_plan_once():
    found = post(works(PAPER, [0], NONE))
    attention = {arm.slug for arm in experiments.attention_arms(PAPER).values()}
    losses = {arm.slug for arm in experiments.loss_arms().values()}
    texts = {arm.slug for arm in experiments.text_arms().values() if arm.corpus}
    sizes = {experiments.Arm(corpus=name).slug for name in CORPORA}
    assert (len(attention), len(losses), len(sizes)) == (7, len(LOSS_ARMS), len(CORPORA))
    assert found.keys() == attention | losses | texts | sizes
    assert found["mean_pool/V-S/hdvila-100m"].notebooks == {"01", "04"}
    assert found["proxy-4/V-S/hdvila-100m"].notebooks == {"04", "05"}
    assert found["proxy-4/V-S,C+F-C/hdvila-100m"].notebooks == {"05"}  # 06's is the full one


def test_the_full_method_is_counted_for_three_epochs_beside_the_ablations():
    rows = {row.what: row for row in works(PAPER, [0, 1], NONE)}
    full, ablation = (
        rows["full CLIP-ViP: 3 epochs of hdvila-100m"],
        rows[f"post-pretrain {experiments.METHOD.slug}"],
    )
    assert full.notebooks == {"06"} and full.needs == ablation.needs == {"weights", "captions", "hdvila-100m"}
    published = RECIPES["postpretrain-full"].for_data(None).steps
    assert full.steps == 3 * ablation.steps == published == 292_968
    assert full.runs == ablation.runs == 2 and full.clip_flops == ablation.clip_flops
    assert full.hours == pytest.approx(3 * ablation.hours)
    # both ends are fine-tuned: METHOD for 05 and for 06, mean pooling as it is on didemo for 06 alone
    assert rows["fine-tune for 06"].runs == 2 * (2 + 1)
    tuned = {notebooks: works(PAPER, [0], NONE, [notebooks]) for notebooks in ("05", "06")}
    assert not any(row.what.startswith("full") for row in tuned["05"])
    assert [row.what for row in tuned["06"] if row.steps == published] == [full.what]
    assert not post(tuned["06"])  # the one-epoch model is 05's


def test_a_number_of_steps_that_is_asked_for_is_that_of_every_arm():
    profile, settings = planned({"postpretrain.steps": 292_968, "postpretrain.chunk": 32, "gpus": 64})
    assert settings == Settings(gpus=64)
    rows = works(profile, [0], settings, ["06"])
    assert [row.steps for row in rows if row.steps > 10_000] == [292_968]
    assert set(post(rows)) == {experiments.METHOD.slug}
    [captions] = [row for row in rows if row.what.startswith("caption ")]
    [whole] = [row for row in works(PAPER, [0], settings, ["06"]) if row.what.startswith("caption ")]
    assert captions == dataclasses.replace(
        whole, notebooks=captions.notebooks
    )  # the corpus stays as large as it is
    with pytest.raises(ClipVipError, match="expected int like 0, got 0.5"):
        planned({"postpretrain.steps": 0.5})
    with pytest.raises(ClipVipError, match="unknown setting 'pretrain.steps': training"):
        planned({"pretrain.steps": 3})


def test_a_benchmark_is_fine_tuned_for_as_many_steps_as_its_recipe_has(capsys):
    """100 passes over 9,000 videos of msrvtt, 20 over 8,392 of didemo; a number that is asked for is that of both."""
    assert {name: finetuning_steps(PAPER, name) for name in BENCHMARKS} == {"msrvtt": 7_000, "didemo": 1_300}
    rows = {row.what: row for row in works(PAPER, [0], NONE)}
    msrvtt = rows["fine-tune for 01"]  # of this benchmark alone
    assert msrvtt.steps == 7_000 and rows["fine-tune for 04"].steps < 7_000
    tuned = rows["fine-tune for 06"]  # the full method on both, the baseline on didemo
    assert tuned.runs == 3 and tuned.steps == (7_000 + 2 * 1_300) // 3
    share = (7_000 + 2 * 1_300) / 7_000  # proxies cost a little more than mean pooling
    assert tuned.hours == pytest.approx(msrvtt.hours / msrvtt.runs * share, rel=0.02)
    changed, _ = planned({"finetune.batch": 256})
    assert finetuning_steps(changed, "msrvtt") == 100 * (9_000 // 256)
    changed, _ = planned({"finetune.steps": 50})
    assert {row.steps for row in works(changed, [0], NONE) if row.what.startswith("fine-tune")} == {50}
    assert cli.main(["reproduce", "--profile", "paper", "--plan"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "fine-tuning: 7,000 (msrvtt), 1,300 (didemo) steps of 128" in said and "Not counted" not in said
    assert cli.main(["reproduce", "--profile", "paper", "--plan", "--set", "finetune.epochs=3.0"]) == 0
    assert "Not counted: finetune.epochs. This plan counts" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("given", "sentence"),
    (
        ("finetune.batch=0", "--set finetune.batch=...: expected a number above 0, got 0"),
        ("postpretrain.lr=NaN", "--set postpretrain.lr=...: expected a finite number, got nan"),
        ("postpretrain.epochs=-1", "--set postpretrain.epochs=...: expected a number above 0, got -1"),
    ),
)
def test_recipes_of_a_plan_are_checked_as_those_of_a_run(capsys, given, sentence):
    assert cli.main(["reproduce", "--profile", "paper", "--plan", "--set", given]) == 2
    assert sentence in capsys.readouterr().err


def test_the_plan_has_the_runs_graphs_fine_tunings():
    """At mini, where the graph can be asked, the plan's trainings are exactly those that would be run."""
    mini = get_profile("mini")
    stages = closure(
        stage for name in experiments.NOTEBOOKS[:7] for stage in experiments.stages_for(name, mini, [0, 1])
    )
    planned = works(mini, [0, 1], NONE)
    for kind, beginning in (("post-pretrain", "postpretrain/"), ("fine-tune", "finetune/")):
        runs = sum(row.runs for row in planned if row.what.startswith(kind))
        assert runs == sum(stage.name.startswith(beginning) for stage in stages) > 20


def test_hours_and_bytes_by_hand():
    row = post(works(PAPER, [0], NONE))["proxy-4/V-S,C+F-C/hdvila-100m"]
    clips = PAPER.postpretrain.steps * PAPER.postpretrain.batch
    assert row.steps == PAPER.postpretrain.steps and row.wall == "decode"
    assert row.hours == pytest.approx(clips * 0.095 / 16 / 3600) == pytest.approx(8 * row.elapsed)
    towers = clips * row.clip_flops / (989e12 * ASSUMED.gpu_share) / 3600
    assert towers < row.computing < 1.1 * towers  # the loss, which every rank computes whole, comes on top
    assert row.clip_flops == flops.step_flops(paper_plan.sizes_of(PAPER), frozenset("VSFC"))
    snapshots = len(experiments.snapshots(PAPER))
    assert row.bytes == snapshots * 4 * flops.clip_parameters(paper_plan.sizes_of(PAPER))
    [captions] = [row for row in works(PAPER, [0], NONE) if row.what.startswith("caption ")]
    assert captions.computing == pytest.approx(
        clips * paper_plan.caption_flops() / (989e12 * ASSUMED.caption_share) / 3600
    )
    assert captions.hours == pytest.approx(captions.computing)  # decoding waits: 16 cores give more
    assert captions.hours > clips * 0.050 / 16 / 3600


def test_a_benchmark_is_decoded_once_for_all_its_fine_tunings():
    rows = {row.what: row for row in works(PAPER, [0, 1], NONE)}
    clips = 9_000 + 1_000
    store = rows["decode msrvtt into a frame store"]
    assert store.hours == pytest.approx(clips * 0.095 / 16 / 3600) == pytest.approx(8 * store.elapsed)
    assert store.bytes == clips * 25 * 224 * 224 * 3  # a run keeps 24 frames and the middle one
    assert store.computing == 0
    assert store.notebooks == {"00", "01", "04", "05", "06"} and store.needs == {"msrvtt", "weights"}
    assert rows["decode didemo into a frame store"].notebooks == {"04", "05", "06"}
    tuned = [row for row in rows.values() if row.what.startswith("fine-tune")]
    assert all(row.wall != "decode" and row.hours == pytest.approx(row.computing, rel=0.05) for row in tuned)


def test_the_plan_follows_from_profile_seeds_and_assumptions():
    base, rows = works(PAPER, [0], NONE), {}
    rows["steps"] = works(
        get_profile("paper", **{"postpretrain.steps": PAPER.postpretrain.steps // 2}), [0], NONE
    )
    rows["seeds"] = works(PAPER, [0, 1, 2], NONE)
    rows["share"] = works(PAPER, [0], Settings.of({"gpu_share": 2 * ASSUMED.gpu_share, "loss_tflops": 54}))
    rows["cores"] = works(PAPER, [0], Settings.of({"cores_per_gpu": 32}))
    sums = {name: sum(row.hours for row in post(found).values()) for name, found in rows.items()}
    computing = {name: sum(row.computing for row in post(found).values()) for name, found in rows.items()}
    hours = sum(row.hours for row in post(base).values())
    computed = sum(row.computing for row in post(base).values())
    assert sums["steps"] == pytest.approx(hours / 2) and sums["seeds"] == pytest.approx(3 * hours)
    assert sums["cores"] == pytest.approx(hours / 2) and computing["cores"] == pytest.approx(computed)
    assert sums["share"] == pytest.approx(hours) and computing["share"] == pytest.approx(
        computed / 2, rel=1e-3
    )
    fewer = dataclasses.replace(PAPER, proxy_counts=(4,))
    assert len(post(works(fewer, [0], NONE))) == len(post(base)) - 3
    wider = get_profile("paper", **{"model.patch_size": 16})
    assert post(works(wider, [0], NONE))["full/V-S/hdvila-100m"].clip_flops > 4e12 / 3


def test_only_some_notebooks():
    rows = works(PAPER, [0], NONE, ["04"])
    assert post(rows).keys() == {arm.slug for arm in experiments.attention_arms(PAPER).values()}
    assert sum(row.runs for row in rows if row.what.startswith("fine-tune")) == 7 * 2
    assert not any(row.what.startswith("caption") for row in rows)
    assert [row.what for row in works(PAPER, [0], NONE, ["02"])] == [
        "language gap of 14,000 texts", "caption hdvila-100m with OFA-large",
    ]  # fmt: skip


def test_corpora_are_as_large_as_their_names_say():
    million = {name: paper_plan.epoch_clips(PAPER, name) / 1e6 for name in CORPORA}
    assert million == pytest.approx({"webvid-2.5m": 2.5, "hdvila-10m": 10, "hdvila-100m": 100}, rel=1e-4)


# ------------------------------------------------------------------------------------------- what is at hand


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data_root with the largest corpus and one whole benchmark, as the embedded world writes them."""
    root = tmp_path_factory.mktemp("data")
    (root / "hdvila-100m").mkdir()
    corpora.write_corpus(root / "hdvila-100m" / "00000.tar", "hdvila-100m", 0, 0, 1, quiet)
    corpora.write_benchmark(root / "msrvtt", "msrvtt", 0, {"train": 4, "val": 4, "test": 4}, quiet)
    (root / "didemo").mkdir()
    (root / "clip.pt").write_bytes(b"weights")
    return root


def test_what_is_there_and_what_is_missing_is_told(root):
    settings = Settings.of(
        {"data_root": str(root), "weights": str(root / "clip.pt"), "ofa": str(root / "ofa.pt")}
    )
    found = data_at_hand.look(PAPER, settings)
    size = (root / "hdvila-100m" / "00000.tar").stat().st_size / 1e6
    assert found["hdvila-100m"].state == f"1 files, {size:,.1f} MB" and found["hdvila-100m"].there
    assert found["hdvila-10m"].there and found["hdvila-10m"].state == "to be drawn out of hdvila-100m"
    assert not found["webvid-2.5m"].there and found["webvid-2.5m"].state == "no folder"
    assert found["msrvtt"].there and found["msrvtt"].state == "4 test videos"
    assert not found["didemo"].there and found["didemo"].state == "not whole: clipvip check-data didemo tells"
    assert found["weights"].there and found["ofa"].state == "missing"
    rows = works(PAPER, [0], settings)
    lacks = {number: data_at_hand.missing_of(number, rows, found) for number in paper_plan.READERS}
    assert lacks["00"] == [] and lacks["01"] == ["webvid-2.5m"] and lacks["04"] == ["didemo"]
    assert lacks["05"] == ["didemo", "ofa"]
    captions = root / "hdvila-100m" / "00000.captions.jsonl"
    captions.write_text('{"key": "v", "caption": "a dog"}\n')
    try:  # captions that are there need no OFA any more
        assert data_at_hand.missing_of("05", rows, data_at_hand.look(PAPER, settings)) == ["didemo"]
    finally:
        captions.unlink()


def test_a_benchmark_without_a_validation_split_is_not_whole(root, tmp_path):
    """Without one no checkpoint could be chosen: the notebooks leave the set out, rather than fail in the middle."""
    (tmp_path / "msrvtt").mkdir()
    for path in (root / "msrvtt").iterdir():
        if path.name not in ("MSRVTT_val.csv", "held_out.txt"):
            (tmp_path / "msrvtt" / path.name).symlink_to(path)
    found = data_at_hand.look(PAPER, Settings.of({"data_root": str(tmp_path)}))
    assert not found["msrvtt"].there and "not whole" in found["msrvtt"].state


def test_a_benchmark_without_its_videos_is_not_whole(root, tmp_path):
    (tmp_path / "msrvtt").mkdir()
    for file in (root / "msrvtt").glob("*.*"):
        (tmp_path / "msrvtt" / file.name).write_bytes(file.read_bytes())
    found = data_at_hand.look(PAPER, Settings.of({"data_root": str(tmp_path)}))
    assert not found["msrvtt"].there and "not whole" in found["msrvtt"].state


def test_a_data_root_that_is_no_folder_is_said(tmp_path, capsys):
    assert cli.main(["reproduce", "--profile", "paper", "--plan", "--set", f"data_root={tmp_path}/none"]) == 0
    said = capsys.readouterr().out
    assert f"(data_root: {tmp_path}/none, no such folder)" in said
    assert re.search(r"^hdvila-100m .* no folder +50,000$", said, re.MULTILINE)
    assert re.search(r"^didemo .* no folder +-$", said, re.MULTILINE)


@pytest.mark.bad_input(
    "reproduce --plan: settings that make no sense", says="such as `expected a number above 0, got 'cheap'`"
)
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"data_rot": "x"}, "unknown setting of a plan 'data_rot'.*did you mean 'data_root'"),
        ({"data_root": 3}, "expected a file or folder, got 3"),
        ({"weights": " "}, "expected a file or folder"),
        ({"gpus": 0}, "gpus=.*whole number from 1, got 0"),
        ({"gpus": True}, "gpus=.*got True"),
        ({"skip_share": 2}, "skip_share=.*share from 0 to 1, got 2"),
        ({"skip_share": True}, "skip_share=.*got True"),
        ({"gpu_share": 40}, "gpu_share.*at most 1, got 40"),
        ({"gpu_hour_price": "cheap"}, "expected a number above 0, got 'cheap'"),
        ({"gpu_hour_price": 1e308}, "expected a number above 0 and at most 1e\\+12, got 1e\\+308"),
    ],
)
def test_senseless_settings_are_sentences(given, words):
    with pytest.raises(ClipVipError, match=words):
        Settings.of(given)


# -------------------------------------------------------------------------------------------------- the command


def test_the_command_prints_the_whole_plan_and_writes_nothing(root, lines_of, tmp_path):
    before = sorted(root.rglob("*"))
    said = lines_of("--profile", "paper", "--set", f"data_root={root}", "--set", "gpus=64", "--seeds", "0,1")
    assert max(map(len, said)) <= 120
    text = "\n".join(said)
    for slug in post(works(PAPER, [0], NONE)):
        assert len(re.findall(rf"post-pretrain {re.escape(slug)}  +2 ", text)) == 1, slug
    assert [line.split()[0] for line in said[said.index("Notebooks") + 1 :][:9]] == list(
        experiments.NOTEBOOKS
    )
    assert re.search(r"^01_data_size +lacks webvid-2.5m, weights$", text, re.MULTILINE)
    data = " ".join(said[said.index(next(line for line in said if line.startswith("Data "))) :][:14])
    assert "All below is for the published sizes (100.0 million clips of hdvila-100m, all of them to" in data
    assert "not for what is at hand" in data
    rows = works(PAPER, [0, 1], Settings(gpus=64))
    total = f"{sum(row.hours for row in rows):,.0f}"
    assert re.search(rf"^ +sum +\d+ +{total} ", text, re.MULTILINE)
    stages = said[next(i for i, line in enumerate(said) if line.startswith("Stages")) :]
    assert not any(line.endswith("…") for line in stages[: stages.index("")])
    assert re.search(r"^04-06 +decode didemo into a frame store +1 +- ", text, re.MULTILINE)
    [row] = [line for line in said if "full CLIP-ViP" in line and " 292,968 " in line]
    assert re.match(r"06 +full CLIP-ViP: 3 epochs of hdvila-100m +2 +292,968 ", row)
    told = " ".join(said[said.index(next(line for line in said if line.startswith("Counted as"))) :][:3])
    assert "--only 06 --set postpretrain.steps=292968." in told
    for field in dataclasses.fields(scaling.Assumptions):
        assert re.search(rf"^{field.name} +\S+ ", text, re.MULTILINE)
    assert sorted(root.rglob("*")) == before and list(tmp_path.iterdir()) == []


def test_many_seeds_on_many_gpus_fit_the_width(capsys):
    assert dry_run.dry_run("paper", seeds=range(10), set={"gpus": 1024}) == 0
    said = capsys.readouterr().out.splitlines()
    assert "seeds 0-9;" in said[0] and max(map(len, said)) <= 120
    assert not any(line.endswith("…") for line in said)
    apart = dry_run._head("paper", experiments.NOTEBOOKS, range(0, 60, 2))
    assert max(map(len, apart)) <= 120 and ", 58; nothing is run or written." in " ".join(apart)


@pytest.mark.parametrize(
    ("epochs", "said"),
    [
        (2.4e-07, "less than 0.001 epochs"), (0.001, "0.001 epochs"), (0.2, "0.2 epochs"), (1.0, "one epoch"),
        (3.0, "3 epochs"), (99.96, "100 epochs"), (12_345.6, "12,346 epochs"),
    ],
)  # fmt: skip
def test_epochs_are_numbers_that_people_read(epochs, said):
    assert dry_run._epochs_text(epochs) == said


def test_gpus_that_a_batch_has_no_clips_for_are_said(capsys):
    def told(**given) -> list[str]:
        assert dry_run.dry_run("paper", only=["06"], set=given) == 0
        said = capsys.readouterr().out
        assert said.count("A run uses") <= 1
        return re.findall(r"A run uses .*", said)

    begins = "A run uses one GPU for each clip of its batch at most: of"
    assert told(gpus=2048) == [f"{begins} 2,048 GPUs post-pretraining 1,024 and fine-tuning 128."]
    assert told() == [f"{begins} 256 GPUs fine-tuning 128."]  # the largest that the sum is told for
    assert told(**{"finetune.batch": 256}) == []


def test_the_sum_is_told_for_more_gpus(capsys):
    assert dry_run.dry_run("paper", only=["04", "05", "06"]) == 0
    table = capsys.readouterr().out.partition("\nSum ")[2].partition("\n\n")[0].splitlines()[2:]
    assert table.pop().startswith("A run uses one GPU for each clip")
    packed = [line for line in table if line.startswith("packed once")]
    table = [line.removeprefix("as they are") for line in table if line not in packed]
    gpus, hours, days = zip(*(map(float, line.replace(",", "").split()[:3]) for line in table), strict=True)
    assert gpus == scaling.GPUS and [line.split()[2] for line in packed] == [
        str(number) for number in scaling.GPUS
    ]
    assert days[0] == pytest.approx(hours[0] / 8 / 24, abs=0.06) and days[0] > days[1] > days[2]
    for line in table:
        shares = [float(share) for share in re.findall(r"[a-z-]+ (\d+\.\d) %", line)]
        assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(100, abs=0.2)
    rows = works(PAPER, [0], NONE, ["04", "05", "06"])
    assert hours[0] == pytest.approx(sum(row.hours for row in rows), abs=0.5)


def test_packs_are_made_once_and_every_post_pretraining_reads_them():
    plain, packed = (works(PAPER, [0], Settings(packed=yes)) for yes in (False, True))
    [pack] = [row for row in packed if row.what == "pack the corpora"]
    clips = sum(paper_plan.epoch_clips(PAPER, corpus) for corpus in CORPORA)
    assert pack.needs == set(CORPORA) and pack.bytes == pytest.approx(clips * ASSUMED.packed_mb * 1e6)
    assert pack.hours == pytest.approx(clips * ASSUMED.packing_ms / 1000 / ASSUMED.cores_per_gpu / 3600)
    before, after = post(plain), post(packed)
    assert all(after[what].hours < 0.5 * row.hours for what, row in before.items())
    own = ("post-pretrain", "full", "pack")  # captions are made of the originals
    assert [row for row in packed if not row.what.startswith(own)] == [
        row for row in plain if not row.what.startswith(own)
    ]
    assert works(PAPER, [0], Settings(packed=True), ["02"]) == works(PAPER, [0], NONE, ["02"])


def test_what_the_plan_says_of_the_full_method_is_what_a_run_takes(root, capsys):
    """The steps that the plan names make 06's arm, and no other notebook's, a training of three epochs."""
    assert dry_run.dry_run("paper", only=["06"], set={"postpretrain.steps": 292_968}) == 0
    said = capsys.readouterr().out
    assert "292,968 steps of 1,024 clips, 3 epochs of hdvila-100m" in said and "Counted as" not in said
    (root / "hdvila-100m" / "00000.captions.jsonl").write_text('{"key": "v", "caption": "a dog"}\n')
    try:
        given = {"data_root": str(root), "weights": str(root / "clip.pt"), "postpretrain.steps": 292_968}
        profile = RealProfile.of(given)
        stages = closure(experiments.stages_for("06_clip_vip", profile, [0]))
    finally:
        (root / "hdvila-100m" / "00000.captions.jsonl").unlink()
    [trained] = [stage for stage in stages if stage.name.startswith("postpretrain/")]
    assert trained.name == f"postpretrain/{experiments.METHOD.slug}/seed0"
    assert trained.config["recipe"]["steps"] == 292_968


def test_a_plan_takes_no_force_and_no_folder(capsys):
    assert cli.main(["reproduce", "--profile", "paper", "--plan", "--force", "clip"]) == 2
    assert "expected no --force" in capsys.readouterr().err
    assert cli.main(["reproduce", "--plan", "--out", "x"]) == 2
    assert "expected no --out" in capsys.readouterr().err
    assert cli.main(["reproduce", "--plan", "--profile", "papier"]) == 2
    assert "did you mean 'paper'" in capsys.readouterr().err
    assert cli.main(["reproduce", "--plan", "--profile", "paper", "--only", "09"]) == 2
    assert "unknown notebook" in capsys.readouterr().err


def test_without_plan_paper_asks_for_data(capsys):
    assert cli.main(["reproduce", "--profile", "paper"]) == 2
    said = "expected data and weights, without data_root=DIR and weights=PATH; add --set data_root=DIR --set weights"
    assert said in capsys.readouterr().err
    assert cli.main(["reproduce", "--profile", "paper", "--set", "data_root=/"]) == 2
    assert "without weights=PATH; add --set weights=PATH (in" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- a profile that runs


def test_smoke_lists_its_stages_and_writes_nothing(lines_of, tmp_path):
    said = lines_of("--profile", "smoke", "--only", "05")
    expected = closure(experiments.stages_for("05_ocl_losses", get_profile("smoke"), [0]))
    listed = {line.split()[0] for line in said[3:] if re.search(r" (to do|done|begun) ", line)}
    assert listed == {stage.name for stage in expected} | {"page/05_ocl_losses"}
    assert f"0 of {len(listed)} stages are done" in "\n".join(said)
    assert max(map(len, said)) <= 120 and list(tmp_path.iterdir()) == []


def test_as_json_the_plan_has_the_numbers_of_the_tables(root, capsys):
    asked = ["reproduce", "--plan", "--profile", "paper", "--set", f"data_root={root}", "--seeds", "0,1"]
    assert cli.main([*asked, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    assert (told["profile"], told["seeds"]) == ("paper", [0, 1]) and told["notebooks"] == [
        *experiments.NOTEBOOKS
    ]
    rows = works(PAPER, [0, 1], NONE)
    assert [(row["what"], row["hours"]) for row in told["stages"]] == [(row.what, row.hours) for row in rows]
    assert cli.main(asked) == 0
    text = capsys.readouterr().out
    for row in told["sums"]:
        clips = "packed once" if row["packed"] else "as they are"
        amounts = rf"{row['hours']:,.0f} +{row['days']:,.1f} +{row['usd']:,.0f}"
        assert re.search(rf"^{clips} +{row['gpus']} +{amounts}  ", text, re.MULTILINE)
        assert math.isclose(sum(row["walls"].values()), row["hours"])
    assert {(row["what"], row["state"]) for row in told["data"]} >= {("CLIP's weights", "not given")}
    known = {need.name: need.bytes or None for need in data_at_hand.look(PAPER, NONE).values()}
    assert all(row["bytes"] == known[row["what"]] for row in told["data"])
    assert told["lacks"]["01_data_size"] == ["webvid-2.5m", "weights"] and "08_verdict" not in told["lacks"]
    assert told["data_root"] == str(root) and told["not_counted"] == []
    video = told["model"]["video_flops"] / 1e9
    assert (
        f"{video:.1f} GFLOP per video, {told['model']['parameters'] / 1e6:.1f} million weights"
        in " ".join(text.split())
    )
    assert cli.main([*asked, "--json", "--set", "postpretrain.epochs=3"]) == 0
    assert json.loads(capsys.readouterr().out)["not_counted"] == ["postpretrain.epochs"]
    assert {row["assumption"] for row in told["assumptions"]} == {
        field.name for field in dataclasses.fields(scaling.Assumptions)
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_cache_tells_what_is_done_and_what_it_took(tmp_path):
    home, notebooks = tmp_path / "home", small_study.write_notebooks(tmp_path / "notebooks")
    base, *arms = closure(small_study.stages_for("00_first", small_study.profile("quick"), [0, 1]))
    run_stage(base, home)
    arms[1].partial_folder(home).mkdir(parents=True)
    before = sorted(home.rglob("*"))
    stream = io.StringIO()
    code = dry_run.dry_run(
        "quick", seeds=[0, 1], only=["00"], outline=small_study.OUTLINE, notebooks=notebooks, home=home, stream=stream,
        workers=2,
    )  # fmt: skip
    said = stream.getvalue()
    assert code == 0 and sorted(home.rglob("*")) == before
    took = base.facts(home)["seconds"]
    assert re.search(rf"^base +done +2 +{took:.1f}$", said, re.MULTILINE)
    assert re.search(r"^arm/seed0 +to do +1 +-$", said, re.MULTILINE)
    assert re.search(r"^arm/seed1 +begun +1 +-$", said, re.MULTILINE)
    assert re.search(r"^page/00_first +to do +8 +-$", said, re.MULTILINE)
    assert "1 of 4 stages are done" in said and "3 are to do: 10 s of a core expected" in said
    stream = io.StringIO()
    dry_run.dry_run(
        "quick", seeds=[0, 1], only=["00"], outline=small_study.OUTLINE, notebooks=notebooks, home=home, stream=stream,
        workers=2, as_json=True,
    )  # fmt: skip
    told = json.loads(stream.getvalue())
    assert [row["state"] for row in told["stages"]] == ["done", "to do", "begun", "to do"]
    assert [row["took"] for row in told["stages"]] == [took, None, None, None]
    assert told["workers"] == 2
    lines = said.split("about ")[1].split("\n")[0]
    assert duration(told["seconds_left"]) == lines


def test_a_parameter_that_no_notebook_declares_is_refused(tmp_path):
    notebooks = small_study.write_notebooks(tmp_path / "notebooks")
    with pytest.raises(ClipVipError, match="unknown notebook parameter 'x'"):
        dry_run.dry_run(
            "quick", outline=small_study.OUTLINE, notebooks=notebooks, home=tmp_path, set={"x": 1}
        )
    with pytest.raises(ClipVipError, match="workers is 0"):
        dry_run.dry_run("quick", outline=small_study.OUTLINE, notebooks=notebooks, home=tmp_path, workers=0)
