"""Checks a downstream set before anybody trains on it: `clipvip check-data`.

Each fault has a code word (``CODES``). An error makes scores wrong or loading impossible; a warning is good to know.
The readers of ``load_benchmark`` read the annotations too, and here report all faults instead of refusing the first;
check_videos.py looks at the files. The report says what was checked in full and what on a sample.
"""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from clipvip_lib.data import check_videos
from clipvip_lib.data.annotations import reading
from clipvip_lib.data.annotations.msrvtt import VALIDATION
from clipvip_lib.data.annotations.reading import Record
from clipvip_lib.data.benchmarks import HELD_OUT, PARAGRAPH, SETS, SPLITS, read_records, videos_folder
from clipvip_lib.data.video_files import VideoFiles
from clipvip_lib.errors import ClipVipError, unknown
from clipvip_lib.files import named
from clipvip_lib.progress import ProgressCallback

ERRORS = {
    **{code: meaning for code, meaning in reading.FAULTS.items() if code not in reading.LENIENT},
    "split-overlap": "a video is in two splits",
    "doubled-video": "videos of two splits have the same bytes",
    "missing-video": "no file or frame folder has a video's name",
    "ambiguous-video": "several files have a video's name",
    "empty-file": "a file, or all pictures of a folder, have no bytes",
    "cut-file": "a file is shorter than its headers announce",
    "unreadable-video": "a file is not a video, or is damaged",
    "wrong-duration": "a video's length is far from the annotation's: it was wrongly cut",
    "frames-missing": "a frame folder has a gap, or another number of pictures than num_frame",
}
WARNINGS = {
    **{code: meaning for code, meaning in reading.FAULTS.items() if code in reading.LENIENT},
    "byte-order-mark": "an annotation file begins with a byte order mark; it is ignored",
    "crlf": "an annotation file has Windows line ends; they are read as plain ones",
    "broken-letters": "a text was decoded wrongly once (a replacement character, or UTF-8 read as Latin-1)",
    "empty-part": "a sentence of a paragraph is empty; it is left out",
    "several-texts": "test texts of jsonl are lists: sentences of several people, or of one paragraph?",
    "twin-video": "videos of one split have the same bytes",
    "shared-source": "clips of one longer video or film are in two splits",
    "unlisted-video": "a file is in no split",
}
CODES = ERRORS | WARNINGS
MOJIBAKE = re.compile("\ufffd|[ÃÂ][\x80-\xbf]|â€")


@dataclass(frozen=True)
class Finding:
    """One fault: its code word and all sentences that tell of it."""

    code: str
    severity: str
    sentences: tuple[str, ...]


@dataclass
class Report:
    """What check-data found.

    splits: per split the number of videos, texts and missing videos, and that of the set as distributed. decoding: what
    was measured on the sample (check_videos.Decoding). seconds: how long the check took.
    """

    name: str
    title: str
    protocol: str
    splits: dict[str, dict[str, int | None]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    video_bytes: int = 0
    looked_into: int = 0
    files: int = 0
    decoding: check_videos.Decoding | None = None
    seconds: float = 0.0

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "error"]

    def as_json(self) -> dict:
        """Everything, as plain containers."""
        return asdict(self) | {"errors": len(self.errors)}


