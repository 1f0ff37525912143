"""MSVD as CLIP4Clip distributes it (msvd_data.zip): raw-captions.pkl {id: [[word, ...], ...]} with train_list.txt,
val_list.txt and test_list.txt; or the same as raw-captions.json {id: [sentence or [word, ...], ...]}. Every sentence
of a test video is a query. Videos are YouTube clips called YOUTUBEID_START_END.avi, times in whole seconds.

A pickle can run any code when it is loaded. This one is read by an unpickler that knows nothing but dicts, lists,
tuples, sets, strings and numbers, and refuses the rest.
"""

from __future__ import annotations

import contextlib
import pickle
import re
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import BinaryIO

from clipvip_lib.data.annotations import reading
from clipvip_lib.data.annotations.reading import Record, Tell

PLAIN = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    **{
        (module, kind.__name__): kind
        for module in ("builtins", "__builtin__")
        for kind in (list, dict, set, tuple)
    },
}
TIMES = re.compile(r"^(?P<source>.+)_(?P<start>\d{1,9})_(?P<end>\d{1,9})$")


class _PlainUnpickler(pickle.Unpickler):
    """Loads containers, strings and numbers; a name of anything else is refused before it is looked up."""

    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in PLAIN:
            raise _Unsafe(f"{module}.{name}")
        return PLAIN[module, name]

    def persistent_load(self, pid: object) -> object:
        raise _Unsafe("a persistent id")


class _Unsafe(Exception):
    pass


def load_plain_pickle(file: BinaryIO, path: Path, tell: Tell) -> object:
    """The content of a pickle of plain containers, strings and numbers; text of Python 2 is taken as UTF-8."""
    try:
        return _PlainUnpickler(file, encoding="utf-8").load()
    except _Unsafe as error:
        tell(
            "unsafe-pickle",
            f"{path} names {error}, which could run code: expected plain containers and strings; fetch it from a "
            "source that you trust, or write its content as raw-captions.json",
        )
    except Exception as error:  # a damaged pickle may raise nearly anything
        tell("not-parsed", f"{path} is not a whole pickle ({type(error).__name__}); fetch it again")
    raise reading.Unreadable(path)


def read(root: Path, split: str, tell: Tell) -> list[Record]:
    """The records of a split."""
    listing = root / f"{split}_list.txt"
    chosen = reading.distinct(reading.read_list(listing, tell), listing, tell)
    captions, path = _captions(root, tell)
    if split == "train":  # once
        named = set(chosen)
        for other in ("val", "test"):
            file = root / f"{other}_list.txt"
            with contextlib.suppress(reading.Unreadable):  # told where its own split is read
                named |= set(reading.read_list(file, reading.silent)) if file.is_file() else set()
        for video in [video for video in captions if video not in named]:
            tell("no-video", f"{path}: {reading.brief(video)} is described but in no list; fix its name")
    records = []
    for video in chosen:
        said = captions.get(video, [])
        if not isinstance(said, list | tuple | set):  # each letter of a text would be a sentence
            tell(
                "wrong-structure",
                f"{path} entry {video}: expected a list of sentences, got {reading.brief(said)}; put them into a list",
            )
            said = []
        sentences = tuple(_sentence(each, path, video, tell) for each in said)
        found = TIMES.match(video)
        seconds = reading.number(int(found["end"]) - int(found["start"])) if found else None
        sentences = tuple(s for s in sentences if s is not None)
        records.append(Record(video, (video,), sentences, seconds, source=found["source"] if found else None))
    return records


def _captions(root: Path, tell: Tell) -> tuple[dict, Path]:
    path = root / "raw-captions.json"
    if path.is_file():
        content = reading.read_json(path, tell)
    else:
        path = root / "raw-captions.pkl"
        if not path.is_file():
            tell(
                "no-annotation", f"no annotation file {path}, and no raw-captions.json: expected one of them"
            )
            raise reading.Unreadable(path)
        with path.open("rb") as file:
            content = load_plain_pickle(file, path, tell)
    return reading.mapping(content, "videos", path, tell), path


def _sentence(value: object, path: Path, video: str, tell: Tell) -> str | None:
    """A sentence, or its words joined by spaces as CLIP4Clip joins them."""
    if isinstance(value, list | tuple) and all(isinstance(word, str) for word in value):
        return " ".join(value)
    if isinstance(value, str):
        return value
    tell(
        "wrong-structure",
        f"{path} entry {video}: expected a sentence or its words, got {reading.brief(value)}; remove or fix it",
    )
    return None
