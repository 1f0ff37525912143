"""Writes a folder of features in parts, so that a kill costs at most one, and joins them by id (folder.py)."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from clipvip_lib.errors import ClipVipError, unknown
from clipvip_lib.features.folder import PARQUET, STORED, is_that_of, lines, read_part, write_part
from clipvip_lib.files import atomic_path, make_folder, read_json, sha256, write_bytes, write_json
from clipvip_lib.locks import Lock, Taken
from clipvip_lib.say import is_unicode

#: Settings that say where the weights lay; they may move, as long as the checksum stays.
MAY_DIFFER = ("weights", "pretrained_tag")
PART = 256


@dataclass
class _Known:
    """What is known of an item: its stamp, the part that tells of it, whether it was skipped, and whether it is a
    video's last window."""

    stamp: str
    part: int
    skipped: bool
    last: bool


@dataclass
class _Joined:
    """What a join takes from the parts: rows in order, skipped ones, and for each part (take [m], put [m])."""

    rows: list[dict]
    skipped: list[dict] = field(default_factory=list)
    moves: list[tuple[Path, list[int], list[int]]] = field(default_factory=list)
    widths: set[int] = field(default_factory=set)


def expect_settings(folder: str | Path, settings: Mapping[str, object], *, all_named: bool = False) -> None:
    """Raises ClipVipError if the features in a folder were made with others than these settings, or its settings.json
    is damaged. Settings that are not named may be any, unless ``all_named``. A folder that is not begun agrees."""
    path = Path(folder) / "settings.json"
    if not path.exists():
        return
    before = read_json(path)
    if not isinstance(before, dict):
        raise ClipVipError(f"{path} expected a JSON object; remove the folder, or choose another one")
    differ = [
        f"{name} was {_short(before.get(name))} and is {_short(settings.get(name))}"
        for name in ({**before, **settings} if all_named else settings)
        if name not in MAY_DIFFER and before.get(name) != settings.get(name)
    ]
    if differ:
        raise ClipVipError(
            f"the features in {folder} were made with other settings: {'; '.join(differ)}; choose another folder, or "
            "the same settings"
        )


