"""`mini` as fairseq would have written it: the same tensors, fingerprint and logits."""

import re
import shutil
from argparse import Namespace

import pytest
import torch
from safetensors.torch import load_file

from nllb_prune.errors import UsageError
from nllb_prune.exporting.export import export
from nllb_prune.masks import MaskSet
from nllb_prune.model.families import FAMILIES
from nllb_prune.model.loading import load_model, load_spec
from nllb_prune.model.source import load_tokenizer, model_folder
from nllb_prune.model.weight_files import weight_files
from nllb_prune.weights.checkpoint import Checkpoint

MINI = model_folder("mini")
TENSORS = load_file(MINI / "model.safetensors")
TIED = {"model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"}
ORIGINAL = FAMILIES["nllb-moe"].original
STEM = "checkpoint_2_300000"
EXPERTS = 64


def original_name(name):
    """The inverse of what is tested, as fairseq's modules are called."""
    name = (
        name.removeprefix("model.")
        .replace("cross_attention", "encoder_attn")
        .replace("ff_layer_norm", "final_layer_norm")
    )
    name = name.replace("ffn.router.classifier", "moe_layer.gate.wg")
    return re.sub(r"\.ffn\.(fc[12])", r".\1", name.replace("ffn.experts.expert_", "moe_layer.experts."))


def shared_tensors(experts=()):
    table = {original_name(name): t for name, t in TENSORS.items() if ".experts." not in name and name not in TIED}
    embedding = table.pop("shared.weight")
    names = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight")
    table |= dict.fromkeys(names, embedding)
    table |= {f"{stack}.version": torch.tensor([3.0]) for stack in ("encoder", "decoder")}
    table |= {f"{stack}.embed_positions._float_tensor": torch.zeros(1) for stack in ("encoder", "decoder")}
    return table | rank_tensors(experts, first=0)


def rank_tensors(experts, *, first):
    """The tensors of some experts, numbered from 0 on."""
    table = {}
    for name, tensor in TENSORS.items():
        found = re.search(r"expert_(\d+)\.", name)
        if found and int(found[1]) in experts:
            table[original_name(name.replace(found[0], f"expert_{int(found[1]) - first}."))] = tensor
    return table


def save(table, path):
    """As its trainer leaves it: settings, the table, its own state, the optimizer's."""
    state = {"optimizer": {"exp_avg": torch.ones(5)}, "last_optimizer_state": [torch.zeros(3)]}
    extra = {"extra_state": {"epoch": 2, "loss": 3.5}, "args": Namespace(arch="transformer", moe_freq=2)}
    torch.save({"cfg": {"model": Namespace(moe_expert_count=EXPERTS)}, "model": table, **extra, **state}, path)


def write(folder, *, experts_of_a_rank=1):
    folder.mkdir(exist_ok=True)
    for path in MINI.iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            shutil.copy(path, folder)
    save(shared_tensors(), folder / f"{STEM}-shared.pt")
    for rank in range(EXPERTS // experts_of_a_rank):
        first = rank * experts_of_a_rank
        experts = range(first, first + experts_of_a_rank)
        save(rank_tensors(experts, first=first), folder / f"{STEM}-rank-{rank}.pt")
    return folder


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory):
    return write(tmp_path_factory.mktemp("original") / "model")


def checkpoint_of(folder):
    return Checkpoint(folder, original=ORIGINAL)


def check_tensors(folder):
    checkpoint = checkpoint_of(folder)
    assert set(checkpoint) - TIED == set(TENSORS) - TIED
    for name in set(TENSORS) - TIED:
        assert torch.equal(checkpoint.tensor(name), TENSORS[name]), name
        assert torch.equal(checkpoint.stored(name).read(), TENSORS[name]), name
    for name in TIED & set(checkpoint):
        assert torch.equal(checkpoint.tensor(name), TENSORS["model.shared.weight"])


def test_an_expert_in_each_rank(one_by_one):
    check_tensors(one_by_one)


@pytest.mark.parametrize("experts_of_a_rank", [16, 64])
def test_several_experts_in_a_rank(tmp_path, experts_of_a_rank):
    check_tensors(write(tmp_path / "model", experts_of_a_rank=experts_of_a_rank))


def test_experts_in_the_shared_file(tmp_path):
    save(shared_tensors(range(EXPERTS)), tmp_path / f"{STEM}-shared.pt")
    check_tensors(tmp_path)


def test_the_model_is_that_of_the_other_layout(one_by_one):
    ours, theirs = load_model(one_by_one), load_model("mini")
    assert load_spec(one_by_one) == load_spec("mini")
    source, target = torch.tensor([[5, 7, 8, 9, 2]]), torch.tensor([[2, 6, 40, 41]])
    with torch.inference_mode():
        logits = [model(input_ids=source, decoder_input_ids=target).logits for model in (ours, theirs)]
    assert torch.equal(*logits)
    assert load_tokenizer(one_by_one)("a line").input_ids == load_tokenizer("mini")("a line").input_ids


