"""Runs of the writer that kill themselves, and what they leave; a program, so that torch is loaded once for all.

`python killed_runs.py FOLDER` forks a run for each moment: the N-th time that it opens, renames or removes something or
makes a tensor. Each is killed there, the next one a little later, and the third may end; a line of JSON says what stood
under the final name after each.
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from writing import copied, random_tensor, store

from nllb_prune.weights.manifest import verify
from nllb_prune.weights.shards import OutputTensor
from nllb_prune.weights.writer import CheckpointWriter

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.truncate", "os.rmdir", "shutil.rmtree"}
SHARD_BYTES = 200_000
EARLY = 12  # a moment before the first file is written


class Clock:
    """Counts moments, and kills its own process at one of them."""

    def __init__(self, last):
        self.moments, self.last, self.made = 0, last, 0

    def tick(self):
        self.moments += 1
        if self.moments == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


def outputs(folder, number, clock):
    tensors = {f"{number}.{n}": random_tensor(torch.uint8, (90_000,), seed=10 * number + n) for n in range(3)}
    stored = [copied(each) for each in store(folder / f"source-{number}", tensors)]

    def make():
        clock.tick()
        clock.made += 1
        return tensors[f"{number}.2"]

    made = OutputTensor(name=f"{number}.2", dtype=torch.uint8, shape=(90_000,), content=make)
    return [*stored[:1], made, *stored[1:2]]


def run(folder, clock, *, restart):
    """Write a checkpoint of two parts."""
    with CheckpointWriter(folder / "out", settings={"x": 1}, shard_bytes=SHARD_BYTES, restart=restart) as writer:
        for number in range(2):
            writer.write(f"part {number}", outputs(folder, number, clock))
        writer.finish({"config.json": b"{}", "masks.json": b"[]"})


def forked(folder, last, *, restart):
    """Run in a process of its own; return how many tensors it made, or `None` if it was killed at a moment."""
    child = os.fork()
    if child == 0:
        clock = Clock(last)

        def hook(event, values):
            if event in EVENTS and isinstance(values[0], str | Path) and "out" in str(values[0]):
                clock.tick()

        sys.addaudithook(hook)
        run(folder, clock, restart=restart)
        os._exit(clock.made)
    status = os.waitpid(child, 0)[1]
    return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def digest(folder):
    """Return the hash of every file of the checkpoint, if there is one."""
    if not (folder / "out").exists():
        return None
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((folder / "out").iterdir())}


def kill_at(folder, last, *, replaces, wanted):
    """Kill a run at a moment, again a little later, and let it end; return what stood there on the way."""
    folder.mkdir()
    if replaces:
        with CheckpointWriter(folder / "out", settings={}, shard_bytes=SHARD_BYTES) as writer:
            writer.write("old", outputs(folder, 7, Clock(None)))
            writer.finish({})
    standing = {"nothing": None, "new": wanted, **({"old": digest(folder)} if replaces else {})}
    stands, killed, made, all_written = [], False, 0, False
    for moment in (last, EARLY, last + 7, None):
        if digest(folder) != wanted:
            all_written = (folder / "out.partial" / "names.json").exists()
            made = forked(folder, moment, restart=replaces)
            killed |= made is None
            stands += [name for name, each in standing.items() if each == digest(folder)] or ["something else"]
    whole = digest(folder) == wanted and not verify(folder / "out")
    made_again = made if all_written else 0
    return {"replaces": replaces, "killed": killed, "stands": stands, "whole": whole, "made_again": made_again}


def main(base):
    """Kill runs at each moment, with nothing there before and with a checkpoint to replace."""
    torch.set_num_threads(1)
    (base / "undisturbed").mkdir()
    forked(base / "undisturbed", None, restart=False)
    wanted = digest(base / "undisturbed")
    for replaces in (False, True):
        last, killed = 1, True
        while killed:
            found = kill_at(base / f"{replaces}-{last}", last, replaces=replaces, wanted=wanted)
            print(json.dumps(found), flush=True)
            last, killed = last + 1, found["killed"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