class FeatureWriter:
    """Adds rows to a folder, in parts of ``part`` rows; a context manager, which holds the folder for itself.

        with FeatureWriter(folder, settings) as writer:
            for item in items:
                if not writer.has(item.id, item.stamp):
                    writer.add({"id": item.id}, item.stamp, feature)  # [E]
            writer.join([item.id for item in items])

    settings: what all rows have in common; "stored" is float32 or float16. Raises ClipVipError if the folder was
    begun with other settings (naming them), another process writes there, or a part is damaged.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, object], part: int = PART):
        if part < 1:
            raise ClipVipError(f"expected parts of at least 1 row, got {part}; the default is {PART}")
        if settings["stored"] not in STORED:
            raise unknown("type of stored features", settings["stored"], STORED)
        self.folder, self.settings, self.part = make_folder(folder), dict(settings), part
        self._rows: list[dict] = []
        self._features: list[np.ndarray] = []
        self._skipped: list[dict] = []
        self._known: dict[str, _Known] = {}
        self._next = 0
        self._changed = False

    def __enter__(self) -> FeatureWriter:
        try:
            self._lock = Lock(self.folder)
        except Taken:
            raise ClipVipError(
                f"another process is writing features to {self.folder}: expected one at a time; wait for it, or "
                "choose another folder"
            ) from None
        try:
            self._agree()
            for half in self.folder.rglob("*.[0-9]*.partial"):  # of a process that was killed while it wrote
                half.unlink(missing_ok=True)
            for path in self._parts():
                _, rows, skipped = read_part(path)
                self._note(rows, skipped, int(path.stem))
                self._next = int(path.stem) + 1
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            if not isinstance(error, OSError):  # what was computed before an error or Ctrl-C is kept
                self.flush()
        finally:
            self._lock.release()

    def _agree(self) -> None:
        path = self.folder / "settings.json"
        if not path.exists():
            if (self.folder / "meta.json").exists() or self._parts():
                raise ClipVipError(
                    f"{self.folder} holds features without settings.json; choose another folder"
                )
            write_json(path, self.settings)
            return
        expect_settings(self.folder, self.settings, all_named=True)

    def _parts(self) -> list[Path]:
        return sorted((self.folder / "parts").glob("*.npz"))

    def _note(self, rows: Sequence[dict], skipped: Sequence[dict], part: int) -> None:
        for was_skipped, told in ((False, rows), (True, skipped)):
            self._known |= {
                row["id"]: _Known(row["stamp"], part, was_skipped, bool(row.get("last"))) for row in told
            }

    # ---- rows ----

    def has(self, id: str, stamp: str) -> bool:
        """Whether this state of an item (its ``stamp``) has a row, or was skipped."""
        return id in self._known and self._known[id].stamp == stamp

    def skipped(self, ids: Sequence[str]) -> int:
        """How many of these ids were skipped."""
        return sum(self._known[id].skipped for id in ids if id in self._known)

    def is_last(self, id: str) -> bool:
        """Whether a known item is the last window of its video."""
        return self._known[id].last

    def add(self, row: dict, stamp: str, feature: np.ndarray) -> None:
        """A row: what is known of it ("id" first) and its feature [E].

        Raises ClipVipError if its length is not 1, or a text of the row cannot be UTF-8.
        """
        length = float(np.linalg.norm(feature.astype(np.float64)))
        if not abs(length - 1) < 0.01:  # NaN too
            raise ClipVipError(
                f"the feature of {row['id']} has length {length:g}: expected 1; look for a NaN in the weights"
            )
        self._rows.append(_written({**row, "stamp": stamp}))
        self._features.append(feature.astype(self.settings["stored"]))
        self._flush_if_full()

    def skip(self, row: dict, stamp: str, reason: str) -> None:
        """Note that an item has no row, and why."""
        reason = reason.encode(errors="backslashreplace").decode()
        self._skipped.append(_written({**row, "reason": reason, "stamp": stamp}))
        self._flush_if_full()

    def _flush_if_full(self) -> None:
        if len(self._rows) + len(self._skipped) >= self.part:
            self.flush()

    def flush(self) -> None:
        """Write what has come as its own part, whole or not at all."""
        if not self._rows and not self._skipped:
            return
        path = self.folder / "parts" / f"{self._next:06d}.npz"
        write_part(path, self._features, self.settings["stored"], self._rows, self._skipped)
        self._note(self._rows, self._skipped, self._next)
        self._next, self._changed = self._next + 1, True
        self._rows, self._features, self._skipped = [], [], []

    # ---- the whole ----

    def join(self, ids: Sequence[str], about: Mapping[str, object] | None = None) -> dict:
        """Write features.npy and ids.jsonl with the rows of ``ids``, in this order; returns meta.json's content.

        Ids that were skipped have no row; rows of other ids stay in the parts, and meta.json's "others" counts them.
        ``about`` goes into meta.json too. What is there already and would be the same is left. Raises ClipVipError for
        an unknown id, and if none has a row.
        """
        self.flush()
        if absent := [id for id in ids if id not in self._known]:
            raise ClipVipError(
                f"{len(absent)} items have no features yet, first {absent[0]}; embed them first"
            )
        place = {id: i for i, id in enumerate(id for id in ids if not self._known[id].skipped)}
        wanted = set(ids)
        others = sum(not known.skipped for id, known in self._known.items() if id not in wanted)
        found = self._collect(place, wanted)
        if found.skipped:
            write_bytes(self.folder / "skipped.jsonl", lines(found.skipped))
        else:
            (self.folder / "skipped.jsonl").unlink(missing_ok=True)
        if not place:
            raise ClipVipError(
                f"none of {len(ids)} items has features: expected at least one; see {self.folder / 'skipped.jsonl'}"
            )
        if len(found.widths) != 1:
            raise ClipVipError(
                f"the parts in {self.folder / 'parts'} have widths {sorted(found.widths)}: expected one; remove the "
                "folder and embed again"
            )
        content = lines(found.rows)
        meta = {
            "rows": len(place),
            "width": found.widths.pop(),
            "skipped": len(found.skipped),
            **({"damaged": damaged} if (damaged := sum("damage" in row for row in found.rows)) else {}),
            **({"others": others} if others else {}),
            "ids_sha256": hashlib.sha256(content).hexdigest(),
            "settings": self.settings,
        }
        path, features = self.folder / "meta.json", self.folder / "features.npy"
        if not self._changed and (old := self._joined_before(meta)) is not None:
            return old
        path.unlink(missing_ok=True)
        (self.folder / PARQUET).unlink(missing_ok=True)  # of other rows
        with atomic_path(features) as partial:
            self._write_features(partial, found.moves, (meta["rows"], meta["width"]))
            meta["features_sha256"] = sha256(partial)
        meta["features_mtime_ns"] = features.stat().st_mtime_ns
        write_bytes(self.folder / "ids.jsonl", content)
        meta |= about or {}
        write_json(path, meta)
        return meta

    def _joined_before(self, meta: Mapping[str, object]) -> dict | None:
        """The meta.json that is there, if it and both files are what a join would write now."""
        with contextlib.suppress(ClipVipError, OSError):  # absent or damaged: written again
            old = read_json(self.folder / "meta.json")
            if (
                isinstance(old, dict)
                and all(old.get(name) == value for name, value in meta.items())
                and is_that_of(self.folder / "features.npy", old)
                and hashlib.sha256((self.folder / "ids.jsonl").read_bytes()).hexdigest() == meta["ids_sha256"]
            ):
                return old
        return None

    def _collect(self, place: Mapping[str, int], wanted: set[str]) -> _Joined:
        """What the parts hold of the wanted ids; of an item that was done twice, the later."""
        found = _Joined(rows=[{}] * len(place))
        for path in self._parts():
            features, rows, skipped = read_part(path)
            mine = [i for i, row in enumerate(rows) if row["id"] in place and self._is_of(row, path)]
            for i in mine:
                found.rows[place[rows[i]["id"]]] = rows[i]
            if mine:
                found.moves.append((path, mine, [place[rows[i]["id"]] for i in mine]))
                found.widths.add(features.shape[1])
            found.skipped += [row for row in skipped if row["id"] in wanted and self._is_of(row, path)]
        return found

    def _is_of(self, row: dict, path: Path) -> bool:
        return self._known[row["id"]].part == int(path.stem)

    def _write_features(self, path: Path, moves, shape: tuple[int, int]) -> None:
        out = np.lib.format.open_memmap(path, mode="w+", dtype=self.settings["stored"], shape=shape)
        for part, take, put in moves:
            out[put] = read_part(part)[0][take]
        out.flush()


def _written(row: dict) -> dict:
    """The row, if it can be written: what cannot would cost the whole part, later."""
    for name, value in row.items():
        if isinstance(value, str) and not is_unicode(value):
            raise ClipVipError(
                f"the {name} of {row['id']!a} expected Unicode, got half a character ({value[:60]!a}); rename or "
                "fix it"
            )
    return row


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}.." if len(text) > 40 else text
