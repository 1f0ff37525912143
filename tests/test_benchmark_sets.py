"""What is particular to each set: protocol, lists, names of files, several sentences, pickles, frame folders."""

import collections
import json
import os
import pickle

import formats
import pytest

from clipvip_lib.data import corpora
from clipvip_lib.data.annotations.lsmdc import _seconds
from clipvip_lib.data.benchmarks import SETS, SPLITS, load_benchmark, read_records
from clipvip_lib.data.held_out import hold_out
from clipvip_lib.data.video_files import stem
from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import read_json, write_json

CLIPS = {"train": 8, "val": 4, "test": 4}


def quiet(done, total, note=""):
    pass


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    folder = tmp_path_factory.mktemp("native")
    for name in ("msrvtt", "didemo"):
        corpora.write_benchmark(folder / name, name, 0, CLIPS, quiet)
    return folder


@pytest.fixture
def write(native, tmp_path):
    """``write(name)`` is the folder of a set."""

    def written(name, layout="files"):
        source = "msrvtt" if SETS[name].protocol == "sentence" else "didemo"
        formats.rewrite(source, native / source, name, tmp_path / name, quiet, layout)
        return tmp_path / name

    return written


def ids(items):
    return [item.video_id for item in items]


@pytest.mark.parametrize("name", sorted(SETS))
def test_a_set_has_its_protocol_and_every_split(write, name):
    root = write(name)
    for split in SPLITS:
        items = load_benchmark(name, root, split)
        assert len(set(ids(items))) == len(items) == CLIPS[split]
        assert items.protocol == SETS[name].protocol
        assert {len(item.texts) for item in items} == {
            5 if (items.protocol, split) == ("sentence", "train") else 1
        }


def test_paragraph_sets_are_those_of_the_papers():
    assert {name for name, known in SETS.items() if known.protocol == "paragraph"} == {
        "didemo",
        "activitynet",
        "activitynet-val2",
        "jsonl-paragraph",
    }


# ------------------------------------------------------------------------------------------------------- MSR-VTT


def test_the_two_training_lists_of_msrvtt(write):
    root = write("msrvtt")
    (root / "MSRVTT_train.7k.csv").write_text("video_id\nvideo2\nvideo5\n")
    (root / "held_out.txt").unlink()
    assert ids(load_benchmark("msrvtt-7k", root, "train")) == ["video2", "video5"]
    assert len(load_benchmark("msrvtt", root, "train")) == CLIPS["train"] + CLIPS["val"]
    assert load_benchmark("msrvtt-7k", root, "test") == load_benchmark("msrvtt", root, "test")


def test_a_set_without_validation_says_how_to_get_one(write):
    root = write("activitynet")
    (root / "held_out.txt").unlink()
    with pytest.raises(
        ClipVipError, match="comes without a validation split; write one with .*--hold-out 500"
    ):
        load_benchmark("activitynet", root, "val")
    hold_out("activitynet", root, 3)
    val, train = (ids(load_benchmark("activitynet", root, split)) for split in ("val", "train"))
    assert (len(val), len(train)) == (3, 9)
    assert not set(val) & set(train)
    with pytest.raises(ClipVipError, match="has a validation split already"):
        hold_out("activitynet", root, 3)
    with pytest.raises(ClipVipError, match="lsmdc comes with a validation split"):
        hold_out("lsmdc", root, 3)


def test_held_out_videos_take_their_source_along(write):
    root = write("msrvtt")
    (root / "held_out.txt").unlink()
    data = read_json(root / "MSRVTT_data.json")
    for video in data["videos"]:
        video["url"] = f"https://www.youtube.com/watch?v=source{video['id'] // 4}"
    write_json(root / "MSRVTT_data.json", data)
    source = {video["video_id"]: video["url"] for video in data["videos"]}
    hold_out("msrvtt", root, 3)
    val, train = (ids(load_benchmark("msrvtt", root, split)) for split in ("val", "train"))
    assert len(val) == 4
    assert not {source[i] for i in val} & {source[i] for i in train}
    chosen = set()
    for seed in range(6):
        (root / "held_out.txt").unlink()
        hold_out("msrvtt", root, 3, seed=seed)
        chosen.add(tuple(ids(load_benchmark("msrvtt", root, "val"))))
    assert tuple(val) in chosen
    assert len(chosen) > 1
    (root / "held_out.txt").unlink()
    with pytest.raises(ClipVipError, match="expected to hold out 1 to 11 of 12 videos, got 12"):
        hold_out("msrvtt", root, 12)


# ------------------------------------------------------------------------------------- paragraphs and their lists


@pytest.mark.parametrize("name", ("didemo", "activitynet", "jsonl-paragraph"))
def test_a_paragraph_is_all_sentences_in_order(write, name):
    root = write(name)
    records = read_records(name, root, "test")
    assert {len(record.sentences) for record in records} == {2}
    for record, item in zip(records, load_benchmark(name, root, "test"), strict=True):
        assert item.texts == (" ".join(record.sentences),)
        assert "  " not in item.texts[0]


