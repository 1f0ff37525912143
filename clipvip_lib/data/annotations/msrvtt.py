"""MSR-VTT 1k-A as CLIP4Clip distributes it (msrvtt_data.zip).

MSRVTT_data.json {"videos": [{"video_id", "start time", "end time", "url", "split", ...}], "sentences": [{"video_id",
"sen_id", "caption"}]}; MSRVTT_train.9k.csv and MSRVTT_train.7k.csv (video_id); MSRVTT_JSFUSION_test.csv (key, vid_key,
video_id, sentence). 1k-A has no validation split; MSRVTT_val.csv, in the test file's form, is this project's own.
"""

from __future__ import annotations

from pathlib import Path

from clipvip_lib.data.annotations import reading
from clipvip_lib.data.annotations.reading import Record, Tell

VALIDATION = "MSRVTT_val.csv"
TEST = "MSRVTT_JSFUSION_test.csv"


def read(root: Path, split: str, tell: Tell, train: str = "MSRVTT_train.9k.csv") -> list[Record]:
    """The records of a split; ``train`` is the list of training videos."""
    if split != "train":
        path = root / {"val": VALIDATION, "test": TEST}[split]
        rows = reading.read_csv(path, ("video_id", "sentence"), tell)
        sentences = {row["video_id"]: (row["sentence"],) for row in reversed(rows)}
    else:
        path = root / train
        sentences = _captions(root, tell)
        rows = reading.read_csv(path, ("video_id",), tell)
    about = _about(root) if (root / "MSRVTT_data.json").is_file() else {}
    return [
        Record(video_id, (video_id,), tuple(sentences.get(video_id, ())), **about.get(video_id, {}))
        for video_id in reading.distinct((row["video_id"] for row in rows), path, tell)
    ]


def _captions(root: Path, tell: Tell) -> dict[str, list[str]]:
    path = root / "MSRVTT_data.json"
    data = reading.read_json(path, tell)
    entries = reading.listed(reading.field(data, "sentences", path, 0, tell), "sentences", path, tell)
    # Older copies have no list of videos; then no sentence can be without one.
    videos = data.get("videos")
    videos = [] if videos is None else reading.listed(videos, "videos", path, tell)
    known = {str(v.get("video_id")) for v in videos if isinstance(v, dict)}
    found: dict[str, list[str]] = {}
    for place, entry in enumerate(entries):
        video_id = reading.word(entry, "video_id", path, place, tell)
        caption = reading.sentence(entry, "caption", path, place, tell)
        if video_id is None or caption is None:
            continue
        found.setdefault(video_id, []).append(caption)
        if known and video_id not in known:
            tell("no-video", f"{path} entry {place}: video {video_id} is not among the videos; fix its name")
    return found


def _about(root: Path) -> dict[str, dict]:
    """Seconds and source by video, as far as the file tells; it is checked where captions are read."""

    try:
        data = reading.read_json(root / "MSRVTT_data.json", reading.silent)
    except reading.Unreadable:
        return {}
    entries = data.get("videos") if isinstance(data, dict) else None
    found = {}
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("video_id"), str):
            start, end = entry.get("start time"), entry.get("end time")
            url = entry.get("url")
            found[entry["video_id"]] = {
                "seconds": reading.span(start, end),
                "source": url.split("?v=")[-1] if isinstance(url, str) else None,
            }
    return found
