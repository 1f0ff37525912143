"""A headless Chromium, driven over its DevTools protocol: pages are opened, typed into and asked what they show."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Self

import patience
import websocket

CHROMIUM = shutil.which("chromium")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--mute-audio")


class Tab:
    """A page of a browser of its own; a context manager. errors: what console, scripts and network complained of."""

    def __init__(self, profile: Path, dark: bool = False, width: int = 1280) -> None:
        command = [
            CHROMIUM,
            "--headless",
            *QUIET,
            f"--window-size={width},1600",
            f"--user-data-dir={profile}",
        ]
        # No name is looked up: what a page fetches from elsewhere fails.
        command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--remote-debugging-port=0"]
        if width > 1000:  # a desk with a mouse; the headless browser has none
            command += ["--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.numbers, self.errors, self.requested = itertools.count(1), [], []
        try:
            told = profile / "DevToolsActivePort"
            patience.until(lambda: told.exists() and "\n" in told.read_text(), "a browser", self.process)
            port = told.read_text().splitlines()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=60) as answer:
                address = next(
                    each["webSocketDebuggerUrl"] for each in json.load(answer) if each["type"] == "page"
                )
            self.socket = websocket.create_connection(address, timeout=120, suppress_origin=True)
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            self.call("Emulation.setEmulatedMedia", features=[scheme])
            size = {"width": width, "height": 1600, "deviceScaleFactor": 1, "mobile": False}
            self.call("Emulation.setDeviceMetricsOverride", **size)
        except BaseException:
            patience.kill(self.process.pid)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()
        patience.kill(self.process.pid)
        self.process.wait()

    def call(self, method: str, **parameters: object) -> dict:
        """A command's result; events that come meanwhile are noted."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            told = json.loads(self.socket.recv())
            if told.get("id") == number:
                assert "error" not in told, told
                return told["result"]
            self._note(told.get("method", ""), told.get("params", {}))

    def _note(self, event: str, about: dict) -> None:
        if event == "Runtime.exceptionThrown" or (
            event == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning")
        ):
            self.errors.append(json.dumps(about)[:500])
        elif event == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.errors.append(json.dumps(about["args"])[:500])
        elif event == "Network.requestWillBeSent" and not about["request"]["url"].startswith("chrome"):
            self.requested.append(about["request"]["url"])  # chrome://: of its own start page

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def ask(self, expression: str) -> object:
        """The value of a JavaScript expression, a promise's when it comes."""
        told = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def until(self, expression: str) -> None:
        patience.until(lambda: self.ask(expression), expression, self.process, pause=0.1)

    def type(self, text: str) -> None:
        """As on a keyboard, with Enter behind it."""
        self.call("Input.insertText", text=text)
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, **key)

    def point(self, selector: str) -> None:
        """Move the mouse to the middle of an element, which is scrolled to."""
        place = f"document.querySelector('{selector}')"
        self.ask(f"{place}.scrollIntoView({{block: 'center'}})")
        box = self.ask(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({place}.getBoundingClientRect())"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])

    def choose(self, selector: str, file: Path) -> None:
        """Choose a file in an ``<input type=file>``."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def contrasts(self) -> list[tuple[float, str]]:
        """(contrast of the WCAG, text) of everything written on the page, lowest first."""
        return sorted((ratio, text) for ratio, text in self.ask(CONTRASTS))


CONTRASTS = """(() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color.slice(0, 3);
    }
    return [255, 255, 255];
  };
  return [...document.body.querySelectorAll("*")].filter((element) =>
    element.checkVisibility() && (element.placeholder ||
    [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))).map((element) => {
      const style = getComputedStyle(element, element.placeholder ? "::placeholder" : null);
      const [one, two] = [light(parse(style.color).slice(0, 3)), light(behind(element))].sort((a, b) => b - a);
      return [(one + 0.05) / (two + 0.05), (element.placeholder || element.textContent).trim().slice(0, 60)];
    });
})()"""
