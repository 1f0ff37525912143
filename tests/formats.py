"""Writes the embedded world's downstream sets in every other set's format, so that each reader meets real files.

The world writes ``msrvtt`` (sentences) and ``didemo`` (paragraphs) itself (corpora.py). A set of the same protocol is
written from one of them: its own annotation files, ids, folder layout and file type (H.264 in MP4 or AVI without a
new encoding, or a folder of pictures), so that the same videos and texts are read back from another format.
"""

from __future__ import annotations

import csv
import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from PIL import Image

from clipvip_lib.data import benchmarks, video
from clipvip_lib.data.annotations import lsmdc, msrvtt, vatex
from clipvip_lib.data.benchmarks import HELD_OUT, SETS, SPLITS
from clipvip_lib.data.video_files import clip_seconds
from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import make_folder, write_bytes, write_json
from clipvip_lib.progress import ProgressCallback

LAYOUTS = ("files", "jpg", "png")
JPEG_QUALITY = 95


@dataclass(frozen=True)
class ClipToWrite:
    """A clip to be written: its split, its number in the whole set, its sentences, its length and its old file."""

    split: str
    number: int
    sentences: tuple[str, ...]
    seconds: float
    path: Path


def rewrite(
    source_name: str,
    source: str | Path,
    name: str,
    folder: str | Path,
    progress: ProgressCallback,
    layout: str = "files",
) -> int:
    """Write the set ``source_name`` under ``source`` as the set ``name`` into ``folder``. Returns the number of clips.

    ``layout`` is "files" (MP4 or AVI, as the set has them; streams are copied), "jpg" or "png" (frame folders;
    JPEG changes pixels by a few grey levels, PNG does not). Order of clips and texts are kept.

    Raises ClipVipError for an unknown set or layout, for sets of different protocols, and as ``load_benchmark``.
    """
    for each in (source_name, name):
        if each not in SETS:
            raise benchmarks.unknown("benchmark", each, SETS)
    if layout not in LAYOUTS:
        raise benchmarks.unknown("layout", layout, LAYOUTS)
    if SETS[source_name].protocol != SETS[name].protocol:
        raise ClipVipError(
            f"{source_name} has {SETS[source_name].protocol}s and {name} {SETS[name].protocol}s: expected sets of one "
            "protocol; take another source"
        )
    clips = _clips(source_name, Path(source))
    folder = make_folder(folder)
    files = WRITERS[name.partition("-")[0]](folder, name, clips)
    pictures = {}
    for done, (clip, file) in enumerate(zip(clips, files, strict=True), start=1):
        target = folder / "videos" / file
        if layout == "files":
            write_bytes(target, as_avi(clip.path) if target.suffix == ".avi" else clip.path.read_bytes())
        else:
            pictures[file] = write_pictures(target.with_suffix(""), clip.path, f".{layout}")
        progress(done, len(clips), "clips")
    if name.startswith("jsonl") and pictures:
        for split in SPLITS:
            _tell_frames(folder / f"{split}.jsonl", {Path(file).stem: n for file, n in pictures.items()})
    return len(clips)


def as_avi(path: Path) -> bytes:
    """The video stream of an MP4 in an AVI container; the packets are copied, nothing is encoded again."""
    buffer = io.BytesIO()
    with av.open(str(path)) as read, av.open(buffer, "w", format="avi") as out:
        old = read.streams.video[0]
        new = out.add_stream_from_template(old)
        # Else the muxer takes a finer clock and fills the gaps with empty chunks.
        new.time_base = 1 / old.average_rate
        # AVI has no place for MP4's decoder record: its content goes into the stream.
        start_codes = BitStreamFilterContext("h264_mp4toannexb", old)
        for packet in read.demux(old):
            for part in start_codes.filter(packet) if packet.size else ():
                part.stream = new
                out.mux(part)
    return buffer.getvalue()


def write_pictures(folder: Path, path: Path, suffix: str) -> int:
    """All frames of a video as FOLDER/FOLDER_000.jpg and so on, as the authors name them. Returns their number."""
    make_folder(folder)
    frames = video.read_frames(path, lambda total: np.arange(total))
    for index, frame in enumerate(frames):
        buffer = io.BytesIO()
        options = {"format": "PNG"} if suffix == ".png" else {"format": "JPEG", "quality": JPEG_QUALITY}
        Image.fromarray(frame).save(buffer, **options)
        write_bytes(folder / f"{folder.name}_{index:03d}{suffix}", buffer.getvalue())
    return len(frames)


