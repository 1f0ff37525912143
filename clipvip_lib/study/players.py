"""What moves on a page and can be touched: small videos inside it, a picker of queries, a viewer of attention.

Videos are H.264 inside the page, muted, looping, with controls. The page's script plays them while they are seen,
unless the reader asks for less motion. What the script builds (picker, viewer) it builds from JSON; a static form
stands beside it.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipvip_lib.data.corpora import encode_h264, encode_jpeg
from clipvip_lib.data.video import read_frames, uniform_indices
from clipvip_lib.errors import ClipVipError
from clipvip_lib.say import shown

SMALL_ENOUGH = 24_000  # bytes: a larger file is shown by some of its frames, made small
FRAMES, SIDE, FPS = 12, 160, 4
PAGE_BYTES = 1_700_000  # of one picker's videos, so that a page stays below 3 MiB


ROW = ' style="display:flex;flex-wrap:wrap;gap:1rem"'  # as in a page, also where its style is not, in JupyterLab


@dataclass(frozen=True)
class Player:
    """A video or a JPEG, what stands in bold below it (rank, score), what is said of it, whether it was asked for."""

    content: bytes
    mark: str
    text: str
    own: bool = False


def small_video(path: Path) -> bytes:
    """A file's H.264, or a dozen of its frames, made small, as H.264 if the file is large or something else.

    Raises ClipVipError as ``read_frames`` for a file that cannot be decoded.
    """
    content = path.read_bytes()
    if len(content) <= SMALL_ENOUGH and b"avc1" in content:
        return content
    return moving(read_frames(path, lambda total: uniform_indices(total, min(FRAMES, total))), FPS)


def moving(frames: np.ndarray, fps: int = 2) -> bytes:
    """Frames uint8 [N, H, W, 3] as a small H.264 video, ``sized``."""
    return encode_h264(sized(frames), fps)


def sized(frames: np.ndarray) -> np.ndarray:
    """Frames uint8 [N, H, W, 3] with even sides of at most 160 pixels; small ones are enlarged by a whole number."""
    from PIL import Image

    larger = max(1, SIDE // max(frames.shape[1:3]))
    frames = frames.repeat(larger, 1).repeat(larger, 2)
    scale = min(1.0, SIDE / max(frames.shape[1:3]))
    height, width = (max(2, 2 * round(scale * side / 2)) for side in frames.shape[1:3])
    if (height, width) == frames.shape[1:3]:
        return frames
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height))) for frame in frames])


def players_html(
    groups: Mapping[str, Sequence[Player]], title: str, caption: str, *, play: bool = False
) -> str:
    """``<figure>`` of videos in groups, each under what was asked for. play: without being asked to."""
    rows = []
    for asked, players in groups.items():
        made = "".join(_player(player, play) for player in players)
        head = f'<p class="asked">{html.escape(shown(asked))}</p>' if asked else ""
        rows.append(f'<div class="group">{head}<div class="row"{ROW}>{made}</div></div>')
    return (
        f'<figure class="players"><p class="finding">{html.escape(shown(title))}</p>{"".join(rows)}'
        f"<figcaption>{html.escape(shown(caption))}</figcaption></figure>"
    )


def _player(player: Player, play: bool) -> str:
    mark, text = html.escape(shown(player.mark)), html.escape(shown(player.text))
    label = html.escape(f"{shown(player.mark)} {shown(player.text)}".strip(), quote=True)
    content = _base64(player.content)
    seen = f'<img width="152" alt="{label}" src="data:image/jpeg;base64,{content}">'
    if not player.content.startswith(b"\xff\xd8"):  # how a JPEG begins
        seen = (
            f'<video width="152" {"autoplay " * play}muted loop playsinline controls preload="auto" '
            f'aria-label="Video: {label}" src="data:video/mp4;base64,{content}"></video>'
        )
    own = " own" if player.own else ""
    return f'<div class="player{own}" style="max-width:9.5rem">{seen}<p><b>{mark}</b> {text}</p></div>'


def picker_data(
    queries: Sequence[int], texts: Sequence[str], paths: Sequence[Path], models: Mapping[str, tuple]
) -> dict:
    """What a picker shows: for each query what each model found, and the videos, as many as a page has room for.

    queries: rows of the test split, in the order in which they are taken until the room is used.
    texts, paths: of all items, item i belonging to query i. models: by name (ranks [queries], nearest videos [all, k],
    their scores [all, k]).
    """
    kept, videos, room = [], {}, PAGE_BYTES
    for query in queries:
        found = {int(video) for _, nearest, _ in models.values() for video in nearest[query]}
        new = {video: _base64(small_video(paths[video])) for video in sorted(found) if video not in videos}
        size = sum(map(len, new.values()))
        if size > room:
            break
        room -= size
        videos |= new
        by = [
            {
                "rank": int(ranks[query]),
                "found": [[int(v), f"{s:.2f}"] for v, s in zip(nearest[query], scores[query], strict=True)],
            }
            for ranks, nearest, scores in models.values()
        ]
        kept.append({"text": shown(texts[query]), "video": int(query), "by": by})
    if not kept:
        raise ClipVipError(
            f"the videos of one query take more than {PAGE_BYTES:,} bytes: expected small ones; show fewer of them"
        )
    return {
        "queries": kept,
        "models": list(models),
        "videos": videos,
        "texts": {video: shown(texts[video]) for video in videos},
    }


def picker_html(data: Mapping, title: str, caption: str) -> str:
    """``<figure>`` in which a reader picks a query by typing; its static form is a table beside it."""
    return (
        f'<figure class="picked"><p class="finding">{html.escape(shown(title))}</p>'
        '<div class="picker"><p class="static">Where scripts run, one types here (in JupyterLab '
        "under “Your own sentence”); "
        f"the table below holds the same sentences.</p>{_json(data, 'picker')}</div>"
        f"<figcaption>{html.escape(shown(caption))}</figcaption></figure>"
    )


def attention_html(
    clips: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str, caption: str, still: str
) -> str:
    """``<figure>`` in which a reader chooses clip, layer, head, proxy and frame.

    clips: by name frames uint8 [N, H, W, 3] and shares of attention [layers, heads, proxies, N, rows, columns].
    still: the static form, HTML.
    """
    maps = next(iter(clips.values()))[1]
    data = {
        "size": list(maps.shape[:4]),
        "grid": list(maps.shape[4:]),
        "clips": [
            {
                "text": shown(name),
                "frames": [_base64(encode_jpeg(frame)) for frame in sized(frames)],
                "maps": _base64(_as_bytes(shares)),
            }
            for name, (frames, shares) in clips.items()
        ],
    }
    return (
        f'<figure class="looks"><p class="finding">{html.escape(shown(title))}</p><div class="attention">'
        f'<div class="static">{still}</div>{_json(data, "attention")}</div>'
        f"<figcaption>{html.escape(shown(caption))}</figcaption></figure>"
    )


def _as_bytes(shares: np.ndarray) -> bytes:
    """Shares of attention as bytes: a step is a 255th of the largest of all."""
    return np.rint(255 * shares / max(float(shares.max()), 1e-9)).astype(np.uint8).tobytes()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _json(data: Mapping, kind: str) -> str:
    """JSON that a page's script reads and no browser obeys: nothing in it ends the element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return f'<script type="application/json" id="{kind}-data">{text}</script>'
