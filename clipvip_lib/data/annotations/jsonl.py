"""The authors' own form (XPretrain, CLIP-ViP/src/datasets/dataset_video_retrieval.py): one object per line,
{"clip_id", "text": a sentence or a list of them, "num_frame": pictures in a frame folder}.

Here: train.jsonl, val.jsonl, test.jsonl; or the one file whose name begins so (train_101k_frame.jsonl), or .json with
a list. The video is the last part of clip_id with a suffix, or the frame folder clip_id. A list of texts
means several annotators ("jsonl") or the sentences of one paragraph ("jsonl-paragraph"); the file does not tell which:
the authors' code joins them only where its path contains "didemo", and users who gave it ActivityNet got R@1 near 20.
"""

from __future__ import annotations

import json
from pathlib import Path

from clipvip_lib.data.annotations import reading
from clipvip_lib.data.annotations.reading import Record, Tell


def find(root: Path, split: str, tell: Tell) -> Path:
    """The one file of a split."""
    for name in (f"{split}.jsonl", f"{split}.json"):
        if (root / name).is_file():
            return root / name
    found = sorted(path for path in root.glob(f"{split}*.json*") if path.suffix in (".json", ".jsonl"))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found)
        tell(
            "no-annotation",
            f"{root} has {names}: expected one file of the {split} split; rename it to {split}.jsonl",
        )
    else:
        tell("no-annotation", f"no annotation file {root / split}.jsonl: expected it beside videos/")
    raise reading.Unreadable(root / f"{split}.jsonl")


def read(root: Path, split: str, tell: Tell) -> list[Record]:
    """The records of a split."""
    path = find(root, split, tell)
    if path.suffix == ".json":
        entries = [*enumerate(reading.listed(reading.read_json(path, tell), "clips", path, tell), start=1)]
    else:
        entries = [*_lines(path, tell)]
    records: dict[str, Record] = {}
    ids = []
    for place, entry in entries:
        clip = reading.word(entry, "clip_id", path, place, tell)
        if clip is None:
            continue
        text = reading.field(entry, "text", path, place, tell)
        texts = () if text is None else reading.words(text, path, place, tell)
        frames = entry.get("num_frame")
        frames = frames if isinstance(frames, int) and not isinstance(frames, bool) else None
        ids.append(clip)
        records.setdefault(clip, Record(clip, (clip, clip.rsplit("/", 1)[-1]), texts, frames=frames))
    return [records[clip] for clip in reading.distinct(ids, path, tell)]


def _lines(path: Path, tell: Tell):
    for place, line in enumerate(reading.lines(path, tell), start=1):
        if line.strip():
            try:
                yield place, json.loads(line)
            except reading.NO_JSON as error:
                why = reading.why_not_json(error)
                tell("not-parsed", f"{path} line {place} is not JSON ({why}); fix it or fetch it again")
