"""Child processes: fresh Python interpreters, joined by a connection; when it closes, each side knows that the other is
gone.

A fork would not do: torch and CUDA do not survive one once they were used. Ranks are torchrun's children, with
no connection to it: they look whether it is still their parent.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import IO


class Child:
    """``python ARGUMENTS CONNECTION HANDLES...``, in its own session: Ctrl-C in a terminal reaches its parent only.

    arguments: of Python, such as ``-m MODULE``; the numbers of the connection's descriptor and of ``handles``, further
    descriptors that the child inherits, follow them. environment: all its variables. output: where it prints to.
    Attributes: process, connection.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        handles: Sequence[int] = (),
        output: IO | None = None,
    ) -> None:
        mine, its = socket.socketpair()
        with its:
            given = (its.fileno(), *handles)
            self.process = subprocess.Popen(
                # -P: a file in the user's folder must not shadow a library
                [sys.executable, "-P", *arguments, *map(str, given)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=None if output is None else subprocess.STDOUT,
                env=dict(os.environ if environment is None else environment),
                pass_fds=given,
                start_new_session=True,
            )
        self.connection = Connection(mine.detach())

    def send(self, message: object) -> None:
        """Nothing happens if it is dead: the end of its connection will be heard."""
        with contextlib.suppress(OSError):
            self.connection.send(message)

    def kill(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


LOOK_SECONDS = 1.0  # between two looks for torchrun
_torchrun: int | None = None  # its process, once ``end_with_torchrun`` looks for it


def end_with_torchrun(last_words: Callable[[], None]) -> None:
    """If torchrun started this process, end it with code 1, as after a lost rank, soon after torchrun is gone.

    torchrun ends its ranks when it can; killed, it leaves them behind, and they would continue without anybody who
    restarts or stops them. Written files are whole at any moment, so the end may come in the middle of a step.
    last_words: called once in each rank before it ends.
    """
    global _torchrun
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    _torchrun = os.getppid()

    def watch() -> None:
        while os.getppid() == _torchrun:
            time.sleep(LOOK_SECONDS)
        try:
            last_words()
        finally:
            os._exit(1)

    threading.Thread(target=watch, name="torchrun", daemon=True).start()


def end_if_orphaned() -> None:
    """If torchrun is gone, wait until this process has said so and ended: other ranks seem lost only because theirs
    looked first. Else return at once."""
    if _torchrun is not None and os.getppid() != _torchrun:
        threading.Event().wait()
