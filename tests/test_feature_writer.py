"""Parts, joins and readers: whatever happens on the way, row i is what line i says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipvip_lib.errors import ClipVipError
from clipvip_lib.features.folder import Features, write_parquet
from clipvip_lib.features.writer import FeatureWriter

HOW = {"kind": "videos", "weights": "w", "pretrained_tag": None, "checksum": "c", "stored": "float32"}


def feature(id: str, stamp: str) -> np.ndarray:
    """A feature that tells of which item, in which state, it is."""
    row = np.random.default_rng([*f"{id}/{stamp}".encode()]).standard_normal(8)
    return (row / np.linalg.norm(row)).astype(np.float32)


def write(folder, items: dict[str, str], part: int = 4, how: dict = HOW) -> dict:
    with FeatureWriter(folder, how, part) as writer:
        for id, stamp in items.items():
            if not writer.has(id, stamp):
                writer.add({"id": id, "path": f"/{id}", "frames": 3}, stamp, feature(id, stamp))
        return writer.join(list(items))


STEPS = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 8), st.sampled_from("ab"), st.booleans()), max_size=9),
        st.integers(1, 5),
        st.booleans(),
        st.randoms(use_true_random=False),
    ),
    min_size=1,
    max_size=4,
)


@given(STEPS)
@settings(max_examples=60, deadline=None)
def test_rows_and_ids_are_never_mixed(tmp_path_factory, steps):
    """Runs that add, replace, skip, break off and join in any order."""
    folder, known = tmp_path_factory.mktemp("features"), {}
    for items, part, breaks_off, shuffle in steps:
        try:
            with FeatureWriter(folder, HOW, part) as writer:
                for number, (stamp, bad) in {n: rest for n, *rest in items}.items():
                    id = f"v{number}"
                    assert writer.has(id, stamp) == (known.get(id, ("", False))[0] == stamp and id in known)
                    if bad:
                        writer.skip({"id": id}, stamp, "bad")
                    else:
                        writer.add({"id": id}, stamp, feature(id, stamp))
                    known[id] = (stamp, bad)
                if breaks_off:
                    raise RuntimeError("the power went")
                order = list(known)
                shuffle.shuffle(order)
                whole = [id for id in order if not known[id][1]]
                if whole:
                    meta = writer.join(order)
                    assert meta["rows"] == len(whole) and "others" not in meta
                    found = Features(folder)
                    assert [found.row(i)["id"] for i in range(len(found))] == whole
                    assert (found.array == np.stack([feature(id, known[id][0]) for id in whole])).all()
        except RuntimeError:
            pass


def test_rows_that_were_not_named_this_time_are_counted(tmp_path):
    assert "others" not in write(tmp_path, {"a": "1", "b": "1"})
    assert write(tmp_path, {"c": "1"})["others"] == 2
    assert write(tmp_path, {"a": "1", "c": "2"})["others"] == 1


@pytest.mark.fault(
    "features: the program fails between rows", sees="the error", keeps="the rows that were added"
)
def test_a_part_is_kept_when_something_fails(tmp_path):
    with pytest.raises(KeyError), FeatureWriter(tmp_path, HOW) as writer:
        writer.add({"id": "a"}, "1", feature("a", "1"))
        raise KeyError
    with FeatureWriter(tmp_path, HOW) as writer:
        assert writer.has("a", "1") and not writer.has("a", "2") and not writer.has("b", "1")
        with pytest.raises(ClipVipError, match="1 items have no features yet, first b"):
            writer.join(["a", "b"])


@pytest.mark.bad_input(
    "features: a row whose length is not 1, when written", says="`feature of a has length`"
)
@pytest.mark.parametrize("row", [np.full(8, np.nan), np.zeros(8), np.full(8, 2.0)])
def test_what_is_no_unit_vector_is_refused(tmp_path, row):
    with FeatureWriter(tmp_path, HOW) as writer, pytest.raises(ClipVipError, match="feature of a has length"):
        writer.add({"id": "a"}, "1", row.astype(np.float32))


@pytest.mark.fault(
    "features: two processes write one folder",
    sees="`another process is writing features`",
    keeps="the first one's features; then others may write",
)
def test_one_writer_at_a_time(tmp_path):
    write(tmp_path, {"a": "1"})
    with (
        FeatureWriter(tmp_path, HOW),
        pytest.raises(ClipVipError, match="another process is writing features"),
    ):
        FeatureWriter(tmp_path, HOW).__enter__()
    write(tmp_path, {"a": "1", "b": "1"})


def test_other_settings_are_named_but_weights_may_move(tmp_path):
    write(tmp_path, {"a": "1"})
    with pytest.raises(ClipVipError, match="checksum was c and is d; choose"):
        write(tmp_path, {"a": "1"}, how={**HOW, "checksum": "d"})
    with pytest.raises(ClipVipError, match="size was None and is 8"):
        write(tmp_path, {"a": "1"}, how={**HOW, "size": 8})
    assert write(tmp_path, {"a": "1"}, how={**HOW, "weights": "moved"})["settings"]["weights"] == "moved"
    with pytest.raises(ClipVipError, match="parts of at least 1 row"):
        FeatureWriter(tmp_path, HOW, 0)


def damage(path, how):
    content = path.read_bytes()
    path.write_bytes(
        {"cut": content[:-20], "empty": b"", "turned": content[:90] + b"\xff" * 9 + content[99:]}[how]
    )


@pytest.mark.fault(
    "features: a part is cut, emptied or changed",
    sees="`is damaged`, `remove it and embed again`",
    keeps="the other parts; the lost one is embedded again",
)
@pytest.mark.parametrize("how", ["cut", "empty", "turned"])
def test_a_damaged_part_is_named(tmp_path, how):
    write(tmp_path, {f"v{i}": "1" for i in range(8)})
    damage(tmp_path / "parts" / "000001.npz", how)
    with pytest.raises(ClipVipError, match=r"000001\.npz is damaged .*remove it and embed again"):
        write(tmp_path, {"v0": "1"})
    (tmp_path / "parts" / "000001.npz").unlink()
    assert write(tmp_path, {f"v{i}": "1" for i in range(8)})["rows"] == 8


def test_a_reader_takes_only_what_belongs_together(tmp_path):
    for name in ("meta.json", "ids.jsonl", "features.npy"):
        folder = tmp_path / f"without {name}"
        write(folder, {"a": "1", "b": "1"})
        (folder / name).unlink()
        with pytest.raises(ClipVipError, match="not finished" if name == "meta.json" else "are damaged"):
            Features(folder)
    with pytest.raises(ClipVipError, match="no features in"):
        Features(tmp_path / "absent")
    write(tmp_path, {"a": "1", "b": "1"})
    assert Features(tmp_path).row(1) == {"id": "b", "path": "/b", "frames": 3, "stamp": "1"}
    lines = (tmp_path / "ids.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "ids.jsonl").write_text("".join(reversed(lines)))
    with pytest.raises(ClipVipError, match="rows and ids may be mixed"):
        Features(tmp_path)
    (tmp_path / "ids.jsonl").write_text("".join(lines))
    np.save(tmp_path / "features.npy", np.zeros((3, 8), np.float32))
    with pytest.raises(ClipVipError, match="rows and ids may be mixed"):
        Features(tmp_path)


def test_chunks_and_odd_texts(tmp_path):
    odd = ["a\nb", "é\u2028x", '"quoted"', "\\", "plain"]
    write(tmp_path, dict.fromkeys(odd, "1"), part=2)
    found = Features(tmp_path)
    assert [found.row(i)["id"] for i in range(5)] == odd
    starts, parts = zip(*found.chunks(2), strict=True)
    assert starts == (0, 2, 4) and (np.concatenate(parts) == np.stack([feature(x, "1") for x in odd])).all()


KILLED = """
import sys, numpy as np
from clipvip_lib.features.writer import FeatureWriter
how = dict(kind="videos", weights="w", pretrained_tag=None, checksum="c", stored="float32")
row = np.eye(1, 512, dtype=np.float32)[0]
with FeatureWriter(sys.argv[1], how, 3) as writer:
    for i in range(100000):
        writer.add({"id": str(i), "path": "p", "frames": i}, "1", np.roll(row, i))
        if i == 60:
            print("going", flush=True)
