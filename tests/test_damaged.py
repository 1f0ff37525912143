"""A damaged video is refused on every route alike, or accepted on every route where that is asked for."""

import contextlib
import json
import re
from collections import Counter

import numpy as np
import pytest
import videos
from small_clip import save_small

from clipvip_lib.cli import Parser
from clipvip_lib.commands import embed, train
from clipvip_lib.data.clips import decode_ahead, list_clips, read_clip
from clipvip_lib.data.corpora import write_shard
from clipvip_lib.data.frames import write_store
from clipvip_lib.data.video import VideoError, count_frames, read, read_frames, uniform_indices
from clipvip_lib.errors import ClipVipError
from clipvip_lib.features.embedding import embed_videos, load_encoder
from clipvip_lib.features.folder import Features
from clipvip_lib.streams.middle_frames import middle_frame
from clipvip_lib.streams.stream import ClipStream

N = 60
HEVC = {"codec": "libx265", "options": {"x265-params": "open-gop=0:log-level=none"}}
KINDS = {
    "H.264": {},
    "H.264, CAVLC": {"x264": videos.CLOSED + ":cabac=0"},
    "H.264, slices": {"x264": videos.CLOSED + ":slices=4"},
    "H.264, one group": {"x264": videos.LONG},
    "H.264, open groups": {"x264": videos.OPEN},
    "H.264, Matroska": {"container": "matroska"},
    "H.264, MPEG-TS": {"container": "mpegts"},
    "H.264, AVI": {"container": "avi"},
    "HEVC": HEVC,
    "MPEG-4": {"codec": "mpeg4", "options": {"bf": "2"}},
}
SEEDS = 3


@pytest.fixture(scope="module")
def whole() -> dict[str, bytes]:
    return {kind: videos.encode(N, **options) for kind, options in KINDS.items()}


@pytest.fixture(scope="module")
def files(whole) -> dict[str, bytes]:
    """Damaged files of all kinds, with 1, 6 and 30 bytes turned over."""
    return {
        f"{number}-{seed}": videos.damaged(video, seed, (1, 6, 30)[seed % 3])
        for number, video in enumerate(whole.values())
        for seed in range(SEEDS)
    }


@pytest.fixture(scope="module")
def verdicts(files) -> dict[str, bool]:
    """Whether count_frames takes each file for whole."""
    return {key: not refused(count_frames, video) for key, video in files.items()}


def refused(call, *arguments, **options) -> bool:
    try:
        call(*arguments, **options)
    except VideoError:
        return True
    return False


