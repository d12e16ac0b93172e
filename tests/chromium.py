"""A page in a headless Chromium, spoken to through its DevTools."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 60.0
"""Seconds."""
_WRONG = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled", "Network.loadingFailed")


@dataclass(slots=True)
class Tab:
    """One tab, whose page is opened from a file."""

    connection: ClientConnection
    session: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    """Since the page was opened."""
    _count: int = 0

    def call(self, method: str, **parameters: Any) -> Any:
        """A DevTools command's result."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        self.connection.send(json.dumps(message | ({"sessionId": self.session} if self.session else {})))
        while (answer := self._next()).get("id") != self._count:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self.connection.recv(PATIENCE))
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, path: Path, *, width: int = 1200, scheme: str = "light") -> None:
        """Show a file in a window of this width and a `light` or `dark` scheme, and wait until it is there."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._next()

    def run(self, script: str) -> Any:
        """What an expression is, promises awaited, as if a user had acted."""
        options = {"awaitPromise": True, "returnByValue": True, "userGesture": True}
        answer = self.call("Runtime.evaluate", expression=script, **options)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    @property
    def requests(self) -> list[str]:
        """Addresses that the page asked for."""
        found = (e["params"] for e in self.events if e["method"] == "Network.requestWillBeSent")
        return [event["request"]["url"] for event in found]

    @property
    def complaints(self) -> list[dict[str, Any]]:
        """Errors, warnings and whatever else came to the console."""
        return [event for event in self.events if event["method"] in _WRONG]

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip={**size, "scale": 1})
        path.write_bytes(base64.b64decode(picture["data"]))


@contextmanager
def chromium(profile: Path) -> Iterator[Tab]:
    """A tab of a browser of its own that reaches no host."""
    assert PROGRAM is not None
    switches = (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "no-first-run",
        "mute-audio",
    )
    command = [PROGRAM, *(f"--{switch}" for switch in switches), "--remote-debugging-port=0"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--user-data-dir={profile}"]
    with (profile.parent / "chromium.log").open("wb") as log:
        process = subprocess.Popen([*command, "about:blank"], stdout=log, stderr=log)
    try:
        with connect(_address(process, profile), max_size=None, compression=None) as connection:
            tab = Tab(connection)
            target = tab.call("Target.createTarget", url="about:blank")["targetId"]
            tab.session = tab.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Network", "Runtime", "Log"):
                tab.call(f"{domain}.enable")
            yield tab
            tab.session = ""
            tab.call("Browser.close")
        process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()


def _address(process: subprocess.Popen[bytes], profile: Path) -> str:
    """Where it listens, which it writes into a file."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        told = profile / "DevToolsActivePort"
        lines = told.read_text().splitlines() if told.exists() else []
        if len(lines) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(0.05)
    raise AssertionError((profile.parent / "chromium.log").read_text())
