"""A headless Chromium, driven by its DevTools protocol: open a page, ask it, touch it, look at it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import patience
import pytest
import websocket

from clipvip_lib.files import CHECKOUT

CHROMIUM = shutil.which("chromium")
LOADS = ("Network.requestWillBeSent", "Network.loadingFailed")
COMPLAINTS = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--mute-audio")
MOUSE = "--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4"

AXE = Path(os.environ.get("AXE_CORE", CHECKOUT / "node_modules" / "axe-core" / "axe.min.js"))
with_axe = pytest.mark.skipif(
    not AXE.is_file(), reason=f"axe-core is not at {AXE}: `npm install axe-core` there"
)

in_a_browser = pytest.mark.skipif(
    not CHROMIUM, reason="chromium is not on PATH: pages are tested by parsing only"
)

#: [contrast by WCAG's formula, text] of every text and placeholder of a page. Folds are opened.
CONTRASTS = """(() => {
  for (const fold of document.querySelectorAll('details')) fold.open = true;
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const parts = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data; };
  const light = (colour) => [0.2126, 0.7152, 0.0722].reduce((sum, share, i) => { const c = parts(colour)[i] / 255;
    return sum + share * (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4); }, 0);
  const behind = (element) => { for (let at = element; at; at = at.parentElement) {
    const colour = getComputedStyle(at).backgroundColor; if (parts(colour)[3] > 250) return colour; } return 'white'; };
  const found = [], walk = document.createTreeWalker(document.body);
  const note = (text, element, part) => {
    if (!text || !element.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true })) return;
    const colours = [getComputedStyle(element, part).color, behind(element)];
    const [a, b] = colours.map(light).sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), text.slice(0, 60)]);
  };
  while (walk.nextNode()) {
    const node = walk.currentNode;
    if (node.nodeType === Node.TEXT_NODE) note(node.data.trim(), node.parentElement);
    else if (node.placeholder) note(node.placeholder, node, '::placeholder');
  }
  return found;
})()"""


class Browser:
    """One tab. ``events`` are what it reported since ``show``."""

    def __init__(self, socket: websocket.WebSocket):
        self.socket, self.number, self.events, self.own = socket, 0, [], ""
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
            if (
                found.get("method") == "Page.javascriptDialogOpening"
            ):  # "leave this page?": nothing goes on before
                leave = {"id": 0, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
                self.socket.send(json.dumps(leave))
            elif found.get("id") != 0:
                self.events.append(found)

    def run(self, script: str) -> object:
        """The value of an expression of JavaScript; a promise is awaited."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, (script[:200], found["exceptionDetails"])
        return found["result"].get("value")

    def show(
        self,
        page: Path | str,
        *,
        width: int = 1280,
        height: int = 900,
        dark: bool = False,
        still: bool = False,
    ) -> None:
        """Open a file, or an address of 127.0.0.1. still: the reader asks for less motion."""
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
        address = page.as_uri() if isinstance(page, Path) else page
        self.own = urllib.parse.urljoin(address, "/")  # where the page may fetch from
        assert "errorText" not in (found := self.ask("Page.navigate", url=address)), (address, found)
        self.wait(f"document.readyState == 'complete' && location.href.startsWith('{self.own}')")

    def wait(self, condition: str) -> object:
        """Until an expression is true; its value."""
        end = time.monotonic() + patience.STILL  # a page that moves lives for ever: signs of life say nothing
        while not (found := self.run(condition)):
            assert time.monotonic() < end, f"never true: {condition}"
            time.sleep(0.05)
        return found

    def within(self, seconds: float, condition: str) -> bool:
        """Whether an expression becomes true in so many seconds."""
        end = time.monotonic() + seconds
        while not (found := self.run(condition)) and time.monotonic() < end:
            time.sleep(0.05)
        return bool(found)

    def type(self, text: str) -> None:
        """What a keyboard would, into what has the focus."""
        for letter in text:
            self.ask("Input.dispatchKeyEvent", type="char", text=letter)

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, **text)

    def point(self, selector: str) -> tuple[float, float]:
        """Move the mouse to the middle of an element, which is scrolled to; where that is."""
        x, y = self.run(f"""(() => {{
          const element = document.querySelector({json.dumps(selector)});
          element.scrollIntoView({{block: 'center'}});
          const {{x, y, width, height}} = element.getBoundingClientRect();
          return [x + width / 2, y + height / 2];
        }})()""")
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        return x, y

    def click(self, selector: str) -> None:
        x, y = self.point(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def choose(self, selector: str, file: Path) -> None:
        """Choose a file in an ``<input type=file>``."""
        root = self.ask("DOM.getDocument")["root"]["nodeId"]
        node = self.ask("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.ask("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def contrasts(self) -> list[tuple[float, str]]:
        """(contrast, text) of everything written on the page, lowest first; WCAG asks for 4.5."""
        return sorted((ratio, text) for ratio, text in self.run(CONTRASTS))

    def violations(self) -> list:
        """What axe finds on the page that matters: [rule, impact, some elements]."""
        self.run(AXE.read_text(encoding="utf-8") + ";0")
        found = self.run("axe.run({resultTypes: ['violations']}).then((found) => found.violations)")
        return [
            (row["id"], row["impact"], [node["html"][:150] for node in row["nodes"][:3]])
            for row in found
            if row["impact"] in ("moderate", "serious", "critical")
        ]

    def complaints(self) -> list:
        """Requests elsewhere than to where the page is from, those that failed, errors and messages of the console."""
        bad = [event["params"] for event in self.events if event["method"] in COMPLAINTS]
        for event in (event for event in self.events if event["method"] in LOADS):
            request = event["params"].get("request", {}).get("url", "")
            if event["method"] == LOADS[1] or not request.startswith((self.own, "data:")):
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
def browser(profile: Path, *, local: bool = False, mouse: bool = False) -> Iterator[Browser]:
    """A fresh Chromium that can reach no host. profile: an empty folder for it; local: it reaches 127.0.0.1.

    mouse: it has one, as at a desk; of itself a headless browser has nothing to point with.
    """
    rules = "MAP * ~NOTFOUND" + ", EXCLUDE 127.0.0.1" * local
    command = [CHROMIUM, "--headless", *QUIET, *[MOUSE] * mouse, f"--host-resolver-rules={rules}"]
    command += [f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        told = profile / "DevToolsActivePort"
        patience.until(lambda: told.exists() and "\n" in told.read_text(), "a browser", process)
        list_of_tabs = f"http://127.0.0.1:{told.read_text().split()[0]}/json"
        with urllib.request.urlopen(list_of_tabs, timeout=patience.STILL) as answer:
            [target] = [found for found in json.load(answer) if found["type"] == "page"][:1]
        address, limit = target["webSocketDebuggerUrl"], patience.STILL
        socket = websocket.create_connection(address, timeout=limit, suppress_origin=True)
        with contextlib.closing(socket):
            yield Browser(socket)
    finally:
        patience.kill(process.pid)
        process.wait()
