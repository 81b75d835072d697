"""A real Chromium without a window, driven through its debugging pipe: real keys, a real mouse, no driver needed."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 60.0  # seconds that an answer may take

FLAGS = (
    "--headless",
    "--no-sandbox",  # Chromium refuses to start as root with it
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",  # containers have a small one
    "--window-size=1400,1000",
)


def find_chromium() -> str | None:
    """Path of the browser, None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of a new browser. Messages are JSON, each ended by a NUL.

    Args:
        home: empty folder for its profile.
    """

    def __init__(self, home: Path) -> None:
        to_browser, from_browser = os.pipe(), os.pipe()
        command = [find_chromium(), *FLAGS, f"--user-data-dir={home}", "--remote-debugging-pipe"]
        # the pipes must be descriptors 3 and 4
        shell = ["bash", "-c", f'exec "$@" 3<&{to_browser[0]} 4>&{from_browser[1]}', "bash", *command]
        self.process = subprocess.Popen(
            shell, pass_fds=(to_browser[0], from_browser[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser[0])
        os.close(from_browser[1])
        self.output, self.input = to_browser[1], from_browser[0]
        self.numbers, self.buffer, self.session, self.events = itertools.count(1), b"", None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def receive(self) -> dict:
        """The next message."""
        while b"\0" not in self.buffer:
            assert select.select([self.input], [], [], PATIENCE)[0], "the browser does not answer"
            chunk = os.read(self.input, 1 << 16)
            assert chunk, "the browser ended"
            self.buffer += chunk
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def call(self, method: str, **parameters) -> dict:
        """Send a command of the DevTools protocol and return its result; events in between are kept."""
        number = next(self.numbers)
        session = {} if self.session is None else {"sessionId": self.session}
        message = json.dumps({"id": number, "method": method, "params": parameters, **session}).encode() + b"\0"
        while message:
            message = message[os.write(self.output, message) :]
        while (reply := self.receive()).get("id") != number:
            self.events.append(reply)
        assert "error" not in reply, reply
        return reply["result"]

    def open(self, path: Path, part: str = "") -> None:
        """Open a file, at a ``#part`` of it, and wait until it is loaded."""
        for url in ("about:blank", path.as_uri() + part):  # a link to a part of the same page would not load it again
            self.events.clear()
            self.call("Page.navigate", url=url)
            while not self.seen("Page.loadEventFired"):
                self.events.append(self.receive())

    def seen(self, *methods: str) -> list[dict]:
        """Events of these kinds since the page was opened."""
        return [event["params"] for event in self.events if event.get("method") in methods]

    def complaints(self) -> list[dict]:
        """What the page wrote to the console, and exceptions that nothing caught."""
        return self.seen("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")

    def js(self, expression: str):
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def shown(self, selector: str) -> list[bool]:
        """Which of the elements take up space on the page."""
        return self.js(f"[...document.querySelectorAll('{selector}')].map(e => e.getClientRects().length > 0)")

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of the first such element in the window."""
        return tuple(
            self.js(
                f"(r => [r.x, r.y, r.width, r.height])(document.querySelector('{selector}').getBoundingClientRect())"
            )
        )

    def press(self, key: str, code: int = 0, text: str = "", modifiers: int = 0) -> None:
        """Press and release a key; letters and digits are their own text."""
        code = code or (ord(key.upper()) if len(key) == 1 else 0)
        text = text or (key if len(key) == 1 and not modifiers else "")
        keys = {"key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown", **keys, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **keys)

    def point(self, selector: str) -> dict[str, float]:
        """Bring an element into view and move the mouse over its middle."""
        self.js(f"document.querySelector('{selector}').scrollIntoView({{block: 'center', behavior: 'instant'}})")
        left, top, width, height = self.box(selector)
        place = {"x": left + width / 2, "y": top + height / 2}
        self.call("Input.dispatchMouseEvent", type="mouseMoved", **place)
        return place

    def click(self, selector: str) -> None:
        """Click on the middle of an element with the mouse."""
        place = self.point(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def media(self, media: str = "", **features: str) -> None:
        """Pretend to be ``print``, or that the user prefers something: ``prefers_color_scheme="dark"``.

        Less motion is always preferred: what scrolls smoothly is not yet where it is clicked.
        """
        features = {"prefers_reduced_motion": "reduce", **features}
        listed = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", media=media, features=listed)

    def size(self, width: int, height: int, touch: bool = False) -> None:
        """Make the window so large, in CSS pixels, on a telephone or a desk."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=touch)
        self.call("Emulation.setTouchEmulationEnabled", enabled=touch)

    def picture(self) -> bytes:
        """PNG of the window."""
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])

    def pdf(self) -> bytes:
        """The page as it is printed."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=False)["data"])

    def close(self) -> None:
        """End the browser."""
        self.session = None
        try:
            self.call("Browser.close")
            end = time.monotonic() + PATIENCE
            while self.process.poll() is None and time.monotonic() < end:
                time.sleep(0.02)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.output)
            os.close(self.input)
