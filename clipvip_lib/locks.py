"""Locks between processes: each is held by one living process, or by nobody.

They are the operating system's locks (``flock``); a file's mere presence or age means nothing. The kernel releases a
lock the moment its process dies, by whatever signal, so nothing has to be cleaned up and no clocks are compared. While
a process lives, even stopped or slow, nobody else gets what it holds. Between machines that share a folder the lock
must be on a file: local disks, NFS (version 4, or 3 with its lock service), GPFS and CephFS keep such locks; Lustre
does where it is mounted with ``flock``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
from pathlib import Path

from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import make_folder


class Taken(ClipVipError):
    """Another process holds the lock. ``holder``: who, for people; empty for a folder's lock."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{path} is held by {holder or 'another process'}; wait for it, or stop it")
        self.holder = holder


class Lock:
    """The lock of an existing folder, or of a file, which is created and says who holds it: ``with Lock(path): ..``

    wait: wait for its turn; without it, `Taken` is raised if another process has the lock.
    Attribute ``left_by``: who held the file's lock and died with it, or ended with a full disk; "" if nobody did.

    Raises ClipVipError for what is no file or folder (a pipe, a device), a file that cannot be opened or written, and a
    file system without locks.
    """

    def __init__(self, path: str | Path, *, wait: bool = False) -> None:
        self.path, self.left_by = Path(path), ""
        folder = self.path.is_dir()
        if not folder:
            make_folder(self.path.parent)
        try:
            # Not blocking: a pipe may wait for its other end for ever.
            how = os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT | os.O_NONBLOCK
            self._handle = os.open(self.path, how, 0o644)
        except OSError as error:
            raise ClipVipError(
                f"cannot open {self.path}: expected a file to lock, got {error.strerror}; choose another folder"
            ) from error
        if not folder and not stat.S_ISREG(os.fstat(self._handle).st_mode):
            self.release()
            raise ClipVipError(
                f"cannot lock {self.path}: expected a file, got a pipe or a device; remove it, or choose another folder"
            )
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            holder = "" if folder else self._said()
            self.release()
            raise Taken(self.path, holder) from None
        except OSError as error:
            self.release()
            raise ClipVipError(
                f"cannot lock {self.path}: expected a file system with locks, got {error.strerror}; choose a folder on "
                "another one (a local disk, or NFS with its lock service)"
            ) from error
        if not folder:
            self.left_by = self._said()
            with contextlib.suppress(OSError):  # a full disk: the lock itself needs no room
                os.ftruncate(self._handle, 0)
                os.pwrite(self._handle, f"process {os.getpid()} of {socket.gethostname()}".encode(), 0)

    def _said(self) -> str:
        return os.pread(self._handle, 200, 0).decode(errors="replace").strip()

    def release(self) -> None:
        """Let go. Nothing happens the second time."""
        # Forgotten first: Ctrl-C after the closing must not let a second call close somebody else's file.
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_) -> None:
        self.release()
