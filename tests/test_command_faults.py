"""Faults from outside, in the commands that take long: full and read-only disks, no memory, signals, decoders that hang
or crash. All are real processes (fault_runs.py); what is there after each is looked at, and the end is compared."""

import os
import shutil
import signal
import time
from pathlib import Path

import caption_corpus
import patience
import pytest
import small_runs
from fault_runs import disks, runs  # noqa: F401 (fixtures)
from small_clip import save_small, write_videos

from clipvip_lib import cli
from clipvip_lib.data import corpora
from clipvip_lib.features.folder import Features

SHARDS, CLIPS, VIDEOS = 5, 12, 60
KEPT = "what was done is kept; run the same command to continue"


class Place:
    """What embed, caption, train and check-data work on; and what embed and caption make of it undisturbed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        weights, model = save_small(folder / "weights"), small_runs.write_model(folder / "model")
        some = write_videos(folder / "some", 5)
        (folder / "videos").mkdir()
        for i in range(VIDEOS):
            shutil.copy(some[i % 5], folder / "videos" / f"{i:03d}.mp4")
        caption_corpus.write_corpus(folder / "corpus", SHARDS, CLIPS)
        caption_corpus.trained().save(folder / "ofa")
        pattern = small_runs.write_shards(folder / "shards", (2, 1))
        corpora.write_benchmark(
            folder / "set", "msrvtt", 0, {"train": 8, "val": 4, "test": 4}, lambda *_: None
        )
        shards = f"{folder}/corpus/{{00000..{SHARDS - 1:05d}}}.tar"
        train = ["train", "--stage", "postpretrain", "--shards", pattern, "--weights", model]
        self.lines = {
            "embed": ["embed", folder / "videos", "--weights", weights, "--part", 4, "--batch", 2],
            "caption": ["caption", "--shards", shards, "--weights", folder / "ofa", "--batch", 4],
            "train": [*train, *small_runs.settings()],
        }
        with pytest.MonkeyPatch.context() as patch:
            for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
                patch.delenv(name, raising=False)
            for name in self.lines:
                assert cli.main([str(word) for word in self.line(name, folder / name)]) == 0

    def line(self, name: str, out: Path) -> list:
        store = ["--frames-store", out / "frames"] if name == "train" else []
        return [*self.lines[name], "--out", out, *store]

    def whole(self, name: str, out: Path) -> None:
        """What a command made is what it makes undisturbed, and nothing half is beside it."""
        assert not list(out.rglob("*.partial*"))
        if name == "embed":
            assert (out / "features.npy").read_bytes() == (self.folder / "embed/features.npy").read_bytes()
            assert len(Features(out)) == VIDEOS
        elif name == "caption":
            for made in (self.folder / "caption").glob("*.json*"):
                assert (out / made.name).read_bytes() == made.read_bytes()
        else:
            made, expected = (each / "model" / "model.safetensors" for each in (out, self.folder / name))
            assert made.read_bytes() == expected.read_bytes()

    def done(self, name: str, out: Path) -> dict[str, bytes]:
        """The finished pieces of a command."""
        pieces = {"embed": "parts/*.npz", "caption": "0*.captions.jsonl", "train": "checkpoint.pt"}
        return {path.name: path.read_bytes() for path in out.glob(pieces[name])}


@pytest.fixture(scope="module")
def place(runs, tmp_path_factory) -> Place:  # noqa: F811 (it imports while the place is made)
    return Place(tmp_path_factory.mktemp("place"))


@pytest.mark.fault(
    "embed, caption: SIGTERM, and Ctrl-C in the next start",
    sees="`stopped by SIGTERM`, exit code 143; `clipvip: interrupted`, exit code 130; `what was done is kept`",
    keeps="whole parts and shards, byte for byte; the end equals an undisturbed run's",
)
@pytest.mark.parametrize("name", ["embed", "caption"])
def test_stopped_by_signals_it_ends_the_same(name, place, runs, tmp_path):  # noqa: F811
    out, done = tmp_path / "out", {}
    ways = ((signal.SIGTERM, 143, "stopped by SIGTERM"), (signal.SIGINT, 130, "clipvip: interrupted"))
    for number, code, words in ways:
        before = len(place.done(name, out))
        run = runs(*place.line(name, out))
        run.until(lambda least=before + 1: len(place.done(name, out)) >= least, "a piece")
        os.kill(run.pid, number)
        said = run.sentence(code)
        assert words in said and KEPT in said
        assert all(place.done(name, out)[piece] == content for piece, content in done.items())
        done = place.done(name, out)
    runs(*place.line(name, out)).sentence(0)
    assert all(place.done(name, out)[piece] == content for piece, content in done.items())
    place.whole(name, out)


@pytest.mark.fault(
    "embed, caption, train: the disk fills up (a small tmpfs)",
    sees="`No space left on device; free some space`, exit code 2",
    keeps="what was written; with room, the same command ends as an undisturbed run",
)
@pytest.mark.parametrize(("name", "room"), [("embed", 60), ("caption", 24), ("train", 200)])
def test_a_disk_that_fills_up_is_a_sentence_and_loses_nothing(name, room, place, runs, disks, tmp_path):  # noqa: F811
    small, left, end = (tmp_path / each for each in ("small", "left", "end"))
    small.mkdir()
    run = runs(*place.line(name, small / "out"), small=small, room=room, left=left, end=end)
    code, said = run.end()
    assert code == 2 and "Traceback" not in said, said[-3000:]
    assert "No space left on device; free some space" in said and "ended with 2, and again with 0" in said
    kept = place.done(name, left / "out")
    assert name == "train" or kept
    assert not list(left.rglob("*.partial*"))
    place.whole(name, end / "out")
    if name != "train":
        assert all(place.done(name, end / "out")[piece] == content for piece, content in kept.items())


@pytest.mark.fault(
    "embed, caption, train: the output is on a disk that is mounted read-only",
    sees="`expected a writable folder, got`, exit code 2",
    keeps="nothing is written; what lies there is as it was",
)
@pytest.mark.parametrize("name", ["embed", "caption", "train"])
def test_a_read_only_disk_is_a_sentence(name, place, runs, disks, tmp_path):  # noqa: F811
    (tmp_path / "note.txt").write_text("mine")
    said = runs(*place.line(name, tmp_path / "out"), read_only=tmp_path).sentence(2)
    assert "expected a writable folder, got" in said
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


@pytest.mark.fault(
    "embed, caption, train: the memory is exhausted (a limit on the process)",
    sees="`the memory does not suffice; choose a smaller batch or fewer workers`, exit code 2",
    keeps="what was done; with more memory, the same command ends as an undisturbed run",
)
@pytest.mark.parametrize("name", ["embed", "caption", "train"])
def test_memory_that_is_exhausted_is_a_sentence(name, place, runs, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    said = runs(*place.line(name, out), memory=8).sentence(2)
    assert "the memory does not suffice; choose a smaller batch or fewer workers" in said
    runs(*place.line(name, out)).sentence(0)
    place.whole(name, out)


def crashed(run) -> tuple[str, str]:
    """What is said after a crash, by the process that lives on, and the signal."""
    code, said = run.end()
    patience.until(lambda: "crashed" in run.text(), "its last words")
    [line] = [line for line in run.text().splitlines() if "crashed" in line]
    assert code < 0 and "Segmentation fault" in line, said
    assert "take it out" in line and " or " not in line.partition(" (")[0] and "Traceback" not in run.text()
    return line, signal.Signals(-code).name


@pytest.mark.fault(
    "embed, caption: a decoder hangs (simulated, with a short limit)",
    sees="after the limit of 300 seconds, `nothing came of` the video; `take it out`, exit code 2",
    keeps="whole parts and shards; the same command ends as an undisturbed run",
)
@pytest.mark.fault(
    "embed, caption: a decoder crashes (a real fault of memory in it)",
    sees="that the decoder crashed, while it read which video, and of what; `take it out`",
    keeps="whole parts and shards; the same command ends as an undisturbed run",
)
@pytest.mark.parametrize("name", ["embed", "caption"])
def test_a_decoder_that_hangs_or_crashes_costs_a_piece(name, place, runs, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    said = runs(*place.line(name, out), hangs=55, patience=1.0).sentence(2)
    assert "nothing came of " in said and "for 1 seconds" in said and "take it out" in said
    assert ".mp4" in said or ".tar" in said
    done = place.done(name, out)
    assert done
    said, died = crashed(runs(*place.line(name, out), crashes=25))
    assert "the decoder crashed while it read " in said and (".mp4 (" in said or ".tar" in said)
    assert died == "SIGSEGV"
    assert all(place.done(name, out)[piece] == content for piece, content in done.items())
    runs(*place.line(name, out)).sentence(0)
    place.whole(name, out)


@pytest.mark.fault(
    "check-data, train's frame store: a decoder hangs (simulated, with a short limit), or crashes",
    sees="`nothing came of` the video, exit code 2; or that the decoder crashed while it read it",
    keeps="the videos; without the fault, the same command ends as it should",
)
@pytest.mark.parametrize("name", ["check-data", "train"])
def test_a_decoder_that_hangs_or_crashes_in_a_command_that_decodes_by_itself(name, place, runs, tmp_path):  # noqa: F811
    line = (
        ["check-data", "msrvtt", place.folder / "set"] if name == "check-data" else place.line(name, tmp_path)
    )
    said = runs(*line, hangs=5, patience=1.0).sentence(2)
    assert "nothing came of " in said and "take it out" in said
    said, died = crashed(runs(*line, crashes=5))
    assert "the decoder crashed while it read " in said and died == "SIGSEGV"
    runs(*line).sentence(0)


@pytest.mark.fault(
    "embed: the clock was set back (what is there is of tomorrow)",
    sees="`embedded before`; of a Parquet of fewer rows, `which lacked rows`",
    keeps="every row; nothing is done twice",
)
def test_a_clock_that_was_set_back_costs_nothing(place, runs, tmp_path):  # noqa: F811
    out, videos = tmp_path / "out", tmp_path / "videos"
    shutil.copytree(place.folder / "videos", videos)
    later = [path.rename(tmp_path / path.name) for path in sorted(videos.iterdir())[VIDEOS // 2 :]]
    line = [videos if word == place.folder / "videos" else word for word in place.line("embed", out)]
    runs(*line, "--parquet").sentence(0)
    tomorrow = time.time() + 86_400
    for path in out.rglob("*"):
        os.utime(path, (tomorrow, tomorrow))
    _, said = runs(*line).end()
    assert "embedded before" in said and (out / "features.parquet").is_file()
    done = place.done("embed", out)
    for path in later:
        path.rename(videos / path.name)
    _, said = runs(*line).end()
    assert "features.parquet, which lacked rows" in said and not (out / "features.parquet").exists()
    assert all(place.done("embed", out)[piece] == content for piece, content in done.items())
    place.whole("embed", out)
