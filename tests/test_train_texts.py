"""``clipvip train --texts``: shards as HD-VILA's, without key.txt, and the subtitles that convert-texts puts beside."""

import json
import re
import shutil
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_runs
from small_runs import settings
from stream_cases import FAILED, sample

from clipvip_lib import cli
from clipvip_lib.data.corpora import write_shard
from clipvip_lib.data.shards import expand, read_shard
from clipvip_lib.streams.parquet import parquet_path, write_captions
from clipvip_lib.streams.sidecars import read_sidecar

ID = "{video_id}.{clip}.mp4"


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


class Made:
    """A model, and the same clips as shards with key.txt ("whole"), without ("bare") and with wrong ones ("wrong").

    Beside the last two stand the sidecars that ``clipvip convert-texts`` wrote of the first ones' texts.
    """

    def __init__(self, folder):
        self.folder = folder
        small_runs.write_model(folder / "model")
        small_runs.write_shards(folder / "whole", (2, 1))
        self.shards = {name: folder / name for name in ("whole", "bare", "wrong")}
        rows = []
        for shard in expand(folder / "whole"):
            samples = list(read_shard(shard))
            rows += [{"clip_id": ID.format(**s.about), "text": s.text} for s in samples]
            for name, txt in (("bare", b""), ("wrong", b"red red red")):
                written = [
                    {"__key__": s.key, "mp4": s.media, "txt": txt, "json": json.dumps(s.about)}
                    for s in samples
                ]
                (folder / name).mkdir(exist_ok=True)
                write_shard(folder / name / shard.name, written)
                shutil.copy(shard.with_suffix(".captions.jsonl"), folder / name)
        said = folder / "said.jsonl"
        said.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.convert = ["convert-texts", "--subtitles", str(said), "--id", ID, "--shards"]
        for name in ("bare", "wrong"):
            assert cli.main([*self.convert, f"{folder}/{name}"]) == 0

    def options(self, shards, out, *more, **changes):
        given = ["--stage", "postpretrain", "--shards", str(shards), "--weights", str(self.folder / "model")]
        return ["train", *given, "--out", str(out), *map(str, more), *settings(**{"steps": 3} | changes)]

    def train(self, shards, out, *more):
        """The weights of a run on shards."""
        assert cli.main(self.options(shards, out, *more)) == 0
        return (out / "model/model.safetensors").read_bytes()

    def copy(self, name, to):
        return shutil.copytree(self.shards[name], to)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Made(tmp_path_factory.mktemp("made"))


def refused(made, capsys, shards, out, *more):
    """The sentence with which a run ends."""
    capsys.readouterr()
    assert cli.main(made.options(shards, out, *more)) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("clipvip:")]
    said = [line for line in said if line != "clipvip: loading the model"]
    assert len(said) == 1, said
    return said[0]


# ------------------------------------------------------------------------------------------------ which text is read


@pytest.mark.parametrize("store", (False, True), ids=("stream", "store"))
def test_texts_beside_the_shards_train_as_the_same_texts_inside_them(made, tmp_path, store):
    """Bit for bit; and where both are there, --texts decides."""

    def run(shards, *more):
        number = len(list(tmp_path.iterdir()))
        kept = ["--frames-store", tmp_path / f"store-{number}"] if store else []
        return made.train(made.shards[shards], tmp_path / f"run-{number}", *kept, *more)

    inside = run("whole")
    assert run("bare", "--texts") == inside
    assert run("wrong", "--texts", made.shards["bare"]) == inside  # the sidecar wins, from another folder too
    assert run("wrong") != inside  # without --texts key.txt wins


def captions_as_parquet(made, folder):
    """The captions of the shards as Parquet alone."""
    for path in made.shards["whole"].glob("*.captions.jsonl"):
        write_captions(parquet_path(folder / path.name), read_sidecar(path, "captions"))
    return folder


@pytest.mark.parametrize("store", (False, True), ids=("stream", "store"))
def test_captions_that_come_as_parquet_train_as_the_same_json_lines(made, tmp_path, store):
    folder = captions_as_parquet(made, tmp_path / "captions")
    kept = ("--frames-store", tmp_path / "store") if store else ()
    lines = made.train(made.shards["whole"], tmp_path / "lines", *kept)
    assert made.train(made.shards["whole"], tmp_path / "parquet", "--captions", folder, *kept) == lines


def test_one_store_serves_other_texts(made, tmp_path):
    """A store holds frames and what key.txt says; sidecars are read when training starts."""
    kept = ("--frames-store", tmp_path / "store")
    wrong = made.train(made.shards["wrong"], tmp_path / "wrong", *kept)
    beside = made.train(made.shards["wrong"], tmp_path / "beside", *kept, "--texts")
    another = ("--frames-store", tmp_path / "another")
    assert wrong != beside == made.train(made.shards["whole"], tmp_path / "whole", *another)


