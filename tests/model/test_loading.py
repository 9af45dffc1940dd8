"""Every file layout gives the same model, dropped experts are never read, and a wrong checkpoint is one clear line."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import M2M100Config, M2M100ForConditionalGeneration

from nllb_prune.calibration.calibrate import calibrate
from nllb_prune.errors import UsageError
from nllb_prune.masks import MaskSet
from nllb_prune.model.loading import load_model, load_spec
from nllb_prune.model.routing import routing_of, set_masks
from nllb_prune.model.source import load_tokenizer, model_folder
from nllb_prune.model.sparse_ffn import SparseFfn
from nllb_prune.weights.checkpoint import Checkpoint

TINY = Path(__file__).parent.parent / "reference" / "tiny"
TENSORS = load_file(TINY / "model.safetensors")
DIRECTION = ("eng_Latn", "deu_Latn")
EXPERT = "model.encoder.layers.1.ffn.experts.expert_3.fc1.weight"
ROUTER = "model.decoder.layers.3.ffn.router.classifier.weight"
DENSE = "model.encoder.layers.0.ffn.fc1.weight"


def write(folder, tensors=TENSORS, *, form="safetensors", shards=1, **config):
    """Write a checkpoint in one of the layouts that transformers writes; `config` changes the configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    content = json.loads((TINY / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(content))
    shutil.copy(TINY / "generation_config.json", folder)
    stem, save = {"safetensors": ("model", save_file), "bin": ("pytorch_model", torch.save)}[form]
    if shards == 1:
        save(dict(tensors), folder / f"{stem}.{form}")
        return folder
    weight_map = {name: f"{stem}-{n % shards + 1:05}-of-{shards:05}.{form}" for n, name in enumerate(sorted(tensors))}
    for file in set(weight_map.values()):
        save({name: tensors[name] for name in weight_map if weight_map[name] == file}, folder / file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / f"{stem}.{form}.index.json").write_text(json.dumps(index))
    return folder


def without(*names):
    return {name: tensor for name, tensor in TENSORS.items() if name not in names}


def bare(tensors):
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def masks(model=TINY):
    spec = load_spec(model)
    kept = ((0, 3, 5), (1, 2, 6, 7))
    return MaskSet(
        model_name="tiny",
        fingerprint=spec.fingerprint,
        stacks=spec.stacks,
        granularity="language",
        masks={"encoder": {DIRECTION[0]: kept}, "decoder": {DIRECTION[1]: kept}},
    )


@torch.inference_mode()
def logits(model):
    source, target = torch.tensor([[94, 7, 8, 9, 2]]), torch.tensor([[2, 95, 40, 41]])
    return model(input_ids=source, decoder_input_ids=target).logits


@pytest.fixture(scope="module")
def tiny():
    return load_model(TINY)


@pytest.fixture
def read(monkeypatch):
    """Names of the tensors that are read."""
    names, original = [], Checkpoint.tensor

    def recorded(self, name):
        names.append(name)
        return original(self, name)

    monkeypatch.setattr(Checkpoint, "tensor", recorded)
    return names


def refused(folder, match):
    with pytest.raises(UsageError, match=match) as raised:
        load_model(folder)
    assert "\n" not in str(raised.value)


# layouts


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_every_layout_gives_the_same_parameters(tmp_path, tiny, form, shards, prefix):
    folder = write(tmp_path, TENSORS if prefix else bare(TENSORS), form=form, shards=shards)
    model = load_model(folder)
    ours, theirs = dict(model.named_parameters()), dict(tiny.named_parameters())
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(logits(model), logits(tiny))
    assert routing_of(model).spec.fingerprint == routing_of(tiny).spec.fingerprint


def test_every_parameter_is_that_of_the_file(tiny):
    found = dict(tiny.named_parameters())
    for name, tensor in TENSORS.items():
        if ".experts." in name:
            path, _, rest = name.partition(".experts.expert_")
            expert, matrix, part = rest.split(".")
            assert torch.equal(found[f"{path}.bank.{matrix}_{part}"][int(expert)], tensor)
        elif ".router." in name:
            assert torch.equal(found[name.replace("router.classifier.weight", "router_weight")], tensor)
        else:
            assert torch.equal(found[name], tensor)
    assert not any(tensor.is_meta for tensor in (*tiny.parameters(), *tiny.buffers()))
    assert not any(parameter.requires_grad for parameter in tiny.parameters())
    assert not any(module.training for module in tiny.modules())


@pytest.mark.parametrize("extra", [True, False])
def test_tied_names_may_be_stored_or_not(tmp_path, tiny, extra):
    tied = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
    shared = TENSORS["model.shared.weight"]
    copies = {name: shared.clone() for name in tied}
    ignored = {"final_logits_bias": torch.zeros(1, 96), "model.encoder.embed_positions.weights": torch.zeros(66, 32)}
    model = load_model(write(tmp_path, TENSORS | copies | ignored if extra else without(*tied)))
    assert torch.equal(logits(model), logits(tiny))


# what is read and held


def test_dropped_experts_are_never_read(read):
    kept = masks()
    read.clear()
    load_model(TINY, masks=kept, direction=DIRECTION)
    experts = [name for name in read if ".experts." in name]
    assert len(experts) == len(set(experts)) == 4 * 2 * (3 + 4)
    for name in experts:
        stack, layer = name.split(".")[1], int(name.split(".")[3]) // 2
        expert = int(name.partition("expert_")[2].split(".")[0])
        assert expert in kept.mask(stack, *DIRECTION)[layer]


def test_every_tensor_is_read_once_beside_the_routers(read):
    load_model(TINY)
    routers = [name for name in read if ".router." in name]
    others = [name for name in read if ".router." not in name]
    assert len(others) == len(set(others))
    assert len(routers) == 2 * len(set(routers))  # once for the fingerprint


def test_spec_reads_routers_alone(read):
    spec = load_spec(TINY)
    assert len(read) == 4
    assert all(".router." in name for name in read)
    assert (spec.family, spec.top_k, spec.output_scale, spec.experts) == ("nllb-moe", 2, 0.8, 32)
    assert [(stack.keyed_by, stack.layers) for stack in spec.stacks] == [("source", (1, 3)), ("target", (1, 3))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_weight_is_held_twice(dtype):
    model = load_model(TINY, dtype=dtype)
    embeddings = [
        model.get_submodule(path).weight
        for path in ("model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head")
    ]
    assert len({id(weight) for weight in embeddings}) == 1
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    tied = [name for name in TENSORS if name in ("lm_head.weight",) or name.endswith("embed_tokens.weight")]
    expected = sum(
        tensor.numel() * (4 if ".router." in name else dtype.itemsize)
        for name, tensor in TENSORS.items()
        if name not in tied
    )
    assert sum(storages.values()) == expected


def test_pruned_bytes(tiny):
    def held(model):
        return sum(p.numel() * p.element_size() for p in model.parameters())

    pruned = load_model(TINY, masks=masks(), direction=DIRECTION)
    assert held(tiny) - held(pruned) == (32 - 14) * 4 * (2 * 32 * 48 + 48 + 32)


# dtypes


def test_default_on_the_cpu_is_float32(tmp_path):
    half = {name: tensor.to(torch.bfloat16) for name, tensor in TENSORS.items()}
    model = load_model(write(tmp_path, half, dtype="bfloat16", torch_dtype="bfloat16"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.model.shared.weight, half["model.shared.weight"].float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_routers_stay_in_float32(dtype):
    model = load_model(TINY, dtype=dtype)
    routers = {name: p for name, p in model.named_parameters() if name.endswith("router_weight")}
    assert len(routers) == 4
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if name in routers else dtype)
    router = routers[ROUTER.replace("router.classifier.weight", "router_weight")]
    assert torch.equal(router, TENSORS[ROUTER].to(dtype).float())
    assert logits(model).isfinite().all()


def test_fingerprint_does_not_depend_on_the_dtype(tmp_path):
    half = write(tmp_path, {name: tensor.to(torch.bfloat16) for name, tensor in TENSORS.items()})
    masks().check_model(load_spec(half))
    assert load_model(half, masks=masks(), direction=DIRECTION, dtype=torch.bfloat16) is not None


# wrong checkpoints


@pytest.mark.parametrize("name", [EXPERT, ROUTER, DENSE, "model.shared.weight", "model.decoder.layer_norm.bias"])
def test_missing_tensor(tmp_path, name):
    refused(write(tmp_path, without(name, "lm_head.weight")), rf"must hold `{name}`, but does not; it is incomplete")


@pytest.mark.parametrize("name", ["model.encoder.layers.1.ffn.experts.expert_8.fc1.weight", "model.adapter.weight"])
def test_unexpected_tensor(tmp_path, name):
    refused(write(tmp_path, {**TENSORS, name: torch.zeros(2)}), rf"holds 1 others, first `{name}`")


@pytest.mark.parametrize("name", [EXPERT, ROUTER, DENSE, "model.shared.weight"])
def test_misshapen_tensor(tmp_path, name):
    shape = tuple(TENSORS[name].shape)
    wrong = {**without("lm_head.weight"), name: torch.ones(shape[0], shape[1] + 1)}
    refused(write(tmp_path, wrong), rf"`{name}` must have the shape \({shape[0]}, {shape[1]}\), but has")


def test_broadcastable_tensor_is_misshapen_too(tmp_path):
    name = EXPERT.replace("weight", "bias")
    refused(write(tmp_path, {**TENSORS, name: torch.ones(1)}), r"must have the shape \(48,\), but has \(1,\)")


@pytest.mark.parametrize(("form", "file"), [("safetensors", "model.safetensors"), ("bin", "pytorch_model.bin")])
@pytest.mark.parametrize("left", [0.9, 0.3, 0.0])
def test_truncated_file(tmp_path, form, file, left):
    path = write(tmp_path, form=form) / file
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * left)])
    refused(tmp_path, rf"{file}` must be a whole weight file, but is truncated or damaged \(.*fetch it again")


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_missing_and_truncated_shard(tmp_path, form):
    shards = sorted(write(tmp_path, form=form, shards=3).glob(f"*.{form}"))
    shards[1].write_bytes(shards[1].read_bytes()[:2000])
    refused(tmp_path, rf"{shards[1].name}` must be a whole weight file")
    shards[1].unlink()
    refused(tmp_path, rf"{shards[1].name}` must be a shard of the checkpoint, but there is no such file; fetch")


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_shard_without_what_the_index_says(tmp_path, form):
    folder = write(tmp_path, form=form, shards=2)
    shards = sorted(folder.glob(f"*.{form}"))
    shutil.copy(shards[0], shards[1])
    refused(folder, r"must hold `.*`, as the index says, but does not")


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "{", ""])
def test_wrong_index(tmp_path, content):
    index = write(tmp_path, shards=2) / "model.safetensors.index.json"
    index.write_text(content)
    refused(tmp_path, r"index.json` must (name the file of each tensor|be the index)")


