"""A command in a process of its own: its time, the bytes it read and wrote, its peak memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_INTERVAL = 0.05
"""Seconds between looks at a process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a command took."""

    seconds: float
    processor_seconds: float
    """Of all its threads; more than `seconds` where both cores worked, less where it waited."""
    read: int
    """Bytes that read calls gave it, from the disk or not; pages of a mapped file do not count."""
    written: int
    """Bytes that it gave to write calls."""
    disk_read: int
    """Bytes that the system fetched from the disk for it; holes and what is in the page cache cost none."""
    disk_written: int
    peak: int
    """Bytes of memory, pages of mapped files included, which the system can take back."""
    anonymous: int
    """Bytes of memory without those pages: the largest that was seen, looking every twentieth of a second."""
    output: str
    """What it printed."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, without the output."""
        return {name: value for name, value in asdict(self).items() if name != "output"}


def measure(command: Sequence[str], *, log: Path) -> Measured:
    """Run a command and measure it.

    A process begins with the memory of the one that starts it, so this must be called from a small one: without torch.

    Args:
        command: A program and its arguments.
        log: File for what it prints.

    Raises:
        SystemExit: if it fails, with the end of what it printed.
    """
    started = time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        anonymous = _watch(process.pid)
        seconds = time.perf_counter() - started
        counts = _counts(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    output = log.read_text(encoding="utf-8", errors="replace")
    if process.returncode:
        raise SystemExit(f"`{' '.join(command)}` ended with status {process.returncode}:\n{output[-2000:]}")
    return Measured(
        seconds=seconds,
        processor_seconds=usage.ru_utime + usage.ru_stime,
        read=counts["rchar"],
        written=counts["wchar"],
        disk_read=counts["read_bytes"],
        disk_written=counts["write_bytes"],
        peak=usage.ru_maxrss * 1024,
        anonymous=anonymous,
        output=output,
    )


def console_script() -> str:
    """Return the path of `nllb-prune` beside this interpreter."""
    return str(Path(sys.executable).parent / "nllb-prune")


def _watch(process: int) -> int:
    """Return the peak of anonymous memory once the process has ended; its entry in /proc is still there."""
    most = 0
    while os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        most = max(most, _anonymous(process))
        time.sleep(_INTERVAL)
    return most


def _anonymous(process: int) -> int:
    for line in Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0  # it has just ended


def _counts(process: int) -> dict[str, int]:
    lines = Path(f"/proc/{process}/io").read_text(encoding="ascii").splitlines()
    return {name: int(count) for name, count in (line.split(": ") for line in lines)}
