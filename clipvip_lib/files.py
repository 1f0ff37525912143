"""Where working files live, and how they are written: to a temporary name first, then renamed.

A reader therefore never sees half a file, and a kill leaves at most a name that ends in ``.partial``.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from clipvip_lib.errors import ClipVipError

CHECKOUT = Path(__file__).resolve().parent.parent


def home() -> Path:
    """The folder of working files: ``$CLIPVIP_HOME``, or ``.clipvip/`` beside the library's checkout."""
    return Path(os.environ.get("CLIPVIP_HOME") or CHECKOUT / ".clipvip").expanduser().resolve()


def make_folder(path: str | Path) -> Path:
    """Create a folder with its parents. Raises ClipVipError if it cannot be created or written to."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(13, "it is read-only")
    except OSError as error:
        raise ClipVipError(
            f"cannot write to {path}: expected a writable folder, got {error.strerror}; choose another one"
        ) from error
    return path


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it becomes ``path``, on an error it is removed.

    Raises ClipVipError, and leaves an older ``path`` as it was, when the disk is full or read-only.
    """
    path = Path(path)
    make_folder(path.parent)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise ClipVipError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another folder, "
            "nothing was overwritten"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write a file whole or not at all."""
    with atomic_path(path) as partial:
        partial.write_bytes(content)
    return Path(path)


def write_json(path: str | Path, value: object) -> Path:
    """Write JSON (sorted as given, two spaces, NaN refused) whole or not at all."""
    return write_bytes(
        path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    )


def read_json(path: str | Path) -> object:
    """Read a JSON file. Raises ClipVipError naming the file if it is missing or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ClipVipError(f"no file {path}: expected a JSON file there") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ClipVipError(f"{path} is not JSON ({error}); write it again or remove it") from error
