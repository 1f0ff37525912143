"""Whether a name of weights can mean anything, told before torch is imported."""

from __future__ import annotations

import difflib
import importlib.util
import json
from functools import cache
from pathlib import Path

from clipvip_lib.errors import ClipVipError, unknown
from clipvip_lib.files import kind_of
from clipvip_lib.models.attentions import ATTENTIONS


def expect_weights(source: str | Path, tag: str | Path | None = None, attention: str | None = None) -> None:
    """Raises ClipVipError unless ``source`` is a file or folder, or open_clip's name of a CLIP with a tag; and for an
    unknown attention."""
    if attention is not None and attention not in ATTENTIONS:
        raise unknown("attention", attention, ATTENTIONS)
    if kind_of(source):
        if tag is not None:
            raise ClipVipError(
                f"{source} is a file or folder, pretrained_tag= belongs to an open_clip name; leave it out"
            )
        return
    models = open_clip_models()
    if str(source) not in models:
        near = difflib.get_close_matches(str(source), models, 1)
        raise ClipVipError(
            f"no file or folder {str(source)!r}, and no open_clip model of that name; give a path that exists (of a "
            "Hugging Face model: download its folder first) or a name of open_clip.list_models()"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )


@cache
def open_clip_models() -> tuple[str, ...]:
    """The names of ``open_clip.list_models()``, from its files of configurations: importing it takes seconds."""
    found = importlib.util.find_spec("open_clip")
    folders = [Path(folder) / "model_configs" for folder in found.submodule_search_locations] if found else []
    return tuple(
        sorted(
            file.stem
            for folder in folders
            for file in folder.glob("*.json")
            if {"embed_dim", "vision_cfg", "text_cfg"} <= json.loads(file.read_text(encoding="utf-8")).keys()
        )
    )
