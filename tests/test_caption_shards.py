"""Captions of a corpus: each shard once and whole, whichever process dies or stops; bad samples named or skipped."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import caption_corpus as corpus
import patience
import pyarrow.parquet as pq
import pytest
import torch

from clipvip_lib.captions.caption_shards import MADE_BY, caption_shards
from clipvip_lib.captions.captioner import Captioner
from clipvip_lib.captions.captioners import describe
from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import write_bytes
from clipvip_lib.streams.parquet import parquet_path, write_captions
from clipvip_lib.streams.shard_locks import ShardTask, hold, hold_each
from clipvip_lib.streams.sidecars import read_sidecar, sidecar_path, write_sidecar

torch.set_num_threads(1)
TESTS = Path(__file__).parent
SHARDS, CLIPS = 3, 10


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return corpus.trained()


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> list[Path]:
    return corpus.write_corpus(tmp_path_factory.mktemp("corpus"), SHARDS, CLIPS)


@pytest.fixture
def shards(written, tmp_path) -> list[Path]:
    """A copy that a test may damage."""
    shutil.copytree(written[0].parent, tmp_path / "corpus")
    return sorted((tmp_path / "corpus").iterdir())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


class Watched:
    """A real captioner, of which a test sees the batches, and which may be made to wait or to fail."""

    def __init__(self, captioner: Captioner, before=lambda frames: None) -> None:
        self.captioner, self.before, self.batches = captioner, before, []
        self.image_size = captioner.image_size

    def caption(self, images, batch=64):
        self.before(images)
        self.batches.append(len(images))
        return self.captioner.caption(images, batch)


# ------------------------------------------------------------------------------------------- what is written


def test_every_shard_is_captioned_once_by_its_middle_frames(captioner, written, tmp_path):
    shown = []
    tally = caption_shards(
        written, tmp_path, captioner, batch=4, progress=lambda done, total, note: shown.append((done, total))
    )
    for number, shard in enumerate(written):
        assert corpus.texts(sidecar_path(shard, "captions", tmp_path)) == corpus.expected(number, CLIPS)
    assert names(tmp_path) == [f"{number:05d}.captions.jsonl" for number in range(SHARDS)]
    assert (tally.written, tally.captions, tally.found, tally.skipped) == (SHARDS, SHARDS * CLIPS, 0, 0)
    assert shown[-1] == (SHARDS * CLIPS, SHARDS * CLIPS)
    assert all(done < total for done, total in shown[:-1])
    assert [done for done, _ in shown] == sorted(done for done, _ in shown)


def test_finished_shards_are_skipped(captioner, written, tmp_path):
    caption_shards(written[:1], tmp_path, captioner)
    first = (tmp_path / "00000.captions.jsonl").stat().st_mtime_ns
    said = []
    watched = Watched(captioner)
    tally = caption_shards(written, tmp_path, watched, batch=CLIPS, say=said.append)
    assert (tally.found, tally.written, watched.batches) == (1, 2, [CLIPS, CLIPS])
    assert said == ["1 of 3 shards were captioned before"]
    assert (tmp_path / "00000.captions.jsonl").stat().st_mtime_ns == first
    assert caption_shards(written, tmp_path, watched).written == 0 and len(watched.batches) == 2


@pytest.mark.parametrize(("batch", "sizes"), [(4, [3, 3, 4]), (10, [10]), (64, [10]), (3, [2, 3, 2, 3])])
def test_a_shards_batches_are_of_nearly_one_size(captioner, written, tmp_path, batch, sizes):
    watched = Watched(captioner)
    caption_shards(written[:1], tmp_path, watched, batch=batch)
    assert watched.batches == sizes


def test_a_captioner_without_a_size_gets_the_frames_as_they_are(captioner, written, tmp_path):
    shapes = set()
    watched = Watched(captioner, lambda frames: shapes.update(frame.shape for frame in frames))
    watched.image_size = None
    caption_shards(written[:1], tmp_path, watched)
    assert shapes == {(32, 48, 3)}
    assert corpus.texts(tmp_path / "00000.captions.jsonl") == corpus.expected(0, CLIPS)


def test_any_caption_is_one_line(captioner, written, tmp_path):
    class Odd(Watched):
        def caption(self, images, batch=64):
            return ["two\u2028lines \x85 \n é"] * len(images)

    caption_shards(written[:1], tmp_path, Odd(captioner))
    assert len((tmp_path / "00000.captions.jsonl").read_text().splitlines()) == CLIPS
    assert set(read_sidecar(tmp_path / "00000.captions.jsonl", "captions").values()) == {
        "two\u2028lines \x85 \n é"
    }


# ------------------------------------------------------------------------------------------------ as Parquet


def same_as_parquet(out: Path) -> bool:
    """Whether every shard is there in both forms, with the same rows in the same order, and nothing else is."""
    lines = [out / f"{number:05d}.captions.jsonl" for number in range(SHARDS)]
    assert names(out) == sorted(path.name for each in lines for path in (each, parquet_path(each)))
    assert not list(out.glob(".locks/*.lock"))
    rows = [json.loads(line) for each in lines for line in each.read_text().splitlines()]
    return rows == [row for each in lines for row in pq.read_table(parquet_path(each)).to_pylist()]


def test_parquet_holds_what_the_json_lines_hold(captioner, written, tmp_path):
    caption_shards(written, tmp_path, captioner, parquet=True)
    assert same_as_parquet(tmp_path)
    schema = pq.read_schema(tmp_path / "00000.captions.parquet")
    assert [(field.name, str(field.type)) for field in schema] == [("key", "string"), ("caption", "string")]


def test_a_shard_without_captions_has_a_parquet_of_the_same_columns(captioner, shards, tmp_path):
    corpus.change(shards[0], r".*\.(mp4|jpg)", b"none")
    caption_shards(shards[:1], tmp_path / "out", captioner, skip_share=0.99, parquet=True)
    table = pq.read_table(tmp_path / "out" / "00000.captions.parquet")
    assert (table.num_rows, [str(kind) for kind in table.schema.types]) == (0, ["string", "string"])


def test_no_parquet_is_written_unasked(captioner, written, tmp_path):
    caption_shards(written, tmp_path, captioner)
    assert not list(tmp_path.glob("*.parquet"))


def test_a_restart_adds_the_parquet_that_is_lacking_and_captions_nothing_again(captioner, written, tmp_path):
    caption_shards(written, tmp_path, captioner)
    watched, said = Watched(captioner), []
    caption_shards(written, tmp_path, watched, parquet=True, say=said.append)
    assert same_as_parquet(tmp_path) and watched.batches == []
    assert "added the Parquet of 3 shards whose captions were there" in said
    before = (tmp_path / "00001.captions.parquet").stat().st_mtime_ns
    (tmp_path / "00002.captions.parquet").unlink()
    caption_shards(written, tmp_path, watched, parquet=True)
    assert same_as_parquet(tmp_path) and watched.batches == []
    assert (tmp_path / "00001.captions.parquet").stat().st_mtime_ns == before


def test_a_rank_writes_its_shards_parquet_right_after_the_captions(captioner, written, tmp_path, monkeypatch):
    order = []

    def noted(write):
        return lambda path, *content: order.append(path.name) or write(path, *content)

    monkeypatch.setattr("clipvip_lib.captions.caption_shards.write_sidecar", noted(write_sidecar))
    monkeypatch.setattr("clipvip_lib.captions.caption_shards.write_captions", noted(write_captions))
    caption_shards(written[:2], tmp_path, captioner, parquet=True)
    kinds = ("captions.jsonl", "captions.parquet")
    assert order == [f"{number:05d}.{kind}" for number in range(2) for kind in kinds]


def test_captions_that_are_made_again_leave_no_older_parquet(captioner, written, tmp_path):
    caption_shards(written, tmp_path, captioner, parquet=True)
    (tmp_path / "00001.captions.jsonl").unlink()

    class Other(Watched):
        def caption(self, images, batch=64):
            return ["other"] * len(images)

    caption_shards(written, tmp_path, Other(captioner), parquet=True)
    assert same_as_parquet(tmp_path)
    (tmp_path / "00001.captions.jsonl").unlink()
    caption_shards(written, tmp_path, captioner)
    assert "00001.captions.parquet" not in names(tmp_path)


def test_a_parquet_that_is_older_than_its_json_lines_is_written_again(captioner, written, tmp_path):
    caption_shards(written, tmp_path, captioner, parquet=True)
    lines = tmp_path / "00001.captions.jsonl"
    lines.write_text(lines.read_text().replace("wall", "door"))
    os.utime(lines, ns=(2**61, 2**61))
    watched = Watched(captioner)
    caption_shards(written, tmp_path, watched, parquet=True)
    assert same_as_parquet(tmp_path) and watched.batches == []


def test_json_lines_that_cannot_be_copied_hold_up_nobody_once_mended(captioner, written, tmp_path):
    """In one process, such as a notebook's: a lock that was kept would be waited for for ever."""
    caption_shards(written, tmp_path, captioner)
    lines = tmp_path / "00001.captions.jsonl"
    whole = lines.read_text()
    for broken, words in (
        ("{", "00001"),
        (r'{"key": "a", "caption": "\ud800"}', "expected whole characters"),
    ):
        lines.write_text(broken)
        with pytest.raises(ClipVipError, match=words):
            caption_shards(written, tmp_path, captioner, parquet=True)
    lines.write_text(whole)
    caption_shards(written, tmp_path, captioner, parquet=True)
    assert same_as_parquet(tmp_path)


