"""Whether a name of weights can mean anything, told before torch is imported."""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib.util
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from clipvip_lib.errors import ClipVipError, unknown
from clipvip_lib.files import kind_of, read_json
from clipvip_lib.models import hub
from clipvip_lib.models.attentions import ATTENTIONS
from clipvip_lib.models.hub import BPE_FILES, WEIGHT_FILES

CLIP_TYPES = ("clip", "clip_vip")  # of config.json: Hugging Face's and ours


def expect_weights(source: str | Path, tag: str | Path | None = None, attention: str | None = None) -> None:
    """Raises ClipVipError unless ``source`` is a file or folder, a name of the Hugging Face Hub, or open_clip's name of
    a CLIP with a tag; and for an unknown attention."""
    if attention is not None and attention not in ATTENTIONS:
        raise unknown("attention", attention, ATTENTIONS)
    is_hub = hub.is_hub_name(source)
    if kind_of(source) or is_hub:
        if tag is not None:
            what = "a name of the Hugging Face Hub" if is_hub else "a file or folder"
            raise ClipVipError(
                f"{source} is {what}, pretrained_tag= belongs to an open_clip name; leave it out"
            )
        if is_hub:
            hub.expect(str(source))
        elif kind_of(source) == "folder":
            _expect_files(Path(source))
        return
    models = open_clip_models()
    if str(source) not in models:
        near = difflib.get_close_matches(str(source), models, 1)
        raise ClipVipError(
            f"no file or folder {str(source)!r}, and no open_clip model of that name; give a path that exists, a name "
            "of the Hugging Face Hub (openai/clip-vit-base-patch32) or one of open_clip.list_models()"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )

    tags = open_clip_tags(str(source))
    if tags and not (tag and (kind_of(tag) == "file" or str(tag).lower().replace("-", "_") in tags)):
        raise unknown_tag(str(source), tag, tags)


def expect_clip(source: str | Path, tag: str | Path | None = None, attention: str | None = None) -> None:
    """As ``expect_weights``; for a folder whose config.json tells that it is another model than a CLIP, too."""
    expect_weights(source, tag, attention)
    if kind_of(source) == "folder":
        kind = _config(source).get("model_type", "ofa" if is_captioner(source) else "clip")
        if kind not in CLIP_TYPES:
            raise not_a_clip(Path(source).name, kind)


def not_a_clip(name: str, kind: object) -> ClipVipError:
    """The error for a model of another type than a CLIP's."""
    return ClipVipError(
        f"{name} expected a model of type clip or clip_vip, its config.json says {kind!r}; "
        + ("load it with load_ofa" if kind == "ofa" else "give the folder of a CLIP")
    )


def unknown_tag(name: str, tag: str | Path | None, tags: Sequence[str]) -> ClipVipError:
    """The error for weights of an open_clip model that were not named, or are not there."""
    if tag is None:
        known = ", ".join(tags) or "none, give a file"
        return ClipVipError(f"open_clip model {name} expected pretrained_tag, its weights; tags: {known}")
    return ClipVipError(
        f"open_clip model {name} has no weights {str(tag)!r}, and no such file is there; tags: {', '.join(tags)}"
    )


def _expect_files(folder: Path) -> None:
    names = (*WEIGHT_FILES, *hub.OPEN_CLIP_WEIGHTS)
    if not any((folder / each).is_file() for name in names for each in (name, f"{name}.index.json")):
        raise ClipVipError(f"{folder} expected {' or '.join(WEIGHT_FILES)} beside config.json, got neither")


@cache
def open_clip_tags(name: str) -> tuple[str, ...]:
    """The tags of a model, read from open_clip's table as text (of "-quickgelu" perhaps too many): importing it takes
    seconds. Empty where the table is written otherwise; then open_clip itself is asked, later."""
    found = importlib.util.find_spec("open_clip")
    tables: dict[str, ast.expr] = {}
    with contextlib.suppress(OSError, SyntaxError, AttributeError, KeyError, TypeError):
        for node in ast.parse(Path(found.origin).with_name("pretrained.py").read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign):
                tables[getattr(node.targets[0], "id", "")] = node.value
        rows = tables["_PRETRAINED"]
        of_name = dict(zip((key.value for key in rows.keys), rows.values, strict=True))
        row = of_name[name.removesuffix("-quickgelu")]
        return tuple(each.arg for each in (tables[row.id] if isinstance(row, ast.Name) else row).keywords)
    return ()


def expect_ofa(source: str | Path, bpe: str | Path | None = None) -> None:
    """Raises ClipVipError unless ``source`` is a file, a folder or a name of the Hub, and the files of OFA's tokenizer
    are in the folder ``bpe`` or in the folder of the weights; a captioner of the study has its own."""
    if hub.is_hub_name(source):
        hub.expect(str(source))
        if bpe is None:  # they come with the weights
            return
    elif not kind_of(source):
        raise ClipVipError(
            f"no file or folder {str(source)!r}: expected OFA's caption weights; check the path"
        )
    elif is_captioner(source):
        if bpe is not None:
            raise ClipVipError(f"{source} has its own tokenizer: expected no other one; leave --bpe out")
        return
    elif (kind := _config(source).get("model_type", "ofa")) != "ofa":
        raise ClipVipError(
            f"{source} is a model of type {kind!r}: expected OFA's caption weights; name those"
        )
    folder = Path(source if bpe is None else bpe)
    if missing := [name for name in BPE_FILES if not (folder / name).is_file()]:
        raise ClipVipError(
            f"OFA's captions need GPT-2's {' and '.join(BPE_FILES)}, {folder} has no {' and no '.join(missing)}; name "
            "a folder that has both with --bpe (any released Hugging Face OFA or BART does)"
        )


def is_captioner(source: str | Path) -> bool:
    """Whether a folder was written by ``Captioner.save``."""
    return "ofa" in _config(source)


def _config(folder: str | Path) -> dict:
    path = Path(folder, "config.json")
    fields = read_json(path) if path.is_file() else {}
    return fields if isinstance(fields, dict) else {}


def expect_hugging_face(source: str) -> None:
    """Raises ClipVipError unless ``source`` is a folder or the name of a model that the Hub or its cache has."""
    if kind_of(source) != "folder":
        hub.expect_any(source)


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
