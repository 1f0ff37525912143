"""``clipvip convert-texts``: texts of LMDBs, tables and video2dataset's own notes come to stand beside their shards."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from stream_cases import FAILED, MP4, SMALL, keys, quiet, sample
from test_hdvila import ID, LINE, make_lmdb, metadata

from clipvip_lib.cli import Parser
from clipvip_lib.commands import convert_texts
from clipvip_lib.data.corpora import write_corpus, write_shard
from clipvip_lib.data.shards import expand, read_shard
from clipvip_lib.errors import ClipVipError
from clipvip_lib.streams.sidecars import read_sidecar
from clipvip_lib.streams.stream import ClipStream


def run(*line):
    top = Parser(prog="clipvip")
    convert_texts.add(top.add_subparsers(required=True))
    arguments = top.parse_args(["convert-texts", *map(str, line)])
    assert arguments.run(arguments) == 0


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two shards of a corpus, and for their clips the authors' two LMDBs."""
    folder = tmp_path_factory.mktemp("corpus")
    for part in range(2):
        write_corpus(folder / f"{part:05d}.tar", "hdvila-10m", 0, 2 * part, 2, quiet)
    samples = [sample for shard in expand(folder) for sample in read_shard(shard)]
    ids = [f"{sample.about['video_id']}.{sample.about['clip']}.mp4" for sample in samples]
    make_lmdb(folder / "subtitles", {name: f"what is said in {name}" for name in ids})
    (folder / "subtitles.jsonl").write_text("".join(json.dumps({"clip_id": name}) + "\n" for name in ids))
    make_lmdb(
        folder / "captions",
        {name: json.dumps([{"image_id": name, "caption": f"a picture of {name}"}]) for name in ids},
    )
    (folder / "captions.json").write_text(
        json.dumps([{"image_id": name, "caption": f"a picture of {name}"} for name in ids])
    )
    (folder / "said.jsonl").write_text(
        "".join(json.dumps({"clip_id": name, "text": f"what is said in {name}"}) + "\n" for name in ids)
    )
    return folder


ID_TEMPLATE = ("--id", "{video_id}.{clip}.mp4")


def test_the_authors_lmdbs_become_sidecars_that_a_stream_takes(corpus, tmp_path, capsys):
    run(
        "--shards",
        corpus / "{00000..00001}.tar",
        "--out",
        tmp_path,
        "--subtitles",
        corpus / "subtitles",
        *ID_TEMPLATE,
    )
    report = capsys.readouterr()
    assert json.loads(report.out) == {"shards": 2, "done_before": 0, "clips": 16, "texts": 16, "missing": 0}
    assert "2/2" in report.err
    run("--shards", corpus, "--out", tmp_path, "--captions", corpus / "captions", *ID_TEMPLATE)
    stream = ClipStream(expand(corpus), **SMALL, texts_dir=tmp_path, captions_dir=tmp_path)
    for clip in (next(stream) for _ in range(16)):
        video, part = clip.key.rsplit("-", 1)
        name = f"hdvila-10m-{video.removeprefix('v')}.{part}.mp4"
        assert (clip.text, clip.caption) == (f"what is said in {name}", f"a picture of {name}")


def test_the_other_forms_give_the_same_files(corpus, tmp_path):
    sources = {
        "texts": ("--subtitles", corpus / "subtitles", corpus / "said.jsonl"),
        "captions": ("--captions", corpus / "captions", corpus / "captions.json"),
    }
    for kind, (option, one, other) in sources.items():
        for folder, source in (("one", one), ("other", other)):
            run("--shards", corpus, "--out", tmp_path / folder, option, source, *ID_TEMPLATE)
        for name in (f"00000.{kind}.jsonl", f"00001.{kind}.jsonl"):
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_captions_are_those_that_captioning_finds_done(corpus, tmp_path):
    from clipvip_lib.captions.caption_shards import caption_shards

    run("--shards", corpus, "--out", tmp_path, "--captions", corpus / "captions", *ID_TEMPLATE)
    tally = caption_shards([corpus / "00000.tar"], tmp_path, SimpleNamespace(image_size=None))
    assert (tally.found, tally.written) == (1, 0)