def _clips(name: str, root: Path) -> list[ClipToWrite]:
    clips: list[ClipToWrite] = []
    for split in SPLITS:
        items = benchmarks.load_benchmark(name, root, split)
        records = benchmarks.read_records(name, root, split)
        for item, record in zip(items, records, strict=True):
            clips.append(ClipToWrite(split, len(clips), record.sentences, clip_seconds(item.path), item.path))
    return clips


def _of(clips: list[ClipToWrite], *splits: str) -> list[ClipToWrite]:
    return [clip for clip in clips if clip.split in splits]


# ----------------------------------------------------- one writer per set: (folder, name, clips) -> names of files


def _write_msrvtt(folder: Path, name: str, clips: list[ClipToWrite]) -> list[str]:
    ids = [f"video{clip.number}" for clip in clips]
    videos, sentences, start = [], [], 0.0
    for clip, video_id in zip(clips, ids, strict=True):
        about = {"category": 0, "url": f"https://www.youtube.com/watch?v=world{clip.number:06d}"}
        times = {"start time": start, "end time": start + clip.seconds}
        official = {"train": "train", "val": "validate", "test": "test"}[clip.split]
        videos.append({**about, "video_id": video_id, **times, "split": official, "id": clip.number})
        for text in clip.sentences:
            sentences.append({"caption": text, "video_id": video_id, "sen_id": len(sentences)})
    write_json(folder / "MSRVTT_data.json", {"info": {}, "videos": videos, "sentences": sentences})
    listing = "MSRVTT_train.7k.csv" if name == "msrvtt-7k" else "MSRVTT_train.9k.csv"
    trained = _of(clips, "train", "val")
    _write_csv(folder / listing, [{"video_id": f"video{clip.number}"} for clip in trained])
    _hold_out(folder, [f"video{clip.number}" for clip in _of(clips, "val")])
    rows = [
        {
            "key": f"ret{i}",
            "vid_key": f"msr{clip.number}",
            "video_id": f"video{clip.number}",
            "sentence": text,
        }
        for i, clip in enumerate(_of(clips, "test"))
        for text in clip.sentences[:1]
    ]
    _write_csv(folder / msrvtt.TEST, rows)
    return [f"{video_id}.mp4" for video_id in ids]


def _write_didemo(folder: Path, name: str, clips: list[ClipToWrite]) -> list[str]:
    for split in SPLITS:
        entries: list[dict] = []
        for clip in _of(clips, split):
            for moment, sentence in enumerate(clip.sentences):
                about = {"annotation_id": clip.number * 100 + moment, "video": _didemo_name(clip)}
                about |= {"description": sentence, "times": [[moment, moment]] * 4}
                entries.append(about | {"num_segments": len(clip.sentences)})
        write_json(folder / f"{split}_data.json", entries)
        _write_lines(folder / f"{split}_list.txt", [_didemo_name(clip) for clip in _of(clips, split)])
    return [_didemo_name(clip) for clip in clips]


def _didemo_name(clip: ClipToWrite) -> str:
    return f"{10_000_000 + clip.number}@N00_{clip.number}_world.mp4"


def _write_activitynet(folder: Path, name: str, clips: list[ClipToWrite]) -> list[str]:
    test = "val_2.json" if name == "activitynet-val2" else "val_1.json"
    for file, listing, chosen in (
        ("train.json", "train_ids.json", _of(clips, "train", "val")),
        (test, "val_ids.json", _of(clips, "test")),
    ):
        entries = {}
        for clip in chosen:
            edges = np.linspace(0, clip.seconds, len(clip.sentences) + 1).round(2).tolist()
            times = [list(pair) for pair in pairwise(edges)]
            sentences = [
                f" {text}" for text in clip.sentences
            ]  # the real file's begin with a blank, all but some
            about = {"duration": round(clip.seconds, 2), "timestamps": times, "sentences": sentences}
            entries[_activity_id(clip)] = about
        write_json(folder / file, entries)
        write_json(folder / listing, list(entries))
    _hold_out(folder, [_activity_id(clip) for clip in _of(clips, "val")])
    return [f"{_activity_id(clip)}.mp4" for clip in clips]


