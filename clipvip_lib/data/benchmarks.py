"""The downstream sets in their own annotation formats, as videos with texts: one table, one loader.

A set is scored by single sentences (every sentence is a query) or by paragraphs (all sentences of a video, in
order, joined to one text). The protocol belongs to the set and is stated here: a paragraph set that is scored by
single sentences gives far lower numbers (R@1 near 20 on ActivityNet; users of the authors' code ran into this
repeatedly). Videos are files with any suffix or folders of frames. Missing ones are counted and refused unless their
number is allowed. Then the items say which are left out, so that a score can say so too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from clipvip_lib.data import frame_folders
from clipvip_lib.data.annotations import activitynet, didemo, jsonl, lsmdc, msrvtt, msvd, reading, vatex
from clipvip_lib.data.annotations.reading import Record, Tell
from clipvip_lib.data.video_files import VideoFiles
from clipvip_lib.errors import ClipVipError, unknown
from clipvip_lib.files import named

# The two that the embedded world writes and the study scores; all sets stand in SETS.
BENCHMARKS = ("msrvtt", "didemo")
SPLITS = ("train", "val", "test")
SENTENCE, PARAGRAPH = "sentence", "paragraph"
HELD_OUT = "held_out.txt"  # training videos that serve as validation split, where a set comes without one
LISTED = 10  # missing videos that an error names


@dataclass(frozen=True)
class Item:
    """A video of a benchmark and the texts that describe it (one, if they are a paragraph).

    ``path`` is a video file or a folder of frames (frame_folders.py).
    """

    video_id: str
    path: Path
    texts: tuple[str, ...]


class Items(list[Item]):
    """The items of one split in the annotation's order, with the protocol, and the videos left out as missing."""

    def __init__(
        self, items: Iterable[Item] = (), name: str = "", split: str = "", missing: Iterable[str] = ()
    ):
        super().__init__(items)
        self.name, self.split, self.missing = name, split, tuple(missing)

    @property
    def protocol(self) -> str:
        """The set's, SENTENCE or PARAGRAPH."""
        return SETS[self.name].protocol

    def note(self) -> str:
        """What a score on these items must say: empty, or for example ``without 3 of 1000 videos``."""
        total = len(self) + len(self.missing)
        return f"without {len(self.missing)} of {total} videos" if self.missing else ""


@dataclass(frozen=True)
class BenchmarkSet:
    """A set as it is distributed.

    read: (root, split, tell) -> records. splits: those that come with it. files: its annotation files (patterns).
    folders: names of the folder of videos under the root, the first one is what errors name. sizes: videos of a
    split as distributed, where that could be verified.
    """

    title: str
    protocol: str
    read: Callable[[Path, str, Tell], list[Record]]
    splits: tuple[str, ...]
    files: tuple[str, ...]
    folders: tuple[str, ...]
    sizes: dict[str, int] = field(default_factory=dict)


def _msrvtt(train: str, sizes: dict[str, int]) -> BenchmarkSet:
    return BenchmarkSet(
        "MSR-VTT 1k-A",
        SENTENCE,
        partial(msrvtt.read, train=train),
        ("train", "test"),
        ("MSRVTT_data.json", train, msrvtt.TEST, msrvtt.VALIDATION, HELD_OUT),
        ("videos", "MSRVTT_Videos"),
        sizes,
    )


def _activitynet(test: str, count: int) -> BenchmarkSet:
    return BenchmarkSet(
        f"ActivityNet Captions, {test.removesuffix('.json')}",
        PARAGRAPH,
        partial(activitynet.read, test=test),
        ("train", "test"),
        ("train.json", test, "train_ids.json", "val_ids.json", HELD_OUT),
        ("videos", "Activity_Videos"),
        {"train": 10_009, "test": count},
    )


def _vatex(read: Callable, listing: tuple[str, ...], title: str, sizes: dict[str, int]) -> BenchmarkSet:
    return BenchmarkSet(
        title, SENTENCE, read, SPLITS, (*vatex.FILES.values(), *listing), ("videos", "VATEX_Videos"), sizes
    )


def _jsonl(protocol: str) -> BenchmarkSet:
    files = tuple(f"{split}*.json*" for split in SPLITS)
    return BenchmarkSet(
        f"the authors' jsonl, {protocol}s", protocol, jsonl.read, SPLITS, files, ("videos", ".")
    )


LISTS = tuple(f"{split}_list.txt" for split in SPLITS)
SETS: dict[str, BenchmarkSet] = {
    "msrvtt": _msrvtt("MSRVTT_train.9k.csv", {"train": 9_000, "test": 1_000}),
    "msrvtt-7k": _msrvtt("MSRVTT_train.7k.csv", {"train": 7_010, "test": 1_000}),
    "didemo": BenchmarkSet(
        "DiDeMo",
        PARAGRAPH,
        didemo.read,
        SPLITS,
        (*(f"{split}_data.json" for split in SPLITS), *LISTS),
        ("videos", "DiDeMo_Videos"),
        {"train": 8_392, "val": 1_065, "test": 1_004},
    ),
    "activitynet": _activitynet("val_1.json", 4_917),
    "activitynet-val2": _activitynet("val_2.json", 4_885),
    "lsmdc": BenchmarkSet(
        "LSMDC 2016",
        SENTENCE,
        lsmdc.read,
        SPLITS,
        tuple(lsmdc.FILES.values()),
        ("videos", "LSMDC_Videos"),
        {"test": 1_000},
    ),
    "msvd": BenchmarkSet(
        "MSVD",
        SENTENCE,
        msvd.read,
        SPLITS,
        ("raw-captions.json", *LISTS),
        ("videos", "MSVD_Videos", "YouTubeClips"),
        {"train": 1_200, "val": 100, "test": 670},
    ),
    "vatex": _vatex(vatex.read, (), "VATEX v1", {"train": 25_991, "val": 3_000, "test": 6_000}),
    "vatex-1500": _vatex(
        vatex.read_lists, LISTS, "VATEX, HGR's split", {"train": 25_991, "val": 1_500, "test": 1_500}
    ),
    "jsonl": _jsonl(SENTENCE),
    "jsonl-paragraph": _jsonl(PARAGRAPH),
}