def test_from_metadata_to_a_model_by_the_two_commands(made, tmp_path, capsys):
    """Shards as video2dataset leaves clips of YouTube: spans, empty texts, one never fetched."""
    metadata, spans = {"video_id": "AbCdEfGhIjK", "url": "https://www.youtube.com/watch?v=AbCdEfGhIjK"}, []
    samples = [s for shard in expand(made.shards["whole"]) for s in read_shard(shard)]
    written = [sample("000000099_00000", mp4=None, txt="", json=FAILED)]
    for number, each in enumerate(samples):
        spans.append([number * 10.5, number * 10.5 + 8.25])
        about = {**metadata, "status": "success", "clips": [spans[-1]]}
        written.append(sample(f"000000000_{number:05d}", mp4=each.media, txt="", json=json.dumps(about)))
    write_shard(tmp_path / "00000.tar", written)
    clips = [{"clip_id": f"AbCdEfGhIjK.{n}.mp4", "span": span} for n, span in enumerate(spans)]
    (tmp_path / "metadata.jsonl").write_text(json.dumps({**metadata, "clip": clips}) + "\n")
    said = [{"clip_id": c["clip_id"], "text": s.text} for c, s in zip(clips, samples, strict=True)]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))

    def clipvip(*line):
        capsys.readouterr()
        assert cli.main(list(map(str, line))) == 0
        return json.loads(capsys.readouterr().out)

    told = clipvip(
        "convert-texts", "--shards", tmp_path / "00000.tar", "--subtitles", tmp_path / "said.jsonl",
        "--metadata", tmp_path / "metadata.jsonl", "--out", tmp_path / "texts",
    )  # fmt: skip
    assert (told["clips"], told["texts"], told["missing"]) == (12, 12, 0)
    line = made.options(
        tmp_path / "00000.tar", tmp_path / "out", "--texts", tmp_path / "texts", "--loss", "V-S",
        "--workers", 1, steps=4,
    )  # fmt: skip
    result = clipvip(*line)
    assert result["steps"] == 4
    [counts] = result["samples_by_rank"]  # 32 at 12 per epoch: the one that is absent came by twice at least
    assert counts["samples"] == 32 and counts["skipped"] == 0 and counts["absent"] >= 2


def test_a_store_leaves_out_what_was_never_fetched(made, tmp_path, capsys):
    shards = made.copy("bare", tmp_path / "shards")
    fetched = [sample(s.key, mp4=s.media, txt="") for s in read_shard(made.shards["whole"] / "00001.tar")]
    write_shard(shards / "00001.tar", [*fetched, sample("gone", mp4=None, txt="", json=FAILED)])
    more = ("--texts", "--frames-store", tmp_path / "store")
    whole = made.train(made.shards["whole"], tmp_path / "b", "--frames-store", tmp_path / "whole")
    assert made.train(shards, tmp_path / "a", *more) == whole
    write_shard(shards / "00001.tar", [sample("gone", mp4=None, txt="", json=FAILED)])
    more = ("--texts", "--frames-store", tmp_path / "other")
    assert re.search(
        r"00001\.tar holds no clip.*got 1 that were never fetched \(failed_to_download.*leave the shard out",
        refused(made, capsys, shards, tmp_path / "c", *more),
    )


# ------------------------------------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize("store", (False, True), ids=("stream", "store"))
def test_shards_without_texts_are_told_of_the_option(made, tmp_path, capsys, store):
    kept = ("--frames-store", tmp_path / "store") if store else ()
    said = refused(made, capsys, made.shards["bare"], tmp_path / "out", *kept)
    assert re.search(r"no clip of shard .*00000\.tar has a text in it.*convert-texts.*add --texts", said)
    assert not (tmp_path / "store").exists()  # before anything was decoded


@pytest.mark.bad_input(
    "train: texts beside the shards that are not there", says="`1 of 2 texts are not there`"
)
@pytest.mark.parametrize("store", (False, True), ids=("stream", "store"))
def test_a_missing_sidecar_is_named_at_once(made, tmp_path, capsys, store):
    shards = made.copy("bare", tmp_path / "shards")
    (shards / "00001.texts.jsonl").unlink()
    kept = ("--frames-store", tmp_path / "store") if store else ()
    said = refused(made, capsys, shards, tmp_path / "out", "--texts", *kept)
    assert re.search(
        r"1 of 2 texts are not there, first .*00001\.texts\.jsonl; `clipvip convert-texts`", said
    )
    said = refused(made, capsys, shards, tmp_path / "out", "--texts", tmp_path / "nowhere", *kept)
    assert re.search(r"no folder '.*nowhere': expected the texts of the shards", said)
    assert not (tmp_path / "store").exists()


def cut_sidecar(made, folder):
    """Shards without key.txt of which one sidecar lacks its last clip; that clip's key."""
    shards = made.copy("wrong", folder)  # a key.txt is there, and is not taken in its place
    beside = shards / "00001.texts.jsonl"
    lines = beside.read_text().splitlines(keepends=True)
    beside.write_text("".join(lines[:-1]))
    return shards, json.loads(lines[-1])["key"]


