"""Where working files live, and how they are written: to a temporary name first, synced, then renamed.

A reader therefore never sees half a file, and a kill leaves at most a name that ends in ``.partial``. A power cut
leaves no more than a kill does: what has its name was on the disk before.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from clipvip_lib.errors import ClipVipError
from clipvip_lib.say import shown

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
CHECKOUT = (
    Path(__file__).resolve().parent.parent
)  # where the package lies: a checkout, or an installation's folder
INSTALLED = not (CHECKOUT / "notebooks" / "00_start_here.ipynb").is_file()


def shipped(*parts: str) -> Path:
    """A file or folder that comes with the study: of the checkout, or of what pip installed beside the package."""
    return (Path(sysconfig.get_path("data"), "share", "clipvip") if INSTALLED else CHECKOUT).joinpath(*parts)


def workplace() -> Path:
    """Where the study writes if it is told nothing: the checkout, or the present folder if it was installed by pip."""
    return Path.cwd() if INSTALLED else CHECKOUT


def home() -> Path:
    """The folder of working files: ``$CLIPVIP_HOME``, or ``.clipvip/`` in the workplace."""
    named = Path(os.environ.get("CLIPVIP_HOME") or workplace() / ".clipvip")
    try:
        return named.expanduser().resolve()
    except RuntimeError as error:  # ~somebody who is not known here
        raise ClipVipError(
            f"CLIPVIP_HOME is {str(named)!r}: expected a folder, got an unknown user's home; choose another one"
        ) from error


def named(path: str | Path) -> Path:
    """A path that somebody gave. Raises ClipVipError for a NUL in it, at which every call of the system fails."""
    if "\0" in str(path):
        raise ClipVipError(
            f"{str(path)!r} expected the name of a file or folder, got one with a NUL; correct it"
        )
    return Path(path)


def kind_of(path: str | Path) -> str:
    """ "file", "folder", or "" for what is not there, cannot be looked at, or has a name that no system takes."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return ""
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else ""


def make_folder(path: str | Path) -> Path:
    """Create a folder with its parents. Raises ClipVipError if it cannot be created or written to."""
    path = named(path)
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

    Raises ClipVipError, and leaves an older ``path`` as it was, when the disk is full or read-only. Errors that
    are not about writing this file (an input that cannot be read) pass through.
    """
    path = Path(path)
    make_folder(path.parent)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    except Exception as error:
        reason = _why_not_written(error, partial)
        if reason is None:
            raise
        raise ClipVipError(
            f"cannot write {path}: {reason}; free some space or choose another folder, nothing was overwritten"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def sha256(path: str | Path) -> str:
    """The checksum of a file, as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: str | Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk; some disks cannot promise it for a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(handle)


def _why_not_written(error: Exception, partial: Path) -> str | None:
    """What kept a file from being written, or None if the error is about something else."""
    if isinstance(error, OSError) and error.errno is not None:
        ours = error.errno in FULL or error.filename in (None, str(partial), partial)
        return error.strerror if ours else None
    # torch and safetensors raise their own errors when a disk is full
    if isinstance(error, ClipVipError) or shutil.disk_usage(partial.parent).free > 2**16:
        return None
    return os.strerror(errno.ENOSPC)


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write a file whole or not at all."""
    with atomic_path(path) as partial:
        partial.write_bytes(content)
    return Path(path)


def json_line(value: object) -> bytes:
    """A line of a JSON-lines file: one line for every reader, also where Unicode has line ends that JSON keeps."""
    return (shown(json.dumps(value, ensure_ascii=False)) + "\n").encode()


def write_json(path: str | Path, value: object) -> Path:
    """Write JSON (sorted as given, two spaces, NaN refused) whole or not at all."""
    return write_bytes(
        path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    )


def digest(folder: Path, paths: Iterable[Path]) -> str:
    """Hash (16 hex digits) of files: their names below ``folder`` and what they hold, in this order."""
    found = hashlib.sha256()
    for path in paths:
        found.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def read_json(path: str | Path) -> object:
    """Read a JSON file. Raises ClipVipError naming the file if it is missing or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ClipVipError(f"no file {path}: expected a JSON file there") from error
    except OSError as error:
        raise ClipVipError(f"cannot read {path}: expected a JSON file, got {error.strerror}") from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # not JSON, not UTF-8, a number of thousands of digits, or too deep
        raise ClipVipError(f"{path} is not JSON ({error}); write it again or remove it") from error