class Payload:
    def __reduce__(self):
        return (print, ("the pickle ran",))


def test_unsafe_pickle_is_refused_and_not_run(tmp_path, capsys):
    torch.save(TENSORS | {"model.evil": Payload()}, write(tmp_path, form="bin") / "pytorch_model.bin")
    refused(tmp_path, "pytorch_model.bin` must be a whole weight file")
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    refused(tmp_path, "pytorch_model.bin` must be a whole weight file")
    assert "the pickle ran" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"model": dict(TENSORS)}, {"step": 3}, torch.zeros(2)])
def test_bin_of_something_else(tmp_path, content):
    torch.save(content, write(tmp_path, form="bin") / "pytorch_model.bin")
    refused(tmp_path, "something else than tensors by name")


def test_no_weights(tmp_path):
    (write(tmp_path) / "model.safetensors").unlink()
    refused(tmp_path, r"must hold the weights of a model \(model.safetensors.index.json, .*but holds none of them")


# names and configurations


@pytest.mark.parametrize("name", ["maxi", "no/such/folder", "./nothing", "/nothing/here", ""])
def test_unknown_name(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="must be"):
        load_model(name)


@pytest.mark.parametrize("name", ["nobody/nothing", "no body/no thing", "a--b/..", "x/"])
def test_hub_id_that_cannot_be_fetched(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(name, "could not be fetched")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model_type": "no-such"}'])
def test_wrong_configuration(tmp_path, content):
    (write(tmp_path) / "config.json").write_text(content)
    refused(tmp_path, "config.json` must be a transformers configuration, but is not")


def test_other_architecture(tmp_path):
    (write(tmp_path) / "config.json").write_text(json.dumps({"model_type": "t5"}))
    refused(tmp_path, "`model_type` must be one of nllb-moe, m2m_100, but is t5 instead")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("second_expert_policy", "random"),
        ("second_expert_policy", "sampling"),
        ("moe_eval_capacity_token_fraction", 0.5),
        ("router_dtype", "bfloat16"),
        ("activation_function", "gelu_new"),
    ],
)
def test_rules_that_are_not_covered(tmp_path, option, value):
    folder = write(tmp_path, **{option: value})
    refused(folder, rf"`{option}` of the configuration must be .*, but is {value} instead")
    with pytest.raises(UsageError, match=option):
        load_spec(folder)