def _activity_id(clip: ClipToWrite) -> str:
    return f"v_world{clip.number:06d}"


def _write_lsmdc(folder: Path, name: str, clips: list[ClipToWrite]) -> list[str]:
    names = []
    for film, split in enumerate(SPLITS, start=1):
        rows = []
        for place, clip in enumerate(_of(clips, split)):
            start = 60.0 * place
            begin, end = _film_time(start), _film_time(start + clip.seconds)
            clip_id = f"{film:04d}_The_World_{begin}-{end}"
            names.append(f"{film:04d}_The_World/{clip_id}.avi")
            rows += ["\t".join((clip_id, begin, end, begin, end, text)) for text in clip.sentences]
        _write_lines(folder / lsmdc.FILES[split], rows)
    return names


def _film_time(seconds: float) -> str:
    """62.5 as ``00.01.02.500``."""
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02d}.{minutes % 60:02d}.{rest // 1000:02d}.{rest % 1000:03d}"


def _write_msvd(folder: Path, name: str, clips: list[ClipToWrite]) -> list[str]:
    ids = [f"world{clip.number:06d}_10_{10 + max(1, round(clip.seconds))}" for clip in clips]
    captions = {
        video_id: [text.split(" ") for text in clip.sentences]
        for video_id, clip in zip(ids, clips, strict=True)
    }
    write_bytes(folder / "raw-captions.pkl", pickle.dumps(captions, protocol=2))
    for split in SPLITS:
        chosen = [video_id for video_id, clip in zip(ids, clips, strict=True) if clip.split == split]
        _write_lines(folder / f"{split}_list.txt", chosen)
    return [f"{video_id}.avi" for video_id in ids]


def _write_vatex(folder: Path, name: str, clips: list[ClipToWrite]) -> list[str]:
    ids = {
        clip.number: f"world{clip.number:06d}_{10:06d}_{10 + max(1, round(clip.seconds)):06d}"
        for clip in clips
    }
    # HGR's lists take the validation and the test videos from the one validation file.
    shares = (
        {"train": ("train",), "val": ("val", "test")} if name == "vatex-1500" else {s: (s,) for s in SPLITS}
    )
    for split, taken in shares.items():
        entries = [
            {"videoID": ids[clip.number], "enCap": list(clip.sentences), "chCap": []}
            for clip in _of(clips, *taken)
        ]
        write_json(folder / vatex.FILES[split], entries)
    if name == "vatex-1500":
        for split in SPLITS:
            _write_lines(folder / f"{split}_list.txt", [ids[clip.number] for clip in _of(clips, split)])
    return [f"{ids[clip.number]}.mp4" for clip in clips]


def _write_jsonl(folder: Path, name: str, clips: list[ClipToWrite]) -> list[str]:
    for split in SPLITS:
        lines = []
        for clip in _of(clips, split):
            text = clip.sentences[0] if len(clip.sentences) == 1 else list(clip.sentences)
            lines.append(json.dumps({"clip_id": f"clip{clip.number:05d}", "text": text}, ensure_ascii=False))
        _write_lines(folder / f"{split}.jsonl", lines)
    return [f"clip{clip.number:05d}.mp4" for clip in clips]


WRITERS: dict[str, Callable[[Path, str, list[ClipToWrite]], list[str]]] = {
    "msrvtt": _write_msrvtt,
    "didemo": _write_didemo,
    "activitynet": _write_activitynet,
    "lsmdc": _write_lsmdc,
    "msvd": _write_msvd,
    "vatex": _write_vatex,
    "jsonl": _write_jsonl,
}


def _tell_frames(path: Path, counts: dict[str, int]) -> None:
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    _write_lines(
        path,
        [json.dumps(e | {"num_frame": counts[e["clip_id"]]}, ensure_ascii=False) for e in entries],
    )


def _hold_out(folder: Path, ids: list[str]) -> None:
    _write_lines(folder / HELD_OUT, ids)


def _write_lines(path: Path, lines: list[str]) -> None:
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode())


def _write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, buffer.getvalue().encode())
