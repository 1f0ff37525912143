"""A decoder that crashes takes its process with it; a second process survives and names the video.

A fault of memory in C leaves no time for Python. Its faulthandler, which is made for that moment, writes the signal and
the thread into a pipe; what each thread reads stands there already. At the pipe's other end a small process waits. It
starts with the first video that a command reads, and ends with the command.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import subprocess
import sys
import threading

SIGN = "Fatal Python error: "  # what faulthandler begins with
THREAD = "Current thread "
MOST = 1000  # letters of a name: lines of up to 4096 bytes are never mixed in a pipe

armed = False  # by the command line: whoever imports the library has handlers of his own
_pipe: int | None = None
_lock = threading.Lock()


def note(label: str | None) -> None:
    """This thread begins to read a video; None: it ends."""
    if not armed or (faulthandler.is_enabled() and _pipe is None):
        return
    from clipvip_lib.say import shown

    with _lock:
        if _pipe is None:
            _start()
    sign = "-" if label is None else "+"
    line = f"{sign}{threading.get_ident():x} {shown(label or '')[:MOST]}\n"
    with contextlib.suppress(OSError):  # nobody is there to read it any more
        os.write(_pipe, line.encode(errors="backslashreplace"))


def _start() -> None:
    global _pipe
    read, _pipe = os.pipe()
    # By its path, without the package: it is up at once. Ctrl-C in a terminal is not for it.
    command = [sys.executable, "-I", "-S", __file__, str(read)]
    subprocess.Popen(
        command, pass_fds=(read,), stdin=subprocess.DEVNULL, start_new_session=True
    ).returncode = 0
    os.close(read)
    os.set_blocking(_pipe, False)
    faulthandler.enable(_pipe)
    os.register_at_fork(after_in_child=_forget)


def _forget() -> None:
    """A copy of this process has threads of its own."""
    global armed, _pipe
    faulthandler.disable()
    armed, _pipe = False, None


def tell(pipe: int) -> None:
    """Read what a process writes until it is gone, and say what it died of, if it was a crash."""
    reading: dict[int, str] = {}
    fault, thread = "", None
    with open(pipe, encoding="utf-8", errors="replace") as lines:
        for line in map(str.rstrip, lines):
            if line.startswith(SIGN):
                fault = line.removeprefix(SIGN)
            elif line.startswith(THREAD):
                thread = int(line.removeprefix(THREAD).split()[0], 16)
            elif line[:1] in ("+", "-") and not fault:
                ident, _, label = line[1:].partition(" ")
                reading.pop(int(ident, 16), None)
                if line[0] == "+":
                    reading[int(ident, 16)] = label
    if fault and reading:
        names = [reading[thread]] if thread in reading else sorted(set(reading.values()))
        print(
            f"clipvip: the decoder crashed while it read {' or '.join(names)} ({fault}), and with it the command: "
            "expected a picture or an error; take it out, no option can skip it, and run the same command, what was "
            "done is kept",
            file=sys.stderr,
            flush=True,
        )


if __name__ == "__main__":
    tell(int(sys.argv[1]))