"""


@pytest.mark.fault(
    "features: SIGKILL while parts are written",
    sees="nothing: the dead process's lock is gone",
    keeps="whole parts, their rows in order",
)
def test_a_kill_leaves_whole_parts(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    with FeatureWriter(tmp_path, HOW, 3) as writer:  # the dead process's lock is gone
        done = sum(writer.has(str(i), "1") for i in range(100000))
        assert done >= 60 and all(writer.has(str(i), "1") for i in range(done))
        writer.join([str(i) for i in range(done)])
    found = Features(tmp_path)
    assert (found.array.argmax(1) == np.arange(done) % 512).all() and found.row(done - 1)[
        "frames"
    ] == done - 1


def test_what_a_kill_left_half_written_is_removed(tmp_path):
    write(tmp_path, {"a": "1"})
    halves = [tmp_path / "parts" / "000001.npz.4711.partial", tmp_path / "features.npy.4711.partial"]
    for half in halves:
        half.write_bytes(b"half")
    assert write(tmp_path, {"a": "1", "b": "1"})["rows"] == 2
    assert not any(half.exists() for half in halves)


def test_parquet(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    write(tmp_path, {"a": "1", "b": "1"})
    table = pq.read_table(write_parquet(tmp_path)).to_pylist()
    assert [(row["id"], row["path"], row["key"], row["frames"]) for row in table] == [
        ("a", "/a", None, 3), ("b", "/b", None, 3)
    ]  # fmt: skip
    assert (np.array([row["feature"] for row in table], np.float32) == Features(tmp_path).array).all()


def test_parquet_without_pyarrow_is_one_sentence(tmp_path, monkeypatch):
    write(tmp_path, {"a": "1"})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ClipVipError, match="run pip install pyarrow"):
        write_parquet(tmp_path)


def test_settings_are_readable(tmp_path):
    write(tmp_path, {"a": "1"})
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert (meta["rows"], meta["width"], meta["skipped"], meta["settings"]) == (1, 8, 0, HOW)


@pytest.mark.fault(
    "features: the program fails after it replaced a row", sees="the error", keeps="the new row"
)
def test_a_run_that_broke_off_leaves_no_stale_row(tmp_path):
    """It replaced a row and never joined; the next run finds all done, and the whole must show it."""
    write(tmp_path, {"a": "1", "b": "1"})
    with pytest.raises(KeyError), FeatureWriter(tmp_path, HOW) as writer:
        writer.add({"id": "a", "path": "/a", "frames": 3}, "2", feature("a", "2"))
        raise KeyError
    write(tmp_path, {"a": "2", "b": "1"})
    assert (Features(tmp_path).array == np.stack([feature("a", "2"), feature("b", "1")])).all()


@pytest.mark.fault(
    "features: ids.jsonl, features.npy or meta.json was emptied or changed",
    sees="nothing: the next run joins them from the parts",
    keeps="every row",
)
def test_what_changed_on_the_disk_is_joined_anew(tmp_path):
    items = {"a": "1", "b": "1"}
    first = write(tmp_path, items)
    (tmp_path / "ids.jsonl").write_text("")
    write(tmp_path, items)
    assert Features(tmp_path).row(1)["id"] == "b"
    np.save(tmp_path / "features.npy", np.load(tmp_path / "features.npy")[::-1])
    assert write(tmp_path, items)["features_sha256"] == first["features_sha256"]
    assert (Features(tmp_path).array == np.stack([feature(id, "1") for id in items])).all()
    (tmp_path / "meta.json").write_text("{")
    write(tmp_path, items)
    assert len(Features(tmp_path)) == 2


def test_an_item_that_was_skipped_and_mended_is_no_longer_skipped(tmp_path):
    """Only the part that knows the latest state of an item tells of it."""
    with FeatureWriter(tmp_path, HOW) as writer:
        writer.skip({"id": "a"}, "1", "bad")
        writer.add({"id": "b"}, "1", feature("b", "1"))
        assert writer.join(["a", "b"])["skipped"] == 1
    with FeatureWriter(tmp_path, HOW) as writer:
        writer.add({"id": "a"}, "2", feature("a", "2"))
        assert writer.join(["a", "b"])["skipped"] == 0
    assert not (tmp_path / "skipped.jsonl").exists() and len(Features(tmp_path)) == 2


def test_a_row_that_cannot_be_written_does_not_cost_its_part(tmp_path):
    words = "the path of 'b' expected Unicode"
    with pytest.raises(ClipVipError, match=words), FeatureWriter(tmp_path, HOW) as writer:
        writer.add({"id": "a"}, "1", feature("a", "1"))
        writer.skip({"id": "c"}, "1", "cannot read \udcff")
        writer.add({"id": "b", "path": "/\udcff"}, "1", feature("b", "1"))
    with FeatureWriter(tmp_path, HOW) as writer:
        assert writer.has("a", "1") and writer.skipped(["c"]) == 1


@pytest.mark.bad_input(
    "features: features.npy of another writing, small or large", says="`changed after it was written`"
)
@pytest.mark.parametrize("large", [False, True])
def test_features_of_another_writing_are_refused(tmp_path, monkeypatch, large):
    """A large file is read for its checksum only if its time is another: copied is well, changed is not."""
    write(tmp_path, {"a": "1", "b": "1"})
    path = tmp_path / "features.npy"
    if large:
        monkeypatch.setattr("clipvip_lib.features.folder.ALWAYS_CHECKED", 0)
        monkeypatch.setattr("hashlib.file_digest", None)
        Features(tmp_path)
        monkeypatch.undo()
        monkeypatch.setattr("clipvip_lib.features.folder.ALWAYS_CHECKED", 0)
    os.utime(path, ns=(1, 1))
    Features(tmp_path)
    np.save(path, np.load(path)[::-1])
    with pytest.raises(ClipVipError, match=r"features\.npy changed after it was written.*embed` again"):
        Features(tmp_path)


@pytest.mark.bad_input(
    "features: a meta.json that says other things", says="what differs, such as `rows and ids may be mixed`"
)
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features_sha256": ...}, "are damaged .*features_sha256"),
        ({"features_sha256": None}, "changed after it was written"),
        ({"rows": "2"}, "rows and ids may be mixed"),
        ({"settings": None}, "are damaged"),
        ({"settings": {**HOW, "stored": ["float32"]}}, r"stored float32 or float16 .*got \['float32'\]"),
        ({"settings": {**HOW, "kind": 3}}, "kind videos or texts, got 'float32' and 3"),
        ({"settings": {**HOW, "stored": "float16"}}, "expected float16 as meta.json says, got float32"),
    ],
)
def test_a_meta_json_that_says_other_things_is_refused(tmp_path, changes, words):
    meta = write(tmp_path, {"a": "1", "b": "1"}) | changes
    meta = {name: value for name, value in meta.items() if value is not ...}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ClipVipError, match=words):
        Features(tmp_path)


@pytest.mark.bad_input("features: numbers of another type", says="`expected float32 as meta.json says, got`")
@pytest.mark.parametrize("kind", ["float64", "int32"])
def test_numbers_of_another_type_are_refused(tmp_path, kind):
    write(tmp_path, {"a": "1"})
    np.save(tmp_path / "features.npy", np.load(tmp_path / "features.npy").astype(kind))
    with pytest.raises(ClipVipError, match=f"expected float32 as meta.json says, got {kind}"):
        Features(tmp_path)