class Notes:
    """Collects faults by code word; the same sentence counts once (a file may be read for two splits)."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, None]] = {}

    def __call__(self, code: str, sentence: str) -> None:
        if code not in CODES:
            raise KeyError(code)
        self._found.setdefault(code, {})[sentence] = None

    def findings(self, lenient: frozenset[str] = frozenset()) -> list[Finding]:
        """In the order of CODES; errors in ``lenient`` are warnings."""
        return [
            Finding(
                code,
                "error" if code in ERRORS and code not in lenient else "warning",
                tuple(self._found[code]),
            )
            for code in CODES
            if code in self._found
        ]


def check_set(
    name: str,
    root: str | Path,
    *,
    videos: str | Path | None = None,
    allow_missing: int = 0,
    sample: int = 32,
    seconds: float = 45.0,
    kept_frames: int | None = None,
    progress: ProgressCallback = lambda done, total, note: None,
) -> Report:
    """Check the set ``name`` under ``root``.

    Args:
        videos: folder of the videos, if it is not under ``root``.
        allow_missing: up to this many missing videos of a split are a warning.
        sample: at most this many videos are decoded; 0 for all.
        seconds: decoding stops after half of them, opening the other files after all of them; with ``sample`` 0
            neither stops.
        kept_frames: of a clip in the frame store that is trained from; without it the store's size is not computed.

    Raises ClipVipError for an unknown set, or a ``root`` that is not a folder.
    """
    if name not in SETS:
        raise unknown("benchmark", name, SETS)
    root = named(root)
    if not root.is_dir():
        raise ClipVipError(f"expected a folder with the annotations of {name}, got {root}; check the path")
    if sample < 0 or allow_missing < 0:
        raise ClipVipError(
            f"expected numbers of 0 or more, got --sample {sample}, --allow-missing {allow_missing}"
        )
    started, notes, known = time.monotonic(), Notes(), SETS[name]
    report = Report(name, known.title, known.protocol)
    _check_encodings(root, known.files, notes)
    records = _read(name, root, notes)
    _check_texts(name, records, notes)
    _check_overlaps(records, notes)
    folder = videos_folder(name, root, videos)
    progress(0, 1, f"listing {folder}")
    files = VideoFiles(folder)
    found = check_videos.match(records, files, notes)
    missing = {split: len(listed) - len(found[split]) for split, listed in records.items()}
    for split, listed in records.items():
        report.splits[split] = {
            "videos": len(listed),
            "texts": sum(1 if known.protocol == PARAGRAPH else len(record.sentences) for record in listed),
            "missing": missing[split],
            "as_distributed": known.sizes.get(split),
        }
    report.files = len(files.paths)
    until = started + seconds
    outcome = check_videos.check(
        found, notes, sample=sample, until=until, progress=progress, kept_frames=kept_frames
    )
    report.video_bytes, report.looked_into, report.decoding = outcome
    lenient = {"missing-video"} if all(n <= allow_missing for n in missing.values()) else set()
    report.findings = notes.findings(frozenset(lenient))
    report.seconds = time.monotonic() - started
    return report


def _read(name: str, root: Path, notes: Notes) -> dict[str, list[Record]]:
    """The records of every split that the set has, or was given."""
    found = {}
    for split in SPLITS:
        if split not in SETS[name].splits and not any(
            (root / file).is_file() for file in SETS[name].files if file in (HELD_OUT, VALIDATION)
        ):
            continue
        try:
            found[split] = read_records(name, root, split, notes)
        except reading.Unreadable:  # told already
            found[split] = []
    return found


def _check_encodings(root: Path, patterns: tuple[str, ...], notes: Notes) -> None:
    for path in sorted({path for pattern in patterns for path in root.glob(pattern) if path.is_file()}):
        content = path.read_bytes()
        if content.startswith(b"\xef\xbb\xbf"):
            notes("byte-order-mark", f"{path} begins with a byte order mark; write it without")
        if b"\r\n" in content:
            notes("crlf", f"{path} has Windows line ends; convert it where other programs shall read it")


def _check_texts(name: str, records: dict[str, list[Record]], notes: Notes) -> None:
    paragraph = SETS[name].protocol == PARAGRAPH
    for split, listed in records.items():
        for record in listed:
            where = f"{split}: video {record.video_id}"
            blank = sum(not text.strip() for text in record.sentences)
            if not record.sentences:
                notes("no-sentence", f"{where} has no sentence; add one, or take the video out of the list")
            elif blank == len(record.sentences) or (blank and not paragraph):
                notes(
                    "empty-caption",
                    f"{where} has {blank} empty of {len(record.sentences)} texts; remove or fix them",
                )
            elif blank:
                notes("empty-part", f"{where} has {blank} empty of {len(record.sentences)} sentences")
            for text in record.sentences:
                if MOJIBAKE.search(text):
                    notes("broken-letters", f"{where}: {text[:60]!r}; decode the file again")
        lists = [record for record in listed if len(record.sentences) > 1]
        if name == "jsonl" and split == "test" and lists:
            notes(
                "several-texts",
                f"{split}: {len(lists)} of {len(listed)} videos have lists of texts; if they are the sentences of one "
                "paragraph, use jsonl-paragraph: scored singly, a paragraph set gives R@1 near 20",
            )


def _check_overlaps(records: dict[str, list[Record]], notes: Notes) -> None:
    splits_of: dict[str, list[str]] = {}
    sources: dict[str, set[str]] = {}
    for split, listed in records.items():
        for record in listed:
            splits_of.setdefault(record.video_id, []).append(split)
            if record.source is not None:
                sources.setdefault(record.source, set()).add(split)
    twice = set()
    for listed in records.values():
        for record in listed:
            splits = sorted(set(splits_of[record.video_id]), key=SPLITS.index)
            if len(splits) > 1:
                twice.add(record.source)
                notes(
                    "split-overlap",
                    f"video {record.video_id} is in {' and '.join(splits)}; take it out of all but one",
                )
    for source, splits in sources.items():
        if len(splits) > 1 and source not in twice:
            notes(
                "shared-source",
                f"clips of {source} are in {' and '.join(sorted(splits, key=SPLITS.index))}",
            )
