"""LSMDC 2016: six tab-separated columns without a header and without quotes,

    CLIP_ID  START_ALIGNED  END_ALIGNED  START_EXTRACTED  END_EXTRACTED  SENTENCE

in LSMDC16_annos_training.csv, LSMDC16_annos_val.csv and LSMDC16_challenge_1000_publictect.csv (the 1,000 clips of every
retrieval paper). A training clip may have several rows, a test clip has one. Clips are .avi files, one folder per
film; CLIP_ID is FILM_START-END with times as 00.12.34.567.
"""

from __future__ import annotations

import re
from pathlib import Path

from clipvip_lib.data.annotations import reading
from clipvip_lib.data.annotations.reading import Record, Tell

FILES = {
    "train": "LSMDC16_annos_training.csv",
    "val": "LSMDC16_annos_val.csv",
    "test": "LSMDC16_challenge_1000_publictect.csv",
}
COLUMNS = 6
TIME = re.compile(r"(\d{1,9})\.(\d\d)\.(\d\d)\.(\d+)$")


def read(root: Path, split: str, tell: Tell) -> list[Record]:
    """The records of a split."""
    path = root / FILES[split]
    sentences: dict[str, list[str]] = {}
    seconds: dict[str, float | None] = {}
    for place, line in enumerate(reading.lines(path, tell), start=1):
        if not line.strip():
            continue
        columns = line.split("\t")
        if len(columns) != COLUMNS:
            tell(
                "wrong-structure",
                f"{path} line {place}: expected {COLUMNS} columns separated by tabs, got {len(columns)}; fix it",
            )
            continue
        clip, *_, start, end, sentence = (column.strip() for column in columns)
        if split == "test" and clip in sentences:
            tell("doubled-id", f"{path} line {place}: clip {clip} is listed twice; remove all but one")
            continue
        sentences.setdefault(clip, []).append(sentence)
        begin, stop = _seconds(start), _seconds(end)
        seconds[clip] = reading.number(stop - begin) if begin is not None and stop is not None else None
    return [
        Record(clip, (clip,), tuple(texts), seconds[clip], source=clip.rpartition("_")[0] or clip)
        for clip, texts in sentences.items()
    ]


def _seconds(time: str) -> float | None:
    """``00.01.02.500`` as 62.5."""
    found = TIME.match(time)
    if found is None:
        return None
    hours, minutes, whole, part = found.groups()
    return int(hours) * 3600 + int(minutes) * 60 + int(whole) + float(f"0.{part}")
