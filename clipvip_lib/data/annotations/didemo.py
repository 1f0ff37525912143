"""DiDeMo: {train,val,test}_data.json of LocalizingMoments, [{"annotation_id", "video", "description", "times",
"num_segments"}]. All descriptions of a video, in the file's order, are one paragraph, as CLIP4Clip and the authors
join them. Where {split}_list.txt of collaborative-experts lies beside it, only the videos it names are taken,
as CLIP4Clip does.
"""

from __future__ import annotations

from pathlib import Path

from clipvip_lib.data.annotations import reading
from clipvip_lib.data.annotations.reading import Record, Tell

SEGMENT_SECONDS = 5  # LocalizingMoments' README: a video is annotated in five or six segments of five seconds


def read(root: Path, split: str, tell: Tell) -> list[Record]:
    """The records of a split; the sentences are the parts of the paragraph."""
    path = root / f"{split}_data.json"
    sentences: dict[str, list[str]] = {}
    seconds: dict[str, float] = {}
    for place, entry in enumerate(reading.listed(reading.read_json(path, tell), "descriptions", path, tell)):
        video = reading.word(entry, "video", path, place, tell)
        description = reading.sentence(entry, "description", path, place, tell)
        if video is None or description is None:
            continue
        sentences.setdefault(video, []).append(description)
        segments = entry.get("num_segments")
        if segments in (5, 6):  # the last segment may be nearly empty; longer videos were cut to 30 s
            seconds[video] = float((segments - 1) * SEGMENT_SECONDS)
    chosen = list(sentences)
    listing = root / f"{split}_list.txt"
    if listing.is_file():
        chosen = reading.distinct(reading.read_list(listing, tell), listing, tell)
        taken = set(chosen)
        for video in [video for video in sentences if video not in taken]:
            tell("no-video", f"{path}: {video} is described and not in {listing.name}; fix its name")
    return [
        Record(_stem(video), (video,), tuple(sentences.get(video, ())), seconds.get(video))
        for video in chosen
    ]


def _stem(video: str) -> str:
    return video.rsplit(".", 1)[0]
