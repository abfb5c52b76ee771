"""A headless Chromium for tests of pages, spoken to through its DevTools protocol."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 60  # seconds, for a start beside busy neighbours


def chromium() -> str | None:
    """Return the path of a Chromium, None where none is installed."""
    return next((found for found in map(shutil.which, NAMES) if found), None)


class Browser:
    """One tab; every message of its console and every request is kept.

    Attributes:
        complaints: errors and warnings of the console, and exceptions that nothing caught.
        requests: addresses that the page asked for.
    """

    def __init__(self, address: str) -> None:
        import websocket

        self.complaints: list[str] = []
        self.requests: list[str] = []
        # Chromium refuses unknown origins; none is sent.
        self._socket = websocket.create_connection(address, timeout=PATIENCE, suppress_origin=True)
        self._number = 0
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(parameters["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning"):
            self.complaints.append(json.dumps(parameters["args"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.complaints.append(json.dumps(parameters["entry"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression of JavaScript; promises are awaited."""
        answer = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def show(
        self, page: Path, *, width: int = 1280, height: int = 900, theme: str = "light"
    ) -> None:
        """Open a file in a window of this size, in the light or the dark theme."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        self.send(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": theme}],
        )
        self.send("Page.navigate", url=page.resolve().as_uri())
        self.wait_for("document.readyState === 'complete'")

    def wait_for(self, condition: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < end, f"never came true: {condition}"
            time.sleep(0.05)

    def press(self, key: str, code: int) -> None:
        """Press and release a key, with the text that it types."""
        text = {"Enter": "\r"}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, text=text,
                windowsVirtualKeyCode=code,
            )  # fmt: skip

    def click(self, selector: str) -> None:
        """Click in the middle of an element with the mouse."""
        place = self.evaluate(
            "(() => { const e = document.querySelector(" + json.dumps(selector) + ");"
            "e.scrollIntoView({behavior: 'instant', block: 'center'});"
            "const b = e.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send(
                "Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left",
                clickCount=1,
            )  # fmt: skip

    def choose(self, selector: str, value: str, event: str) -> None:
        """Give a field a value as if the reader had chosen it."""
        self.evaluate(
            f"(() => {{ const field = document.querySelector({json.dumps(selector)});"
            f"field.value = {json.dumps(value)};"
            f"field.dispatchEvent(new Event({json.dumps(event)})); }})()"
        )

    def screenshot(self, path: Path) -> None:
        """Write the whole page as PNG."""
        answer = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def close(self) -> None:
        """Leave the browser."""
        self._socket.close()


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Give a browser whose own files lie in `folder`; it ends with the block."""
    program = chromium()
    assert program is not None
    errors = folder / "stderr.txt"
    arguments = [
        program, "--headless=new", "--no-sandbox", "--hide-scrollbars", "--disable-gpu",
        "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions",
        "--disable-background-networking", "--remote-debugging-port=0",
        f"--user-data-dir={folder / 'profile'}", "about:blank",
    ]  # fmt: skip
    with errors.open("wb") as file:
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=file)
    try:
        tab = Browser(_address_of_tab(folder / "profile"))
        try:
            yield tab
        finally:
            tab.close()
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _address_of_tab(profile: Path) -> str:
    """Return the address of the one tab, once the browser has written its port."""
    from urllib.error import URLError
    from urllib.request import urlopen

    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        time.sleep(0.05)
        port = profile / "DevToolsActivePort"
        if not port.is_file() or not port.read_text():
            continue
        try:
            with urlopen(f"http://127.0.0.1:{port.read_text().split()[0]}/json/list") as answer:
                tabs = [one for one in json.load(answer) if one["type"] == "page"]
        except URLError:
            continue
        if tabs:
            return str(tabs[0]["webSocketDebuggerUrl"])
    raise AssertionError("Chromium did not start")
