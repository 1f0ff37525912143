"""The shards of a corpus with the texts that stand beside them: which samples there are, and what is known of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from clipvip_lib.data.shards import Entry, media_of, scan_shard
from clipvip_lib.errors import ClipVipError
from clipvip_lib.streams.sidecars import find_sidecar, read_sidecar

WRITERS = {
    "captions": "`clipvip caption` writes them (.parquet in place of .jsonl would do); --loss V-S needs none",
    "texts": "`clipvip convert-texts` writes them",
}


class Listed(NamedTuple):
    """A sample of a shard, and its text and caption from sidecars (None where no sidecar is read)."""

    entry: Entry
    text: str | None
    caption: str | None


class ShardSet:
    """Shards in a fixed order. ``sidecars``: kind ("captions", "texts") -> its folder, or None for beside the shards.

    Raises ClipVipError for no shard, a doubled or missing one, or a missing sidecar.
    """

    def __init__(self, shards: Sequence[str | Path], sidecars: Mapping[str, str | Path | None]) -> None:
        self.paths, self.sidecars = [Path(shard) for shard in shards], dict(sidecars)
        if not self.paths:
            raise ClipVipError("expected at least one shard, got none; look at the pattern")
        if doubled := len(self.paths) - len(set(self.paths)):
            raise ClipVipError(f"{doubled} shards are named twice: expected each once; look at the pattern")
        _expect(self.paths, "shards", "fetch them or name fewer")
        for kind, folder in self.sidecars.items():
            _expect([find_sidecar(path, kind, folder) for path in self.paths], kind, WRITERS[kind])

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, shard: int) -> list[Listed]:
        """The samples of a shard, by its number. Those that must not be read say why in ``entry.error``: those that a
        sidecar lacks, and all samples of a damaged shard (with one at least, so that it is seen).

        Raises ClipVipError for a damaged sidecar, which is this project's own file and is soon written again.
        """
        path = self.paths[shard]
        entries, damage = scan_shard(path)
        if damage is not None:
            entries = [replace(entry, error=str(damage)) for entry in entries or [Entry("", {})]]
        beside: dict[str, dict[str, str]] = {}
        for kind, folder in self.sidecars.items():
            source = find_sidecar(path, kind, folder)
            beside[kind] = read_sidecar(source, kind)
            for place, entry in enumerate(entries):
                if media_of(entry)[0] and entry.key not in beside[kind]:
                    problem = (
                        f"sample {entry.key} of shard {path} is not in {source}; write the sidecar again"
                    )
                    entries[place] = replace(entry, error=problem)
        texts, captions = beside.get("texts", {}), beside.get("captions", {})
        return [Listed(entry, texts.get(entry.key), captions.get(entry.key)) for entry in entries]

    def identity(self) -> str:
        """Of the list: number and names without folders, because corpora move."""
        names = "\n".join(path.name for path in self.paths)
        return f"{len(self.paths)}-{hashlib.sha256(names.encode()).hexdigest()[:16]}"


def _expect(paths: list[Path], kind: str, advice: str) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise ClipVipError(
            f"{len(missing)} of {len(paths)} {kind} are not there, first {missing[0]}; {advice}"
        )
