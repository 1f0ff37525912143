"""ActivityNet Captions: train.json, val_1.json, val_2.json, {"v_ID": {"duration", "timestamps", "sentences"}}.

All sentences of a video are one paragraph. Papers train on train.json and test on val_1.json. val_2.json has other
people's captions of nearly the same videos, so it is not a validation split, and the set comes without one. Where
train_ids.json or val_ids.json lie beside them, only the videos they name are taken, as CLIP4Clip does. Video files
may be called v_ID or ID.
"""

from __future__ import annotations

from pathlib import Path

from clipvip_lib.data.annotations import reading
from clipvip_lib.data.annotations.reading import Record, Tell


def read(root: Path, split: str, tell: Tell, test: str = "val_1.json") -> list[Record]:
    """The records of "train" or "test"; ``test`` is val_1.json or val_2.json."""
    path, listing = {
        "train": (root / "train.json", root / "train_ids.json"),
        "test": (root / test, root / "val_ids.json"),
    }[split]
    data = reading.mapping(reading.read_json(path, tell), "videos", path, tell)
    chosen = list(data)
    if listing.is_file():
        names = reading.listed(reading.read_json(listing, tell), "video ids", listing, tell)
        ids = reading.distinct((reading.plain_id(name) for name in names), listing, tell)
        chosen = [video for video in ids if video in data]
        for video in [video for video in ids if video not in data]:
            tell("listed-only", f"{listing}: {video} has no captions in {path.name}; it is left out")
        taken = set(chosen)
        for video in [video for video in data if video not in taken]:
            tell("no-video", f"{path}: {video} is described and not in {listing.name}; fix its name")
    records = []
    for video in chosen:
        said = reading.field(data[video], "sentences", path, video, tell)
        sentences = () if said is None else reading.words(said, path, video, tell)
        bare = video.removeprefix("v_")
        about = data[video]
        seconds = reading.number(about.get("duration")) if isinstance(about, dict) else None
        records.append(
            Record(video, (video, bare), tuple(s.strip() for s in sentences), seconds, source=bare)
        )
    return records