def test_folder_without_a_tokenizer():
    with pytest.raises(UsageError, match="must hold a tokenizer") as raised:
        load_tokenizer(TINY)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("left", [0, 1000])
def test_damaged_tokenizer(tmp_path, left):
    for name in ("config.json", "special_tokens_map.json", "tokenizer_config.json", "tokenizer.json"):
        shutil.copy(model_folder("mini") / name, tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(UsageError, match="must hold a whole tokenizer, but it cannot be read") as raised:
        load_tokenizer(tmp_path)
    assert "\n" not in str(raised.value)


# dense models


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    config = M2M100Config(
        vocab_size=96,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        max_position_embeddings=32,
    )
    torch.manual_seed(0)
    M2M100ForConditionalGeneration(config).eval().save_pretrained(folder)
    return folder


def test_dense_model_runs_as_transformers_does(dense):
    ours, theirs = load_model(dense), M2M100ForConditionalGeneration.from_pretrained(dense).eval()
    with torch.inference_mode():
        assert torch.allclose(logits(ours), logits(theirs), rtol=1e-5, atol=1e-6)
        source = torch.tensor([[94, 7, 8, 2]])
        made = ours.generate(input_ids=source, forced_bos_token_id=95, max_new_tokens=5, do_sample=False)
    assert made[0, 1] == 95
    assert routing_of(ours).stacks == {}


def test_dense_model_has_nothing_to_prune(dense, tmp_path):
    nothing = "dense model .*nothing to prune"
    with pytest.raises(UsageError, match=nothing):
        load_spec(dense)
    with pytest.raises(UsageError, match=nothing):
        load_model(dense, masks=masks(), direction=DIRECTION)
    model = load_model(dense)
    with pytest.raises(UsageError, match=nothing):
        calibrate(model, None, None, [DIRECTION], folder=tmp_path)
    with pytest.raises(UsageError, match="masks` must belong to the model"):
        set_masks(model, masks(), DIRECTION)


def test_sparse_layers_without_a_sparse_step(tmp_path):
    folder = write(tmp_path, encoder_sparse_step=0, decoder_sparse_step=0)
    with pytest.raises(UsageError, match="nothing to prune"):
        load_spec(folder)


def test_one_sparse_stack(tmp_path):
    """A stack without sparse layers is no stack: the rest is as always."""
    sparse = ("model.decoder.layers.1.ffn.", "model.decoder.layers.3.ffn.")
    tensors = {name: tensor for name, tensor in TENSORS.items() if not name.startswith(sparse)}
    for layer in (1, 3):
        for part in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"):
            path = f"model.decoder.layers.{layer}"
            tensors[f"{path}.ffn.{part}"] = TENSORS[f"{path}.ffn.experts.expert_0.{part}"].clone()
    model = load_model(write(tmp_path, tensors, decoder_sparse_step=0))
    assert list(routing_of(model).stacks) == ["encoder"]
    assert sum(isinstance(module, SparseFfn) for module in model.modules()) == 2
    assert logits(model).isfinite().all()
