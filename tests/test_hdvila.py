"""HD-VILA's metadata, the authors' LMDBs and WebVid's table are read as they are, and what is wrong is named."""

import json

import lmdb
import pytest

from clipvip_lib.errors import ClipVipError
from clipvip_lib.streams import webvid
from clipvip_lib.streams.hdvila import (
    ClipIds,
    LmdbTexts,
    Segment,
    Video,
    json_lines,
    read_captions_json,
    read_metadata,
    read_texts_jsonl,
    seconds,
    write_download_list,
)

ID = "QMi8x8o55Ns"
LINE = {
    "video_id": ID,
    "url": f"https://www.youtube.com/watch?v={ID}",
    "clip": [
        {"clip_id": f"{ID}.16.mp4", "span": ["00:04:52.140", "01:05:03.350"]},
        {"clip_id": f"{ID}.1.mp4", "span": ["00:00:17.759", "00:00:23.279"]},
    ],
}


def metadata(path, *lines):
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines or (LINE,)), encoding="utf-8")
    return path


def make_lmdb(path, texts, subdir=True):
    """As the authors' tools write it: one transaction of id -> bytes, and the ids beside it."""
    environment = lmdb.open(str(path), map_size=2**24, subdir=subdir)
    with environment.begin(write=True) as transaction:
        for key, value in texts.items():
            transaction.put(key.encode(), value if isinstance(value, bytes) else value.encode())
    environment.close()
    return path


def test_the_metadata_gives_clips_in_seconds(tmp_path):
    (video,) = read_metadata(metadata(tmp_path / "a.jsonl"))
    clips = (Segment(f"{ID}.16.mp4", 292.14, 3903.35), Segment(f"{ID}.1.mp4", 17.759, 23.279))
    assert video == Video(ID, LINE["url"], clips)


@pytest.mark.parametrize(("time", "value"), (("01:02:03.5", 3723.5), ("0:00:07", 7), (12.5, 12.5), (3, 3)))
def test_times(time, value):
    assert seconds(time) == value


@pytest.mark.bad_input("HD-VILA: a time in another form", says="`expected a time as HH:MM:SS`")
@pytest.mark.parametrize(
    "time",
    (
        "1:2",
        "00:61:00",
        "",
        None,
        True,
        "-1:00:00",
        float("nan"),
        float("inf"),
        pytest.param(10**400, id="huge"),
        pytest.param("9" * 5000 + ":00:00", id="hours"),
    ),
)
def test_what_is_no_time_is_refused(time):
    with pytest.raises(ClipVipError, match="expected a time as HH:MM:SS"):
        seconds(time)


@pytest.mark.bad_input("HD-VILA: a bad line of the metadata", says="`line 2`, and what was expected")
@pytest.mark.parametrize(
    ("line", "message"),
    (
        ({"video_id": "a"}, "line 2 of .*a.jsonl: expected video_id, url and clip"),
        (LINE | {"clip": [{"clip_id": "x", "span": ["00:00:01.0"]}]}, "line 2"),
        (LINE | {"clip": [{"clip_id": "x", "span": ["00:00", "1"]}]}, "line 2 .*expected a time"),
        (
            LINE | {"clip": [{"clip_id": "x", "span": [0, float("nan")]}]},
            "line 2 .*expected a time .*got nan",
        ),
        (
            LINE | {"clip": [{"clip_id": "x", "span": [0, float("inf")]}]},
            "line 2 .*expected a time .*got inf",
        ),
        (LINE | {"clip": [{"clip_id": "x", "span": [3, 3]}]}, "clip x ends at 3.0 s, before it begins"),
        ([], "line 2"),
    ),
)
def test_a_bad_line_of_the_metadata_is_named(tmp_path, line, message):
    with pytest.raises(ClipVipError, match=message):
        list(read_metadata(metadata(tmp_path / "a.jsonl", LINE, line)))


def test_what_is_no_json_or_no_file_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"b"\n')
    with pytest.raises(ClipVipError, match=r"line 3 of .*a\.jsonl is not JSON"):
        list(json_lines(tmp_path / "a.jsonl"))
    for line in ("[" * 100_000, "9" * 5000):  # json's RecursionError, and ValueError for so many digits
        (tmp_path / "a.jsonl").write_text("{}\n" + line)
        with pytest.raises(ClipVipError, match=r"line 2 of .*a\.jsonl is not JSON"):
            list(json_lines(tmp_path / "a.jsonl"))
    with pytest.raises(ClipVipError, match=r"cannot read .*absent\.jsonl"):
        list(read_metadata(tmp_path / "absent.jsonl"))
    (tmp_path / "latin.jsonl").write_bytes(b'{"a": "\xe9"}\n')
    with pytest.raises(ClipVipError, match=r"cannot read .*latin\.jsonl .*expected JSON lines in UTF-8"):
        list(read_metadata(tmp_path / "latin.jsonl"))


