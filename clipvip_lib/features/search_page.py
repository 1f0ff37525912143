"""Results of a search as a page: the same template for a file that is sent on and for the server.

All that is shown stands as JSON in the page, and its script makes text of it. The page's policy allows this one script
and style by their hashes, and no address but its own, so that a name with markup in it stays a name.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from clipvip_lib.errors import ClipVipError
from clipvip_lib.features.folder import Features
from clipvip_lib.features.media import Media, Place
from clipvip_lib.say import exact_seconds, shown

Source = Callable[[int, Place, dict], tuple[str, str]]


def items(media: Media, queries: Sequence[dict], source: Source) -> dict[int, dict]:
    """What the page tells of each row that was found. source: of a row, its place and what ids.jsonl says of it, the
    address of its video and a remark."""
    found: dict[int, dict] = {}
    for result in (result for query in queries for result in query["results"]):
        row = result["row"]
        if row not in found:
            found[row] = _item(media, result, source)
    return found


def _item(media: Media, result: dict, source: Source) -> dict:
    item = {"id": shown(result["id"])}
    if "text" in result:
        return item | {"text": shown(result["text"])}
    key = f" ({result['key']})" if "key" in result else ""
    item["about"] = shown(f"{result['path']}{key}")
    if result.get("end", 0) > result.get("start", 0):
        item |= {"start": result["start"], "end": result["end"]}
    if result.get("damage"):
        item["note"] = "The file is damaged: " + shown(result["damage"])
    try:
        place = media.place(result["row"])
        address, note = source(result["row"], place, result)
    except ClipVipError as error:
        return item | {"kind": "none", "why": str(error)}
    item |= {"kind": "image" if place.is_picture else "video", "src": address}
    return item | ({"note": note} if note else {})


def queries_of(found: Sequence[dict]) -> list[dict]:
    """What the page tells of each query: what was asked, and rank, score and row of the results."""
    return [
        {
            "asked": shown(query["text"] if "text" in query else query["video"]),
            **{name: query[name] for name in ("cut", "unknown", "seconds") if name in query},
            "results": [
                {name: each[name] for name in ("rank", "score", "row", "overlapping") if name in each}
                for each in query["results"]
            ],
        }
        for query in found
    ]


def fragment(row: dict) -> str:
    """The part of a video that a row shows, as a URL says it (W3C's media fragments); a player starts there."""
    if row.get("end", 0) <= row.get("start", 0):
        return ""
    return f"#t={exact_seconds(row['start'])},{exact_seconds(row['end'])}"


def page(
    features: Features, found: Sequence[dict], shown_rows: dict[int, dict], server: bool, top: int
) -> str:
    """The whole page, HTML."""
    what = (
        "texts"
        if features.settings["kind"] == "texts"
        else "windows"
        if "window" in features.settings
        else "videos"
    )
    data = {
        "title": f"Search in {len(features)} {what}",
        "about": shown(f"{features.folder.absolute()}, weights {features.settings.get('weights')}"),
        "rows": len(features),
        "server": server,
        "top": top,
        "queries": queries_of(found),
        "items": shown_rows,
    }
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    for sign in "<>&\u2028\u2029":  # in JSON they stand only within strings
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    filled = {"csp": policy(server), "title": data["title"], "data": text}
    return re.sub(r"\{\{(\w+)\}\}", lambda name: filled[name[1]], _template())


def policy(server: bool) -> str:
    """The page's Content-Security-Policy."""
    script, style = _hashes()
    media = "'self'" if server else "data: file:"
    parts = ["default-src 'none'", f"script-src {script}", f"style-src {style}", f"media-src {media}"]
    parts += [f"img-src data: {media.replace('data: ', '')}", "base-uri 'none'", "form-action 'none'"]
    return "; ".join([*parts, *(["connect-src 'self'"] if server else [])])


@cache
def _template() -> str:
    return (files("clipvip_lib.features") / "templates" / "search.html").read_text(encoding="utf-8")


@cache
def _hashes() -> tuple[str, str]:
    found = [re.search(rf"<{tag}>(.*?)</{tag}>", _template(), re.DOTALL)[1] for tag in ("script", "style")]
    digests = [hashlib.sha256(text.encode()).digest() for text in found]
    return tuple(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


# --------------------------------------------------------------------------------------------------------- a file


def file_page(features: Features, found: Sequence[dict], file: Path, top: int) -> str:
    """The page as a file: it links videos by paths from where it lies, and holds small copies of samples of shards,
    into which no link leads."""
    from clipvip_lib.features.previews import preview

    def source(row: int, place: Place, about: dict) -> tuple[str, str]:
        if place.entry is None:
            path = os.path.relpath(place.path, file.absolute().parent)
            # quote leaves no byte of a name that a URL reads otherwise
            return quote(Path(path).as_posix()) + fragment(about), ""
        kind, content = preview(place, about, features.settings)
        note = "" if place.is_picture else "A small copy of a few frames; the video is in the shard."
        return f"data:{kind};base64,{base64.b64encode(content).decode()}", note

    return page(features, found, items(Media(features), found, source), False, top)
