"""Benchmarks measure what they say: forms that must agree do, shares and ratios come from the seconds."""

from __future__ import annotations

import json
import re
import statistics

import numpy as np
import pytest
import torch
import videos

from clipvip_lib.bench import (
    attention,
    caption,
    decode,
    embed,
    encoder,
    measure,
    moving_textures,
    pack,
    ranks,
    search,
    study,
    train,
)
from clipvip_lib.bench.authors_attention import authors_attention
from clipvip_lib.cli import main
from clipvip_lib.commands import bench
from clipvip_lib.data.container import open_container
from clipvip_lib.data.video import count_frames
from clipvip_lib.errors import ClipVipError
from clipvip_lib.models.clip_vip import ClipViP, ClipViPConfig
from clipvip_lib.models.int8 import is_exact
from clipvip_lib.models.ofa import OFA_SIZES, OFAConfig
from clipvip_lib.models.proxy_attention import proxy_attention

SMALL = ClipViPConfig.small(
    width=64, layers=2, heads=1, image_size=32, patch_size=8, vocab_size=100, context_length=16, embed_dim=32
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "videos").mkdir()
    for number in range(2):
        (tmp_path / "videos" / f"v{number}.mp4").write_bytes(videos.encode(200, size=(240, 320)))
    return str(tmp_path / "videos")


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_forms_take_turns_and_the_first_time_does_not_count():
    calls = []
    forms = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    found = measure.in_turns(forms, 3)
    assert "".join(calls) == "ab" + "ab" * 3
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 3, "b": 3}
    assert all(second >= 0 for seconds in found.values() for second in seconds)


def test_the_rate_is_that_of_the_product():
    torch.set_num_threads(1)
    form, flops = measure.product("cpu", "float32")
    assert flops == 2 * 2048**3
    seconds = statistics.median(measure.in_turns({"it": form}, 3)["it"])
    assert measure.product_rate("cpu", "float32", 3) == pytest.approx(flops / seconds, rel=1)


@pytest.mark.parametrize(("height", "width", "gop"), [(48, 64, 5), (96, 128, 50)])
def test_generated_clips_are_what_they_are_called(tmp_path, height, width, gop):
    path = moving_textures.write(tmp_path / "a.mp4", 0, height, width, 3, gop)
    assert count_frames(path) == 3 * moving_textures.RATE
    with open_container(path, "a") as container:
        stream = container.streams.video[0]
        assert (stream.height, stream.width) == (height, width)
        keys = [
            i for i, packet in enumerate(p for p in container.demux(stream) if p.size) if packet.is_keyframe
        ]
    assert len(keys) == -(-3 * moving_textures.RATE // gop)
    again = moving_textures.write(tmp_path / "b.mp4", 0, height, width, 3, gop)
    assert path.read_bytes() == again.read_bytes()


def test_decoding_names_every_reader_and_how_far_its_frames_are_off(folder):
    found = decode.measure(repeats=1, folder=folder, clips=2)
    rows = {row["reader"]: row for row in found["rows"]}
    assert {"ours", "decord", "ours, pack", "ours, pack with jitter"} <= rows.keys()
    assert rows["ours"]["off_in_grey_levels"] == rows["decord"]["off_in_grey_levels"] == 0
    assert 0 < rows["ours, pack"]["off_in_grey_levels"] < 5
    for row in found["rows"]:
        assert row["times_decord"] == pytest.approx(rows["decord"]["ms"] / row["ms"], rel=0.05)
        assert row["ms_min"] <= row["ms"] <= row["ms_max"]
    assert {"av", "decord", "torch"} <= found["versions"].keys()


def test_codings_of_a_pack_trade_bytes_for_error(folder):
    rows = {row["coding"]: row for row in pack.measure(repeats=1, folder=folder, clips=1)["rows"]}
    chosen, fine, coarse = (rows[f"H.264 4:4:4, {q}"] for q in ("20 (chosen)", "16", "24"))
    assert fine["kB_a_clip"] > chosen["kB_a_clip"] > coarse["kB_a_clip"]
    assert fine["psnr_db"] > chosen["psnr_db"] > coarse["psnr_db"]
    assert rows["H.264 4:2:0, 20"]["psnr_db"] < chosen["psnr_db"]
    assert rows["the original, ours"]["error_in_grey_levels"] == 0 and rows["JPEG 4:4:4, 3"]["psnr_db"] > 25


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_authors_formulation_is_proxy_attention(dtype):
    q, k, v = (torch.randn(2, 3, 4 + 5 * 6, 8, dtype=dtype) for _ in range(3))
    ours = proxy_attention(q, k, v, frames=5, patches=6, proxies=4)
    torch.testing.assert_close(authors_attention(q, k, v, 5, 6, 4), ours)


def test_attention_forms_agree_before_they_are_timed(monkeypatch):
    found = attention.measure(repeats=1, batch=1, frames=2)
    assert len(found["rows"]) == 2 * 2 * 5
    for row in found["rows"]:
        assert 0 < row["share_of_the_product"] < 2
        assert row["form"] != "authors" or row["times_authors"] == 1
    monkeypatch.setattr(attention, "authors_attention", lambda q, k, v, **shape: v)
    with pytest.raises(ValueError, match="'authors' differs by .* from ours"):
        attention.measure(repeats=1, batch=1, frames=2)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("backward", [False, True])
def test_the_encoder_beside_its_peers(precision, backward, monkeypatch):
    passes, run = [], torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: passes.append(run(loss)))
    options = {"precision": precision, "backward": backward, "config": SMALL}
    found = encoder.measure(repeats=2, batch=1, frames=4, **options)
    assert ("backward" in found["what"]) == backward and (len(passes) >= 2 * len(found["rows"])) == backward
    names = [row["form"] for row in found["rows"]]
    quick = [] if backward or not is_exact() else ["ours, int8"]
    assert names == ["ours", "authors", "ours, full", "ours, mean pooling", "Hugging Face", *quick]
    assert {"transformers", "open_clip_torch"} <= found["versions"].keys()


