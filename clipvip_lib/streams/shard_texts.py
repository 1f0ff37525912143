"""Texts from elsewhere, as sidecars of the shards they belong to.

A shard knows its samples by key; subtitles, captions and tables know clips by their own ids. The link is what
key.json says of a sample: a field with the id, fields that make it up, or the video and the span.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from clipvip_lib.data.shards import Entry, index_shard, media_of, read_about
from clipvip_lib.errors import ClipVipError
from clipvip_lib.progress import ProgressCallback
from clipvip_lib.streams.hdvila import ClipIds, LmdbTexts, read_captions_json, read_texts_jsonl
from clipvip_lib.streams.sidecars import read_sidecar, sidecar_path, write_sidecar
from clipvip_lib.streams.webvid import read_texts_csv

TextOf = Callable[[str, dict], str | None]  # from a sample's key and key.json to its text


def convert(
    shards: Sequence[Path],
    kind: str,
    text_of: TextOf,
    out: str | Path | None,
    allow_missing: int,
    progress: ProgressCallback,
) -> dict[str, int]:
    """Write the sidecars of some shards.

    Returns the numbers of "shards", those "done_before" among them, "clips", "texts" and "missing" texts.
    kind: "texts" or "captions". Samples without media (clips that could not be fetched) need no text.

    Raises ClipVipError before anything is read if two shards would have one sidecar; and as soon as more than
    ``allow_missing`` clips have no text or an empty one, naming the first: sidecars that are written stay.
    """
    paths = _sidecars(shards, kind, out)
    counts = dict.fromkeys(("shards", "done_before", "clips", "texts", "missing"), 0)
    first = ""
    for shard, path in zip(shards, paths, strict=True):
        clips = [entry for entry in index_shard(shard) if media_of(entry)[0]]
        if path.exists():
            found = read_sidecar(path, kind)
            lacking = [entry.key for entry in clips if entry.key not in found]
            counts["done_before"] += 1
        else:
            found, lacking = _texts(shard, clips, text_of)
        counts["missing"] += len(lacking)
        if lacking and not first:
            first = f"{lacking[0]} of {shard}"
        if counts["missing"] > allow_missing:
            raise ClipVipError(
                f"{counts['missing']} clips have no text, expected at most {allow_missing} (--allow-missing), first "
                f"{first}; look at the ids, or allow more: training then skips these clips by name"
            )
        if not path.exists():
            write_sidecar(path, kind, found.items())
        counts["shards"] += 1
        counts["clips"] += len(clips)
        counts["texts"] += len(clips) - len(lacking)  # a sidecar may hold more than the shard asks for
        progress(counts["shards"], len(shards), f"{counts['texts']} {kind}, {counts['missing']} missing")
    return counts


def _sidecars(shards: Sequence[Path], kind: str, out: str | Path | None) -> list[Path]:
    """The sidecar of each shard. Raises ClipVipError if two shards would share one, or a shard is named twice."""
    first: dict[Path, Path] = {}
    for shard in shards:
        place = sidecar_path(shard, kind, out).resolve()
        if place in first:
            raise ClipVipError(
                f"{first[place]} and {shard} would both write {place}: expected shards of different names, each once; "
                "convert them into different folders (--out)"
            )
        first[place] = shard
    return [sidecar_path(shard, kind, out) for shard in shards]


def _texts(shard: Path, clips: list[Entry], text_of: TextOf) -> tuple[dict[str, str], list[str]]:
    """(texts by key, keys without)."""
    found: dict[str, str] = {}
    lacking: list[str] = []
    for entry in clips:
        about = {} if entry.error else read_about(shard, entry)
        text = text_of(entry.key, about)
        if text is not None and (text := " ".join(text.split())):
            found[entry.key] = text
        else:
            lacking.append(entry.key)
    return found, lacking


# ------------------------------------------------------------------------------------------ sources and ids


def source_texts(lmdb: str | None, table: str | None, columns: str) -> Callable[[str], str | None]:
    """A look-up of texts by id: in an LMDB, or the authors' other forms by the name's end (.jsonl of clip_id and text,
    .json of image_id and caption); or in a table with two ``columns``, "id,text"."""
    if table is not None:
        names = [name.strip() for name in columns.split(",")]
        if len(names) != 2 or not all(names):
            raise ClipVipError(f"expected two columns as ID,TEXT, got {columns!r}")
        return read_texts_csv(table, *names).get
    if lmdb.endswith(".json"):
        return read_captions_json(lmdb).get
    if lmdb.endswith(".jsonl"):
        return read_texts_jsonl(lmdb).get
    return LmdbTexts(lmdb).get


def ids_by_template(template: str) -> Callable[[str, dict], str | None]:
    """Ids such as ``{video_id}.{clip}.mp4`` from key and key.json; None where a field is missing."""
    names = re.findall(r"\{(\w+)\}", template)
    if not names or re.sub(r"\{\w+\}", "", template).count("{"):
        raise ClipVipError(
            f"expected an id such as '{{video_id}}.{{clip}}.mp4', with names of fields in braces, got {template!r}"
        )

    def find(key: str, about: dict) -> str | None:
        fields = {"key": key} | about
        if any(fields.get(name) is None for name in names):
            return None
        return re.sub(r"\{(\w+)\}", lambda match: str(fields[match[1]]), template)

    return find


def ids_by_span(metadata: Iterable[str | Path]) -> Callable[[str, dict], str | None]:
    """Ids by video and span, from HD-VILA's metadata."""
    ids = ClipIds(metadata)
    return lambda key, about: ids.find(about)


def own_subtitles(key: str, about: dict) -> str | None:
    """The subtitles that video2dataset kept of a clip: key.json's clip_subtitles [{"start", "end", "lines"}].

    lines is a list, or one per language ({"en": [...]}); then the first is taken. Automatic subtitles roll: a
    line stands again in the entry that follows it, and is taken once.
    """
    entries = about.get("clip_subtitles")
    if not isinstance(entries, list):
        return None
    lines: list[str] = []
    for entry in entries:
        own = entry.get("lines") if isinstance(entry, dict) else None
        if isinstance(own, dict):
            own = next(iter(own.values()), None)
        for line in own if isinstance(own, list) else ():
            words = " ".join(str(line).split())
            if words and words not in lines[-2:]:
                lines.append(words)
    return " ".join(lines) or None