@pytest.fixture(scope="module")
def folder(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    for key, video in files.items():
        (folder / f"{key}.mp4").write_bytes(video)  # FFmpeg looks at the content, not at the name
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_small(tmp_path_factory.mktemp("weights"))


ROUTES = {
    "first frame": lambda path: read_frames(path, [0]),
    "12 frames": lambda path: read_frames(path, lambda total: uniform_indices(total, 12)),
    "12 frames of bytes": lambda path: read_frames(path.read_bytes(), lambda t: uniform_indices(t, 12)),
    "count": count_frames,
    "clip": lambda path: read_clip(list_clips([path])[0], 4, 16),
    "middle frame": lambda path: middle_frame(path.read_bytes(), "x"),
    "frame store": lambda path: write_store(
        path.with_suffix(".npy"), [("x", path)], 1, 2, 16, False, lambda *_: None
    ),
}


@pytest.mark.bad_input(
    "video: bytes turned inside, on each of seven ways of reading", says="each way refuses the same files"
)
@pytest.mark.parametrize("route", ROUTES)
def test_every_reader_says_the_same(route, folder, verdicts):
    found = {key: not refused(ROUTES[route], folder / f"{key}.mp4") for key in verdicts}
    assert found == verdicts
    refusals = Counter(found.values())[False]
    assert refusals > 0.7 * len(found)  # the rest is damage that makes valid pictures: no decoder can tell


@pytest.mark.bad_input("video: bytes turned inside, in embed", says="the same files are left out")
def test_embedding_says_the_same(folder, verdicts, weights, tmp_path):
    clips = list_clips([folder])
    embed_videos(load_encoder(weights), clips, tmp_path / "out", skip_bad=len(clips))
    found = Features(tmp_path / "out")
    assert {found.row(i)["id"] for i in range(len(found))} == {key for key, fine in verdicts.items() if fine}


@pytest.mark.bad_input(
    "video: bytes turned inside, in a stream with and without workers",
    says="the same files are left out, and named in the log",
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_says_the_same(workers, files, verdicts, tmp_path):
    samples = [{"__key__": key, "mp4": video, "txt": "a dog"} for key, video in files.items()]
    write_shard(tmp_path / "0.tar", samples)
    log = tmp_path / "log.jsonl"
    options = {"frames": 2, "size": 16, "shuffle": 0, "skip_share": 1.0, "skip_log": log}
    with ClipStream([tmp_path / "0.tar"], workers=workers, **options) as stream:
        seen = {next(stream).key for _ in range(Counter(verdicts.values())[True])}
        next(stream)  # so that the epoch is over
    assert seen == {key for key, fine in verdicts.items() if fine}
    assert {json.loads(line)["key"] for line in log.read_text().splitlines()} >= verdicts.keys() - seen


# ------------------------------------------------------------------------------------------------------ accepting


def test_accepted_frames_are_those_of_the_whole_video_where_there_is_no_damage(whole):
    """The damage is in the last group of pictures, before which every frame is as it was."""
    video = whole["H.264"]
    at = video.index(b"mdat") + 4
    end = at - 8 + int.from_bytes(video[at - 8 : at - 4], "big")
    for place in range(end - 600, end):
        broken = bytearray(video)
        broken[place] ^= 0xFF
        if refused(count_frames, bytes(broken)) and read(bytes(broken), [0], damaged="accept").total == N:
            break
    with pytest.raises(VideoError, match="is damaged: .*fetch it again, or accept what the decoder makes up"):
        read_frames(bytes(broken), [0])
    found = read(bytes(broken), range(N), damaged="accept")
    assert found.total == N and found.damage
    same = (found.frames == read_frames(video, range(N))).all((1, 2, 3))
    assert same[:48].all() and not same.all()
    assert (read_frames(bytes(broken), [3, 1], damaged="accept") == found.frames[[3, 1]]).all()
    untouched = read(video, range(N), damaged="accept")
    assert untouched.damage == "" and (untouched.frames == read_frames(video, range(N))).all()


def test_accepting_takes_every_file_that_the_decoder_makes_pictures_of(files, verdicts):
    taken = {}
    for key, video in files.items():
        with contextlib.suppress(VideoError):
            taken[key] = read(video, lambda total: [0, total - 1], damaged="accept")
    assert len(taken) > 0.9 * len(files)
    assert {key for key, found in taken.items() if not found.damage} == {
        key for key in verdicts if verdicts[key]
    }


@pytest.mark.bad_input(
    "video: HEVC whose decoder leaves pictures out", says="`pictures cannot be decoded; fetch it again`"
)
def test_pictures_that_a_decoder_leaves_out_without_a_word_are_missed(whole):
    """HEVC: the container tells how many there are."""
    said = set()
    for seed in range(30):
        try:
            count_frames(videos.damaged(whole["HEVC"], seed, 6))
        except VideoError as error:
            said.add(re.sub(r"\d+", "N", str(error)))
    assert any("N of N pictures cannot be decoded; fetch it again" in text for text in said)


@pytest.mark.bad_input("video: cut or no video, with --damaged accept", says="it is refused all the same")
def test_what_is_cut_or_no_video_is_not_accepted(whole):
    for content in (b"", b"text" * 100, whole["H.264"][:-500], whole["H.264, AVI"][:-500]):
        with pytest.raises(VideoError):
            read_frames(content, [0], damaged="accept")
    with pytest.raises(ClipVipError, match="way with damaged videos .*'repair'"):
        read_frames(whole["H.264"], [0], damaged="repair")


@pytest.mark.bad_input("video: damaged, with --damaged accept", says="`2 of them damaged (ids.jsonl) in`")
def test_embed_names_what_it_accepted(folder, verdicts, weights, tmp_path, capsys):
    bad = [key for key, fine in verdicts.items() if not fine][:2]
    good = [key for key, fine in verdicts.items() if fine][:1]
    sources = [str(folder / f"{key}.mp4") for key in bad + good]
    line = ["embed", *sources, "--weights", str(weights), "--out", str(tmp_path / "a")]
    with pytest.raises(VideoError, match=rf"{bad[0]}\.mp4 is damaged.*--damaged accept"):
        run(embed, line)
    assert run(embed, [*line, "--damaged", "accept"]) == 0
    assert "3 videos, 2 of them damaged (ids.jsonl) in" in capsys.readouterr().out
    found = Features(tmp_path / "a")
    assert [bool(found.row(i).get("damage")) for i in range(3)] == [True, True, False]
    assert np.isfinite(found.array).all()


def run(command, line: list[str]) -> int:
    arguments = parsed(command, line)
    return arguments.run(arguments)


def parsed(command, line: list[str]):
    top = Parser(prog="clipvip")
    command.add(top.add_subparsers(dest="command", required=True))
    return top.parse_args(line)


def test_a_stream_names_what_it_accepted(files, verdicts, tmp_path):
    bad = [key for key, fine in verdicts.items() if not fine][:3]
    good = [key for key, fine in verdicts.items() if fine][:1]
    samples = [{"__key__": key, "mp4": files[key], "txt": "a dog"} for key in bad + good]
    write_shard(tmp_path / "0.tar", samples)
    options = {"frames": 2, "size": 16, "shuffle": 0, "skip_log": tmp_path / "log.jsonl"}
    stream = ClipStream([tmp_path / "0.tar"], damaged="accept", **options)
    assert [next(stream).key for _ in range(4)] == bad + good
    assert stream.counts == {"samples": 4, "skipped": 0, "absent": 0, "damaged": 3, "epochs": 1}
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == bad and all(line["damage"] for line in lines)
    again = ClipStream([tmp_path / "0.tar"], damaged="accept", **options)
    again.load_state_dict(stream.state_dict())
    assert again.counts == stream.counts
    before = stream.state_dict()  # of a release without this count
    del before["books"]["total"]["damaged"], before["books"]["epoch"]["damaged"]
    again.load_state_dict(before)
    assert again.counts["damaged"] == 0
    with pytest.raises(ClipVipError, match="way with damaged videos"):
        ClipStream([tmp_path / "0.tar"], damaged="repair", **options)


def test_training_accepts_where_it_decodes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("w", "s", "d"):
        (tmp_path / name).mkdir()
    (tmp_path / "a.tar").touch()
    line = "train --stage postpretrain --weights w --out o --shards a.tar --damaged accept"
    assert train.check(parsed(train, line.split())) == "postpretrain"
    stored = line.replace("--shards a.tar", "--frames-store s")
    benchmark = "train --stage finetune --weights w --out o --benchmark msrvtt --data d --damaged accept"
    for wrong in (stored, benchmark):
        with pytest.raises(ClipVipError, match="--damaged accept expected --shards that are decoded while"):
            train.check(parsed(train, wrong.split()))


def test_in_threads_too(folder, verdicts):
    clips = list_clips([folder])
    taken = list(decode_ahead(clips, 2, 16, workers=2, damaged="accept"))
    assert all(bool(clip.damage) != verdicts[clip.clip.id] for clip in taken if clip.error is None)
