"""Weight files of a folder, one at a time."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nllb_prune.errors import UsageError
from nllb_prune.model.weight_files import check_transformers, weight_files

TINY = Path(__file__).parent.parent / "reference" / "tiny"
TENSORS = load_file(TINY / "model.safetensors")


@pytest.fixture
def sharded(tmp_path):
    """A checkpoint without the prefix, in three shards."""
    names = {name.removeprefix("model."): name for name in sorted(TENSORS)}
    weight_map = {name: f"model-{n % 3}.safetensors" for n, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({n: TENSORS[names[n]] for n in names if weight_map[n] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_bytes((TINY / "config.json").read_bytes())
    return tmp_path


def test_shards_of_a_folder(sharded):
    files, seen = weight_files(sharded), {}
    assert files.files == ("model-0.safetensors", "model-1.safetensors", "model-2.safetensors")
    assert (files.folder, files.revision) == (sharded, None)
    for file in files.files:
        assert files.size(file) == (sharded / file).stat().st_size
        with files.opened(file) as stored:
            assert [tensor.offset for tensor in stored] == sorted(tensor.offset for tensor in stored)
            assert all(files.names()[tensor.name] == file for tensor in stored)
            seen |= {tensor.name: tensor.read() for tensor in stored}
    assert seen.keys() == files.names().keys() == TENSORS.keys()
    assert all(torch.equal(seen[name], TENSORS[name]) for name in TENSORS)


def test_a_single_file_tells_no_names():
    files = weight_files(TINY)
    assert (files.files, files.names()) == (("model.safetensors",), None)
    with files.opened("model.safetensors") as stored:
        assert {tensor.name for tensor in stored} == set(TENSORS)


def test_only_files_with_a_wanted_tensor(sharded):
    wanted = sorted(TENSORS)[1]
    assert weight_files(sharded, wanted=lambda name: name == wanted).files == ("model-1.safetensors",)
    assert weight_files(sharded, wanted=lambda name: False).files == ()


def test_a_shard_without_what_the_index_says(sharded):
    (sharded / "model-0.safetensors").write_bytes((sharded / "model-1.safetensors").read_bytes())
    with (
        pytest.raises(UsageError, match="as the index says, but does not"),
        weight_files(sharded).opened("model-0.safetensors"),
    ):
        pass


def test_a_folder_has_no_revision():
    with pytest.raises(UsageError, match="`revision` must be of a model on the Hub, but `mini` is on this machine"):
        weight_files("mini", revision="main")


@pytest.mark.parametrize("version", ["4.57.0", "4.57.6", "5.0.0", "5.23.0", "5.24.0.dev0"])
def test_versions_of_transformers(version):
    check_transformers(version)


@pytest.mark.parametrize("version", ["4.30.2", "4.56.9", "6.0.0", "7.1"])
def test_other_versions_of_transformers(version):
    with pytest.raises(UsageError, match=rf"`transformers` must be >=4.57,<6, but is {version} instead; install one"):
        check_transformers(version)
