"""HD-VILA's own files: which clips there are, and what is said in them or of them.

* The metadata, JSON lines {"video_id", "url", "clip": [{"clip_id": "ID.3.mp4", "span": ["00:00:17.759",
  "00:00:23.279"]}]}, name the clips; videos are fetched by video2dataset (docs/corpora.md).
* The authors of CLIP-ViP keep texts in LMDBs: subtitles from clip_id to UTF-8 text, with the ids as JSON lines in
  ``NAME.jsonl`` beside the folder; captions from clip_id to text, or as a JSON list of {"image_id", "caption"}.
  Subtitles may also be JSON lines {"clip_id", "text"}. (XPretrain,
  CLIP-ViP/src/datasets/dataset_pretrain_stage1_all_source.py.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import atomic_path

# As far as a time may go: 10**9 hours. Beyond, milliseconds would overflow, and no video is that long.
LONGEST = 3600 * 10**9
_TIME = re.compile(r"(\d{1,9}):([0-5]?\d):([0-5]?\d(?:\.\d*)?)$")
_YOUTUBE = re.compile(r"(?:[?&]v=|youtu\.be/|/embed/|/shorts/)([\w-]{11})(?![\w-])")


@dataclass(frozen=True)
class Segment:
    """A clip's id, and where it begins and ends in its video, in seconds."""

    clip_id: str
    start: float
    end: float


@dataclass(frozen=True)
class Video:
    """One line of the metadata."""

    video_id: str
    url: str
    clips: tuple[Segment, ...]


def seconds(time: str | float) -> float:
    """``"00:04:52.140"`` as seconds; a number is seconds already. Raises ClipVipError for anything else."""
    if isinstance(time, int | float) and not isinstance(time, bool) and abs(time) <= LONGEST:  # NaN is not
        return float(time)
    match = _TIME.match(time) if isinstance(time, str) else None
    if match is None:
        raise ClipVipError(f"expected a time as HH:MM:SS.mmm or a number of seconds, got {time!r:.80}")
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])


def read_metadata(path: str | Path) -> Iterator[Video]:
    """The videos of one metadata file, in order.

    Raises ClipVipError naming file and line: it cannot be read, is not JSON, lacks a field, or a span is not a time or
    ends before it begins.
    """
    for number, row in json_lines(path):
        try:
            clips = tuple(
                Segment(str(clip["clip_id"]), *(seconds(time) for time in clip["span"]))
                for clip in row["clip"]
            )
            video = Video(str(row["video_id"]), str(row["url"]), clips)
        except (KeyError, TypeError, ClipVipError) as error:
            raise ClipVipError(
                f"line {number} of {path}: expected video_id, url and clip, a list of clip_id and span ({error}); "
                "fetch it again"
            ) from error
        for clip in clips:
            if clip.end <= clip.start:
                raise ClipVipError(
                    f"line {number} of {path}: clip {clip.clip_id} ends at {clip.end} s, before it begins; fix it"
                )
        yield video


def json_lines(path: str | Path) -> Iterator[tuple[int, object]]:
    """(number, value) of each line that is not empty. Raises ClipVipError naming file and line."""
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, json.loads(line)
    except (OSError, UnicodeDecodeError) as error:
        raise ClipVipError(f"cannot read {path} ({error}); expected JSON lines in UTF-8") from error
    except (ValueError, RecursionError) as error:  # also numbers of too many digits, and too deep lists
        raise ClipVipError(
            f"line {number} of {path} is not JSON ({getattr(error, 'msg', error)}); fetch it again"
        ) from error


def write_download_list(metadata: Iterable[str | Path], out: str | Path) -> tuple[int, int]:
    """What video2dataset takes as ``--input_format json --url_col url --clip_col clips``: a JSON list of
    {"url", "video_id", "clips": [[start, end], ...]}. Returns the numbers of videos and clips.

    Clips are sorted by time, as its ClippingSubsampler expects.
    """
    videos = clips = 0
    with atomic_path(out) as partial, partial.open("w", encoding="utf-8") as file:
        for path in metadata:
            for video in read_metadata(path):
                spans = sorted([clip.start, clip.end] for clip in video.clips)
                row = {"url": video.url, "video_id": video.video_id, "clips": spans}
                file.write((",\n" if videos else "[\n") + json.dumps(row))
                videos, clips = videos + 1, clips + len(spans)
        file.write("\n]\n" if videos else "[]\n")
    return videos, clips


class ClipIds:
    """From a video and a span to the clip's id: video2dataset keeps these two of a clip, not its id.

    Raises ClipVipError for a file that ``read_metadata`` refuses, and for two clips of one video and span.
    """

    def __init__(self, metadata: Iterable[str | Path]) -> None:
        self._ids: dict[tuple[str, int, int], str] = {}
        for path in metadata:
            for video in read_metadata(path):
                for clip in video.clips:
                    place = (video.video_id, _milliseconds(clip.start), _milliseconds(clip.end))
                    known = self._ids.setdefault(place, clip.clip_id)
                    if known != clip.clip_id:
                        raise ClipVipError(
                            f"{path}: {known} and {clip.clip_id} are both video {video.video_id} from {clip.start} to "
                            f"{clip.end} s, expected one clip with this span; remove one"
                        )

    def __len__(self) -> int:
        return len(self._ids)

    def find(self, about: dict) -> str | None:
        """The id of the clip that a shard's key.json is about (video_id or url, and clips), or None."""
        spans = about.get("clips")
        if not (isinstance(spans, list) and spans):
            return None
        span = spans[0] if isinstance(spans[0], list) else spans
        try:
            start, end = (_milliseconds(seconds(time)) for time in span)
        except (ClipVipError, ValueError):
            return None
        address = _YOUTUBE.search(str(about.get("url")))
        names = (about.get("video_id"), about.get("videoID"), address and address[1])
        places = [(name, start, end) for name in names if isinstance(name, str)]
        return next((self._ids[place] for place in places if place in self._ids), None)


