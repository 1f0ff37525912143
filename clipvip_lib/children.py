"""Child processes: fresh Python interpreters with a connection, whose end each side takes for the other's end.

A fork would not do: torch and CUDA do not survive one once they were used.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
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