def test_a_folder_in_a_parquets_place_is_told_before_the_work(captioner, written, tmp_path):
    (tmp_path / "00001.captions.parquet").mkdir()
    watched = Watched(captioner)
    for parquet in (True, False):
        with pytest.raises(
            ClipVipError, match=r"00001\.captions\.parquet is a folder: expected a Parquet file"
        ):
            caption_shards(written, tmp_path, watched, parquet=parquet)
    assert watched.batches == []


def test_parquet_of_an_unknown_maker_is_refused_and_kept(captioner, written, tmp_path):
    foreign = tmp_path / "00001.captions.parquet"
    foreign.write_bytes(b"PAR1")
    with pytest.raises(ClipVipError, match=r"holds 00001\.captions\.parquet but no captions\.json"):
        caption_shards(written, tmp_path, captioner, made_by=describe(captioner))
    assert foreign.read_bytes() == b"PAR1"


# ------------------------------------------------------------------------------------------------ bad samples


@pytest.mark.bad_input(
    "caption: a sample that is not a video",
    says="the sample, and how many may be skipped; no captions of that shard are written",
)
def test_a_bad_sample_stops_by_its_name_and_keeps_what_is_done(captioner, shards, tmp_path):
    corpus.change(shards[1], "000010004.mp4", b"no video at all")
    with pytest.raises(ClipVipError, match=r"1 of 10 samples .*00001\.tar .* 0 may be skipped.*000010004 of"):
        caption_shards(shards, tmp_path / "out", captioner)
    assert "00001.captions.jsonl" not in names(tmp_path / "out")
    corpus.write_shard(shards[1], 1, CLIPS)  # repaired, in the same process: nothing is held any more
    caption_shards(shards, tmp_path / "out", captioner)
    assert corpus.texts(tmp_path / "out" / "00001.captions.jsonl") == corpus.expected(1, CLIPS)


