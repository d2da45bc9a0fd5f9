"""A Chromium without a window, driven through chromedriver's HTTP interface."""

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.request

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
DRIVER = shutil.which("chromedriver")


class Browser:
    """One page; `profile` is an empty folder for what the browser keeps."""

    def __init__(self, profile):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.driver = subprocess.Popen(
            [DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            self._wait()
            words = "headless no-sandbox disable-gpu disable-background-networking"
            words += f" disable-component-update disable-sync user-data-dir={profile}"
            options = {"binary": CHROMIUM, "args": [f"--{word}" for word in words.split()]}
            wanted = {
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL"},
            }
            session = self._post("/session", capabilities={"alwaysMatch": wanted})
        except BaseException:
            self.driver.kill()
            raise
        self.url += f"/session/{session['sessionId']}"

    def _wait(self):
        while self.driver.poll() is None:
            with contextlib.suppress(OSError):
                return urllib.request.urlopen(f"{self.url}/status").close()
            time.sleep(0.05)
        raise RuntimeError("chromedriver ended before it answered")

    def _post(self, path, **body):
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, file, width):
        """Show a file as a screen of that many pixels does; below 600 as a phone does."""
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        command = "Emulation.setDeviceMetricsOverride"
        self._post("/goog/cdp/execute", cmd=command, params=screen)
        self._post("/url", url=file.resolve().as_uri())

    def run(self, script):
        """What a script returns."""
        return self._post("/execute/sync", script=script, args=[])

    def complaints(self):
        """What the browser's console said."""
        return self._post("/se/log", type="browser")

    def close(self):
        """End the browser and its driver."""
        request = urllib.request.Request(self.url, method="DELETE")
        try:
            urllib.request.urlopen(request, timeout=60).close()
        finally:
            self.driver.terminate()
            self.driver.wait(timeout=10)