def test_the_download_list_is_what_video2dataset_takes(tmp_path):
    files = [
        metadata(tmp_path / f"{part}.jsonl", LINE, LINE | {"video_id": f"other{part}"}) for part in range(2)
    ]
    assert write_download_list(files, tmp_path / "list.json") == (4, 8)
    rows = json.loads((tmp_path / "list.json").read_text())
    assert rows[0] == {"url": LINE["url"], "video_id": ID, "clips": [[17.759, 23.279], [292.14, 3903.35]]}
    assert [row["video_id"] for row in rows] == [ID, "other0", ID, "other1"]


def test_a_clip_is_found_by_its_video_and_span(tmp_path):
    ids = ClipIds([metadata(tmp_path / "a.jsonl")])
    assert len(ids) == 2
    for about in (
        {"video_id": ID, "clips": [[17.759, 23.279]]},
        {"url": LINE["url"] + "&t=3", "clips": [["00:00:17.759", "00:00:23.279"]]},
        {"url": f"https://youtu.be/{ID}", "clips": [17.759, 23.279]},
    ):
        assert ids.find(about) == f"{ID}.1.mp4"
    for about in (
        {},
        {"video_id": ID},
        {"video_id": ID, "clips": []},
        {"video_id": ID, "clips": [[17.7, 23.279]]},
        {"video_id": "x", "clips": [[17.759, 23.279]]},
        {"video_id": ID, "clips": [["a", "b"]]},
        {"video_id": ID, "clips": [[1]]},
        {"video_id": ID, "clips": [[17.759, float("inf")]]},
        {"video_id": ID, "clips": [["00:00:17.759", "9" * 400 + ":00:00"]]},
        {"video_id": [ID], "clips": [[17.759, 23.279]]},
    ):
        assert ids.find(about) is None


def test_two_ids_of_one_span_are_refused(tmp_path):
    assert len(ClipIds([metadata(tmp_path / "a.jsonl", LINE, LINE)])) == 2  # the same again is fine
    other = LINE | {"clip": [{"clip_id": "other.mp4", "span": [17.759, 23.279]}]}
    with pytest.raises(
        ClipVipError, match=rf"b\.jsonl: {ID}\.1\.mp4 and other\.mp4 are both video {ID} from"
    ):
        ClipIds([tmp_path / "a.jsonl", metadata(tmp_path / "b.jsonl", other)])


@pytest.mark.parametrize("subdir", (True, False))
def test_texts_of_an_lmdb(tmp_path, subdir):
    listed = json.dumps(
        [{"image_id": "a.2.mp4", "caption": "a dog"}, {"image_id": "a.3.mp4", "caption": "a cat"}]
    )
    path = make_lmdb(
        tmp_path / "texts",
        {
            "a.1.mp4": "so ünï",
            "a.2.mp4": listed,
            "a.3.mp4": listed,
            "a.4.mp4": "[Music] hello",
            "a.5.mp4": "[1, 2]",
        },
        subdir,
    )
    texts = LmdbTexts(path)
    assert texts.count == 5
    found = [texts.get(f"a.{i}.mp4") for i in range(1, 7)]
    assert found == ["so ünï", "a dog", "a cat", "[Music] hello", "[1, 2]", None] and texts.get("") is None
    texts.close()


@pytest.mark.bad_input(
    "HD-VILA: an LMDB that is none, or holds wrong values", says="`is not an LMDB that can be read`"
)
def test_a_bad_lmdb_is_named(tmp_path):
    with pytest.raises(ClipVipError, match="no LMDB .*absent"):
        LmdbTexts(tmp_path / "absent")
    (tmp_path / "data.mdb").write_bytes(b"no LMDB at all" * 999)
    with pytest.raises(ClipVipError, match="is not an LMDB that can be read"):
        LmdbTexts(tmp_path)
    two = json.dumps([{"image_id": "x", "caption": "one"}, {"image_id": "y", "caption": "two"}])
    listed = json.dumps([{"image_id": "listed", "caption": ["a dog"]}])
    deep = "[" * 100_000
    written = {"latin": b"\xe9", "two": two, "listed": listed, "deep": deep}
    texts = LmdbTexts(make_lmdb(tmp_path / "a", written))
    assert texts.get("deep") == deep
    assert texts.get("x" * 9999) is None and texts.get("\ud800") is None  # ids that no LMDB can hold
    with pytest.raises(ClipVipError, match="listed in .*: expected one caption"):
        texts.get("listed")
    with pytest.raises(ClipVipError, match="the text of latin in .* is not UTF-8"):
        texts.get("latin")
    with pytest.raises(ClipVipError, match="two in .*: expected one caption with this image_id, got 2"):
        texts.get("two")