@pytest.mark.bad_input(
    "caption: a cut video and a cut picture, with a share that may be skipped",
    says="`skipped 2 of 10 samples of 00001.tar, see 00001.skipped.jsonl`",
)
def test_bad_samples_are_skipped_and_named_up_to_a_share(captioner, shards, tmp_path):
    cut = corpus.video([(9, 9, 9)] * 30)
    corpus.change(shards[1], "000010004.mp4", cut[: len(cut) // 2])
    corpus.change(shards[1], "000010008.jpg", b"\xff\xd8 cut")
    with pytest.raises(ClipVipError, match="2 of 10 samples .* 1 may be skipped"):
        caption_shards(shards, tmp_path / "out", captioner, skip_share=0.1)
    said = []
    tally = caption_shards(shards, tmp_path / "out", captioner, skip_share=0.11, say=said.append)
    assert tally.skipped == 2 and tally.written + tally.found == SHARDS
    good = [row for row in corpus.expected(1, CLIPS) if row[0] not in ("000010004", "000010008")]
    assert corpus.texts(tmp_path / "out" / "00001.captions.jsonl") == good
    lines = (tmp_path / "out" / "00001.skipped.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row["shard"], row["key"]) for row in rows] == [
        ("00001.tar", "000010004"),
        ("00001.tar", "000010008"),
    ]
    assert all(row["reason"] for row in rows)
    assert "skipped 2 of 10 samples of 00001.tar, see 00001.skipped.jsonl" in said
    assert "00000.skipped.jsonl" not in names(tmp_path / "out")


def test_a_shard_of_nothing_but_bad_samples(captioner, shards, tmp_path):
    corpus.change(shards[0], r".*\.(mp4|jpg)", b"none")
    tally = caption_shards(shards[:1], tmp_path / "out", captioner, skip_share=0.99)
    assert (tally.skipped, tally.captions) == (CLIPS, 0)
    assert read_sidecar(tmp_path / "out" / "00000.captions.jsonl", "captions") == {}


def test_samples_that_were_never_fetched_are_no_bad_ones(captioner, shards, tmp_path):
    corpus.change(shards[0], "000000003.mp4", None)
    corpus.change(shards[0], "000000003.json", b'{"status": "failed_to_download"}')
    tally = caption_shards(shards[:1], tmp_path / "out", captioner)
    assert (tally.absent, tally.skipped, tally.captions) == (1, 0, CLIPS - 1)
    corpus.change(shards[1], "000010003.mp4", None)  # fetched, as its json says, and yet without media
    with pytest.raises(ClipVipError, match="000010003 of .* has no mp4 or jpg"):
        caption_shards(shards[1:], tmp_path / "out", captioner)


def test_a_json_that_is_too_deep_says_nothing_of_a_sample(captioner, shards, tmp_path):
    corpus.change(shards[0], "000000003.mp4", None)
    corpus.change(shards[0], "000000003.json", b"[" * 100_000)
    with pytest.raises(ClipVipError, match="000000003 of .* has no mp4 or jpg"):
        caption_shards(shards[:1], tmp_path / "out", captioner)


@pytest.mark.bad_input("caption: a key that is not UTF-8", says="`expected UTF-8, got other bytes`")
def test_a_key_that_is_not_utf8_is_one_bad_sample(captioner, shards, tmp_path):
    files = {"good.jpg": corpus.still((9, 9, 9)), "caf\udce9.jpg": corpus.still((9, 9, 9))}
    corpus.write_tar(shards[0], files)
    with pytest.raises(ClipVipError, match=r"the key caf\\udce9 of shard .* expected UTF-8, got other bytes"):
        caption_shards(shards[:1], tmp_path / "out", captioner)
    caption_shards(shards[:1], tmp_path / "out", captioner, skip_share=0.5)
    assert [key for key, _ in corpus.texts(tmp_path / "out" / "00000.captions.jsonl")] == ["good"]
    (row,) = map(json.loads, (tmp_path / "out" / "00000.skipped.jsonl").read_text().splitlines())
    assert row["key"] == r"caf\udce9"


@pytest.mark.bad_input("caption: a cut shard, or a sample that is there twice", says="`is damaged`, `twice`")
def test_damaged_and_doubled_shards_are_named(captioner, shards, tmp_path):
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ClipVipError, match=r"00001\.tar is damaged"):
        caption_shards(shards, tmp_path / "out", captioner, skip_share=0.5)
    assert "00001.captions.jsonl" not in names(tmp_path / "out")
    corpus.write_tar(shards[1], {f"{key}.jpg": corpus.still((9, 9, 9)) for key in "ab"})
    with tarfile.open(shards[1], "a") as tar:
        tar.add(shards[2], "a.jpg")
    with pytest.raises(ClipVipError, match="holds sample a twice"):
        caption_shards(shards, tmp_path / "out", captioner)


def test_a_shard_is_held_until_its_captions_are_written(captioner, written, tmp_path, monkeypatch):
    freely = []

    def write(path, *content):
        held = hold(ShardTask(written[0], path))
        freely.extend([path] if held else [])
        return write_sidecar(path, *content)

    monkeypatch.setattr("clipvip_lib.captions.caption_shards.write_sidecar", write)
    caption_shards(written[:1], tmp_path, captioner)
    assert freely == [] and "00000.captions.jsonl" in names(tmp_path)


def test_captions_are_the_last_that_is_written_of_a_shard(captioner, shards, tmp_path, monkeypatch):
    order = []
    for module in ("shard_jobs", "sidecars"):
        monkeypatch.setattr(
            f"clipvip_lib.streams.{module}.write_bytes",
            lambda path, content: order.append(path.name) or write_bytes(path, content),
        )
    corpus.change(shards[0], "000000004.mp4", b"no video at all")
    caption_shards(shards[:1], tmp_path, captioner, skip_share=0.1)
    assert order == ["00000.skipped.jsonl", "00000.captions.jsonl"]


def test_a_rank_begins_with_its_own_shards(captioner, written, tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(
        "clipvip_lib.streams.sidecars.write_bytes",
        lambda path, content: order.append(path.name[:5]) or write_bytes(path, content),
    )
    caption_shards(written, tmp_path, captioner, rank=1, ranks=2)
    assert order == ["00001", "00002", "00000"]


# -------------------------------------------------------------------------------------------- bad arguments


def test_bad_lists_of_shards_are_refused(captioner, shards, tmp_path):
    with pytest.raises(ClipVipError, match="at least one shard, got none"):
        caption_shards([], tmp_path / "out", captioner)
    with pytest.raises(ClipVipError, match=r"1 of 2 shards are missing, first .*none\.tar"):
        caption_shards([shards[0], tmp_path / "none.tar"], tmp_path / "out", captioner)
    twin = corpus.write_shard(tmp_path / shards[0].name, 0, 1)
    with pytest.raises(ClipVipError, match="would both write"):
        caption_shards([shards[0], twin], tmp_path / "out", captioner)
    for options in ({"skip_share": 1.0}, {"batch": 0}, {"threads": 0}, {"rank": 2, "ranks": 2}):
        with pytest.raises(ClipVipError, match="expected a share"):
            caption_shards(shards, tmp_path / "out", captioner, **options)


def test_captions_of_two_captioners_do_not_mix(captioner, shards, tmp_path):
    made_by = describe(captioner)
    caption_shards(shards[:1], tmp_path / "out", captioner, made_by=made_by)
    assert json.loads((tmp_path / "out" / MADE_BY).read_text()) == made_by
    caption_shards(shards[:2], tmp_path / "out", captioner, made_by=made_by)
    with pytest.raises(ClipVipError, match=r"another way \(beam_size 2 then, 5 now\); choose another folder"):
        caption_shards(shards, tmp_path / "out", captioner, made_by=made_by | {"beam_size": 5})
    assert "00002.captions.jsonl" not in names(tmp_path / "out")
    (tmp_path / "out" / MADE_BY).unlink()
    with pytest.raises(ClipVipError, match=r"holds 00000\.captions\.jsonl but no captions\.json"):
        caption_shards(shards, tmp_path / "out", captioner, made_by=made_by)


# ---------------------------------------------------------------------------- who holds what, and who dies


def python(code: str, *arguments: object, **options) -> subprocess.Popen:
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, **options)


HOLD = """
import signal, sys
from pathlib import Path
from clipvip_lib.streams.shard_locks import ShardTask, hold
assert hold(ShardTask(Path(sys.argv[1]), Path(sys.argv[2])))
print("held", flush=True)
signal.pause()
"""


@pytest.mark.fault(
    "caption: a rank is stopped, then killed (SIGKILL)",
    sees="`taking up 00001.tar`",
    keeps="while it lives, its shard is its own; then the other rank captions it",
)
def test_a_living_rank_waits_for_another_and_takes_up_what_it_held_when_it_dies(
    captioner, written, tmp_path, monkeypatch
):
    out = tmp_path / "00001.captions.jsonl"
    other = python(HOLD, written[1], out)
    try:
        assert other.stdout.readline() == "held\n"
        os.kill(other.pid, signal.SIGSTOP)  # alive, however slow: its shard is its own
        said, waited = [], threading.Event()

        def say(text: str) -> None:
            said.append(text)
            if text.startswith("waiting"):
                waited.set()

        died = threading.Event()

        def deal_with_few_looks(tasks, rank, ranks, pause, waiting):
            """A dead process's shard is free at the first look: a rank that misses it for long would wait for ever."""
            looks = itertools.count()

            def few() -> bool:
                return pause() and (not died.is_set() or next(looks) < 20)

            return hold_each(tasks, rank, ranks, few, waiting)

        monkeypatch.setattr("clipvip_lib.streams.shard_jobs.hold_each", deal_with_few_looks)
        done: list = []

        def caption() -> None:
            try:
                done.append(caption_shards(written, tmp_path, captioner, say=say, poll=0.05))
            finally:
                waited.set()  # nobody waits for a rank that ends without waiting

        work = threading.Thread(target=caption, daemon=True)
        work.start()
        patience.until(waited.is_set, "its waiting", os.getpid())
        work.join(0.5)
        assert work.is_alive() and not out.exists()
        assert f"process {other.pid} of" in said[-1]
        other.kill()
        other.wait()
        died.set()
        patience.until(lambda: not work.is_alive(), "its end", os.getpid())
    finally:
        other.kill()
        other.communicate()
    assert done[0].written == SHARDS
    assert f"taking up 00001.tar, which process {other.pid} of {os.uname().nodename} had begun" in said
    assert corpus.texts(out) == corpus.expected(1, CLIPS)


# A process that kills itself when half of the captions of the second shard are on the disk.
DIE_WRITING = """
import os, signal, sys
from pathlib import Path
from clipvip_lib.captions.caption_shards import caption_shards
from clipvip_lib.captions.captioner import Captioner
whole = Path.write_bytes
def write(self, content):
    if self.name.startswith("00001.captions"):
        whole(self, content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, content)
Path.write_bytes = write
caption_shards(sorted(Path(sys.argv[1]).glob("*.tar")), sys.argv[2], Captioner.load(sys.argv[3]))
"""


def killed(code: str, captioner, shards, folder: Path) -> tuple[Path, list[str]]:
    """Run a process that kills itself while it captions; the output folder and the names of what it left there."""
    out = folder / "out"
    process = python(code, shards[0].parent, out, captioner.save(folder / "captioner"))
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    return out, names(out)


@pytest.mark.fault(
    "caption: killed while captions are written",
    sees="`taking up 00001.tar`",
    keeps="whole captions; the half file is gone after the next start",
)
def test_a_kill_while_writing_leaves_no_half_file(captioner, shards, tmp_path):
    out, left = killed(DIE_WRITING, captioner, shards, tmp_path)
    half = [name for name in left if name.endswith(".partial")]
    assert left[0] == "00000.captions.jsonl" and len(half) == 1 and "00001.captions.jsonl" not in left
    said = []
    tally = caption_shards(shards, out, captioner, say=said.append)
    assert tally.found == 1 and tally.written == 2
    assert any(text.startswith("taking up 00001.tar") for text in said)
    assert names(out) == [f"{number:05d}.captions.jsonl" for number in range(SHARDS)]
    for number in range(SHARDS):
        assert corpus.texts(out / f"{number:05d}.captions.jsonl") == corpus.expected(number, CLIPS)


# A process that kills itself when half of the second shard's Parquet is on the disk: its captions are there.
DIE_AS_PARQUET = """
import os, signal, sys
from pathlib import Path
import pyarrow.parquet as pq
from clipvip_lib.captions.caption_shards import caption_shards
from clipvip_lib.captions.captioner import Captioner
whole = pq.write_table
def write(table, path):
    whole(table, path)
    if path.name.startswith("00001"):
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
pq.write_table = write
shards = sorted(Path(sys.argv[1]).glob("*.tar"))
caption_shards(shards, sys.argv[2], Captioner.load(sys.argv[3]), parquet=True)
"""


@pytest.mark.fault(
    "caption: killed between captions and Parquet",
    sees="nothing",
    keeps="the captions: the next start writes the Parquet and captions no shard twice",
)
def test_a_kill_between_captions_and_parquet_costs_no_captions(captioner, shards, tmp_path):
    out, left = killed(DIE_AS_PARQUET, captioner, shards, tmp_path)
    assert "00001.captions.jsonl" in left and "00001.captions.parquet" not in left
    watched = Watched(captioner)
    tally = caption_shards(shards, out, watched, batch=CLIPS, parquet=True)
    assert (tally.found, tally.written, watched.batches) == (2, 1, [CLIPS])
    assert same_as_parquet(out)  # nor is the half file left


@pytest.mark.fault(
    "caption: a rank is killed (SIGKILL) that holds a shard's Parquet",
    sees="`waiting for 1 shard held by others, first 00001.tar`",
    keeps="all: the living rank writes the Parquet",
)
def test_a_living_rank_writes_the_parquet_that_a_dead_one_left(captioner, written, tmp_path):
    """Rank 1 dies between the two while rank 0 lives on: rank 0 waits for it and then has its Parquet to write."""
    caption_shards(written, tmp_path, captioner)
    other = python(HOLD, written[1], tmp_path / "00001.captions.parquet")
    try:
        assert other.stdout.readline() == "held\n"
        said = []

        def say(text: str) -> None:
            said.append(text)
            if text.startswith("waiting"):
                assert not (tmp_path / "00001.captions.parquet").exists()
                other.kill()
                other.wait()

        caption_shards(written, tmp_path, captioner, parquet=True, say=say, poll=0.05)
    finally:
        other.kill()
        other.communicate()
    assert f"waiting for 1 shard held by others, first 00001.tar (process {other.pid}" in " ".join(said)
    assert same_as_parquet(tmp_path)


@pytest.mark.fault(
    "caption: the model fails",
    sees="the model's error, `the device fell off`",
    keeps="no half file, no thread; the next call captions all",
)
def test_a_failing_captioner_ends_the_reading_too(captioner, written, tmp_path):
    def fail(frames):
        raise RuntimeError("the device fell off")

    with pytest.raises(RuntimeError, match="fell off"):
        caption_shards(written, tmp_path, Watched(captioner, fail), batch=1)
    assert not [thread for thread in threading.enumerate() if thread.name == "ahead"]
    assert names(tmp_path) == []
    assert caption_shards(written, tmp_path, captioner).written == SHARDS
