"""A headless chromium, driven by its DevTools protocol: open a page from the disk, ask it, touch it, look at it."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import websocket

CHROMIUM = shutil.which("chromium")
SECONDS = 60  # for an answer, on a machine that others use
LOADS = ("Network.requestWillBeSent", "Network.loadingFailed")
COMPLAINTS = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")


class Browser:
    """One tab. ``events`` are what it reported since ``show``."""

    def __init__(self, socket: websocket.WebSocket):
        self.socket, self.number, self.events = socket, 0, []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")
        self.ask("Emulation.setFocusEmulationEnabled", enabled=True)  # as the window in front

    def ask(self, method: str, **parameters: object) -> dict:
        """The answer to a call of the protocol; what is reported meanwhile is kept."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            found = json.loads(self.socket.recv())
            if found.get("id") == self.number:
                assert "error" not in found, (method, found["error"])
                return found["result"]
            self.events.append(found)

    def run(self, script: str) -> object:
        """The value of an expression of JavaScript; a promise is awaited."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, (script[:200], found["exceptionDetails"])
        return found["result"].get("value")

    def show(
        self, page: Path, *, width: int = 1280, height: int = 900, dark: bool = False, still: bool = False
    ) -> None:
        """Open a page from file://, without a network. still: the reader asks for less motion."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"},
        ]
        self.ask("Emulation.setEmulatedMedia", features=features)
        self.events.clear()
        self.ask("Page.navigate", url=page.as_uri())
        self.wait("document.readyState == 'complete' && location.href.startsWith('file')")

    def wait(self, condition: str) -> object:
        """Until an expression is true; fails after a minute."""
        end = time.monotonic() + SECONDS
        while not (found := self.run(condition)):
            assert time.monotonic() < end, f"never true: {condition}"
            time.sleep(0.05)
        return found

    def type(self, text: str) -> None:
        """What a keyboard would, into what has the focus."""
        for letter in text:
            self.ask("Input.dispatchKeyEvent", type="char", text=letter)

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, **text)

    def complaints(self) -> list:
        """Requests that are not the page or inside it, those that failed, errors and messages of the console."""
        bad = [event["params"] for event in self.events if event["method"] in COMPLAINTS]
        for event in (event for event in self.events if event["method"] in LOADS):
            request = event["params"].get("request", {}).get("url", "")
            if event["method"] == LOADS[1] or not request.startswith(("file:", "data:")):
                bad.append(event["params"])
        return [json.dumps(event)[:400] for event in bad]

    def picture(self, path: Path, height: int | None = None) -> None:
        """A screenshot of the page's first pixels, the whole page for None."""
        height = height or self.run("document.documentElement.scrollHeight")
        width = self.run("innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self.ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A fresh chromium that can reach no host; profile: an empty folder for it."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-port=0"]
    command += [f"--user-data-dir={profile}", "--remote-allow-origins=*", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port, end = profile / "DevToolsActivePort", time.monotonic() + SECONDS
        while not port.exists() or not port.read_text().strip():
            assert process.poll() is None and time.monotonic() < end, "chromium did not start"
            time.sleep(0.05)
        with urllib.request.urlopen(f"http://127.0.0.1:{port.read_text().split()[0]}/json") as answer:
            [target] = [found for found in json.load(answer) if found["type"] == "page"][:1]
        socket = websocket.create_connection(target["webSocketDebuggerUrl"], timeout=SECONDS)
        with contextlib.closing(socket):
            yield Browser(socket)
    finally:
        process.terminate()
        process.wait(SECONDS)
