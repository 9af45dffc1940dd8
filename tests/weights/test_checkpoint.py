"""One checkpoint in every layout: the same names, the same places, the same bytes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nllb_prune.errors import UsageError
from nllb_prune.weights.checkpoint import Checkpoint

TINY = Path(__file__).parent.parent / "reference" / "tiny"
TENSORS = load_file(TINY / "model.safetensors")
KINDS = {"safetensors": ("model", save_file), "bin": ("pytorch_model", torch.save)}


def write(folder, tensors=TENSORS, *, kind="safetensors", shards=1):
    stem, save = KINDS[kind]
    if shards == 1:
        save(dict(tensors), folder / f"{stem}.{kind}")
        return folder
    weight_map = {name: f"{stem}-{n % shards}.{kind}" for n, name in enumerate(sorted(tensors))}
    for file in set(weight_map.values()):
        save({name: tensors[name] for name in weight_map if weight_map[name] == file}, folder / file)
    (folder / f"{stem}.{kind}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def without_prefix(tensors):
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_has_the_same_tensors(tmp_path, kind, shards, prefix):
    tensors = TENSORS if prefix else without_prefix(TENSORS)
    with Checkpoint(write(tmp_path, tensors, kind=kind, shards=shards)) as checkpoint:
        assert set(checkpoint) == set(TENSORS)
        for name, expected in TENSORS.items():
            stored = checkpoint.stored(name)
            assert (stored.name, stored.dtype, stored.shape) == (name, expected.dtype, tuple(expected.shape))
            assert torch.equal(stored.read(), expected)
            assert torch.equal(checkpoint.tensor(name), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_dtypes_stay_as_stored(tmp_path, kind, dtype):
    folder = write(tmp_path, {name: tensor.to(dtype) for name, tensor in TENSORS.items()}, kind=kind)
    checkpoint = Checkpoint(folder)
    assert {checkpoint.stored(name).dtype for name in checkpoint} == {dtype}
    assert {checkpoint.tensor(name).dtype for name in checkpoint} == {dtype}


def test_the_head_never_has_the_prefix(tmp_path):
    tensors = {"shared.weight": torch.zeros(2), "lm_head.weight": torch.zeros(2)}
    assert set(Checkpoint(write(tmp_path, tensors))) == {"model.shared.weight", "lm_head.weight"}
    assert set(Checkpoint(tmp_path, prefix="base.")) == {"base.shared.weight", "lm_head.weight"}


def test_safetensors_come_before_bin_and_an_index_before_a_file(tmp_path):
    for number, (kind, shards) in enumerate([("bin", 1), ("bin", 2), ("safetensors", 1), ("safetensors", 2)]):
        write(tmp_path, {"model.a": torch.tensor([number]), "model.b": torch.zeros(1)}, kind=kind, shards=shards)
        assert Checkpoint(tmp_path).tensor("model.a").item() == number


def test_a_shard_is_opened_when_it_is_needed(tmp_path):
    write(tmp_path, shards=3)
    for n in (0, 2):
        (tmp_path / f"model-{n}.safetensors").unlink()
    checkpoint, names = Checkpoint(tmp_path), sorted(TENSORS)
    assert torch.equal(checkpoint.stored(names[1]).read(), TENSORS[names[1]])
    with pytest.raises(UsageError, match=r"model-2.safetensors` must be a shard of the checkpoint, but there is no"):
        checkpoint.stored(names[2])


@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_without_what_the_index_says(tmp_path, kind):
    write(tmp_path, kind=kind, shards=2)
    first, second = sorted(tmp_path.glob(f"*.{kind}"))
    second.write_bytes(first.read_bytes())
    checkpoint, name = Checkpoint(tmp_path), sorted(TENSORS)[1]
    for read in (checkpoint.stored, checkpoint.tensor):
        with pytest.raises(UsageError, match=rf"must hold `{name}`, as the index says, but does not; fetch it again"):
            read(name)


@pytest.mark.parametrize("file", ["../other.safetensors", "/etc/passwd", "sub/model.safetensors"])
def test_an_index_names_files_of_its_own_folder(tmp_path, file):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.a": file}}))
    with pytest.raises(UsageError, match=f"must name files of its own folder, but names `{file}`"):
        Checkpoint(tmp_path)


def test_an_unknown_name(tmp_path):
    checkpoint = Checkpoint(write(tmp_path))
    assert "model.nothing" not in checkpoint
    with pytest.raises(KeyError):
        checkpoint.stored("model.nothing")


def open_files(folder):
    """Return how many files of a folder are open in this process."""
    return sum(descriptor.resolve().parent == folder for descriptor in Path("/proc/self/fd").iterdir())


def test_files_are_let_go(tmp_path):
    """Tensors stay whole after it; what is open is closed with the last of them."""
    write(tmp_path, shards=3)
    with Checkpoint(tmp_path) as checkpoint:
        tensors = {name: checkpoint.tensor(name) for name in TENSORS}
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert open_files(tmp_path) == 3
    tensors.clear()
    assert open_files(tmp_path) == 0
