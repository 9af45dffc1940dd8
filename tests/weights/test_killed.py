"""Runs that are killed at any moment, and disks that become full: nothing is lost, nothing half-made has the name."""

import itertools
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nllb_prune.errors import UsageError
from nllb_prune.weights.manifest import verify
from nllb_prune.weights.writer import CheckpointWriter

from .writing import content_of, copied, random_tensor, store, write_checkpoint

SIZE, SHARD_BYTES = 100_000, 250_000


@pytest.fixture(scope="module")
def killed_runs(tmp_path_factory):
    script, folder = Path(__file__).with_name("killed_runs.py"), tmp_path_factory.mktemp("killed")
    done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("replaces", [False, True])
def test_a_run_killed_at_any_moment_is_continued_to_the_same_bytes(replaces, killed_runs):
    runs = [run for run in killed_runs if run["replaces"] == replaces]
    assert len(runs) > 30
    assert [run["killed"] for run in runs] == [True] * (len(runs) - 1) + [False]
    assert all(run["whole"] and run["stands"][-1] == "new" for run in runs)
    if not replaces:  # which begins again
        assert not any(run["made_again"] for run in runs)
    stood = [name for run in runs for name in run["stands"]]
    assert set(stood) <= {"nothing", "old", "new"}
    if replaces:  # two renames: between them the old one waits beside, and comes back
        assert stood.count("nothing") <= 2 < stood.count("old")
        assert not any(pair == ("nothing", "nothing") for run in runs for pair in itertools.pairwise(run["stands"]))


@pytest.fixture
def outputs(tmp_path):
    tensors = {f"t{n}": random_tensor(torch.uint8, (SIZE,), seed=n) for n in range(9)}
    return [copied(each) for each in store(tmp_path / "source", tensors)]


def check_continues(folder, outputs, tmp_path):
    """With room, the same again ends with the bytes of an undisturbed run, and writes only what was missing."""
    (tmp_path / "source").rename(tmp_path / "moved")
    with CheckpointWriter(folder, settings={}, shard_bytes=SHARD_BYTES) as writer:
        assert writer.finished("first")
        writer.write("first", outputs[:2])  # whose source is gone
    (tmp_path / "moved").rename(tmp_path / "source")
    parts = {"first": outputs[:2], "second": outputs[2:]}
    write_checkpoint(folder, parts, shard_bytes=SHARD_BYTES)
    write_checkpoint(tmp_path / "once", parts, shard_bytes=SHARD_BYTES)
    assert content_of(folder) == content_of(tmp_path / "once")
    assert verify(folder) == []


def test_a_file_size_limit_is_one_line_and_the_run_continues(outputs, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = CheckpointWriter(tmp_path / "out", settings={}, shard_bytes=SHARD_BYTES)
    writer.write("first", outputs[:2])
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, limits[1]))
        with pytest.raises(
            UsageError, match=r"room for 70\d,\d{3} bytes more \(second\), .* \(File too large\)"
        ) as caught:
            writer.write("second", outputs[2:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out.partial").rglob("*.tmp"))
    assert not (tmp_path / "out").exists()
    check_continues(tmp_path / "out", outputs, tmp_path)


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for 600 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
    if mount is None or subprocess.run([mount, *options], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_too_small_a_disk_is_refused_before_a_part_is_written(small_disk, outputs):
    with CheckpointWriter(small_disk / "out", settings={}, shard_bytes=SHARD_BYTES) as writer:
        writer.write("first", outputs[:2])
        message = r"room for 70\d,\d{3} bytes more \(second\), but \d+,\d+ are free \(\d+,\d+ bytes are missing\)"
        with pytest.raises(UsageError, match=message):
            writer.write("second", outputs[2:])
    assert len(list((small_disk / "out.partial" / "shards").iterdir())) == 1


def test_a_disk_that_becomes_full_is_one_line_and_the_run_continues(small_disk, outputs, tmp_path):
    def fill(tensors):
        """Let another program write while a part is written."""
        for number, tensor in enumerate(tensors):
            if number == 1:
                with pytest.raises(OSError, match="No space"):
                    (small_disk / "other").write_bytes(bytes(600_000))
            yield tensor

    writer = CheckpointWriter(small_disk / "out", settings={}, shard_bytes=SHARD_BYTES)
    writer.write("first", outputs[:2])
    with pytest.raises(UsageError, match=r"bytes are missing\)\. Make room and run the same again: it continues"):
        writer.write("second", outputs[2:5], progress=fill)
    assert not list((small_disk / "out.partial").rglob("*.tmp"))
    (small_disk / "other").unlink()
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    check_continues(small_disk / "out", outputs[:5], tmp_path)