@pytest.mark.skipif(not is_exact(), reason="this processor has no exact 8-bit products (VNNI, AMX)")
def test_embedding_is_timed_in_int8(monkeypatch):
    monkeypatch.setattr(encoder, "in_int8", lambda model: ClipViP(model.config).eval())
    with pytest.raises(ClipVipError, match="'ours, int8' gives features of cosine"):
        encoder.measure(repeats=1, batch=1, frames=2, config=SMALL)
    found = embed.measure(clips=2, frames=2, batch=2, workers=1, precision="int8", config=SMALL)
    assert found["precision"] == "int8" and all(row["seconds"] > 0 for row in found["rows"])
    found = embed.measure(clips=2, frames=2, batch=2, workers=1, precision="int8", simulate=20, config=SMALL)
    assert all(row["encoding"] == 0.02 for row in found["rows"])


def test_one_training_step_and_the_stages_of_embedding():
    row = train.measure(batch=2, frames=4, config=SMALL)["rows"][0]
    assert row["clips_a_second"] == pytest.approx(2 / row["seconds"], rel=0.1) and row["peak_MiB"] > 100
    found = embed.measure(clips=2, frames=4, batch=2, workers=1, config=SMALL)
    assert [row["clips"] for row in found["rows"]] == ["originals", "packs"]
    originals, packs = found["rows"]
    assert packs["decoding_processor"] < originals["decoding_processor"]


@pytest.mark.thorough
def test_the_step_of_several_processes_is_predicted_from_one():
    found = ranks.measure(repeats=2, batch=4, frames=1, processes=2, config=SMALL)
    one, two = found["rows"]
    assert (one["processes"], two["processes"]) == (1, 2)
    # One process is where the rate comes from; what the loss takes is counted once more.
    assert one["seconds"] <= one["predicted"] == one["predicted_sum"] < 1.2 * one["seconds"] + 0.01
    assert two["seconds"] > 0 and two["all_reduce"] > 0 and two["predicted_sum"] > two["predicted"]
    wrong = 100 * (two["predicted"] / two["seconds"] - 1)
    assert two["error_percent"] == pytest.approx(wrong, abs=1)


