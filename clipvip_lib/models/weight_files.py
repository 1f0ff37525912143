"""Reads files of weights without running what is in them, and says what a file is if it does not hold weights.

A download that went wrong leaves a git-LFS pointer, a web page or half a file under the right name; a pickle
can run any code. So ``.pt`` files are read with weights_only, and everything else gets one clear sentence.
"""

from __future__ import annotations

import argparse
import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clipvip_lib.errors import ClipVipError, first_line
from clipvip_lib.files import read_json
from clipvip_lib.models.hub import WEIGHT_FILES

#: First bytes of files that are something else.
OTHER_FILES = {b"\x1f\x8b": "a gzip archive", b"GGUF": "a GGUF file", b"\x89HDF": "an HDF5 file"}

#: Where programs put the weights in what they save.
WRAPPERS = ("state_dict", "model", "model_state_dict")

#: What programs put before the names of weights, and what to do about it; the first that fits is said.
PREFIXES = {
    "module.clip.": "a CLIP4Clip checkpoint, another model; start from the CLIP that it was made from",
    "module._orig_mod.": "saved from inside torch.compile and DistributedDataParallel; save "
    "model.module._orig_mod.state_dict(), or strip the prefix",
    "_orig_mod.module.": "saved from inside DistributedDataParallel and torch.compile; save "
    "model._orig_mod.module.state_dict(), or strip the prefix",
    "module.": "saved from inside DistributedDataParallel; save model.module.state_dict(), or strip the prefix",
    "_orig_mod.": "saved from inside torch.compile; save model._orig_mod.state_dict(), or strip the prefix",
    "model.": "saved as a part of another module; save that part's state_dict(), or strip the prefix",
    "clipmodel.clipmodel.": "the authors' prefix twice; strip one",
}

#: Plain data that fairseq stores beside its weights: a configuration, and scores as numpy numbers. None runs code.
PLAIN_DATA = [
    argparse.Namespace,
    np.dtype,
    (np.ndarray, "numpy.ndarray"),
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),
    *(type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int32, np.int64)),
]


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """A flat state dict, name -> tensor, from a .safetensors file or a file of torch.save (.pt, .pth, .bin).

    A dict that holds the weights under "state_dict" or "model" is unwrapped. Raises ClipVipError if the file
    is missing, cut short, a git-LFS pointer, a web page, holds code to run, or holds anything but named
    tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ClipVipError(f"no file {path}: expected weights there (.pt or .safetensors)")
    with path.open("rb") as file:
        head = file.read(512)
    _refuse_non_weights(path, head)
    state = _read_safetensors(path) if _is_safetensors(head) else _read_torch(path)
    if isinstance(state, dict):
        wrapped = [name for name in WRAPPERS if isinstance(state.get(name), dict)]
        loose = [name for name, value in state.items() if isinstance(value, Tensor)]
        if len(wrapped) > 1 or (wrapped and loose):
            raise ClipVipError(
                f"{path} holds weights in more than one place ({', '.join([*wrapped, *map(str, loose[:3])])}); "
                "save one state dict"
            )
        state = state[wrapped[0]] if wrapped else state
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ClipVipError(
            f"{path} expected a state dict of named tensors, got {_describe(state)}; save model.state_dict()"
        )
    if not all(isinstance(name, str) for name in state):
        raise ClipVipError(
            f"{path} expected names of weights, got {next(n for n in state if not isinstance(n, str))!r}"
        )
    return dict(state)


def refuse_prefixes(state: dict[str, Tensor], source: str) -> None:
    """Raise ClipVipError if the names carry what another program puts before them, and say which."""
    for prefix, what in PREFIXES.items():
        if any(name.startswith(prefix) for name in state):
            raise ClipVipError(
                f"{source} expected the released names of weights, got names that start with {prefix!r}: {what}"
            )


def read_folder(path: str | Path) -> tuple[dict, dict[str, Tensor]]:
    """config.json and the weights of a save_pretrained folder; weights in several files are joined.

    Raises ClipVipError if one of them is missing or damaged.
    """
    path = Path(path)
    config = read_json(path / "config.json")
    if not isinstance(config, dict):
        raise ClipVipError(f"{path / 'config.json'} expected a JSON object, got {type(config).__name__}")
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return config, read_weights(path / name)
        if (path / f"{name}.index.json").is_file():
            return config, _read_parts(path, f"{name}.index.json")
    raise ClipVipError(
        f"{path} expected model.safetensors or pytorch_model.bin beside config.json, got neither"
    )


def _read_parts(path: Path, index: str) -> dict[str, Tensor]:
    """Weights in several files, each name in the file that the index says, and in no other."""
    content = read_json(path / index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(
        isinstance(p, str) and Path(p).name == p for p in places.values()
    ):
        raise ClipVipError(
            f"{path / index} expected a weight_map from names to files of this folder; fetch it again"
        )
    state: dict[str, Tensor] = {}
    for part in sorted(set(places.values())):
        for name, value in read_weights(path / part).items():
            if places.get(name) != part:
                raise ClipVipError(
                    f"{path / part} holds {name}, which {index} has in {places.get(name)}; fetch the folder again"
                )
            state[name] = value
    if lost := sorted(set(places) - set(state)):
        raise ClipVipError(
            f"{path} lacks {lost[0]}, which {index} has in {places[lost[0]]}; fetch the folder again"
        )
    return state


def _refuse_non_weights(path: Path, head: bytes) -> None:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise ClipVipError(
                    f"{path} is a TorchScript program, as OpenAI released CLIP, not a file of weights; give the "
                    'open_clip name ("ViT-B-32") with the tag "openai" instead'
                )
    for magic, what in OTHER_FILES.items():
        if head.startswith(magic):
            raise ClipVipError(
                f"{path} is {what}, not weights of torch or safetensors; unpack or convert it first"
            )
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not head:
        raise ClipVipError(f"{path} is empty: expected weights; download it again")
    if start.startswith(b"version https://git-lfs"):
        raise ClipVipError(
            f"{path} is a git-LFS pointer, not the weights it points to; run git lfs pull, or download the "
            "file itself"
        )
    if start.startswith(
        (b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<!--", b'{"error', b"404", b"not found")
    ):
        raise ClipVipError(
            f"{path} is a web page, not weights; the download link led to a page, download the file itself"
        )


def _is_safetensors(head: bytes) -> bool:
    """Eight bytes of length, then JSON."""
    return head[8:9] == b"{" and not head.startswith((b"PK", b"\x80"))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ClipVipError(f"{path} is damaged or cut short ({error}); download or write it again") from error


def _read_torch(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an unusual pickle protocol: it is read or refused below
            with torch.serialization.safe_globals(PLAIN_DATA):
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises to load it all the same, with weights_only=False: not repeated here.
        raise ClipVipError(
            f"{path} expected tensors only, got something else: damaged, or Python objects that would run "
            "code, "
            "and were not run; download it again or ask for a .safetensors file"
        ) from error
    except Exception as error:  # whatever torch makes of bytes that are not a checkpoint
        raise ClipVipError(
            f"{path} is damaged, cut short or not a file of weights ({first_line(error)}); download or write it "
            "again"
        ) from error


def _describe(state: object) -> str:
    if not isinstance(state, dict):
        return type(state).__name__
    others = [f"{name}: {type(v).__name__}" for name, v in state.items() if not isinstance(v, Tensor)]
    return f"a dict with {', '.join(others[:3])}" if others else "an empty dict"