def test_a_paragraph_has_the_order_of_the_file_whatever_the_words_or_times(write):
    sentences = ["z comes first.", "a comes second.", "m comes last."]
    root = write("didemo")
    path = root / "test_data.json"
    rows = read_json(path)
    video = rows[0]["video"]
    others = [row for row in rows if row["video"] != video]
    write_json(path, others + [rows[0] | {"description": sentence} for sentence in sentences])
    assert [r.sentences for r in read_records("didemo", root, "test") if r.video_id == stem(video)] == [
        tuple(sentences)
    ]
    root = write("activitynet")
    path = root / "val_1.json"
    rows = read_json(path)
    name = next(iter(rows))
    write_json(
        path, rows | {name: rows[name] | {"sentences": sentences, "timestamps": [[9, 10], [4, 5], [0, 1]]}}
    )
    found = {record.sentences for record in read_records("activitynet", root, "test")}
    assert tuple(sentences) in found


def test_didemos_list_chooses_and_other_suffixes_are_found(write):
    root = write("didemo")
    listed = (root / "test_list.txt").read_text().split()
    (root / "test_list.txt").write_text("".join(f"{name}\r\n" for name in listed[1:3]))
    (root / "videos" / listed[1]).rename((root / "videos" / listed[1]).with_suffix(".MOV"))
    items = load_benchmark("didemo", root, "test")
    assert [item.path.name for item in items] == [listed[1].replace(".mp4", ".MOV"), listed[2]]
    assert ids(items) == [stem(name) for name in listed[1:3]]


def test_activitynet_files_may_be_called_by_the_bare_id(write):
    root = write("activitynet")
    for path in list((root / "videos").iterdir()):
        path.rename(path.with_name(path.name.removeprefix("v_")).with_suffix(".mkv"))
    items = load_benchmark("activitynet", root, "test")
    assert all(item.path.name == f"{item.video_id.removeprefix('v_')}.mkv" for item in items)
    (root / "val_ids.json").write_text(json.dumps([items[2].video_id]))
    assert load_benchmark("activitynet", root, "test") == items[2:3]
    (root / "val_ids.json").unlink()
    assert load_benchmark("activitynet", root, "test") == items


def test_the_second_validation_file_is_another_test(write):
    root = write("activitynet-val2")
    assert len(load_benchmark("activitynet-val2", root, "test")) == CLIPS["test"]
    with pytest.raises(ClipVipError, match=r"no annotation file .*val_1\.json"):
        load_benchmark("activitynet", root, "test")


# ------------------------------------------------------------------------------------------------ sentences


def test_every_sentence_of_a_test_video_is_a_query(write):
    root = write("vatex")
    path = root / "vatex_public_test_english_v1.1.json"
    entries = read_json(path)
    entries[1]["enCap"].append("a second sentence")
    write_json(path, entries)
    assert [len(item.texts) for item in load_benchmark("vatex", root, "test")] == [1, 2, 1, 1]


def test_hgrs_lists_take_from_all_files(write):
    root = write("vatex-1500")
    val, test = (load_benchmark("vatex-1500", root, split) for split in ("val", "test"))
    assert not set(ids(val)) & set(ids(test))
    assert not (root / "vatex_public_test_english_v1.1.json").exists()
    with pytest.raises(ClipVipError, match=r"no annotation file .*public_test"):
        load_benchmark("vatex", root, "test")


def test_a_clip_of_lsmdc_may_have_several_rows(write):
    root = write("lsmdc")
    path = root / "LSMDC16_annos_val.csv"
    row = path.read_text().split("\n")[0].split("\t")
    path.write_text(path.read_text() + "\t".join([*row[:5], 'She says: "no"']) + "\n")
    items = load_benchmark("lsmdc", root, "val")
    assert len(items) == CLIPS["val"]
    assert items[0].texts[1] == 'She says: "no"'
    assert (_seconds("01.02.03.500"), _seconds("x")) == (3723.5, None)


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


@pytest.mark.bad_input(
    "benchmark: a pickle that names a function, or is none",
    says="`which could run code: expected plain containers`; it is not run",
)
def test_a_pickle_runs_nothing(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = write("msvd")
    good = load_benchmark("msvd", root, "test")
    path = root / "raw-captions.pkl"
    content = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps(content | {"x": Evil()}))
    with pytest.raises(
        ClipVipError, match=r"names posix\.system, which could run code: expected plain containers"
    ):
        load_benchmark("msvd", root, "test")
    assert not (tmp_path / "evil").exists()
    for protocol in (0, 2, 4, 5):
        ordered = collections.OrderedDict(content)
        path.write_bytes(pickle.dumps(collections.defaultdict(list, ordered), protocol=protocol))
        assert load_benchmark("msvd", root, "test") == good
    path.write_bytes(b"no pickle")
    with pytest.raises(ClipVipError, match=r"raw-captions\.pkl is not a whole pickle"):
        load_benchmark("msvd", root, "test")


