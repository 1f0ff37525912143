"""Bad samples and shards of a stream are counted and named, and too many stop the run; texts beside the shards."""

import json
import re
import tarfile

import pytest
from stream_cases import BAD, CLIPS, FAILED, SMALL, keys, make_bad_shard, make_corpus, sample

from clipvip_lib.data.corpora import write_shard
from clipvip_lib.data.shards import expand, read_shard
from clipvip_lib.errors import ClipVipError
from clipvip_lib.streams.sidecars import sidecar_path, write_sidecar
from clipvip_lib.streams.stream import ClipStream


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def shards(corpus):
    return expand(corpus / "{00000..00004}.tar")


@pytest.fixture(scope="module")
def samples(shards):
    return {sample.key: sample for shard in shards for sample in read_shard(shard)}


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    return make_bad_shard(tmp_path_factory.mktemp("bad") / "00000.tar")


@pytest.mark.bad_input(
    "stream: bad samples, and a share may be skipped",
    says="each one in the log, with its reason; none is replaced",
)
def test_bad_samples_are_counted_and_named_never_replaced(bad, tmp_path):
    log = tmp_path / "logs" / "skipped.jsonl"
    stream = ClipStream([bad], **SMALL, skip_share=0.6, skip_log=log, rank=0)
    assert sorted(keys(stream, 5)) == [f"good-{i}" for i in range(5)]
    while stream.counts["epochs"] == 0:
        next(stream)
    lines = [json.loads(line) for line in log.read_text().splitlines()][: len(BAD)]
    assert {line["key"] for line in lines} == set(BAD)
    for line in lines:
        assert line["shard"] == str(bad) and line["rank"] == 0
        assert re.search(BAD[line["key"]][1], line["reason"]), line
    assert stream.counts["absent"] >= 1 and stream.counts["skipped"] >= len(BAD)


@pytest.mark.bad_input(
    "stream: a bad sample of seven kinds, and none may be skipped", says="the sample and what is wrong"
)
@pytest.mark.parametrize("key", BAD)
def test_without_a_share_the_first_bad_sample_stops_the_run(tmp_path, key):
    write_shard(tmp_path / "a.tar", [sample("good"), sample(key, **BAD[key][0])])
    stream = ClipStream([tmp_path / "a.tar"], **SMALL, shuffle=0)
    assert next(stream).key == "good"
    with pytest.raises(ClipVipError, match=BAD[key][1]):
        next(stream)


@pytest.mark.bad_input("stream: more bad samples than may be skipped", says="`skipped 34 of 100 samples`")
def test_too_many_bad_samples_stop_the_run_at_the_epochs_end_or_after_a_hundred(tmp_path):
    few = [sample(f"good-{i}") for i in range(6)] + [sample("worse", txt=None)]
    write_shard(tmp_path / "few.tar", few)
    stream = ClipStream([tmp_path / "few.tar"], **SMALL, skip_share=0.1, skip_log=tmp_path / "log")
    with pytest.raises(
        ClipVipError,
        match=r"rank 0 skipped 1 of 7 samples of epoch 0 \(14\.3%\), expected at most 10\.0%.*the epoch is over",
    ):
        keys(stream, 20)
    assert keys(ClipStream([tmp_path / "few.tar"], **SMALL, skip_share=0.15), 12)

    many = [sample(f"{i:03d}", **({"txt": None} if i % 3 == 0 else {})) for i in range(300)]
    write_shard(tmp_path / "many.tar", many)
    stream = ClipStream([tmp_path / "many.tar"], **SMALL, shuffle=0, skip_share=0.2)
    with pytest.raises(
        ClipVipError, match=r"skipped 34 of 100 samples .* the last was 099 of .*many\.tar.*has no text"
    ):
        keys(stream, 300)
    assert stream.counts["samples"] == 66


@pytest.mark.bad_input(
    "stream: a cut shard, with a share that may be skipped", says="`cut.tar is damaged`, in the log"
)
def test_a_damaged_shard_is_skipped_whole_and_named(shards, tmp_path):
    cut = tmp_path / "cut.tar"
    cut.write_bytes(shards[0].read_bytes()[:20_000])
    log = tmp_path / "log"
    stream = ClipStream([*shards, cut], **SMALL, skip_share=0.5, skip_log=log)
    assert len(set(keys(stream, CLIPS))) == CLIPS
    next(stream)
    reasons = {json.loads(line)["reason"] for line in log.read_text().splitlines()}
    assert len(reasons) == 1 and "cut.tar is damaged" in reasons.pop()
    with pytest.raises(ClipVipError, match=r"cut\.tar is damaged"):
        keys(ClipStream([cut], **SMALL), 1)


