"""VATEX: vatex_training_v1.0.json, vatex_validation_v1.0.json and vatex_public_test_english_v1.1.json,
[{"videoID": "YOUTUBEID_START_END", "enCap": [ten sentences], "chCap": [...]}], times in whole seconds with six digits.

As distributed the three files are the three splits. Many retrieval papers test on 1,500 of the validation videos
instead (the split of HGR, Chen et al., CVPR 2020): "vatex-1500" takes its train_list.txt, val_list.txt and
test_list.txt and looks the sentences up in whichever of the files there are. Only English sentences are read, and all
of them are queries.
"""

from __future__ import annotations

from pathlib import Path

from clipvip_lib.data.annotations import reading
from clipvip_lib.data.annotations.msvd import TIMES
from clipvip_lib.data.annotations.reading import Record, Tell

FILES = {
    "train": "vatex_training_v1.0.json",
    "val": "vatex_validation_v1.0.json",
    "test": "vatex_public_test_english_v1.1.json",
}


def read(root: Path, split: str, tell: Tell) -> list[Record]:
    """The records of a split as distributed."""
    path = root / FILES[split]
    entries = _entries(path, tell)
    ids = reading.distinct((video for video, _ in entries), path, tell)
    return _records(ids, dict(reversed(entries)))


def read_lists(root: Path, split: str, tell: Tell) -> list[Record]:
    """The records of a split given by SPLIT_list.txt."""
    listing = root / f"{split}_list.txt"
    chosen = reading.distinct(reading.read_list(listing, tell), listing, tell)
    sentences: dict[str, tuple[str, ...]] = {}
    present = [root / name for name in FILES.values() if (root / name).is_file()]
    if not present:
        tell("no-annotation", f"no annotation file in {root}: expected {', '.join(FILES.values())}")
        raise reading.Unreadable(root)
    for path in present:
        sentences |= dict(_entries(path, tell))
    return _records(chosen, sentences)


def _entries(path: Path, tell: Tell) -> list[tuple[str, tuple[str, ...]]]:
    found = []
    for place, entry in enumerate(reading.listed(reading.read_json(path, tell), "videos", path, tell)):
        video = reading.word(entry, "videoID", path, place, tell)
        if video is not None:
            captions = reading.field(entry, "enCap", path, place, tell)
            found.append((video, () if captions is None else reading.words(captions, path, place, tell)))
    return found


def _records(ids: list[str], sentences: dict[str, tuple[str, ...]]) -> list[Record]:
    records = []
    for video in ids:
        found = TIMES.match(video)
        seconds = reading.number(int(found["end"]) - int(found["start"])) if found else None
        source = found["source"] if found else None
        records.append(Record(video, (video,), sentences.get(video, ()), seconds, source=source))
    return records
