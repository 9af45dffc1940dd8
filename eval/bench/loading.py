"""Time loading a pruned checkpoint against the full one it was exported from, in turns: from the disk and from memory.

`python -m eval.bench.loading FULL PRUNED`: each load is a process of its own, whose import of torch is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

LOAD = """
import json, resource, sys, time
import torch
from nllb_prune import load_model
start = time.perf_counter()
model = load_model(sys.argv[1], dtype="auto")
seconds = time.perf_counter() - start
size = sum(p.numel() * p.element_size() for p in model.parameters())
print(json.dumps({"seconds": seconds, "bytes": size, "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""
WEIGHTS = (".safetensors", ".bin")


def forget(folder: Path) -> None:
    """Put the weight files of a folder out of the page cache."""
    for path in folder.iterdir():
        if path.suffix in WEIGHTS:
            file = os.open(path, os.O_RDONLY)
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


def load(folder: Path) -> dict[str, float]:
    """Load a checkpoint in a process of its own."""
    done = subprocess.run([sys.executable, "-c", LOAD, str(folder)], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("full", type=Path)
    parser.add_argument("pruned", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    folders = {"full": options.full, "pruned": options.pruned}
    print("| | full | pruned | ratio |\n|---|---|---|---|")
    for cold in (True, False):
        times: dict[str, list[float]] = {name: [] for name in folders}
        found: dict[str, dict[str, float]] = {}
        for _ in range(options.rounds):
            for name, folder in folders.items():
                if cold:
                    forget(folder)
                found[name] = load(folder)
                times[name].append(found[name]["seconds"])
        ratio = statistics.median(b / a for a, b in zip(times["full"], times["pruned"], strict=True))
        medians = " | ".join(f"{statistics.median(each):.2f} s" for each in times.values())
        print(f"| {'from the disk' if cold else 'from memory'} | {medians} | {ratio:.2f} |")
    sizes = " | ".join(f"{each['bytes'] / 1e9:.3f} GB" for each in found.values())
    peaks = " | ".join(f"{each['rss'] / 1e9:.3f} GB" for each in found.values())
    print(f"| weights | {sizes} | {found['pruned']['bytes'] / found['full']['bytes']:.2f} |")
    print(f"| peak memory | {peaks} | {found['pruned']['rss'] / found['full']['rss']:.2f} |")


if __name__ == "__main__":
    main()