@pytest.mark.bad_input(
    "bench ranks: a batch that the processes cannot share",
    says="`expected a batch that 4 processes can share`",
)
def test_a_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(ClipVipError, match="expected a batch that 4 processes can share, got 6"):
        ranks.measure(batch=6, processes=5)


def test_a_timed_encoder_in_the_models_place(folder):
    options = {"frames": 4, "batch": 1, "workers": 1, "config": SMALL}
    originals, packs = embed.measure(folder=folder, simulate=300, **options)["rows"]
    assert originals["encoding"] == packs["encoding"] == 0.6  # two batches
    for row in (originals, packs):
        assert row["seconds"] >= 0.6 and 0 <= row["waits"] < 1 and row["wait_ms_a_batch"] >= 0
    (row, _) = embed.measure(folder=folder, simulate=0, **options)["rows"]
    assert row["encoding"] == pytest.approx(1.5 * row["decoding"], abs=0.02)


def test_captioning():
    config = OFAConfig(vocab_size=2000, d_model=64, encoder_layers=1, decoder_layers=1, resnet_width=8)
    found = caption.measure(images=2, batch=2, pixels=64, beam=2, config=config)
    (row,) = found["rows"]
    assert row["images_a_second"] == pytest.approx(2 / row["seconds"], rel=0.1)
    assert 1 < found["tokens_of_a_caption"] <= 17


def test_the_steps_of_the_study():
    rows = study.measure(repeats=1, profile="smoke")["rows"]
    assert len(rows) == 6 and all(row["gflop"] > 0 and row["share_of_the_product"] > 0 for row in rows)


def test_searching_finds_nearly_all_of_the_nearest_in_fewer_cells():
    found = search.measure(rows=5_000, queries=4)
    exact, index = found["rows"]
    assert exact["recall_at_10"] == 1 and index["recall_at_10"] > 0.5 and index["way"] == "FAISS, 32 probes"
    assert exact["MB_on_disk"] == 5 > index["MB_on_disk"]  # float16, one bit
    assert search.measure(rows=2_000, queries=1, probes=10_000)["rows"][1]["recall_at_10"] == 1


def test_the_command_prints_a_table_and_writes_json(folder, tmp_path, capsys):
    out = tmp_path / "found.json"
    line = ["bench", "decode", "--folder", folder, "--clips", "1", "--repeats", "1", "--json", str(out)]
    assert main(line) == 0
    said = capsys.readouterr().out.splitlines()
    assert re.match(r"\| files +\| reader", said[0]) and set(said[1]) == {"|", "-"}
    found = json.loads(out.read_text())
    assert len(said) == 2 + len(found["rows"]) + 1 and json.loads(said[-1])["machine"] == found["machine"]


def test_a_number_of_zero_is_an_option_like_others(monkeypatch, capsys):
    given = {}
    monkeypatch.setattr(embed, "measure", lambda **options: given.update(options) or {"rows": [{"a": 1}]})
    assert main(["bench", "embed", "--simulate", "0"]) == 0
    assert given["simulate"] == 0 and "folder" not in given


@pytest.mark.bad_input("bench: unknown names and options", says="one sentence, exit code 2")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["sing"], "invalid choice: 'sing'"),
        ([], "the following arguments are required: NAME"),
        (["decode", "--repeats", "0"], "whole number of at least 1"),
        (["decode", "--folder", "/none"], "no file or folder /none"),
        (["encoder", "--device", "tpu"], "device 'tpu' cannot be used"),
        (["attention", "--json", "/"], "--json: expected a file to write"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(line, words, capsys):
    assert main(["bench", *line]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_every_benchmark_takes_the_options_that_it_offers():
    import importlib
    import inspect

    for name, (_, options) in bench.BENCHES.items():
        taken = inspect.signature(importlib.import_module(f"clipvip_lib.bench.{name}").measure).parameters
        assert set(options) <= taken.keys(), name
    assert bench.SIZES == tuple(OFA_SIZES)  # told before torch is imported


def test_tables_are_markdown():
    rows = [{"a": 1, "b": None}, {"a": "long", "b": np.float64(2.5)}]
    assert bench.table(rows) == ["| a    | b   |", "|------|-----|", "| 1    | -   |", "| long | 2.5 |"]
