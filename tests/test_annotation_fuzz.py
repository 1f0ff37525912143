"""Whatever stands in annotations and in tars: a sentence or right; no other exception, no path outside the root.

The examples are drawn anew in each run, because a fault that they find is a fault. `python test_annotation_fuzz.py N`
tries N of each kind and prints the counts.
"""

from __future__ import annotations

import copy
import io
import json
import pickle
import sys
import tarfile
import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipvip_lib.data.annotations import reading, vatex
from clipvip_lib.data.benchmarks import SETS, SPLITS, load_benchmark, read_records
from clipvip_lib.data.check import Notes
from clipvip_lib.data.clips import list_clips
from clipvip_lib.data.held_out import hold_out
from clipvip_lib.data.shards import index_shard, read_media, read_sample
from clipvip_lib.errors import ClipVipError

EXAMPLES = 60
IDS = ["a_1_5", "b_0_9", "c_2_8"]
TEXT = [f"text of {name}" for name in IDS]
CSV = "key,vid_key,video_id,sentence\n" + "".join(f"k,v,{i},{t}\n" for i, t in zip(IDS, TEXT, strict=True))
PAIRS = list(zip(IDS, TEXT, strict=True))
MSRVTT = {
    "videos": [
        {"video_id": i, "start time": 1, "end time": 5, "url": "u?v=x", "split": "train"} for i in IDS
    ],
    "sentences": [{"video_id": i, "sen_id": 0, "caption": t} for i, t in PAIRS],
}
DIDEMO = [{"video": f"{i}.mp4", "description": t, "times": [[0, 0]], "num_segments": 6} for i, t in PAIRS]
ACTIVITYNET = {i: {"duration": 9.5, "timestamps": [[0, 1]], "sentences": [t]} for i, t in PAIRS}
VATEX = [{"videoID": i, "enCap": [t, t], "chCap": []} for i, t in PAIRS]
JSONL = [{"clip_id": i, "text": [t], "num_frame": 4} for i, t in PAIRS]
LSMDC = "".join(f"{i}\t00.00.01.000\t00.00.05.000\t00.00.01.000\t00.00.05.000\t{t}\n" for i, t in PAIRS)
HELD = {"held_out.txt": "a_1_5\n"}
LISTS = {f"{split}_list.txt": "\n".join(IDS) + "\n" for split in SPLITS}


def lines_of(rows: list) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# A set's files: containers are written as JSON (lists of .jsonl line by line, .pkl pickled), texts as they are.
MSRVTT_FILES = {"MSRVTT_data.json": MSRVTT, "MSRVTT_JSFUSION_test.csv": CSV, "MSRVTT_val.csv": CSV}
VATEX_FILES = dict.fromkeys(vatex.FILES.values(), VATEX)
FILES: dict[str, dict[str, object]] = {
    "msrvtt": {**MSRVTT_FILES, "MSRVTT_train.9k.csv": CSV},
    "msrvtt-7k": {**MSRVTT_FILES, "MSRVTT_train.7k.csv": CSV},
    "didemo": {
        **{f"{split}_data.json": DIDEMO for split in SPLITS},
        **{k: v.replace("\n", ".mp4\n") for k, v in LISTS.items()},
    },
    "activitynet": {
        "train.json": ACTIVITYNET,
        "val_1.json": ACTIVITYNET,
        "train_ids.json": IDS,
        "held_out.txt": "a_1_5\n",
    },
    "activitynet-val2": {"train.json": ACTIVITYNET, "val_2.json": ACTIVITYNET, "held_out.txt": "a_1_5\n"},
    "lsmdc": dict.fromkeys(
        ("LSMDC16_annos_training.csv", "LSMDC16_annos_val.csv", "LSMDC16_challenge_1000_publictect.csv"),
        LSMDC,
    ),
    "msvd": {"raw-captions.pkl": {i: [t.split()] for i, t in PAIRS}, **LISTS},
    "vatex": VATEX_FILES,
    "vatex-1500": {**VATEX_FILES, **LISTS},
    "jsonl": {f"{split}.jsonl": JSONL for split in SPLITS},
    "jsonl-paragraph": {"train.json": JSONL, "val.jsonl": JSONL, "test_frames.json": JSONL},
}


def write(root: Path, name: str, files: dict[str, object]) -> Path:
    (root / "videos").mkdir(parents=True)
    for video in IDS:
        (root / "videos" / f"{video}.mp4").write_bytes(b"x")
    for file, content in files.items():
        if isinstance(content, bytes):
            (root / file).write_bytes(content)
        elif isinstance(content, str):
            (root / file).write_bytes(content.encode(errors="surrogatepass"))
        elif file.endswith(".pkl"):
            (root / file).write_bytes(pickle.dumps(content))
        elif file.endswith(".jsonl") and isinstance(content, list):
            (root / file).write_text(lines_of(content))
        else:
            (root / file).write_text(json.dumps(content))
    return root


