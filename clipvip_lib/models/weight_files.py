"""Files of weights, read without running what is in them, and named for what they are when they are no
weights.

A download that went wrong leaves a git-LFS pointer, a web page or half a file under the right name; a pickle
can run any code. So: ``.pt`` with weights_only, and one clear sentence for everything else.
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

from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import read_json

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
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ClipVipError(
            f"{path} expected a state dict of named tensors, got {_describe(state)}; save model.state_dict()"
        )
    return dict(state)


def read_folder(path: str | Path) -> tuple[dict, dict[str, Tensor]]:
    """config.json and the weights of a save_pretrained folder; weights in several files are joined.

    Raises ClipVipError if one of them is missing or damaged.
    """
    path = Path(path)
    config = read_json(path / "config.json")
    if not isinstance(config, dict):
        raise ClipVipError(f"{path / 'config.json'} expected a JSON object, got {type(config).__name__}")
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path / name).is_file():
            return config, read_weights(path / name)
        if (path / f"{name}.index.json").is_file():
            parts = sorted(set(read_json(path / f"{name}.index.json")["weight_map"].values()))
            return config, {k: v for part in parts for k, v in read_weights(path / part).items()}
    raise ClipVipError(
        f"{path} expected model.safetensors or pytorch_model.bin beside config.json, got neither"
    )


def _refuse_non_weights(path: Path, head: bytes) -> None:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise ClipVipError(
                    f"{path} is a TorchScript program, as OpenAI released CLIP, not a file of weights; give the "
                    'open_clip name ("ViT-B-32") with the tag "openai" instead'
                )
    start = head.lstrip().lower()
    if not head:
        raise ClipVipError(f"{path} is empty: expected weights; download it again")
    if start.startswith(b"version https://git-lfs"):
        raise ClipVipError(
            f"{path} is a git-LFS pointer, not the weights it points to; run git lfs pull, or download the "
            "file itself"
        )
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
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
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        raise ClipVipError(
            f"{path} is damaged, cut short or no file of weights ({_first(error)}); download or write it "
            "again"
        ) from error


def _first(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{lines[0]:.120}" if lines else type(error).__name__


def _describe(state: object) -> str:
    if not isinstance(state, dict):
        return type(state).__name__
    others = [f"{name}: {type(v).__name__}" for name, v in state.items() if not isinstance(v, Tensor)]
    return f"a dict with {', '.join(others[:3])}" if others else "an empty dict"
