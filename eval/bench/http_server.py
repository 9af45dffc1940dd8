"""A translation server in a process of its own, as a person starts it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from types import TracebackType

import httpx

_URL = re.compile(r"url=(http://\S+)")
_PATIENCE = 120.0  # seconds


class ServerProcess:
    """`nllb-prune serve` on a free port.

    Args:
        model: To serve.
        options: Of the verb.
    """

    def __init__(self, model: str, *options: str) -> None:
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nllb_prune", "serve", model, "--port", "0", "--quiet", *options],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        """Lines that the server wrote."""
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self._found()
        self._await_ready()
        self.ready_after = time.monotonic() - self._began
        """Seconds from the start of the process until it could translate."""

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _read(self) -> None:
        assert self._process.stderr is not None
        self.log.extend(self._process.stderr)

    def _found(self) -> str:
        while self._process.poll() is None and time.monotonic() - self._began < _PATIENCE:
            for line in self.log:
                if found := _URL.search(line):
                    return found[1]
            time.sleep(0.01)
        raise RuntimeError("the server did not start: " + "".join(self.log))

    def _await_ready(self) -> None:
        while self._process.poll() is None and time.monotonic() - self._began < _PATIENCE:
            if httpx.get(self.url + "/ready").status_code == 200:
                return
            time.sleep(0.02)
        raise RuntimeError("the server is not ready: " + "".join(self.log))

    def anonymous(self) -> int:
        """Return the bytes of its anonymous memory that are resident (Linux)."""
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        return 0

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait for its end, and return its status."""
        status = self._process.wait(_PATIENCE)
        self._reader.join()
        return status

    def stop(self) -> None:
        """End it."""
        if self._process.poll() is None:
            self.signal(signal.SIGTERM)
            self.wait()


def figures(url: str, names: Sequence[str]) -> dict[str, float]:
    """Return what `/metrics` says under some names, without labels or summed over them."""
    found = dict.fromkeys(names, 0.0)
    for line in httpx.get(url + "/metrics").text.splitlines():
        name, _, value = line.rpartition(" ")
        if (bare := name.partition("{")[0]) in found:
            found[bare] += float(value)
    return found
