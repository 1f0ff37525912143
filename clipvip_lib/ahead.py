"""Runs an iterator in its own thread, a few items ahead of its reader, so that reading overlaps with the model."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def ahead(items: Generator[T], depth: int, stop: threading.Event) -> Iterator[Iterator[T]]:
    """``with ahead(items, 2, stop) as ready: for item in ready: ...``

    Items come in order; an error of ``items`` is raised where the next item is read. The end of the block, however it
    comes, sets ``stop`` and closes ``items``; an iterator that waits for something should look at ``stop``.
    """
    ready: queue.Queue = queue.Queue(depth)

    def put(kind: str, value: object) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                ready.put((kind, value), timeout=0.2)
                return

    def work() -> None:
        try:
            for item in items:
                put("item", item)
                if stop.is_set():
                    break
            put("end", None)
        except BaseException as error:  # whatever it is, it belongs to the reader
            put("error", error)
        finally:
            items.close()

    def read() -> Iterator[T]:
        while True:
            kind, value = ready.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        yield read()
    finally:
        stop.set()
        if thread is not threading.current_thread():  # the collector may end this anywhere
            thread.join(timeout=10)
