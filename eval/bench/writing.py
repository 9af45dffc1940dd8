"""Time writing a checkpoint against `cp` of the same bytes, in turns: warm, cold, and until all is on the disk."""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from nllb_prune.weights.stored import StoredTensor
from nllb_prune.weights.writer import CheckpointWriter, OutputTensor

EXPERT = (((8192, 2048), "fc1.weight"), ((8192,), "fc1.bias"), ((2048, 8192), "fc2.weight"), ((2048,), "fc2.bias"))
PIECE = 16 << 20


@dataclass(frozen=True, slots=True)
class Row:
    """Medians of one case, in GB a second."""

    case: str
    copy: float
    ours: float
    ratios: list[float]
    """Our speed over that of `cp` in the same round."""


def draw_source(path: Path, gigabytes: float) -> list[StoredTensor]:
    """Write experts of NLLB-200's size in float16, random bytes without holes, and return where they are."""
    tensors: list[StoredTensor] = []
    offset = 0
    while offset < gigabytes * 1e9:
        for shape, name in EXPERT:
            full = f"model.encoder.layers.3.ffn.experts.expert_{len(tensors) // len(EXPERT)}.{name}"
            tensors.append(StoredTensor(name=full, path=path, offset=offset, dtype=torch.float16, shape=shape))
            offset += tensors[-1].nbytes
    with path.open("wb", buffering=0) as file:
        for start in range(0, offset, PIECE):
            file.write(os.urandom(min(PIECE, offset - start)))
    return tensors


def write(tensors: list[StoredTensor], folder: Path, shard_bytes: int) -> None:
    """Write them as a checkpoint."""
    outputs = [OutputTensor(name=each.name, dtype=each.dtype, shape=each.shape, content=each) for each in tensors]
    with CheckpointWriter(folder, settings={}, shard_bytes=shard_bytes) as writer:
        writer.write("model", outputs)
        writer.finish({})


def prepare(source: Path, folder: Path, *, cold: bool) -> None:
    """Remove what the last run wrote, and put the source into the page cache or out of it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.sync()
    with source.open("rb", buffering=0) as file:
        if cold:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if os.access("/proc/sys/vm/drop_caches", os.W_OK):
                Path("/proc/sys/vm/drop_caches").write_text("1")
        else:
            while file.read(PIECE):
                pass


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Return the time until a call is back, and until what it wrote is on the disk."""
    start = time.perf_counter()
    call()
    done = time.perf_counter()
    os.sync()
    return done - start, time.perf_counter() - start


def measure(tensors: list[StoredTensor], work: Path, options: argparse.Namespace) -> list[Row]:
    """Time both in turns."""
    source, folder = tensors[0].path, work / "written"
    size = source.stat().st_size / 1e9
    calls: list[Callable[[], object]] = [
        lambda: subprocess.run(["cp", str(source), str(folder / "copy")], check=True),
        lambda: write(tensors, folder / "checkpoint", options.shard_bytes),
    ]
    rows = []
    for cold in (False, True):
        rounds: list[list[tuple[float, float]]] = []
        for _ in range(options.rounds):
            rounds.append([])
            for call in calls:
                prepare(source, folder, cold=cold)
                rounds[-1].append(seconds(call))
        for until, name in enumerate(("", ", until on the disk")):
            copies, ours = ([size / each[which][until] for each in rounds] for which in range(2))
            case = ("cold" if cold else "warm") + name
            ratios = [our / copy for our, copy in zip(ours, copies, strict=True)]
            rows.append(Row(case, statistics.median(copies), statistics.median(ours), ratios))
    shutil.rmtree(folder)
    return rows


def main() -> None:
    """Run and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder with room for twice the bytes")
    parser.add_argument("--gigabytes", type=float, default=8)
    parser.add_argument("--shard-bytes", type=int, default=5 * 10**9)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    source = options.work / "source"
    tensors = draw_source(source, options.gigabytes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        print(f"{source.stat().st_size / 1e9:.2f} GB, {options.rounds} rounds, {os.cpu_count()} cores\n")
        print("| page cache | `cp` GB/s | ours GB/s | ours / `cp`, median | of each round |\n|---|---|---|---|---|")
        for row in measure(tensors, options.work, options):
            each = " ".join(f"{ratio:.2f}" for ratio in row.ratios)
            print(f"| {row.case} | {row.copy:.2f} | {row.ours:.2f} | {statistics.median(row.ratios):.2f} | {each} |")
    finally:
        source.unlink()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"\npeak resident memory {peak / 1e3:.0f} MB, {(peak - before) / 1e3:.0f} MB more than before the first run")


if __name__ == "__main__":
    main()