def test_finished_shards_are_skipped_and_a_new_one_is_added(corpus, tmp_path, capsys):
    line = ("--out", tmp_path, "--subtitles", corpus / "subtitles", *ID_TEMPLATE)
    run("--shards", corpus / "00000.tar", *line)
    first = (tmp_path / "00000.texts.jsonl").stat().st_mtime_ns
    capsys.readouterr()
    run("--shards", corpus, *line)
    assert json.loads(capsys.readouterr().out) == {
        "shards": 2,
        "done_before": 1,
        "clips": 16,
        "texts": 16,
        "missing": 0,
    }
    assert (tmp_path / "00000.texts.jsonl").stat().st_mtime_ns == first


def shard_of_youtube(path):
    """As video2dataset leaves clips of YouTube: empty txt, the span in clips, subtitles by language."""

    def about(clip, **more):
        return json.dumps({"url": LINE["url"], "video_id": ID, "status": "success", "clips": [clip]} | more)

    rolling = [
        {"start": "00:00:17.0", "end": "00:00:19.0", "lines": {"en": ["so this is"]}},
        {"start": "00:00:19.0", "end": "00:00:21.0", "lines": {"en": ["so this is", "a  red\ncircle"]}},
        {"start": "00:00:21.0", "end": "00:00:23.0", "lines": {"en": ["a red circle", " "]}},
    ]
    listed = [{"start": 292.0, "end": 294.0, "lines": ["hello there"]}]
    write_shard(
        path,
        [
            sample("000000000_00000", txt="", json=about([17.759, 23.279], clip_subtitles=rolling)),
            sample(
                "000000000_00001", txt="", json=about(["00:04:52.140", "01:05:03.350"], clip_subtitles=listed)
            ),
            sample("000000001", mp4=None, txt="", json=FAILED),
        ],
    )
    return path


def test_clips_of_youtube_are_found_by_span_or_bring_their_own_subtitles(tmp_path):
    shard = shard_of_youtube(tmp_path / "00000.tar")
    texts = make_lmdb(tmp_path / "texts", {f"{ID}.1.mp4": "first", f"{ID}.16.mp4": "second"})
    run(
        "--shards",
        shard,
        "--out",
        tmp_path / "a",
        "--subtitles",
        texts,
        "--metadata",
        metadata(tmp_path / "m.jsonl"),
    )
    assert list(read_sidecar(tmp_path / "a/00000.texts.jsonl", "texts").values()) == ["first", "second"]
    run("--shards", shard, "--own-subtitles")
    assert list(read_sidecar(tmp_path / "00000.texts.jsonl", "texts").values()) == [
        "so this is a red circle",
        "hello there",
    ]
    with ClipStream([shard], **SMALL, texts=True, shuffle=0) as stream:
        assert keys(stream, 2) == ["000000000_00000", "000000000_00001"]
        next(stream)
        assert stream.counts["absent"] == 1


def test_webvids_table_by_videoid(tmp_path):
    write_shard(
        tmp_path / "00000.tar",
        [
            sample("000000000", txt=None, json='{"videoid": 7}'),
            sample("000000001", txt=None, json='{"videoid": 8}'),
        ],
    )
    (tmp_path / "results.csv").write_text(
        "videoid,contentUrl,duration,page_dir,name\n7,u,d,p,A lake\n8,u,d,p,A hill\n"
    )
    run("--shards", tmp_path, "--csv", tmp_path / "results.csv")
    assert read_sidecar(tmp_path / "00000.texts.jsonl", "texts") == {
        "000000000": "A lake",
        "000000001": "A hill",
    }


def test_a_clip_without_a_text_is_named_and_may_be_allowed(tmp_path, capsys):
    written = [
        {"__key__": f"k{i}", "mp4": MP4, "json": json.dumps({"clip_id": f"c{i}"} if i else {})}
        for i in range(4)
    ]
    write_shard(tmp_path / "00000.tar", written)
    texts = make_lmdb(tmp_path / "texts", {"c1": "one", "c2": " \n"})
    line = ("--shards", tmp_path, "--subtitles", texts)
    with pytest.raises(
        ClipVipError, match=r"3 clips have no text, expected at most 0 .*first k0 of .*00000\.tar"
    ):
        run(*line)
    assert not (tmp_path / "00000.texts.jsonl").exists()
    run(*line, "--allow-missing", 3)
    assert json.loads(capsys.readouterr().out)["missing"] == 3
    assert read_sidecar(tmp_path / "00000.texts.jsonl", "texts") == {"k1": "one"}
    with pytest.raises(
        ClipVipError, match="3 clips have no text, expected at most 2"
    ):  # counted again when it is there
        run(*line, "--allow-missing", 2)