HUGE = 10**400
WORDS = st.sampled_from(
    [
        "..",
        "../up",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "",
        " ",
        "\ud800",
        "a\nb",
        "\x1b[31m",
        "\0",
        "é",
        "e\u0301",
        '"',
        "9" * 5000,
    ]
) | st.text(max_size=6)
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([HUGE, -HUGE, 10**4000]) | WORDS
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def places(value: object, at: tuple = ()) -> list[tuple]:
    """The address of every node of nested lists and objects."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, each in inner for place in places(each, (*at, key)))]


@st.composite
def changed(draw, content: object) -> object:
    """A file's content with one node replaced, renamed, doubled or left out; or its bytes cut, turned or filled."""
    if isinstance(content, str) or draw(st.integers(0, 3)) == 0:
        text = content if isinstance(content, str) else json.dumps(content)
        data = bytearray(text.encode())
        at = draw(st.integers(0, len(data)))
        what = draw(st.sampled_from(("cut", "turn", "insert", "swap", "brackets", "digits")))
        if what == "cut":
            return bytes(data[:at])
        if what == "insert":
            return (
                bytes(data[:at])
                + draw(st.binary(max_size=6) | WORDS.map(lambda w: w.encode(errors="replace")))
                + bytes(data[at:])
            )
        if what in ("brackets", "digits"):
            return (
                bytes(data[:at]) + (b"[" * 100_000 if what == "brackets" else b"9" * 5000) + bytes(data[at:])
            )
        other = draw(st.integers(0, 255)) if what == "turn" else ord('"')
        data[at : at + 1] = bytes([other])
        return bytes(data)
    new = copy.deepcopy(content)
    place = draw(st.sampled_from(places(new)))
    if not place:
        return draw(VALUES)
    holder = new
    for key in place[:-1]:
        holder = holder[key]
    what = draw(st.sampled_from(("replace", "replace", "replace", "rename", "double", "leave out")))
    if what == "leave out":
        del holder[place[-1]]
    elif what == "rename" and isinstance(holder, dict):
        holder[draw(WORDS)] = holder.pop(place[-1])
    elif what == "double" and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[place[-1]]))
    else:
        holder[place[-1]] = draw(VALUES)
    return new


@st.composite
def changed_sets(draw) -> tuple[str, dict[str, object]]:
    name = draw(st.sampled_from(sorted(FILES)))
    files = dict(FILES[name])
    for file in draw(st.lists(st.sampled_from(sorted(files)), min_size=1, max_size=2, unique=True)):
        files[file] = draw(changed(files[file]))
    return name, files


def one_line(error: ClipVipError) -> None:
    assert len(str(error).splitlines()) == 1 and not any(
        unicodedata.category(sign) == "Cc" for sign in str(error)
    )


def try_set(name: str, files: dict[str, object]) -> str:
    """Read a set in every way; what came of it. Anything but a ClipVipError passes through."""
    with tempfile.TemporaryDirectory() as folder:
        root, came = write(Path(folder) / "root", name, files), "right"
        for split in SPLITS:
            try:
                items = load_benchmark(name, root, split, allow_missing=2)
                for item in items:
                    assert item.path.resolve().is_relative_to(root.resolve())
                    assert all(
                        isinstance(text, str) and text.strip() and text.encode() for text in item.texts
                    )
                    assert item.video_id.encode() and len(item.video_id.splitlines()) == 1
            except ClipVipError as error:
                came = "a sentence"
                one_line(error)
            notes = Notes()
            try:
                records = read_records(name, root, split, notes)
                assert all(isinstance(record, reading.Record) for record in records)
            except reading.Unreadable:
                assert notes.findings()
        if "val" not in SETS[name].splits:
            for held in ("held_out.txt", "MSRVTT_val.csv"):
                (root / held).unlink(missing_ok=True)
            try:
                hold_out(name, root, 1)
                load_benchmark(name, root, "val", allow_missing=2)
            except ClipVipError as error:
                one_line(error)
        assert sorted(path.name for path in Path(folder).iterdir()) == ["root"]
    return came


@pytest.mark.parametrize("name", sorted(SETS))
def test_the_sets_as_they_are_have_no_fault(name):
    assert try_set(name, FILES[name]) == "right"


@pytest.mark.bad_input(
    "benchmark: any set with values of wrong types, cut bytes or odd names",
    says="right, or a sentence, never another error",
)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(changed_sets())
def test_a_changed_set_is_right_or_a_sentence(which):
    try_set(*which)


