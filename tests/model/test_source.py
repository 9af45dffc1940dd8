"""What is fetched from a Hub that is a folder here: the small files first, then only the shards that are read."""

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from nllb_prune.errors import UsageError
from nllb_prune.masks import MaskSet
from nllb_prune.model.loading import load_model, load_spec
from nllb_prune.model.source import model_folder, model_name

TINY = Path(__file__).parent.parent / "reference" / "tiny"
HUB_ID = "somebody/tiny-moe"


def shard_of(name):
    """Routers in a shard of their own, each expert in one, the dense rest in another."""
    if ".router." in name:
        return "model-routers.safetensors"
    return f"model-{name.split('expert_')[1][0]}.safetensors" if "expert_" in name else "model-dense.safetensors"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Serve a sharded copy of the tiny model, and list the weight files that were asked for."""
    remote, local, asked = tmp_path / "remote", tmp_path / "local", []
    remote.mkdir()
    shutil.copy(TINY / "config.json", remote)
    tensors = load_file(TINY / "model.safetensors")
    weight_map = {name: shard_of(name) for name in tensors}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, remote / file)
    (remote / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (remote / "pytorch_model.bin").write_bytes(b"the same weights in another format")

    def snapshot_download(hub_id, *, allow_patterns, revision):
        if hub_id != HUB_ID:
            raise LocalEntryNotFoundError("no such repository")
        local.mkdir(exist_ok=True)
        for path in remote.iterdir():
            if any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, local)
                asked.extend([path.name] if path.suffix in (".safetensors", ".bin") else [])
        return str(local)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return asked


def test_a_spec_needs_the_routers_alone(hub):
    assert load_spec(HUB_ID) == load_spec(TINY)
    assert hub == ["model-routers.safetensors"]


def test_a_full_model_needs_every_shard_of_one_format(hub):
    ours, theirs = load_model(HUB_ID), load_model(TINY)
    assert "pytorch_model.bin" not in hub
    for (name, tensor), (_, expected) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(tensor, expected), name


def test_a_pruned_model_needs_no_shard_of_dropped_experts(hub):
    spec = load_spec(TINY)
    masks = MaskSet(
        model_name="tiny",
        fingerprint=spec.fingerprint,
        stacks=spec.stacks,
        granularity="global",
        masks={stack.name: {"*": ((0, 3), (3, 5))} for stack in spec.stacks},
    )
    load_model(HUB_ID, masks=masks, direction=("eng_Latn", "deu_Latn"))
    assert sorted(hub) == sorted(f"model-{part}.safetensors" for part in ("0", "3", "5", "dense", "routers"))


def test_dense_and_unknown_models_are_refused_before_any_weight(hub, tmp_path):
    remote = tmp_path / "remote" / "config.json"
    remote.write_text(json.dumps({"model_type": "m2m_100"}))
    with pytest.raises(UsageError, match="nothing to prune"):
        load_spec(HUB_ID)
    remote.write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UsageError, match="must be one of nllb-moe"):
        load_model(HUB_ID)
    assert hub == []


def test_what_is_no_model(hub, tmp_path):
    with pytest.raises(UsageError, match="could not be fetched"):
        model_folder("somebody/else")
    with pytest.raises(UsageError, match="must be mini, mini-dense, a folder or a Hub id"):
        model_folder("nonsense")
    with pytest.raises(UsageError, match=r"a folder with a `config\.json`"):
        model_folder(tmp_path)


def test_names_travel_without_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").mkdir()
    assert [model_name(name) for name in ("mini", HUB_ID, "my-model", tmp_path / "my-model")] == [
        "mini",
        HUB_ID,
        "my-model",
        "my-model",
    ]