def load_benchmark(
    name: str,
    root: str | Path,
    split: str,
    allow_missing: int = 0,
    *,
    videos: str | Path | None = None,
) -> Items:
    """The items of one split, in the annotation's order.

    Args:
        name: one of ``SETS``.
        root: folder with the annotation files and videos/ (or the set's own name for it).
        split: "train", "val" or "test". Where a set comes without a validation split, "val" is the training videos
            named in held_out.txt (``hold_out`` writes it), and "train" the others.
        allow_missing: how many videos of the split may be missing; they are left out, and ``Items.missing`` names them.
        videos: folder of the videos, if it is not under ``root``.

    Raises:
        ClipVipError: unknown name or split; an annotation file that is missing, in another encoding or not of
            the set's form; an empty text; a video listed twice, or answered by two files; more missing videos
            than allowed (all are counted, ten named), or none left.
    """
    known = _known(name, split)
    if allow_missing < 0:
        raise ClipVipError(f"expected allow_missing of 0 or more, got {allow_missing}; leave it out for 0")
    root = named(root)
    records = read_records(name, root, split)
    if not records:
        raise ClipVipError(
            f"{name} {split}: expected at least one video in the annotations under {root}, got none"
        )
    files = VideoFiles(videos_folder(name, root, videos))
    items, missing = [], []
    for record in records:
        texts = texts_of(record, known.protocol)
        if not texts or not all(texts):
            raise ClipVipError(
                f"{name} {split}: video {record.video_id} has an empty or no text in {root}; remove or fix it"
            )
        found = files.find(record.names)
        if len(found) > 1:
            raise ClipVipError(
                f"{name} {split}: video {record.video_id} may be {found[0]} or {found[1]}: expected one; remove "
                "the other"
            )
        if not found:
            missing.append(record.video_id)
            continue
        if record.frames is not None and found[0].is_dir():
            _check_frames(record, found[0])
        items.append(Item(record.video_id, found[0], texts))
    if len(missing) > allow_missing or not items:
        raise ClipVipError(
            f"{name} {split}: {len(missing)} of {len(records)} videos named in the annotations are not under "
            f"{files.folder}, first {', '.join(missing[:LISTED])}; fetch them, or allow them to be left out "
            f"(allow_missing={len(missing)}, --allow-missing {len(missing)}), and the score will say so"
        )
    return Items(items, name, split, missing)


def read_records(name: str, root: Path, split: str, tell: Tell = reading.refuse) -> list[Record]:
    """The records of a split as annotated; faults go to ``tell``, which by default raises ClipVipError."""
    return reading.checked(_records(name, root, split, tell), f"{name} {split}", tell)


def _records(name: str, root: Path, split: str, tell: Tell) -> list[Record]:
    known = _known(name, split)
    held = root / HELD_OUT
    if "val" in known.splits or split == "test":
        return known.read(root, split, tell)
    if msrvtt.VALIDATION in known.files and (root / msrvtt.VALIDATION).is_file():
        if held.is_file():
            tell(
                "doubled-split",
                f"{root} has {msrvtt.VALIDATION} and {HELD_OUT}: expected one; remove the other",
            )
        return known.read(root, split, tell)
    if not held.is_file():
        if split == "train":
            return known.read(root, split, tell)
        own = f"{root / msrvtt.VALIDATION}, nor" if msrvtt.VALIDATION in known.files else ""
        tell(
            "no-annotation",
            f"no annotation file {own} {held}: {known.title} comes without a validation split; write one with "
            f"`clipvip check-data {name} {root} --hold-out 500`, which names training videos to be set aside",
        )
        raise reading.Unreadable(held)
    chosen = set(reading.distinct(reading.read_list(held, tell), held, tell))
    records = known.read(root, "train", tell)
    for video in sorted(chosen - {record.video_id for record in records}):
        tell("no-sentence", f"{held}: {video} is not among the training videos; remove or fix it")
    return [record for record in records if (record.video_id in chosen) == (split == "val")]


def texts_of(record: Record, protocol: str) -> tuple[str, ...]:
    """The texts by which a video is retrieved; an empty one stays and is refused by the loader."""
    if protocol == SENTENCE:
        return tuple(text if text.strip() else "" for text in record.sentences)
    return (" ".join(part for part in record.sentences if part.strip()),) if record.sentences else ()


def videos_folder(name: str, root: str | Path, videos: str | Path | None = None) -> Path:
    """The folder of the videos: ``videos``, else the first of the set's names that is under ``root``."""
    if videos is not None:
        return named(videos)
    root = named(root)
    there = [root / folder for folder in SETS[name].folders if (root / folder).is_dir()]
    return there[0] if there else root / SETS[name].folders[0]


def _check_frames(record: Record, folder: Path) -> None:
    """A frame folder that lost its last pictures would otherwise be taken for a shorter video."""
    there = frame_folders.count_frames(folder)
    if there != record.frames:
        raise ClipVipError(
            f"video {record.video_id}: expected num_frame = {record.frames} pictures in {folder}, got {there}; extract "
            "the frames again, or correct num_frame"
        )


def _known(name: str, split: str) -> BenchmarkSet:
    if name not in SETS:
        raise unknown("benchmark", name, SETS)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    return SETS[name]
