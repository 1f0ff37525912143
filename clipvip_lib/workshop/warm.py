"""One process that has imported the heavy libraries, and its copies, which run stages and execute notebooks.

A fresh interpreter spends ten seconds on torch, transformers and Jupyter before it does anything, and a run needs a
dozen interpreters. The warm process imports the libraries once and is forked on request. decord, torch and CUDA do
not survive a fork once they were used, and neither does any thread, so the warm process only imports. If an import
started a thread after all, or such forks are unsafe on the system (macOS), the request gets a fresh interpreter.

No process outlives the one that asked for it. Every copy has its own connection to the warm process. When that
connection ends, for whatever reason, the warm process kills what was started over it. The first connection leads to
the process that started the warm process; when it ends, so does the warm process, and the copies then see the end of
their own connections and end too.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path

from clipvip_lib.children import Child
from clipvip_lib.heap import keep_freed_memory
from clipvip_lib.workshop.stages import load_function

GRACE_SECONDS = 3.0  # how long a copy may take to end its children before it is killed
POLL_SECONDS = 0.02
# Arrow's allocator starts a thread when pandas imports it.
ENVIRONMENT = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}
FRESH = sys.platform != "linux"  # after such imports, macOS's own libraries do not survive a fork
ENDED = (EOFError, OSError)  # what Link and Copy raise when the warm process has ended

ours: Link | None = None  # in a copy, its connection to the warm process


# --- the side of the clients -------------------------------------------------------------------------------


class Link:
    """A connection to the warm process. Its methods, and those of its copies, raise ENDED if the warm process ended."""

    def __init__(self, connection: Connection):
        self.connection, self.started = connection, 0

    def start(
        self,
        target: str,
        arguments: Sequence[object] = (),
        *,
        environment: Mapping[str, str],
        folder: str | Path,
        output: int = 1,
        channel: int | None = None,
    ) -> Copy:
        """Start a process, in a session of its own, that calls ``module:function`` with the arguments (JSON values).

        environment: all its variables. folder: where it works. output: the descriptor that it prints to.
        channel: a socket's descriptor, which becomes the function's last argument, as a Connection.
        """
        self.started += 1
        handles = [output] if channel is None else [output, channel]
        task = {"target": target, "arguments": list(arguments), "folder": str(folder)}
        self.connection.send(("start", self.started, task | {"environment": dict(environment)}, len(handles)))
        for handle in handles:
            send_handle(self.connection, handle, None)
        return Copy(self, self.started)


class Copy:
    """A process that the warm process started, with the methods of subprocess.Popen that jupyter_client calls."""

    stdin = stdout = stderr = None

    def __init__(self, link: Link, number: int):
        self.link, self.number, self.returncode = link, number, None

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while the process runs."""
        if self.returncode is None:
            self.link.connection.send(("poll", self.number))
            self.returncode = self.link.connection.recv()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises TimeoutError if the process is still running."""
        start = time.monotonic()
        while (code := self.poll()) is None:
            if timeout is not None and time.monotonic() - start > timeout:
                raise TimeoutError
            time.sleep(POLL_SECONDS)
        return code

    def send_signal(self, number: int) -> None:
        """Signals the process and those of its children that are in its group. Does nothing if it has ended."""
        self.link.connection.send(("signal", self.number, number))

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Warm(Link):
    """A warm process, started here.

    modules: what it imports; one that cannot be imported is reported by the stage that needs it.
    environment: its variables; what libraries read when they are imported, such as the number of threads, is the same
    for all copies. log: where it prints to.
    """

    def __init__(self, modules: Iterable[str], environment: Mapping[str, str], log: Path):
        self.log = log
        with log.open("ab") as output:
            arguments = ["-m", "clipvip_lib.workshop.warm"]
            child = Child(arguments, environment={**environment, **ENVIRONMENT}, output=output)
        self.process = child.process
        super().__init__(child.connection)
        child.send((list(modules), FRESH))  # if it is dead already, the next request will raise

    def end(self) -> None:
        """End it and everything started over it. Its children get GRACE_SECONDS to end by themselves."""
        self.connection.close()
        self.process.terminate()  # noticed only while it imports
        try:
            self.process.wait(2 * GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


# --- the warm process --------------------------------------------------------------------------------------


def main(given: Sequence[str]) -> None:
    """The warm process or, with ``--task``, a fresh interpreter in place of a copy."""
    keep_freed_memory()
    if given[0] == "--task":
        _call(json.loads(given[1]))
        return
    root = Connection(int(given[0]))
    modules, fresh = root.recv()
    os.chdir("/")  # in the user's folder matplotlib would read a matplotlibrc
    fresh = fresh or not preload(modules)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # from now on it ends with its connection
    if task := _serve(root, fresh):  # in a copy, which ends like any other program
        _call(task)


def preload(modules: Iterable[str]) -> bool:
    """Import the modules. Returns whether this process still has one thread, and so may be forked.

    Ends this process where its parent is gone: nobody looks at the connection before all is imported.
    """
    parent = os.getppid()
    for name in modules:
        if os.getppid() != parent:
            os._exit(1)
        try:
            importlib.import_module(name)
        except Exception:
            traceback.print_exc()
    gc.freeze()  # so that copies share the imports; at their end it must be undone, or libraries complain
    atexit.register(gc.unfreeze)
    return len(list(Path("/proc/self/task").iterdir())) == 1


class _Process:
    """A child of the warm process. id: None if it could not be started."""

    def __init__(self, id: int | None):
        self.id, self.code = id, None if id else 1

    def poll(self) -> int | None:
        if self.code is None and (found := os.waitpid(self.id, os.WNOHANG))[0]:
            self.code = os.waitstatus_to_exitcode(found[1])
            with contextlib.suppress(OSError):  # what it left behind in its group
                os.killpg(self.id, signal.SIGKILL)
        return self.code

    def signal(self, number: int) -> None:
        if self.poll() is None:
            try:
                os.killpg(self.id, number)
            except OSError:  # it has no group yet
                os.kill(self.id, number)

    def end(self) -> None:
        while self.poll() is None:
            self.signal(signal.SIGKILL)
            time.sleep(POLL_SECONDS)


def _serve(root: Connection, fresh: bool) -> dict | None:
    """Serve requests until the root's other end has gone, and end the processes of clients that have gone.

    Returns, in a copy, what it is to call; None in the warm process.
    """
    clients: dict[Connection, dict[int, _Process]] = {root: {}}
    while root in clients:
        for client in wait(list(clients)):
            try:
                kind, number, *rest = client.recv()
                handles = [recv_handle(client) for _ in range(rest[1])] if kind == "start" else []
            except ENDED:
                _end(client, clients, root)
                if client is root:
                    break
                continue
            if kind == "start":
                mine, its = socket.socketpair()
                process = _Process(_fork())
                if process.id == 0:
                    for each in (mine, *clients):
                        each.close()
                    return _prepared(rest[0], handles, its.detach(), fresh)
                for handle in (its.detach(), *handles):
                    os.close(handle)
                clients[client][number] = process
                clients[Connection(mine.detach())] = {}
            elif kind == "signal":
                clients[client][number].signal(*rest)
            else:
                with contextlib.suppress(OSError):  # its end is noticed next
                    client.send(clients[client][number].poll())
    return None


def _end(client: Connection, clients: dict[Connection, dict[int, _Process]], root: Connection) -> None:
    """End what this client asked for; if it is the root, end everything."""
    started = list(clients.pop(client).values())
    client.close()
    if client is root:  # its children leave by themselves, because their connections to it have ended too
        deadline = time.monotonic() + GRACE_SECONDS
        while any(each.poll() is None for each in started) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        started += [each for some in clients.values() for each in some.values()]
    for each in started:
        each.end()


def _fork() -> int | None:
    try:
        return os.fork()
    except OSError:
        traceback.print_exc()
        return None


def _prepared(task: dict, handles: list[int], link: int, fresh: bool) -> dict:
    """Make this copy the task's own process. Returns what to call in it, unless a fresh interpreter takes its place."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    output, *channels = handles
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.chdir(task["folder"])
    called = {"target": task["target"], "arguments": task["arguments"], "channels": channels, "link": link}
    if fresh:
        for handle in (*channels, link):
            os.set_inheritable(handle, True)
        command = [sys.executable, "-P", "-m", "clipvip_lib.workshop.warm", "--task", json.dumps(called)]
        os.execve(sys.executable, command, task["environment"])
    os.environ.clear()
    os.environ.update(task["environment"])
    return called


def _call(called: dict) -> None:
    global ours
    for handle in (*called["channels"], called["link"]):  # they end with this process, not with its children
        os.set_inheritable(handle, False)
    ours = Link(Connection(called["link"]))
    channels = [Connection(handle) for handle in called["channels"]]
    load_function(called["target"])(*called["arguments"], *channels)


if __name__ == "__main__":
    # By its name: stages that read `ours` import this module, and __main__ is a different one.
    importlib.import_module("clipvip_lib.workshop.warm").main(sys.argv[1:])