@pytest.mark.bad_input(
    "stream: a compressed tar, a doubled member, a key that is not UTF-8, no sample",
    says="`expected a whole, uncompressed tar`",
)
def test_odd_tars_are_named(tmp_path):
    with tarfile.open(tmp_path / "twice.tar", "w") as tar:
        for name in ("a.mp4", "a.txt", "a.txt"):
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(ClipVipError, match=r"a\.txt is there twice"):
        next(ClipStream([tmp_path / "twice.tar"], **SMALL))
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.mp4"))
    with pytest.raises(ClipVipError, match=r"packed\.tar is damaged .*expected a whole, uncompressed tar"):
        next(ClipStream([tmp_path / "packed.tar"], **SMALL))
    with tarfile.open(tmp_path / "bytes.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("caf\udce9.mp4"))
    with pytest.raises(ClipVipError, match=r"the key caf\\udce9 of shard .* expected UTF-8, got other bytes"):
        next(ClipStream([tmp_path / "bytes.tar"], **SMALL))
    with tarfile.open(tmp_path / "none.tar", "w"):
        pass
    with pytest.raises(ClipVipError, match=r"none\.tar holds no sample"):
        next(ClipStream([tmp_path / "none.tar"], **SMALL))


def test_a_rank_without_samples_is_told(tmp_path):
    write_shard(tmp_path / "a.tar", [sample("one"), sample("two")])
    with pytest.raises(ClipVipError, match="rank 2 of 3 finds no sample in 1 shards"):
        next(ClipStream([tmp_path / "a.tar"], **SMALL, rank=2, ranks=3))
    write_shard(tmp_path / "b.tar", [sample("gone", mp4=None, json=FAILED)])
    with pytest.raises(ClipVipError, match="could read no sample in the whole of epoch 0"):
        next(ClipStream([tmp_path / "b.tar"], **SMALL, skip_share=1.0))


@pytest.mark.bad_input(
    "stream: arguments that make no sense", says="such as `expected a rank from 0 to 1, got 2`"
)
@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"rank": 2, "ranks": 2}, "expected a rank from 0 to 1, got 2"),
        ({"frames": 0}, "expected frames of at least 1, got 0"),
        ({"workers": -1}, "expected workers of at least 0, got -1"),
        ({"skip_share": 1.5}, "expected skip_share from 0 to 1, got 1.5"),
        (
            {"captions": True},
            r"5 of 5 captions are not there, first .*00000\.captions\.jsonl; `clipvip caption`",
        ),
        ({"texts": True}, "5 of 5 texts are not there.*`clipvip convert-texts`"),
    ),
)
def test_a_bad_argument_is_one_sentence(shards, options, message):
    with pytest.raises(ClipVipError, match=message):
        ClipStream(shards, **SMALL | options)


def test_shards_that_are_none_doubled_or_missing_are_refused(shards, tmp_path):
    for wrong, message in (
        ([], "expected at least one shard"),
        ([*shards, shards[0]], "1 shards are named twice"),
        ([*shards, tmp_path / "x.tar"], r"1 of 6 shards are not there, first .*x\.tar"),
    ):
        with pytest.raises(ClipVipError, match=message):
            ClipStream(wrong, **SMALL)


# ------------------------------------------------------------------------------------------------- sidecars


def test_captions_and_texts_come_from_beside_the_shards(shards, samples, tmp_path):
    for shard in shards:
        listed = [s.key for s in read_shard(shard)]
        write_sidecar(
            sidecar_path(shard, "captions", tmp_path), "captions", [(k, f"caption\u2028{k}") for k in listed]
        )
        write_sidecar(sidecar_path(shard, "texts", tmp_path), "texts", [(k, f"text {k}") for k in listed])
    stream = ClipStream(shards, **SMALL, captions_dir=tmp_path)
    clip = next(stream)
    assert (clip.caption, clip.text) == (f"caption\u2028{clip.key}", samples[clip.key].text)
    clip = next(ClipStream(shards, **SMALL, captions_dir=tmp_path, texts_dir=tmp_path))
    assert (clip.caption, clip.text) == (f"caption\u2028{clip.key}", f"text {clip.key}")


@pytest.mark.bad_input(
    "stream: a caption missing, or a damaged file of captions",
    says="`is not a JSON object with key and caption`",
)
def test_a_sample_without_a_caption_is_bad_and_a_damaged_sidecar_stops(bad, tmp_path):
    beside = sidecar_path(bad, "captions", tmp_path)
    write_sidecar(beside, "captions", [(f"good-{i}", "" if i == 3 else "c") for i in range(4)])
    stream = ClipStream([bad], **SMALL, captions_dir=tmp_path, skip_share=0.9, skip_log=tmp_path / "log")
    clips = sorted((next(stream) for _ in range(4)), key=lambda clip: clip.key)
    assert [(c.key, c.caption) for c in clips] == [(f"good-{i}", "" if i == 3 else "c") for i in range(4)]
    next(stream)
    reasons = (tmp_path / "log").read_text()
    assert "sample good-4 of shard" in reasons and "is not in" in reasons
    for content, message in (
        ('{"key": "a"}\n', "line 1 of .* is not a JSON object with key and caption"),
        ('{"key": "a", "caption": 3}\n', "line 1 .*expected text"),
        ('{"key": "a", "caption": "b"}\n' * 2, "line 2 .*names the key a a second time"),
    ):
        beside.write_text(content)
        with pytest.raises(ClipVipError, match=message):
            next(ClipStream([bad], **SMALL, captions_dir=tmp_path, skip_share=0.9))
