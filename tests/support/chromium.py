"""Debian's Chromium without a window, driven by its DevTools protocol."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import websocket  # of websocket-client, which JupyterLab needs

SECONDS = 20


def program():
    """The path of Chromium; None if it is not installed."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


class Page:
    """One tab."""

    def __init__(self, address):
        self._socket = websocket.create_connection(address, timeout=SECONDS, suppress_origin=True)
        self._number, self.events = 0, []
        for domain in ("Page", "Runtime", "Network", "DOM", "Log"):
            self.call(f"{domain}.enable")

    def close(self):
        self._socket.close()

    def call(self, method, **parameters):
        """Calls a method of the protocol; events that arrive meanwhile are collected."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def run(self, script):
        """Returns the value of a JavaScript expression, awaited."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def spoken(self, *roles):
        """What a screen reader reads: (role, name or else text) of each node of these roles, parents first."""
        nodes = [node for node in self.call("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
        found = [(node["nodeId"], node.get("parentId"), node["role"]["value"], node["name"]["value"]) for node in nodes]
        texts = {parent: name for _, parent, role, name in found if role == "StaticText"}
        return [(role, name or texts.get(node, "")) for node, _, role, name in found if role in roles]

    def wait(self, script):
        """Waits until a JavaScript expression is true."""
        end = time.monotonic() + SECONDS
        while not self.run(script):
            assert time.monotonic() < end, script
            time.sleep(0.05)

    def open(self, address):
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def press(self, key, modifiers=0):
        """Presses a key: Tab, Enter or Space."""
        code, text = {"Tab": (9, ""), "Enter": (13, "\r"), "Space": (32, " ")}[key]
        event = {
            "key": " " if key == "Space" else key,
            "code": key,
            "windowsVirtualKeyCode": code,
            "modifiers": modifiers,
        }
        self.call("Input.dispatchKeyEvent", type="keyDown", **event, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def event(self, method):
        """Waits for an event and returns its parameters."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            for event in self.events:
                if event.get("method") == method:
                    self.events.remove(event)
                    return event["params"]
            self.run("0")
            time.sleep(0.05)
        raise AssertionError(method)

    def drop(self, files):
        """Drops files of the disk on the middle of the page, as a person does."""
        data = {"items": [], "files": list(map(str, files)), "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=300, y=200, data=data)

    def looks_like(self, width, height=900, dark=False, mobile=False):
        """Sets the size in CSS pixels and the colour scheme."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        scheme = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, path):
        """Writes a PNG of the whole page."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(found["data"]))


@contextmanager
def chromium():
    """Starts Chromium with an empty profile; yields a page."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
        command += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            active = Path(profile, "DevToolsActivePort")
            end = time.monotonic() + 60
            while not (active.exists() and active.read_text().count("\n")):
                assert time.monotonic() < end and process.poll() is None, "Chromium does not start"
                time.sleep(0.1)
            port = int(active.read_text().split()[0])
            page = Page(_first_page(port))
            try:
                yield page
            finally:
                page.close()
        finally:
            process.terminate()
            process.wait()


def _first_page(port):
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=SECONDS) as answer:
        pages = [page for page in json.load(answer) if page["type"] == "page"]
    return pages[0]["webSocketDebuggerUrl"]