def test_msvd_as_json_of_sentences_or_words(write):
    root = write("msvd")
    good = load_benchmark("msvd", root, "train")
    content = pickle.loads((root / "raw-captions.pkl").read_bytes())
    (root / "raw-captions.pkl").unlink()
    with pytest.raises(
        ClipVipError, match=r"no annotation file .*raw-captions\.pkl, and no raw-captions\.json"
    ):
        load_benchmark("msvd", root, "train")
    write_json(root / "raw-captions.json", content)
    assert load_benchmark("msvd", root, "train") == good
    write_json(
        root / "raw-captions.json", {key: [" ".join(s) for s in said] for key, said in content.items()}
    )
    assert load_benchmark("msvd", root, "train") == good


# ------------------------------------------------------------------------------------------------ the authors' jsonl


def test_jsonl_by_the_authors_names_and_folders(write):
    """Their LSMDC: train_101k_frame.jsonl, and clip_id with the film's folder in it."""
    root = write("jsonl")
    lines = [json.loads(line) for line in (root / "test.jsonl").read_text().splitlines()]
    (root / "test.jsonl").unlink()
    (root / "videos/film").mkdir()
    for line in lines:
        (root / f"videos/{line['clip_id']}.mp4").rename(root / f"videos/film/{line['clip_id']}.mp4")
        line["clip_id"] = f"film/{line['clip_id']}"
    (root / "test_1k_frame.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    items = load_benchmark("jsonl", root, "test")
    assert ids(items) == [line["clip_id"] for line in lines]
    (root / "videos/other").mkdir()
    twin = root / f"videos/other/{lines[0]['clip_id'].split('/')[1]}.mp4"
    twin.write_bytes(items[0].path.read_bytes())
    assert load_benchmark("jsonl", root, "test") == items  # the folder in clip_id tells which one
    (root / "test_2k.jsonl").write_text("")
    with pytest.raises(ClipVipError, match="has test_1k_frame.jsonl, test_2k.jsonl: expected one file"):
        load_benchmark("jsonl", root, "test")


def test_a_list_of_texts_is_read_by_the_protocol_that_was_asked_for(write):
    root = write("jsonl-paragraph")
    assert {len(item.texts) for item in load_benchmark("jsonl-paragraph", root, "test")} == {1}
    assert {len(item.texts) for item in load_benchmark("jsonl", root, "test")} == {2}


def test_a_list_in_one_json_file_is_read_too(write):
    root = write("jsonl")
    good = load_benchmark("jsonl", root, "val")
    lines = [json.loads(line) for line in (root / "val.jsonl").read_text().splitlines()]
    (root / "val.jsonl").unlink()
    write_json(root / "val.json", lines)
    assert load_benchmark("jsonl", root, "val") == good


def test_a_line_separator_in_a_text_is_no_line_end(write):
    root = write("jsonl")
    with (root / "val.jsonl").open("a", encoding="utf-8") as file:
        line = {"clip_id": "clip00000", "text": "a ball\u2028falls\x85down"}
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
    assert load_benchmark("jsonl", root, "val")[-1].texts == ("a ball\u2028falls\x85down",)


@pytest.mark.bad_input(
    "benchmark: a frame folder that lost a picture", says="`expected num_frame = 7 pictures in`"
)
def test_frame_folders_that_lost_pictures_are_refused(write):
    root = write("jsonl", "jpg")
    items = load_benchmark("jsonl", root, "test")
    assert all(item.path.is_dir() for item in items)
    sorted(items[1].path.iterdir())[-1].unlink()
    with pytest.raises(ClipVipError, match="expected num_frame = 7 pictures in .*, got 6; extract"):
        load_benchmark("jsonl", root, "test")


@pytest.mark.bad_input("benchmark: one id twice in a split", says="that it is there twice", cases=11)
@pytest.mark.parametrize("name", sorted(SETS))
def test_an_id_twice_in_a_split_is_refused(write, name):
    root = write(name)
    path, change = {
        "msrvtt": ("MSRVTT_train.9k.csv", lambda t: t + "video0\n"),
        "msrvtt-7k": ("MSRVTT_train.7k.csv", lambda t: t + "video0\n"),
        "didemo": ("train_list.txt", lambda t: t + t.split("\n")[0]),
        "activitynet": ("train.json", lambda t: t.replace("world000001", "world000000")),
        "activitynet-val2": ("train.json", lambda t: t.replace("world000001", "world000000")),
        "lsmdc": ("LSMDC16_challenge_1000_publictect.csv", lambda t: t + t.split("\n")[0]),
        "msvd": ("train_list.txt", lambda t: t + t.split("\n")[0]),
        "vatex": ("vatex_training_v1.0.json", lambda t: t.replace("world000001", "world000000")),
        "vatex-1500": ("train_list.txt", lambda t: t + t.split("\n")[0]),
        "jsonl": ("train.jsonl", lambda t: t + t.split("\n")[0]),
        "jsonl-paragraph": ("train.jsonl", lambda t: t + t.split("\n")[0]),
    }[name]
    (root / path).write_text(change((root / path).read_text()))
    with pytest.raises(ClipVipError, match=r"(twice|2 times)"):
        load_benchmark(name, root, "test" if name == "lsmdc" else "train")