def test_shards_of_one_sidecar_are_refused(corpus, tmp_path):
    """The second would find the first one's file, take it for its own and have no texts."""
    again = tmp_path / "again"
    again.mkdir()
    (again / "00000.tar").symlink_to(corpus / "00001.tar")
    line = ("--subtitles", corpus / "subtitles", *ID_TEMPLATE, "--out", tmp_path / "out", "--shards")
    for other in (again / "00000.tar", corpus / "00000.tar", corpus / ".." / corpus.name / "00000.tar"):
        with pytest.raises(ClipVipError, match=r"00000\.tar would both write .*00000\.texts\.jsonl"):
            run(*line, f"{{{corpus / '00000.tar'},{other}}}")
    assert not (tmp_path / "out").exists()


def test_only_texts_of_the_shards_own_clips_are_counted(tmp_path, capsys):
    write_shard(tmp_path / "00000.tar", [sample("a"), sample("b")])
    (tmp_path / "00000.texts.jsonl").write_text(
        "".join(json.dumps({"key": key, "text": "x"}) + "\n" for key in "acde")
    )
    run("--shards", tmp_path, "--own-subtitles", "--allow-missing", 1)
    counted = json.loads(capsys.readouterr().out)
    assert (counted["clips"], counted["texts"], counted["missing"]) == (2, 1, 1)


@pytest.mark.bad_input("convert-texts: half a character", says="`holds half a`; no file is written")
def test_a_text_that_is_half_a_character_is_one_sentence(tmp_path):
    write_shard(tmp_path / "00000.tar", [sample("k", json='{"clip_id": "c"}')])
    (tmp_path / "said.jsonl").write_text('{"clip_id": "c", "text": "half \\ud800"}\n')
    with pytest.raises(ClipVipError, match=r"00000\.texts\.jsonl: the text of 'k' holds half a .*'\\ud800'"):
        run("--shards", tmp_path, "--subtitles", tmp_path / "said.jsonl")
    assert not (tmp_path / "00000.texts.jsonl").exists()


@pytest.mark.bad_input("convert-texts: 100,000 brackets", says="`is not JSON`")
def test_a_deep_json_is_one_sentence(tmp_path):
    write_shard(tmp_path / "00000.tar", [sample("k", json="[" * 100_000)])
    with pytest.raises(ClipVipError, match=r"k\.json of shard .* is not JSON"):
        run("--shards", tmp_path, "--own-subtitles")
    (tmp_path / "00000.texts.jsonl").write_text("[" * 100_000)
    with pytest.raises(ClipVipError, match="line 1 of .* is not a JSON object"):
        read_sidecar(tmp_path / "00000.texts.jsonl", "texts")


@pytest.mark.bad_input("convert-texts: options that make no sense", says="one sentence")
@pytest.mark.parametrize(
    ("line", "message"),
    (
        (("--subtitles", ""), "expected the name of a file or folder, got ''"),
        (("--captions", ""), "expected the name of a file or folder, got ''"),
        (("--csv", " "), "expected the name of a file or folder, got ' '"),
        (("--own-subtitles", "--allow-missing", "-1"), "expected a whole number of at least 0, got '-1'"),
        (("--own-subtitles", "--allow-missing", "x"), "expected a whole number of at least 0, got 'x'"),
        (("--own-subtitles", "--id", "{key}"), "expected no --id"),
        (("--own-subtitles", "--metadata", "m.jsonl"), "expected no --metadata"),
        (("--own-subtitles", "--columns", "a,b"), "--columns names those of a table: expected --csv"),
        (("--subtitles", "x", "--columns", "a,b"), "--columns names those of a table: expected --csv"),
        (("--subtitles", "absent"), "no LMDB absent"),
        (("--subtitles", "x", "--id", "clip"), "expected an id such as"),
        (("--subtitles", "x", "--id", "{clip"), "expected an id such as"),
        (("--csv", "x.csv", "--columns", "a"), "expected two columns as ID,TEXT, got 'a'"),
        ((), "one of the arguments --subtitles --captions --csv --own-subtitles is required"),
        (("--own-subtitles", "--out="), "expected the name of a file or folder, got ''"),
    ),
)
def test_a_bad_argument_is_one_sentence(corpus, line, message):
    if line[2:3] == ("--id",):
        line = ("--subtitles", corpus / "subtitles", *line[2:])
    with pytest.raises(ClipVipError, match=message):
        run("--shards", corpus, *line)


def test_the_command_needs_nothing_heavy():
    modules = "clipvip_lib.commands.convert_texts, clipvip_lib.streams.shard_texts"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.strip() == "False", done.stderr
