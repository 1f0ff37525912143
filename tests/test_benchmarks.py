"""Annotations in the sets' own formats; what is wrong with one is said with its file and line."""

import json

import pytest

from clipvip_lib.data import corpora
from clipvip_lib.data.benchmarks import load_benchmark
from clipvip_lib.errors import ClipVipError


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    for name in ("msrvtt", "didemo"):
        corpora.write_benchmark(folder / name, name, 0, {"train": 8, "val": 4, "test": 8}, lambda *_: None)
    return folder


@pytest.fixture
def root(written, tmp_path):
    """A copy whose annotations may be damaged; videos are linked."""
    for name in ("msrvtt", "didemo"):
        (tmp_path / name / "videos").mkdir(parents=True)
        for path in (written / name).rglob("*.*"):
            copy = tmp_path / name / path.relative_to(written / name)
            if path.suffix == ".mp4":
                copy.symlink_to(path)
            else:
                copy.write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize(("split", "count"), (("train", 8), ("val", 4), ("test", 8)))
@pytest.mark.parametrize("name", ("msrvtt", "didemo"))
def test_every_split_is_read_with_its_videos(root, name, split, count):
    items = load_benchmark(name, root / name, split)
    assert len(items) == len({item.video_id for item in items}) == count
    assert all(item.path.is_file() for item in items)
    assert {len(item.texts) for item in items} == {5 if (name, split) == ("msrvtt", "train") else 1}


def test_unknown_names_are_refused(root):
    with pytest.raises(ClipVipError, match="unknown benchmark 'msrvt'.*did you mean 'msrvtt'"):
        load_benchmark("msrvt", root, "test")
    with pytest.raises(ClipVipError, match="unknown split"):
        load_benchmark("msrvtt", root / "msrvtt", "dev")


@pytest.mark.bad_input("benchmark: missing videos", says="`2 of 8 videos`, with their names")
def test_missing_clips_are_counted_named_and_refused(root):
    for number in (16, 17):
        (root / f"msrvtt/videos/video{number}.mp4").unlink()
    for allowed in (0, 1):
        with pytest.raises(
            ClipVipError, match=r"2 of 8 videos .* first video16, video17; .*--allow-missing 2\), .* will say"
        ):
            load_benchmark("msrvtt", root / "msrvtt", "test", allow_missing=allowed)
    items = load_benchmark("msrvtt", root / "msrvtt", "test", allow_missing=2)
    assert items.missing == ("video16", "video17")
    assert items.note() == "without 2 of 8 videos"
    assert len(items) == 6
    assert not {item.video_id for item in items} & set(items.missing)
    assert load_benchmark("msrvtt", root / "msrvtt", "train").note() == ""
    with pytest.raises(ClipVipError, match="allow_missing of 0 or more, got -1"):
        load_benchmark("msrvtt", root / "msrvtt", "test", allow_missing=-1)


def test_no_video_at_all_is_refused_whatever_is_allowed(root):
    for path in (root / "didemo/videos").iterdir():
        path.unlink()
    with pytest.raises(ClipVipError, match="8 of 8 videos"):
        load_benchmark("didemo", root / "didemo", "test", allow_missing=100)


@pytest.mark.bad_input("benchmark: a damaged annotation file", says="the file and the line or entry")
@pytest.mark.parametrize(
    ("path", "content", "message"),
    (
        ("didemo/test_data.json", "[{'video': 1}]", r"test_data\.json line 1 is not JSON"),
        (
            "didemo/test_data.json",
            '[\n{"video": "a.mp4"}]',
            r"entry 0: expected an object with 'description'",
        ),
        ("didemo/test_data.json", '{"a": 1}', "expected a list of descriptions, got dict"),
        ("didemo/test_data.json", "[]", "expected at least one video"),
        (
            "didemo/test_data.json",
            '[{"video": "test_00012.mp4", "description": " "}]',
            "has an empty or no text",
        ),
        (
            "didemo/test_data.json",
            '[{"video": "test_00012.mp4", "description": null}]',
            "entry 0: expected text in 'description', got null",
        ),
        ("msrvtt/MSRVTT_JSFUSION_test.csv", "key,video_id\nret0,video16\n", "line 2: expected the columns"),
        (
            "msrvtt/MSRVTT_JSFUSION_test.csv",
            "video_id,sentence\nvideo16,a ball, it falls\n",
            "line 2: expected 2 columns, got 1 more; put texts with commas into quotes",
        ),
        ("msrvtt/MSRVTT_JSFUSION_test.csv", f"video_id,sentence\nvideo16,{'x' * 140_000}\n", "is not CSV"),
    ),
)
def test_a_damaged_annotation_is_named(root, path, content, message):
    (root / path).write_text(content)
    name = path.split("/")[0]
    with pytest.raises(ClipVipError, match=message):
        load_benchmark(name, root / name, "test")


@pytest.mark.bad_input(
    "benchmark: an annotation file in Latin-1, or not there", says="`is not UTF-8`, `no annotation file`"
)
def test_annotations_must_be_there_and_utf8(root):
    (root / "msrvtt/MSRVTT_val.csv").write_bytes(
        "key,vid_key,video_id,sentence\nr,m,video0,caf\u00e9\n".encode("latin-1")
    )
    with pytest.raises(ClipVipError, match="is not UTF-8"):
        load_benchmark("msrvtt", root / "msrvtt", "val")
    (root / "msrvtt/MSRVTT_val.csv").unlink()
    with pytest.raises(ClipVipError, match=r"no annotation file .*MSRVTT_val\.csv"):
        load_benchmark("msrvtt", root / "msrvtt", "val")


def test_a_training_video_without_sentences_is_named(root):
    path = root / "msrvtt/MSRVTT_data.json"
    data = json.loads(path.read_text())
    data["sentences"] = [s for s in data["sentences"] if s["video_id"] != "video3"]
    path.write_text(json.dumps(data))
    with pytest.raises(ClipVipError, match="video3 has an empty or no text"):
        load_benchmark("msrvtt", root / "msrvtt", "train")


@pytest.mark.bad_input("benchmark: sentences that are no list", says="`expected a list of sentences`")
@pytest.mark.parametrize("content", ('{"sentences": 5}', '{"sentences": null}'))
def test_sentences_must_be_a_list(root, content):
    (root / "msrvtt/MSRVTT_data.json").write_text(content)
    with pytest.raises(ClipVipError, match=r"MSRVTT_data\.json: expected a list of sentences"):
        load_benchmark("msrvtt", root / "msrvtt", "train")


@pytest.mark.bad_input("benchmark: a caption that is null", says="`expected text in 'caption', got null`")
def test_a_null_caption_is_no_caption(root):
    path = root / "msrvtt/MSRVTT_data.json"
    data = json.loads(path.read_text())
    data["sentences"][3]["caption"] = None
    path.write_text(json.dumps(data))
    with pytest.raises(ClipVipError, match="entry 3: expected text in 'caption', got null"):
        load_benchmark("msrvtt", root / "msrvtt", "train")


def test_a_spreadsheets_mark_in_front_is_no_part_of_a_name(root):
    path = root / "msrvtt/MSRVTT_val.csv"
    items = load_benchmark("msrvtt", root / "msrvtt", "val")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_benchmark("msrvtt", root / "msrvtt", "val") == items
