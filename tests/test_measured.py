"""The rate of a training that ran takes the place of what a plan assumes."""

import json
import re
import statistics

import pytest
import small_runs

from clipvip_lib import cli, flops
from clipvip_lib.errors import ClipVipError
from clipvip_lib.models.clip_vip import ClipViPConfig
from clipvip_lib.omnisource import needs
from clipvip_lib.study.measured import FIRST_STEPS, rate
from clipvip_lib.study.paper_plan import Settings


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a training of six steps."""
    folder = tmp_path_factory.mktemp("measured")
    small_runs.write_model(folder / "model")
    source = ["--shards", small_runs.write_shards(folder / "shards"), "--frames-store", str(folder / "store")]
    given = ["--stage", "postpretrain", "--weights", str(folder / "model"), *source, "--loss", "V-S,C + F-C"]
    assert cli.main(["train", *given, "--out", str(folder / "run"), *small_runs.settings()]) == 0
    return folder / "run"


def test_a_rate_is_flops_by_the_seconds_that_were_not_spent_waiting(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][FIRST_STEPS:]
    seconds = statistics.median(row["seconds"] - row["waited"] for row in rows)
    sizes = flops.ClipSizes.of(ClipViPConfig.from_pretrained(run / "model"))
    work = 8 * flops.step_flops(sizes, needs("V-S,C + F-C"))
    assert rate(run).tflops == pytest.approx(work / seconds / 1e12)
    assert rate(run).words.endswith("3 steps of 8 clips on 1 ranks")


def test_a_plan_counts_with_it_and_says_where_it_is_from(run, capsys):
    assert cli.main(["reproduce", "--profile", "paper", "--plan", "--set", f"measured={run}"]) == 0
    said = capsys.readouterr().out
    (value, reason) = re.search(r"gpu_tflops +(\S+) +TFLOP/s +(measured: .*)", said).groups()
    assert float(value) == pytest.approx(rate(run).tflops, rel=1e-3) and str(run) in reason
    assert re.search(r"gpu_share +1 +share +measured", said)
    assumed = Settings.of({"measured": str(run)}).assumed
    assert assumed.gpu_tflops * assumed.gpu_share == pytest.approx(rate(run).tflops)
    plain = Settings().assumed  # captioning is as much slower than training as without a measurement
    assert assumed.caption_share / assumed.gpu_share == pytest.approx(
        plain.caption_share / plain.gpu_share, rel=1e-2
    )
    assert Settings.of({"measured": str(run), "caption_share": 0.3}).assumed.caption_share == 0.3


def test_what_is_no_finished_training_of_some_steps_is_one_sentence(run, tmp_path):
    with pytest.raises(ClipVipError, match="finished `clipvip train`, .*result.json and model is missing"):
        rate(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(ClipVipError, match="model/, model is missing; name another"):
        rate(tmp_path)
    (tmp_path / "model").symlink_to(run / "model")
    with pytest.raises(ClipVipError, match="their contents are not its \\('about'\\)"):
        rate(tmp_path)
    for name in ("result.json", "model"):
        (tmp_path / name).unlink()
    for name in ("result.json", "model"):
        (tmp_path / name).symlink_to(run / name)
    (tmp_path / "metrics.jsonl").write_text("".join((run / "metrics.jsonl").read_text().splitlines(True)[:3]))
    with pytest.raises(ClipVipError, match="expected more than 3 steps"):
        rate(tmp_path)
    with pytest.raises(ClipVipError, match="expected it without gpu_share"):
        Settings.of({"measured": str(run), "gpu_share": 0.5})
