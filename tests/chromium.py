"""A headless Chromium driven over a pipe: real keys and pointer, console, requests and downloads. No dependencies.

Speaks the DevTools protocol as NUL-separated JSON on descriptors 3 and 4 (--remote-debugging-pipe).
"""

import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import time

NAMES = ("chromium", "chromium-browser", "google-chrome")
START = (  # puts the pipe's ends where Chromium looks for them; a child of its own, because the parent has threads
    "import os, sys; r, w = os.dup(int(sys.argv[1])), os.dup(int(sys.argv[2])); r, w = os.dup(r), os.dup(w); "
    "os.dup2(r, 3); os.dup2(w, 4); os.execv(sys.argv[3], sys.argv[3:])"
)
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39}
KEYS |= {"ArrowDown": 40, "PageUp": 33, "PageDown": 34, " ": 32}


def find() -> str | None:
    """The path of a Chromium, or None."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Page:
    """One tab on one file. `problems`: console errors, exceptions, blocked loads. `requests`: URLs asked for."""

    def __init__(self, path: pathlib.Path, folder: pathlib.Path, width: int = 1200, dark: bool = False):
        self.problems, self.requests, self.number, self.rest = [], [], 0, b""
        self.downloads = folder / "downloads"
        self.downloads.mkdir(parents=True, exist_ok=True)
        to_child, self.write = os.pipe()
        self.read, from_child = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, str(to_child), str(from_child), find(), *flags]
            + [f"--user-data-dir={folder / 'profile'}", "--no-first-run", "--disable-background-networking"],
            pass_fds=(to_child, from_child),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_child)
        os.close(from_child)
        self.session = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=scheme)
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **screen)
        self.send("Page.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads))
        self.open(path)

    def open(self, path: pathlib.Path):
        """Loads another file."""
        self.loaded = False
        self.send("Page.navigate", url=path.as_uri())
        self.wait(lambda: self.loaded)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.write)  # Chromium ends with its pipe
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.read)

    def send(self, method: str, **params):
        """Sends a command and returns its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        answer = []
        self.wait(lambda: answer, number=self.number, answer=answer)
        assert "error" not in answer[0], (method, answer[0]["error"])
        return answer[0]["result"]

    def wait(self, done, number=None, answer=None, seconds: float = 60.0):
        """Reads messages until done() holds."""
        end = time.monotonic() + seconds
        while not done():
            ready = select.select([self.read], [], [], 0.1)[0]
            assert time.monotonic() < end and self.process.poll() is None, f"no answer from {find()}"
            data = os.read(self.read, 1 << 20) if ready else b""
            *messages, self.rest = (self.rest + data).split(b"\0")
            for message in map(json.loads, messages):
                if number is not None and message.get("id") == number:
                    answer.append(message)
                self._note(message.get("method"), message.get("params", {}))

    def _note(self, method, params):
        if method == "Page.loadEventFired":
            self.loaded = True
        elif method == "Runtime.exceptionThrown":
            self.problems.append(str(params["exceptionDetails"].get("exception", params["exceptionDetails"])))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.problems.append(str(params["args"]))
        elif method == "Log.entryAdded":
            self.problems.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def run(self, script: str):
        """The value of a JavaScript expression."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def key(self, name: str, times: int = 1):
        """Presses a key as a keyboard does."""
        code = KEYS.get(name, ord(name[0].upper()))
        text = {"Enter": "\r"}.get(name, name if len(name) == 1 else "")
        for _ in range(times):
            press = {"key": name, "code": name, "windowsVirtualKeyCode": code}
            self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **press)
            self.send("Input.dispatchKeyEvent", type="keyUp", **press)

    def write_text(self, text: str):
        """Types text where the focus is."""
        self.send("Input.insertText", text=text)

    def pointer(self, selector: str, click: bool = False):
        """Moves the pointer to the middle of an element; clicks if asked."""
        box = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{box}.scrollIntoView({{block: 'center'}})")
        x, y = self.run(f"(b => [b.left + b.width / 2, b.top + b.height / 2])({box}.getBoundingClientRect())")
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        if click:
            for kind in ("mousePressed", "mouseReleased"):
                self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def downloaded(self, name: str) -> bytes:
        """The bytes of a file once it has been written by the browser."""
        path, end = self.downloads / name, time.monotonic() + 20
        while not path.is_file() or list(self.downloads.glob("*.crdownload")):
            assert time.monotonic() < end, f"{name} did not come; there are {sorted(self.downloads.iterdir())}"
            time.sleep(0.05)
        return path.read_bytes()
