"""`verify` finds every change of a folder."""

import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nllb_prune.errors import UsageError
from nllb_prune.weights.manifest import FileEntry, Manifest, verify

from .writing import made, write_checkpoint

OUTPUTS = [made(f"t{number}", torch.full((100,), float(number))) for number in range(6)]
SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "out"
    write_checkpoint(folder, {"all": OUTPUTS}, shard_bytes=1500, files={"config.json": b"{}", "empty": b""})
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "out")


def test_a_whole_folder_has_no_problems(whole):
    seen = []

    def progress(names):
        for name in names:
            yield name
            seen.append(name)

    assert verify(whole, progress=progress) == []
    assert seen == sorted(Manifest.load(whole).files)
    assert verify(whole, quick=True) == []


def remove(folder):
    (folder / SHARD).unlink()


def truncate(folder):
    (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:-1])


def fill(folder):
    (folder / "empty").write_bytes(b"x")


def replace(folder):
    (folder / SHARD).unlink()
    (folder / SHARD).mkdir()


def add(folder):
    (folder / "pytorch_model.bin").write_bytes(b"other weights")
    (folder / "notes.txt").write_bytes(b"no weights")


def drop_manifest(folder):
    (folder / "manifest.json").unlink()


def edit_manifest(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"shard_bytes":1500', '"shard_bytes":1501'))


def cut_manifest(folder):
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:-20])


def foreign_manifest(folder):
    (folder / "manifest.json").write_text('{"name": "web app", "icons": []}')


def later_manifest(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"version":1', '"version":2').replace('"version": 1', '"version": 2'))


def list_manifest(folder):
    (folder / "manifest.json").write_text("[1]")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (remove, f"`{SHARD}` is missing"),
        (truncate, f"`{SHARD}` has 959 bytes instead of 960"),
        (fill, "`empty` has 1 bytes instead of 0"),
        (add, "`pytorch_model.bin` is a weight file that the manifest does not name"),
        (drop_manifest, "`manifest.json` is missing"),
        (edit_manifest, "it was changed after it was written"),
        (cut_manifest, "is not valid JSON"),
        (foreign_manifest, "it is of format None version None, not nllb-prune/checkpoint version 1"),
        (later_manifest, "version 2, not nllb-prune/checkpoint version 1"),
        (list_manifest, "must be the manifest of an exported checkpoint, but is not"),
    ],
)
@pytest.mark.parametrize("quick", [False, True])
def test_a_change_is_named(change, problem, quick, folder):
    change(folder)
    (found,) = verify(folder, quick=quick)
    assert problem in found
    assert "\n" not in found


def test_a_folder_in_place_of_a_file_is_named(folder):
    replace(folder)
    (found,) = verify(folder)
    assert SHARD in found


def test_several_problems_are_all_named(folder):
    remove(folder)
    fill(folder)
    add(folder)
    assert len(verify(folder)) == 3


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_flipped_bit_is_found(whole, data):
    name = data.draw(st.sampled_from(sorted(path.name for path in whole.iterdir() if path.stat().st_size)))
    path = whole / name
    content = path.read_bytes()
    place, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    flipped = bytearray(content)
    flipped[place] ^= 1 << bit
    try:
        path.write_bytes(flipped)
        assert len(verify(whole)) == 1
    finally:
        path.write_bytes(content)
    assert verify(whole) == []


def test_quick_compares_sizes_alone(folder):
    content = bytearray((folder / SHARD).read_bytes())
    content[-1] ^= 1
    (folder / SHARD).write_bytes(content)
    assert verify(folder, quick=True) == []
    assert verify(folder) == [f"`{SHARD}` has other content than when it was written"]


def test_it_round_trips(whole):
    found = Manifest.load(whole)
    assert found.to_bytes() == (whole / "manifest.json").read_bytes()
    assert json.loads(found.to_bytes())["files"]["config.json"] == {"size": 2, "sha256": FileEntry.of(b"{}").sha256}


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "sub/file"])
def test_files_outside_the_folder_are_refused(name, tmp_path):
    (tmp_path / "manifest.json").write_bytes(Manifest(settings={}, files={name: FileEntry.of(b"")}).to_bytes())
    with pytest.raises(UsageError, match=r"it names .*, which is outside the folder"):
        Manifest.load(tmp_path)
