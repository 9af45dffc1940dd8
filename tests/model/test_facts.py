"""What is said of a model without loading it is what its loaded form says."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nllb_prune.errors import UsageError
from nllb_prune.masks import MaskSet
from nllb_prune.model.loading import facts_of, load_facts, load_model
from nllb_prune.model.routing import clear_masks, set_masks
from nllb_prune.weights.checkpoint import Checkpoint

TINY = Path(__file__).parent.parent / "reference" / "tiny"
DIRECTION = ("eng_Latn", "deu_Latn")


@pytest.fixture(scope="module")
def tiny():
    return load_model(TINY)


@pytest.fixture(scope="module")
def tiny_masks(tiny):
    spec = facts_of(tiny).spec
    return MaskSet(
        model_name="tiny",
        fingerprint=spec.fingerprint,
        stacks=spec.stacks,
        granularity="global",
        masks={stack.name: {"*": ((0, 1),) * len(stack.layers)} for stack in spec.stacks},
    )


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["mini", "mini-dense", TINY])
def test_facts_are_those_of_the_loaded_model(name, dtype):
    assert load_facts(name, dtype=dtype) == facts_of(load_model(name, dtype=dtype))


@pytest.mark.parametrize(("name", "layers"), [("mini", 6), ("mini-dense", 0)])
def test_facts_say_what_results_depend_on(name, layers):
    found = load_facts(name)
    assert (found.name, found.dtype) == (name, "float32")
    assert sum(len(stack.layers) for stack in found.spec.stacks) == layers
    assert load_facts(name, dtype=torch.bfloat16).dtype == "bfloat16"


def test_counts_are_those_of_the_parameters():
    counts, model = load_facts("mini").spec.parameters, load_model("mini")
    experts = sum(each * 3 * 64 for each in counts.expert.values())
    assert counts.dense + counts.router + experts == sum(each.numel() for each in model.parameters())
    dense = load_facts("mini-dense").spec.parameters
    assert (dense.router, dense.expert) == (0, {})
    assert dense.dense == sum(each.numel() for each in load_model("mini-dense").parameters())


@pytest.mark.parametrize(("name", "read"), [("mini", 7), ("mini-dense", 1)])
def test_no_expert_is_read(monkeypatch, name, read):
    names, tensor = [], Checkpoint.tensor

    def noted(self, name):
        names.append(name)
        return tensor(self, name)

    monkeypatch.setattr(Checkpoint, "tensor", noted)
    load_facts(name)
    assert not [each for each in names if "expert" in each]
    assert len(set(names)) == read  # the router of each sparse layer, and the embedding


def without(folder, part):
    shutil.copytree(TINY, folder)
    tensors = load_file(folder / "model.safetensors")
    left = {name: tensor for name, tensor in tensors.items() if part not in name}
    assert len(left) < len(tensors)
    save_file(left, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_checkpoint_without_experts_has_facts_and_cannot_be_loaded(tmp_path, tiny):
    folder = without(tmp_path / "tiny", "expert_0.")
    assert load_facts(folder) == facts_of(tiny)
    with pytest.raises(UsageError, match="must hold"):
        load_model(folder)


def test_a_checkpoint_without_routers_has_none(tmp_path):
    with pytest.raises(UsageError, match=r"The checkpoint must hold `.*router.*`, but does not"):
        load_facts(without(tmp_path / "tiny", "router"))


def test_another_embedding_or_router_is_another_model(tmp_path, tiny):
    for part in ("router.classifier.weight", "shared.weight"):
        folder = tmp_path / part
        shutil.copytree(TINY, folder)
        tensors = load_file(folder / "model.safetensors")
        changed = {name: tensor * 2 if name.endswith(part) else tensor for name, tensor in tensors.items()}
        assert [name for name in tensors if name.endswith(part)]
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        assert load_facts(folder).identity != facts_of(tiny).identity


def test_pruned_and_masked_models_have_none(tiny, tiny_masks):
    message = "`model` must be the full one, but is pruned or has masks set; give them as configurations"
    with pytest.raises(UsageError, match=message):
        facts_of(load_model(TINY, masks=tiny_masks, direction=DIRECTION))
    set_masks(tiny, tiny_masks, DIRECTION)
    with pytest.raises(UsageError, match=message):
        facts_of(tiny)
    clear_masks(tiny)
    assert facts_of(tiny) == load_facts(TINY)
