"""Headless Chromium, driven over WebDriver's HTTP with nothing but the standard library."""

import base64
import json
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

BROWSER, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {
    "Enter": "\ue007",
    "Escape": "\ue00c",
    "ArrowDown": "\ue015",
    "ArrowUp": "\ue013",
    "Tab": "\ue004",
    "Control": "\ue009",
}


def installed():
    return BROWSER.exists() and DRIVER.exists()


class Browser:
    """One tab."""

    def __init__(self, session):
        self._session = session

    def open(self, address):
        _call(f"{self._session}/url", {"url": address})

    def run(self, script, *arguments):
        """Run the body of a function in the page, and return what it returns; promises are waited for."""
        return _call(f"{self._session}/execute/sync", {"script": script, "args": list(arguments)})

    def text(self, selector):
        return self.run("return document.querySelector(arguments[0])?.innerText ?? null", selector)

    def click(self, selector):
        _call(f"{self._element(selector)}/click", {})

    def type(self, selector, text):
        _call(f"{self._element(selector)}/value", {"text": text})

    def press(self, *names):
        """Press keys together, in the element that has the focus."""
        keys = [KEYS.get(name, name) for name in names]
        actions = [{"type": "keyDown", "value": key} for key in keys]
        actions += [{"type": "keyUp", "value": key} for key in reversed(keys)]
        _call(f"{self._session}/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def wait(self, condition, *arguments, seconds=60.0):
        """Wait until an expression of the page is true, and return it."""
        until = time.monotonic() + seconds
        while not (found := self.run(f"return {condition}", *arguments)):
            assert time.monotonic() < until, f"{condition} {arguments}: {self.text('body')}"
            time.sleep(0.03)
        return found

    def size(self, width, height, *, phone=False):
        """Show the page in a window, or on a phone, of this size."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )

    def scheme(self, name):
        """Prefer light or dark."""
        self.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def command(self, name, **parameters):
        """Send a command of the DevTools protocol."""
        return _call(f"{self._session}/goog/cdp/execute", {"cmd": name, "params": parameters})

    def picture(self, *, whole=True):
        """Return the page as PNG."""
        found = self.command("Page.captureScreenshot", captureBeyondViewport=whole)
        return base64.b64decode(found["data"])

    def messages(self):
        """Return what the console has shown since the last call: errors, and what the content policy forbade."""
        return [each["message"] for each in _call(f"{self._session}/se/log", {"type": "browser"})]

    def _element(self, selector):
        found = _call(f"{self._session}/element", {"using": "css selector", "value": selector})
        return f"{self._session}/element/{found[ELEMENT]}"


@contextmanager
def browser(profile):
    """Start Chromium with an empty profile, and end it.

    Args:
        profile: A folder that does not exist.
    """
    driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        address = f"http://127.0.0.1:{_port(driver)}/session"
        options = {"binary": str(BROWSER), "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = f"{address}/{_call(address, {'capabilities': {'alwaysMatch': wanted}})['sessionId']}"
        try:
            yield Browser(session)
        finally:
            urlopen(Request(session, method="DELETE"), timeout=20).close()
    finally:
        driver.terminate()
        driver.wait()
        driver.stdout.close()


def _port(driver):
    for line in driver.stdout:
        if "started successfully on port" in line:
            return int(line.rstrip(".\n").rpartition(" ")[2])
    raise AssertionError("chromedriver did not start")


def _call(address, content):
    request = Request(address, json.dumps(content).encode(), {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]
    except HTTPError as error:
        raise AssertionError(json.load(error)["value"]["message"]) from None
