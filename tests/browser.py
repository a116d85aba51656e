"""A headless Chromium for tests, spoken to in its own DevTools protocol over `websockets`: no driver, nothing downloaded.

https://chromedevtools.github.io/devtools-protocol/ ; tests skip where no Chromium is installed (Debian: apt-get install chromium).
"""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


class Page:
    """One tab. Collects errors, console complaints and every request's address."""

    def __init__(self, address: str) -> None:
        self._open = contextlib.ExitStack()
        self._socket: ClientConnection = self._open.enter_context(
            connect(address, max_size=None, proxy=None, ping_interval=None, close_timeout=1)
        )
        self._next = 0
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.received_bytes = 0
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.command(f"{domain}.enable")

    def command(self, method: str, *, limit_s: float = 90.0, **arguments: Any) -> dict[str, Any]:
        self._next += 1
        self._socket.send(json.dumps({"id": self._next, "method": method, "params": arguments}))
        until = time.monotonic() + limit_s
        while True:
            message = json.loads(self._socket.recv(timeout=max(0.01, until - time.monotonic())))
            if message.get("id") == self._next:
                if "error" in message:
                    raise AssertionError(f"{method}: {message['error']['message']}")
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        kind, said = message.get("method", ""), message.get("params", {})
        if kind == "Runtime.exceptionThrown":
            details = said["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif kind == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert"):
            self.errors.append(" ".join(str(value.get("value", value.get("description"))) for value in said["args"]))
        elif kind == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self.errors.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")
        elif kind in ("Network.requestWillBeSent", "Network.webSocketCreated"):
            self.requests.append(said["request"]["url"] if "request" in said else said["url"])
        elif kind == "Network.dataReceived":
            self.received_bytes += said["dataLength"]

    def open(self, url: str) -> None:
        self.command("Page.navigate", url=url)

    def run(self, script: str, *, limit_s: float = 90.0) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        answer = self.command("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, limit_s=limit_s)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise AssertionError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    def wait(self, condition: str, *, limit_s: float = 30.0, what: str = "") -> Any:
        """The first true value of a JavaScript expression."""
        until = time.monotonic() + limit_s
        while True:
            with contextlib.suppress(AssertionError):  # the page may be between two documents
                value = self.run(condition)
                if value:
                    return value
            if time.monotonic() > until:
                words = self.run("document.body ? document.body.innerText.slice(0, 600) : ''")
                raise AssertionError(f"waited {limit_s:g} s in vain for {what or condition}; errors {self.errors}; the page says:\n{words}")
            time.sleep(0.05)

    def text(self, selector: str) -> str:
        return str(self.run(f"document.querySelector({selector!r})?.innerText ?? ''"))

    def press(self, key: str, *, code: int = 0) -> None:
        text = key if len(key) == 1 else "\r" if key == "Enter" else ""
        for kind in ("keyDown", "keyUp"):
            extra = {"text": text} if text and kind == "keyDown" else {}
            self.command("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **extra)

    def size(self, width: int, height: int, *, scale: float = 1.0) -> None:
        self.command("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False)

    def dark(self, yes: bool) -> None:
        value = "dark" if yes else "light"
        self.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        path.write_bytes(base64.b64decode(self.command("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]))

    def heap_bytes(self) -> int:
        """JavaScript heap after a garbage collection."""
        self.command("HeapProfiler.collectGarbage")
        return int(self.command("Runtime.getHeapUsage")["usedSize"])

    def close(self) -> None:
        self._open.close()


class Browser:
    """A Chromium with a new, empty profile."""

    def __init__(self, executable: str, folder: Path, flags: Sequence[str] = ()) -> None:
        self.pages: list[Page] = []
        self._port_file = folder / "DevToolsActivePort"
        command = [executable, *FLAGS, *flags, f"--user-data-dir={folder}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while not self._port_file.exists() or not self._port_file.read_text().strip():
            if time.monotonic() > until or self._process.poll() is not None:
                self.close()
                raise AssertionError("Chromium did not start")
            time.sleep(0.05)
        self._port = int(self._port_file.read_text().split()[0])

    def page(self, url: str = "about:blank") -> Page:
        """A new tab."""
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}/json/new?about:blank", method="PUT")
        with urllib.request.urlopen(request, timeout=30) as answer:
            page = Page(json.load(answer)["webSocketDebuggerUrl"])
        self.pages.append(page)
        if url != "about:blank":
            page.open(url)
        return page

    def close_pages(self) -> None:
        while self.pages:
            page = self.pages.pop()
            with contextlib.suppress(ConnectionClosed):  # the tab may be gone before it has answered
                page.command("Page.close")
            page.close()

    def close(self) -> None:
        self.close_pages()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def chromium(folder: Path, *flags: str) -> Iterator[Browser]:
    """A browser that is closed at the end; the test skips where there is none."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    folder.mkdir(parents=True, exist_ok=True)
    browser = Browser(executable, folder, flags)
    try:
        yield browser
    finally:
        browser.close()
