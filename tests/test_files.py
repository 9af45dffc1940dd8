import os
import threading

import pytest

from nllb_prune._files import write_bytes
from nllb_prune.errors import UsageError


def test_a_link_stays_a_link_to_the_new_content(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_bytes(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_a_pipe_is_written_to_and_stays(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_bytes(pipe, b"content")
    reader.join(timeout=10)
    assert read == [b"content"]
    assert pipe.is_fifo()


def test_nothing_is_left_beside(tmp_path):
    write_bytes(tmp_path / "new" / "file", b"content")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="must be a file to write, but is a folder"):
        write_bytes(tmp_path, b"content")