def test_the_authors_other_forms(tmp_path):
    path = tmp_path / "captions.json"
    path.write_text(json.dumps([{"image_id": "a.1.mp4", "caption": "a dog"}]))
    assert read_captions_json(path) == {"a.1.mp4": "a dog"}
    path.write_text("\ufeff" + path.read_text(), encoding="utf-8")
    assert read_captions_json(path) == {"a.1.mp4": "a dog"}
    with pytest.raises(ClipVipError, match=r"cannot read .*absent\.json"):
        read_captions_json(tmp_path / "absent.json")
    for content, message in (
        ("[" * 100_000, "is not JSON"),
        ("{}", "expected a list"),
        ('[{"caption": "x"}]', "entry 0"),
        ("[", "is not JSON"),
    ):
        path.write_text(content)
        with pytest.raises(ClipVipError, match=message):
            read_captions_json(path)
    lines = tmp_path / "texts.jsonl"
    lines.write_text('{"clip_id": "a.1.mp4", "text": "hello"}\n')
    assert read_texts_jsonl(lines) == {"a.1.mp4": "hello"}
    lines.write_text('{"clip_id": "a.1.mp4"}\n')
    with pytest.raises(ClipVipError, match="line 1 of .*expected an object with clip_id and text"):
        read_texts_jsonl(lines)


@pytest.mark.bad_input("texts: one id with two texts", says="`c has a second, other text`")
def test_an_id_with_two_texts_is_refused(tmp_path):
    """As webvid.read_texts_csv does: the last one would win, and nobody would know. The same text again is fine."""
    lines, path = tmp_path / "texts.jsonl", tmp_path / "captions.json"
    for texts, refused in ((("hello", "hello"), False), (("hello", "goodbye"), True)):
        lines.write_text("".join(json.dumps({"clip_id": "c", "text": text}) + "\n" for text in texts))
        path.write_text(json.dumps([{"image_id": "c", "caption": text} for text in texts]))
        if not refused:
            assert read_texts_jsonl(lines) == read_captions_json(path) == {"c": "hello"}
            continue
        with pytest.raises(ClipVipError, match=r"line 2 of .*texts\.jsonl: c has a second, other text"):
            read_texts_jsonl(lines)
        with pytest.raises(ClipVipError, match=r"captions\.json entry 1: c has a second, other caption"):
            read_captions_json(path)


def test_webvids_table(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text(
        "\ufeffvideoid,contentUrl,duration,page_dir,name\r\n"
        '21179416,https://a/b.mp4,PT00H00M11S,006001_006050,"Aerial shot, winter forest"\r\n'
        "5629184,https://a/c.mp4,PT00H00M29S,071501_071550,Senior couple\r\n",
        encoding="utf-8",
    )
    assert webvid.read_texts_csv(path) == {
        "21179416": "Aerial shot, winter forest",
        "5629184": "Senior couple",
    }
    assert webvid.read_texts_csv(path, "page_dir", "duration")["006001_006050"] == "PT00H00M11S"
    with pytest.raises(
        ClipVipError, match="has no column caption: expected videoid and caption, got videoid, contentUrl"
    ):
        webvid.read_texts_csv(path, "videoid", "caption")


@pytest.mark.parametrize(
    ("rows", "message"),
    (
        ("1,a,b\n", "line 2: expected 2 columns"),
        ("1\n", "line 2: expected 2 columns"),
        ("1,a\n1,b\n", "line 3: 1 has a second, other text"),
    ),
)
def test_a_bad_row_of_a_table_is_named(tmp_path, rows, message):
    (tmp_path / "a.csv").write_text("videoid,name\n" + rows)
    with pytest.raises(ClipVipError, match=message):
        webvid.read_texts_csv(tmp_path / "a.csv")


def test_a_row_that_ends_before_its_id_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("name,videoid\na dog\n")
    with pytest.raises(ClipVipError, match="line 2: expected 2 columns"):
        webvid.read_texts_csv(tmp_path / "a.csv")
