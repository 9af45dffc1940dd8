"""What stands under the final name and beside it, whatever was there before."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nllb_prune.errors import UsageError
from nllb_prune.weights.manifest import verify
from nllb_prune.weights.writer import CheckpointWriter

from .writing import content_of, made, write_checkpoint

OLD, NEW = [made("x", torch.zeros(3))], [made("x", torch.ones(3))]


def open_writer(folder, **options):
    return CheckpointWriter(folder, settings={}, shard_bytes=900, **options)


def test_a_finished_folder_is_refused_and_stays(tmp_path):
    write_checkpoint(tmp_path / "out", {"a": OLD})
    before = content_of(tmp_path)
    with pytest.raises(UsageError, match=r"out` must not exist yet, but does; .* `--restart`"):
        open_writer(tmp_path / "out")
    assert content_of(tmp_path) == before


def test_restart_replaces_a_checkpoint_when_all_is_there(tmp_path):
    write_checkpoint(tmp_path / "out", {"a": OLD})
    before = content_of(tmp_path / "out")
    with open_writer(tmp_path / "out", restart=True) as writer:
        writer.write("a", NEW)
        with pytest.raises(UsageError):
            writer.finish({"a/b": b""})
        assert content_of(tmp_path / "out") == before
    write_checkpoint(tmp_path / "out", {"a": NEW}, restart=True)
    write_checkpoint(tmp_path / "direct", {"a": NEW})
    assert content_of(tmp_path / "out") == content_of(tmp_path / "direct")
    assert sorted(os.listdir(tmp_path)) == ["direct", "out"]


def test_restart_never_replaces_what_is_no_checkpoint(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("all of it")
    with pytest.raises(UsageError, match="must be a checkpoint that was exported before, to be replaced, but is some"):
        open_writer(tmp_path / "out", restart=True)
    assert content_of(tmp_path) == {"out/thesis.txt": b"all of it"}


def test_a_file_of_the_name_is_refused(tmp_path):
    (tmp_path / "out").write_text("a file")
    for restart in (False, True):
        with pytest.raises(UsageError):
            open_writer(tmp_path / "out", restart=restart)
    assert content_of(tmp_path) == {"out": b"a file"}


def test_a_partial_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.txt").write_text("half of it")
    with pytest.raises(UsageError, match=r"out.partial` must be what a killed run left, but holds thesis.txt"):
        open_writer(tmp_path / "out", restart=True)
    assert content_of(tmp_path) == {"out.partial/thesis.txt": b"half of it"}


def test_an_empty_folder_and_a_link_to_one_are_filled(tmp_path):
    (tmp_path / "disk" / "out").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "out")
    write_checkpoint(tmp_path / "link", {"a": OLD})
    assert verify(tmp_path / "disk" / "out") == []
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "disk") == ["out"]


def test_a_mounted_folder_is_refused_at_once():
    with pytest.raises(UsageError, match="must be a folder that can be renamed, but a file system is mounted on it"):
        open_writer(Path("/proc"), restart=True)


def test_other_settings_are_named(tmp_path):
    with CheckpointWriter(tmp_path / "out", settings={"dtype": "float16", "same": 1}, shard_bytes=900) as writer:
        writer.write("a", OLD)
    before = content_of(tmp_path)
    with pytest.raises(UsageError) as caught:
        CheckpointWriter(tmp_path / "out", settings={"dtype": "bfloat16", "same": 1}, shard_bytes=901)
    assert '`dtype` was "float16" and is "bfloat16"; `shard_bytes` was 900 and is 901. ' in str(caught.value)
    assert "\n" not in str(caught.value)
    assert content_of(tmp_path) == before
    write_checkpoint(tmp_path / "out", {"a": NEW}, restart=True)
    assert verify(tmp_path / "out") == []


@pytest.mark.parametrize("damage", [b"no JSON\n", b'{"part": "a"}\n', b'{"sha256": 1}\n', b"[]\n"])
def test_a_journal_of_something_else_is_refused(damage, tmp_path):
    with open_writer(tmp_path / "out") as writer:
        writer.write("a", OLD)
    (tmp_path / "out.partial" / "journal.jsonl").write_bytes(damage)
    with pytest.raises(UsageError, match=r"journal.jsonl` must be the journal of a checkpoint that is being written"):
        open_writer(tmp_path / "out")
    write_checkpoint(tmp_path / "out", {"a": OLD}, restart=True)


def test_two_processes_do_not_write_the_same(tmp_path):
    script = (
        "import sys; from pathlib import Path; from nllb_prune.weights.writer import CheckpointWriter\n"
        "try:\n    CheckpointWriter(Path(sys.argv[1]), settings={}, shard_bytes=900, restart=True)\n"
        "except ValueError as error:\n    print(error)"
    )
    with open_writer(tmp_path / "out") as writer:
        writer.write("a", OLD)
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "out")], capture_output=True, text=True, check=True
        )
        assert "out.partial` must be written by one run at a time, but another one writes it" in done.stdout
        writer.finish({})
    assert verify(tmp_path / "out") == []


def test_a_place_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="must be a folder to write to, but cannot be") as caught:
        open_writer(tmp_path / "file" / "out")
    assert "\n" not in str(caught.value)


def test_a_size_of_nothing_is_refused(tmp_path):
    with pytest.raises(UsageError, match="`shard_bytes` must be 1 or more, but is 0 instead"):
        CheckpointWriter(tmp_path / "out", settings={}, shard_bytes=0)