def test_one_file_at_a_time(one_by_one):
    files = weight_files(one_by_one, wanted=lambda name: "expert_9." in name or ".router." in name)
    assert files.files == (f"{STEM}-shared.pt", f"{STEM}-rank-9.pt")
    assert files.names()["model.encoder.layers.1.ffn.experts.expert_9.fc1.weight"] == f"{STEM}-rank-9.pt"
    with files.opened(f"{STEM}-rank-9.pt") as stored:
        assert all(torch.equal(tensor.read(), TENSORS[tensor.name]) for tensor in stored)
        assert len(stored) == 6 * 4


def test_what_is_missing(one_by_one, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(one_by_one, folder)
    (folder / f"{STEM}-rank-5.pt").unlink()
    with pytest.raises(UsageError, match=rf"{STEM}-rank-5.pt` must hold the experts of a rank, but there is no such"):
        checkpoint_of(folder)
    for path in folder.glob("*.json"):
        path.unlink()
    with pytest.raises(UsageError, match=r"must be a folder with a `config.json`, but has none; put those of the same"):
        load_model(folder)
    (folder / "sentencepiece.bpe.model").unlink()
    shutil.copy(MINI / "config.json", folder)
    with pytest.raises(UsageError, match=r"must hold a tokenizer .*, but holds none; put those of the same model on"):
        load_tokenizer(folder)


def test_two_checkpoints_in_a_folder(one_by_one, tmp_path):
    for stem in (STEM, "checkpoint_best"):
        shutil.copy(one_by_one / f"{STEM}-shared.pt", tmp_path / f"{stem}-shared.pt")
    with pytest.raises(UsageError, match=r"must hold one original checkpoint, but holds 2 \(checkpoint_2_300000-shar"):
        checkpoint_of(tmp_path)


def test_ranks_of_different_checkpoints(one_by_one, tmp_path):
    shutil.copy(one_by_one / f"{STEM}-shared.pt", tmp_path)
    save(rank_tensors(range(2), first=0), tmp_path / f"{STEM}-rank-0.pt")
    shutil.copy(one_by_one / f"{STEM}-rank-1.pt", tmp_path)
    with pytest.raises(UsageError, match=r"expert_1\..*` must be in one file, but is in .*rank-0.pt` and in .*rank-1"):
        checkpoint_of(tmp_path)


def test_objects_of_other_programs(tmp_path):
    """Settings of some versions are objects of a library of their own; what to do is told."""
    torch.save({"cfg": re.compile("a"), "model": shared_tensors()}, tmp_path / f"{STEM}-shared.pt")
    with pytest.raises(
        UsageError, match=r"holds code, not weights alone: `re._compile`\. Nothing of it was run; if you"
    ) as e:
        checkpoint_of(tmp_path)
    assert "\n" not in str(e.value)


def test_original_files_are_not_read_unless_asked_for(one_by_one):
    with pytest.raises(UsageError, match="must hold the weights of a model"):
        Checkpoint(one_by_one)


def test_an_export_is_that_of_the_other_layout(one_by_one, tmp_path):
    spec = load_spec("mini")
    kept = {stack.name: {"*": [(0, 5, 9)] * len(stack.layers)} for stack in spec.stacks}
    masks = MaskSet(
        model_name="mini", fingerprint=spec.fingerprint, stacks=spec.stacks, granularity="global", masks=kept
    )
    for name, model in (("ours", one_by_one), ("theirs", "mini")):
        export(model, tmp_path / name, masks=masks)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


DENSE = model_folder("mini-dense")


def write_dense(folder):
    """`mini-dense` as fairseq gives out dense models: one file."""
    folder.mkdir()
    for path in DENSE.iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            shutil.copy(path, folder)
    table = {name.removeprefix("model."): t for name, t in load_file(DENSE / "model.safetensors").items()}
    embedding = table.pop("shared.weight")
    names = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight")
    table = {name: t for name, t in table.items() if name != "lm_head.weight"} | dict.fromkeys(names, embedding)
    table |= {"encoder.version": torch.tensor([3.0]), "decoder.embed_positions._float_tensor": torch.zeros(1)}
    save(table, folder / "checkpoint.pt")
    return folder


def test_a_dense_model_is_one_file(tmp_path):
    ours, theirs = load_model(write_dense(tmp_path / "dense")), load_model("mini-dense")
    source, target = torch.tensor([[6002, 7, 8, 9, 2]]), torch.tensor([[2, 6005, 40, 41]])
    with torch.inference_mode():
        logits = [model(input_ids=source, decoder_input_ids=target).logits for model in (ours, theirs)]
    assert torch.equal(*logits)


def test_two_files_are_no_dense_model(tmp_path):
    folder = write_dense(tmp_path / "dense")
    shutil.copy(folder / "checkpoint.pt", folder / "other.pt")
    with pytest.raises(UsageError, match="must hold the weights of a model"):
        load_model(folder)