@pytest.mark.bad_input("train: a clip without a text beside the shard", says="`write the sidecar again`")
def test_a_clip_that_the_sidecar_lacks_is_named_or_skipped_up_to_a_share(made, tmp_path, capsys):
    shards, key = cut_sidecar(made, tmp_path / "shards")
    sentence = rf"sample {key} of shard .*00001\.tar is not in .*00001\.texts\.jsonl; write the sidecar again"
    assert re.search(sentence, refused(made, capsys, shards, tmp_path / "a", "--texts"))
    assert cli.main(made.options(shards, tmp_path / "b", "--texts", "--skip-share", 0.1, steps=4)) == 0
    [counts] = json.loads((tmp_path / "b/result.json").read_text())["result"]["samples_by_rank"]
    assert counts["samples"] == 32 and counts["skipped"] >= 2  # each epoch of 11 clips
    log = [json.loads(line) for line in (tmp_path / "b/skipped-00000.jsonl").read_text().splitlines()]
    assert {line["key"] for line in log} == {key} and re.search(sentence, log[0]["reason"])
    said = refused(made, capsys, shards, tmp_path / "c", "--texts", "--frames-store", tmp_path / "store")
    assert re.search(sentence, said)  # a store takes whole shards


def test_a_store_whose_texts_are_elsewhere_asks_for_them(made, tmp_path, capsys):
    kept = ("--frames-store", str(tmp_path / "store"))
    made.train(made.shards["bare"], tmp_path / "a", *kept, "--texts")
    without = [*made.options("x", tmp_path / "b", *kept, "--loss", "V-S")]
    del without[without.index("--shards") : without.index("--shards") + 2]  # the store alone
    capsys.readouterr()
    assert cli.main(without) == 2
    said = capsys.readouterr().err
    assert re.search(r"00000\.npy keeps no text of 8 of 8 clips, first .*add --texts", said), said
    assert cli.main([*without, "--texts", str(made.shards["bare"])]) == 0
    shards, key = cut_sidecar(made, tmp_path / "shards")
    capsys.readouterr()
    another = [*without, "--texts", str(shards)]
    another[another.index("--out") + 1] = str(tmp_path / "c")
    assert cli.main(another) == 2
    assert re.search(
        rf"00001\.texts\.jsonl has no text of 1 of 4 clips, first {key}: expected one",
        capsys.readouterr().err,
    )


def test_a_damaged_sidecar_and_a_foreign_stage_are_one_sentence(made, tmp_path, capsys):
    shards = made.copy("bare", tmp_path / "shards")
    (shards / "00000.texts.jsonl").write_text('{"key": "a"}\n')
    said = refused(made, capsys, shards, tmp_path / "out", "--texts")
    assert re.search(r"line 1 of .*00000\.texts\.jsonl is not a JSON object with key and text", said)
    given = ["train", "--stage", "finetune", "--benchmark", "msrvtt", "--data", "d", "--weights", "w"]
    assert cli.main([*given, "--out", str(tmp_path / "x"), "--texts", "t"]) == 2
    assert "--stage finetune takes no --texts" in capsys.readouterr().err
    assert cli.main(made.options(shards, tmp_path / "out", "--texts=")) == 2
    assert "expected the name of a file or folder, got ''" in capsys.readouterr().err


@pytest.mark.parametrize("store", (False, True), ids=("stream", "store"))
def test_parquet_that_is_no_captions_is_one_sentence(made, tmp_path, capsys, store):
    folder = captions_as_parquet(made, tmp_path / "captions")
    pq.write_table(pa.table({"key": ["a"], "text": ["b"]}), folder / "00001.captions.parquet")
    more = ("--captions", folder, *(("--frames-store", tmp_path / "store") if store else ()))
    said = refused(made, capsys, made.shards["whole"], tmp_path / "out", *more)
    assert re.search(
        r"00001\.captions\.parquet: expected Parquet with the columns key and caption, .*text", said
    )


@pytest.mark.parametrize("store", (False, True), ids=("stream", "store"))
def test_parquet_without_pyarrow_is_one_sentence(made, tmp_path, capsys, monkeypatch, store):
    folder = captions_as_parquet(made, tmp_path / "captions")
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    more = ("--captions", folder, *(("--frames-store", tmp_path / "store") if store else ()))
    said = refused(made, capsys, made.shards["whole"], tmp_path / "out", *more)
    assert re.search(r"00000\.captions\.parquet expected pyarrow, .*run pip install pyarrow", said)


def test_a_run_does_not_go_on_with_other_texts(made, tmp_path, capsys):
    made.train(made.shards["wrong"], tmp_path / "out")
    assert "holds the result of another run" in refused(
        made, capsys, made.shards["wrong"], tmp_path / "out", "--texts"
    )


def test_what_convert_texts_wrote_is_what_is_read(made):
    for shard in expand(made.shards["whole"]):
        inside = {s.key: s.text for s in read_shard(shard)}
        beside = read_sidecar(made.shards["bare"] / f"{shard.stem}.texts.jsonl", "texts")
        assert beside == {key: " ".join(text.split()) for key, text in inside.items()} and len(beside) >= 4