def _milliseconds(time: float) -> int:
    return round(time * 1000)


# ------------------------------------------------------------------------------------------ the authors' texts


class LmdbTexts:
    """An LMDB of the authors, read only: ``get(clip_id)`` is its text, or None.

    Raises ClipVipError: the package lmdb is missing, ``path`` is not an LMDB, a text is not UTF-8 or a list of captions
    that lacks the clip's.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            import lmdb
        except ImportError as error:
            raise ClipVipError(
                "reading an LMDB needs the package lmdb: pip install 'clipvip_lib[lmdb]'"
            ) from error
        self.path = Path(path)
        if not self.path.exists():
            raise ClipVipError(f"no LMDB {path}: expected a folder with data.mdb, or such a file")
        try:
            # No lock file: the corpus may lie on a disk that is read-only.
            self._environment = lmdb.open(
                str(path), readonly=True, create=False, lock=False, subdir=self.path.is_dir()
            )
            self._read = self._environment.begin()
            self.count = self._environment.stat()["entries"]
        except lmdb.Error as error:
            raise ClipVipError(f"{path} is not an LMDB that can be read ({error}); fetch it again") from error

    def get(self, clip_id: str) -> str | None:
        key = clip_id.encode(errors="replace")  # half a character is in no LMDB's keys
        fits = 0 < len(key) <= self._environment.max_key_size()
        value = self._read.get(key) if fits else None
        if value is None:
            return None
        try:
            text = bytes(value).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ClipVipError(
                f"the text of {clip_id} in {self.path} is not UTF-8 ({error.reason})"
            ) from error
        return _caption_of(text, clip_id, self.path) if text.startswith("[") else text

    def close(self) -> None:
        self._read.abort()
        self._environment.close()


def _caption_of(text: str, clip_id: str, path: Path) -> str:
    """A caption from a JSON list of {"image_id", "caption"}: the clip's own, or the only one; else the text itself."""
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError):
        return text  # a subtitle such as "[Music] hello"
    if not (
        isinstance(rows, list) and rows and all(isinstance(row, dict) and "caption" in row for row in rows)
    ):
        return text
    own = [row["caption"] for row in rows if row.get("image_id") == clip_id] or [
        row["caption"] for row in rows
    ]
    if any(caption != own[0] for caption in own) or not isinstance(own[0], str):
        raise ClipVipError(
            f"{clip_id} in {path}: expected one caption with this image_id, got {len(own)}; write it again"
        )
    return own[0]


def read_texts_jsonl(path: str | Path) -> dict[str, str]:
    """Subtitles as JSON lines {"clip_id", "text"}: texts by clip id, all in memory.

    Raises ClipVipError naming file and line, also where an id has a second, other text.
    """
    texts: dict[str, str] = {}
    for number, row in json_lines(path):
        if not (isinstance(row, dict) and isinstance(row.get("text"), str) and "clip_id" in row):
            raise ClipVipError(
                f"line {number} of {path}: expected an object with clip_id and text, got {str(row)[:80]}"
            )
        key = str(row["clip_id"])
        if texts.setdefault(key, row["text"]) != row["text"]:
            raise ClipVipError(f"line {number} of {path}: {key} has a second, other text; remove one")
    return texts


def read_captions_json(path: str | Path) -> dict[str, str]:
    """The authors' other form of captions, one JSON list of {"image_id", "caption"}: texts by clip id.

    Raises ClipVipError naming the file and the entry, also where an id has a second, other caption.
    """
    rows = _json_of(path)
    if not isinstance(rows, list):
        raise ClipVipError(f"{path}: expected a list of image_id and caption, got {type(rows).__name__}")
    captions: dict[str, str] = {}
    for number, row in enumerate(rows):
        if not (isinstance(row, dict) and isinstance(row.get("caption"), str) and "image_id" in row):
            raise ClipVipError(
                f"{path} entry {number}: expected an object with image_id and caption, got {str(row)[:80]}"
            )
        key = str(row["image_id"])
        if captions.setdefault(key, row["caption"]) != row["caption"]:
            raise ClipVipError(f"{path} entry {number}: {key} has a second, other caption; remove one")
    return captions


def _json_of(path: str | Path) -> object:
    """As files.read_json, for a file that other people's tools wrote: it may begin with a byte order mark."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ClipVipError(f"cannot read {path}: expected a JSON file, got {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ClipVipError(f"{path} is not JSON ({error}); fetch it again") from error
