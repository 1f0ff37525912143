"""Weights by their name on the Hugging Face Hub, as transformers and open_clip write it, fetched once as files.

    openai/clip-vit-base-patch32                    config.json and what transformers saves beside it
    hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K    open_clip_config.json and open_clip's weights

They lie in huggingface_hub's own cache, and what is there whole is not asked for again: a name then means the same
weights from one start to the next, with a network or without. No file of code is fetched.
"""

from __future__ import annotations

import re
from pathlib import Path

from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import kind_of, read_json

OPEN_CLIP = "hf-hub:"
OPEN_CLIP_CONFIG = "open_clip_config.json"
SECONDS = 10.0  # that the Hub has to answer in
_NAME = re.compile(rf"(?:{OPEN_CLIP})?[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
#: Files of weights, the first that is there; of one in several parts there is an index.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TOKENIZER = "clip_tokenizer.json"  # CLIP's, beside its weights
BPE_FILES = ("vocab.json", "merges.txt")  # of OFA's tokenizer
_WEIGHTS = {False: WEIGHT_FILES, True: OPEN_CLIP_WEIGHTS}
_BESIDE = (TOKENIZER, *BPE_FILES)


def is_hub_name(source: str | Path) -> bool:
    """Whether a source is a name of the Hub: of its form, and no path that is or might be there."""
    text = str(source)
    if not _NAME.fullmatch(text):
        return False
    return text.startswith(OPEN_CLIP) or not (kind_of(text) or kind_of(text.partition("/")[0]))


def local(source: str | Path) -> Path:
    """The path of a source of weights: its own, or of a name of the Hub the folder in the cache, fetched if need be.

    Raises ClipVipError for an unknown model, one without weights of this form, or if the Hub cannot be reached.
    """
    if not is_hub_name(source):
        return Path(source)
    from huggingface_hub import hf_hub_download

    name = str(source)
    repository = name.removeprefix(OPEN_CLIP)
    if (folder := _cached(repository)) and _is_whole(folder, name):
        return folder
    wanted = _wanted(name, _listed(name))
    try:
        (folder, *_) = {Path(hf_hub_download(repository, file)).parent for file in wanted}
        return folder
    except Exception as error:  # whatever a connection, a disk, a checksum make of it
        raise _not_fetched(name, error) from error


def expect(name: str) -> None:
    """Raises ClipVipError unless the Hub, or its cache on this machine, has weights under this name. Fetches none."""
    if not ((folder := _cached(name.removeprefix(OPEN_CLIP))) and _is_whole(folder, name)):
        _wanted(name, _listed(name))


def expect_any(name: str) -> None:
    """Raises ClipVipError unless the Hub, or its cache on this machine, has a model of this name, whatever its form."""
    if not _cached(name):
        _listed(name)


def _cached(repository: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError):
        return None


def _is_whole(folder: Path, name: str) -> bool:
    """Whether a snapshot in the cache has all that a name needs: an interrupted one has a part."""
    there = {path.name for path in folder.iterdir() if path.exists()}
    try:
        wanted = set(_wanted(name, sorted(there)))
    except ClipVipError:
        return False
    index = next((file for file in wanted if file.endswith(".index.json")), None)
    if index is None:
        return True
    content = read_json(folder / index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    return not isinstance(places, dict) or {str(part) for part in places.values()} <= there


def _listed(name: str) -> list[str]:
    """The files that the Hub has of a model: one request and no further try, so that a wrong name is told at once."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise _not_fetched(name, "HF_HUB_OFFLINE is set")
    try:
        return [
            each.rfilename
            for each in HfApi().model_info(name.removeprefix(OPEN_CLIP), timeout=SECONDS).siblings or []
        ]
    except Exception as error:
        raise _not_fetched(name, error) from error


def _wanted(name: str, files: list[str]) -> list[str]:
    """The names of the files to fetch, of those that there are. Raises ClipVipError if weights are missing."""
    is_open_clip = name.startswith(OPEN_CLIP)
    config = OPEN_CLIP_CONFIG if is_open_clip else "config.json"
    for weights in _WEIGHTS[is_open_clip]:
        stem, _, suffix = weights.rpartition(".")
        if config in files and weights in files:
            found = [weights]
        elif config in files and f"{weights}.index.json" in files:
            part = re.compile(rf"{stem}-\d+-of-\d+\.{suffix}")
            found = [f"{weights}.index.json", *filter(part.fullmatch, files)]
        else:
            continue
        return [config, *found, *(each for each in _BESIDE if each in files)]
    other = name.removeprefix(OPEN_CLIP) if is_open_clip else OPEN_CLIP + name
    raise ClipVipError(
        f"{name} on the Hugging Face Hub expected {config} and {' or '.join(_WEIGHTS[is_open_clip])}, they are not "
        f"there; name another model, or {other!r} for the other form"
    )


def _not_fetched(name: str, why: Exception | str) -> ClipVipError:
    if type(why).__name__ in ("RepositoryNotFoundError", "GatedRepoError", "HFValidationError"):
        said = "the Hugging Face Hub has none under this name, or not for everybody"
    else:
        reason = next(iter(str(why).strip().splitlines()), type(why).__name__)
        said = f"it is not in the cache of this machine and the Hugging Face Hub does not give it ({reason:.120})"
    return ClipVipError(
        f"no file or folder {name!r}, and as the name of a model: {said}; check it, or download the model on a machine "
        "with a network and give its folder"
    )