# -------------------------------------------------------------------------------------------------------------- tars

KINDS = (
    tarfile.REGTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.FIFOTYPE,
    tarfile.DIRTYPE,
)
WHOLE = [("whole", ".mp4", tarfile.REGTYPE, b"x"), ("whole", ".txt", tarfile.REGTYPE, b"a dog")]
STEMS = st.sampled_from(
    [
        "000",
        "001",
        "/abs/000",
        "../up",
        "a/../b",
        "a.b",
        "1_F_00.00.32.166",
        "",
        ".",
        "..",
        "é",
        "a\nb",
        "\udce9",
    ]
)
ENDINGS = st.sampled_from(
    [".mp4", ".MP4", ".webm", ".txt", ".json", ".jpg", ".seg.png", ".flac", "", ".", "/", ".mp4.txt"]
)
MEMBERS = st.lists(
    st.tuples(STEMS, ENDINGS, st.sampled_from(KINDS) | st.just(tarfile.REGTYPE), st.binary(max_size=8)),
    max_size=8,
)


def tar_of(members: list, form: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form, errors="surrogateescape") as tar:
        for name, ending, kind, content in members:
            member = tarfile.TarInfo(name + ending)
            member.type, member.linkname = kind, "/etc/passwd"
            member.size = len(content) if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


@st.composite
def tars(draw) -> bytes:
    data = bytearray(
        tar_of([*WHOLE, *draw(MEMBERS)], draw(st.sampled_from((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))))
    )
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data) - 1))
        what = draw(st.sampled_from(("turn", "cut", "fill", "size", "type")))
        header = at // 512 * 512
        if what == "cut":
            del data[at:]
            break
        if what == "turn":
            data[at] = draw(st.integers(0, 255))
        elif what == "fill":
            data[at : at + 8] = draw(st.binary(min_size=8, max_size=8))
        else:  # a header that agrees with its own checksum
            if what == "size":
                data[header + 124 : header + 136] = draw(
                    st.sampled_from(
                        [b"77777777777\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"00000001000\0"]
                    )
                )
            else:
                data[header + 156 : header + 157] = draw(
                    st.sampled_from([b"L", b"K", b"x", b"g", b"S", b"1", b"2", b"5", b"V"])
                )
            block = data[header : header + 512]
            block[148:156] = b" " * 8
            data[header + 148 : header + 156] = b"%06o\0 " % sum(block)
    return bytes(data)


def try_tar(content: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path, came = Path(folder) / "a.tar", "right"
        path.write_bytes(content)
        try:
            entries = index_shard(path)
        except ClipVipError as error:
            one_line(error)
            return "a sentence"
        for entry in entries:
            for read in (read_media, read_sample):
                try:
                    read(path, entry)
                except ClipVipError as error:
                    came = "a sentence"
                    one_line(error)
        try:
            list_clips([path])
        except ClipVipError as error:
            one_line(error)
        assert [each.name for each in Path(folder).iterdir()] == ["a.tar"]
    return came


@pytest.mark.bad_input("shard: random tars", says="samples or a sentence, never another error")
@settings(max_examples=4 * EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(tars())
def test_any_tar_is_samples_or_a_sentence(content):
    try_tar(content)


@pytest.mark.bad_input("shard: 5,000 headers that belong to the next", says="`is damaged`")
def test_a_chain_of_headers_that_belong_to_the_next_is_a_sentence(tmp_path):
    """Each is read inside the reading of the one before it."""
    header = bytearray(tar_of([("000", ".mp4", tarfile.REGTYPE, b"")], tarfile.GNU_FORMAT)[:512])
    header[156:157] = b"L"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) * 5000 + bytes(1024))
    with pytest.raises(ClipVipError, match=r"a\.tar is damaged"):
        index_shard(tmp_path / "a.tar")


def tally(number: int, strategy: st.SearchStrategy, attempt) -> dict[str, int]:
    """What came of that many examples: right, a sentence, or another exception by its words."""
    came: dict[str, int] = {}

    @settings(max_examples=number, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def run(example):
        try:
            result = attempt(example)
        except Exception as error:
            result = type(error).__name__
        came[result] = came.get(result, 0) + 1

    run()
    return dict(sorted(came.items(), key=lambda each: -each[1]))


if __name__ == "__main__":
    for what, strategy, attempt in (
        ("sets", changed_sets(), lambda x: try_set(*x)),
        ("tars", tars(), try_tar),
    ):
        found = tally(int(sys.argv[1]), strategy, attempt)
        print(what, sum(found.values()), found)
