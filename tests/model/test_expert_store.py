"""Experts come out of every layout as they were stored, what cannot be read is one clear line, and weights are told."""

import os
import shutil

import pytest
import torch

from nllb_prune.errors import UsageError
from nllb_prune.exporting.export import export
from nllb_prune.exporting.settings import ExportSettings
from nllb_prune.masks import MaskSet
from nllb_prune.model.expert_store import MemoryStore, Place
from nllb_prune.model.loading import load_model, load_spec
from nllb_prune.model.paged import load_paged, weigh
from nllb_prune.model.pager import places_of
from nllb_prune.model.source import model_folder
from tests.model.test_loading import EXPERT, TENSORS, TINY, bare, without, write

EVERY = tuple(range(8))
ALL = {"encoder": (EVERY, EVERY), "decoder": (EVERY, EVERY)}
LAYERS = {("encoder", 0): 1, ("encoder", 1): 3, ("decoder", 0): 1, ("decoder", 1): 3}
"""Sparse layers of `tiny`, and the numbers that they have among all layers."""
PARAMETERS = {f"{matrix}_{part}": f"{matrix}.{part}" for matrix in ("fc1", "fc2") for part in ("weight", "bias")}


def paged(folder=TINY, *, slots=2, **named):
    count = {stack: [slots] * len(layers) for stack, layers in ALL.items()}
    return load_paged(folder, kept=named.pop("kept", ALL), slots=count, **named)


def in_file(expert, tensors=TENSORS):
    """The tensors of an expert of `tiny` by parameter."""
    stack, layer, number = expert
    path = f"model.{stack}.layers.{LAYERS[stack, layer]}.ffn.experts.expert_{number}"
    return {parameter: tensors[f"{path}.{name}"] for parameter, name in PARAMETERS.items()}


def empty(dtype=torch.float32, count=3):
    """Memory of several slots as in a bank, filled with something else."""
    like = in_file(("encoder", 0, 0))
    return {name: torch.full((count, *tensor.shape), 7.0, dtype=dtype) for name, tensor in like.items()}


def slot(memory, number):
    return {name: Place(tensor[number]) for name, tensor in memory.items()}


def experts():
    return [(stack, layer, expert) for stack, layer in LAYERS for expert in EVERY]


def check(store, expert, dtype=torch.float32, tensors=TENSORS):
    """Copy an expert into the middle one of three slots, and nothing else."""
    memory = empty(dtype)
    wanted = in_file(expert, tensors)
    assert store.copy(expert, slot(memory, 1)) == sum(tensor.nbytes for tensor in wanted.values())
    for name, tensor in wanted.items():
        assert torch.equal(memory[name][1], tensor.to(dtype))
        assert (memory[name][[0, 2]] == 7).all()


def refused(match, call, *arguments, **named):
    with pytest.raises(UsageError, match=match) as raised:
        call(*arguments, **named)
    assert "\n" not in str(raised.value)


@pytest.fixture
def store(tmp_path):
    """Of a copy of `tiny` that may be damaged; a file is open from the first."""
    pager = paged(write(tmp_path / "model")).pager
    yield pager.store
    pager.close()


@pytest.fixture
def file(store, tmp_path):
    return tmp_path / "model" / "model.safetensors"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(experts) -> an export of `mini`, each made once."""
    folder, made = tmp_path_factory.mktemp("exported"), {}
    spec = load_spec("mini")
    kept = {stack.name: tuple((0, 3, 5 + layer, 60) for layer in range(len(stack.layers))) for stack in spec.stacks}
    masks = MaskSet(
        model_name="mini",
        fingerprint=spec.fingerprint,
        stacks=spec.stacks,
        top_k=spec.top_k,
        granularity="global",
        masks={stack: {"*": mask} for stack, mask in kept.items()},
    )

    def make(experts):
        if experts not in made:
            made[experts] = folder / str(experts)
            settings = ExportSettings(experts=experts)
            export("mini", made[experts], masks=masks, directions=[("eng_Latn", "deu_Latn")], settings=settings)
        return made[experts], kept

    return make


# layouts and dtypes


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_every_layout_gives_the_stored_values(tmp_path, form, shards, prefix):
    pager = paged(write(tmp_path, TENSORS if prefix else bare(TENSORS), form=form, shards=shards)).pager
    for expert in experts():
        check(pager.store, expert)
    pager.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_is_converted(tmp_path, stored, dtype):
    tensors = {name: tensor.to(stored) for name, tensor in TENSORS.items()}
    pager = paged(write(tmp_path, tensors), dtype=dtype).pager
    for expert in experts()[::5]:
        check(pager.store, expert, dtype, tensors)
    pager.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_experts_are_read_whole_whether_converted_or_not(tmp_path, dtype):
    """Larger than what is converted at once, and no multiple of it."""
    sizes = {"encoder_ffn_dim": 20_011, "decoder_ffn_dim": 20_011}
    tensors = {}
    for name, tensor in TENSORS.items():
        shape = [20_011 if side == 48 else side for side in tensor.shape]
        tensors[name] = torch.randn(shape, generator=torch.Generator().manual_seed(len(tensors)))
    pager = paged(write(tmp_path, tensors, **sizes), dtype=dtype, slots=3).pager
    for expert in (("encoder", 0, 3), ("decoder", 1, 7)):
        memory = {name: bank.detach() for name, bank in pager.banks[expert[:2]].named_parameters()}
        for parameter in memory.values():
            parameter.fill_(7)
        pager.store.copy(expert, slot(memory, 1))
        for name, tensor in in_file(expert, tensors).items():
            assert torch.equal(memory[name][1], tensor.to(dtype))
            assert (memory[name][[0, 2]] == 7).all()
    pager.close()


@pytest.mark.parametrize("divisor", [2, 3, 1000])
def test_a_system_that_reads_less_than_asked(store, monkeypatch, divisor):
    whole = os.preadv

    def some(descriptor, memories, offset):
        first = memoryview(memories[0])
        return whole(descriptor, [first[: max(1, len(first) // divisor)]], offset)

    monkeypatch.setattr(os, "preadv", some)
    check(store, ("decoder", 1, 6))


# in memory


def test_experts_held_in_memory_outlive_their_file(tmp_path):
    pager = paged(write(tmp_path)).pager
    shapes = {layer: places_of(bank)[0] for layer, bank in pager.banks.items()}
    held = MemoryStore(pager.store, shapes, pinned=False)
    held.hold([(*layer, expert) for layer in LAYERS for expert in EVERY[layer[1] :]])
    pager.close()
    (tmp_path / "model.safetensors").unlink()
    for stack, layer in LAYERS:
        for expert in EVERY[layer:]:
            check(held, (stack, layer, expert))
    held.close()
    with pytest.raises(KeyError):
        held.copy(("encoder", 0, 0), slot(empty(), 0))


def test_memory_holds_what_it_is_told_to(tmp_path, monkeypatch):
    pager = paged(write(tmp_path)).pager
    held = MemoryStore(pager.store, {layer: places_of(bank)[0] for layer, bank in pager.banks.items()}, pinned=False)
    held.hold([("encoder", 0, 1), ("decoder", 1, 2)])
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", lambda *_: 0)
        held.hold([("encoder", 0, 1)])  # it is there: nothing is read
        refused("must hold", held.hold, [("encoder", 0, 1), ("encoder", 1, 3)])
    with pytest.raises(KeyError):
        held.copy(("encoder", 1, 3), slot(empty(), 1))
    held.hold([("encoder", 1, 3)])
    held.keep_only([("encoder", 1, 3), ("encoder", 0, 1)])
    check(held, ("encoder", 1, 3))
    check(held, ("encoder", 0, 1))
    with pytest.raises(KeyError):
        held.copy(("decoder", 1, 2), slot(empty(), 1))
    pager.close()


# what is refused at load


def test_a_missing_expert_is_refused_at_load(tmp_path):
    refused(rf"must hold `{EXPERT}`, but does not; it is incomplete", paged, write(tmp_path, without(EXPERT)))


def test_a_missing_expert_that_never_comes_is_not_looked_for(tmp_path):
    kept = {"encoder": ((0, 1), (0, 1, 2)), "decoder": ((0, 1), (0, 1))}
    paged(write(tmp_path, without(EXPERT)), kept=kept).pager.close()


def test_a_missing_expert_is_refused_when_it_is_to_come_after_all(tmp_path):
    kept = {"encoder": ((0, 1), (0, 1, 2)), "decoder": ((0, 1), (0, 1))}
    pager = paged(write(tmp_path, without(EXPERT)), kept=kept).pager
    pager.store.hold([("encoder", 0, 4), ("decoder", 1, 7)])
    check(pager.store, ("encoder", 0, 4))
    refused("must hold expert 3 of sparse layer 0 of the encoder, but does not", pager.store.hold, [("encoder", 0, 3)])
    pager.close()


@pytest.mark.parametrize("shape", [(48, 33), (1, 32), (48 * 32,)])
def test_a_misshapen_expert_is_refused_at_load(tmp_path, shape):
    folder = write(tmp_path, {**TENSORS, EXPERT: torch.ones(shape)})
    refused(rf"`{EXPERT}` must have the shape \(48, 32\), but has", paged, folder)


def test_an_expert_of_whole_numbers_is_refused_at_load(tmp_path):
    folder = write(tmp_path, {**TENSORS, EXPERT: torch.ones(48, 32, dtype=torch.int32)})
    refused(rf"`{EXPERT}` must be of torch.float32, or convert to it, but is of torch.int32", paged, folder)


def test_a_transposed_expert_is_refused_at_load(tmp_path):
    folder = write(tmp_path, {**TENSORS, EXPERT: TENSORS[EXPERT].T.contiguous().T}, form="bin")
    refused("must be stored in one piece", paged, folder)


def test_an_expert_that_a_pruned_checkpoint_left_out_is_refused_at_load(exported):
    folder, kept = exported(None)
    wanted = {stack: (tuple(sorted({*mask[0], 1})), *mask[1:]) for stack, mask in kept.items()}
    slots = {stack: [4] * len(mask) for stack, mask in kept.items()}
    refused("wants expert 1, which was left out", load_paged, folder, kept=wanted, slots=slots)


# what cannot be read later


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("left", [0, 1000, 400_000])
def test_a_truncated_file(store, file, left, first):
    if first:
        check(store, ("encoder", 0, 0))
    os.truncate(file, left)
    for expert in (("encoder", 0, 0), ("decoder", 1, 7)):
        refused("model.safetensors` must", store.copy, expert, slot(empty(), 1))


@pytest.mark.parametrize("first", [True, False])
def test_a_file_that_is_written_to_after_loading(store, file, first):
    if first:
        check(store, ("encoder", 0, 0))
    os.utime(file, ns=(1, 1))
    refused("must stay as it was when the model was loaded, but was", store.copy, ("encoder", 0, 1), slot(empty(), 1))


def test_a_file_that_is_written_to_while_it_is_read(store, file, monkeypatch):
    whole = os.preadv

    def disturbed(descriptor, memories, offset):
        os.utime(file, ns=(1, 1))
        return whole(descriptor, memories, offset)

    monkeypatch.setattr(os, "preadv", disturbed)
    refused("must stay as it was when the model was loaded", store.copy, ("encoder", 0, 1), slot(empty(), 1))


def test_a_file_that_is_whole_again_is_read_again(store, file):
    check(store, ("encoder", 0, 0))
    content, state = file.read_bytes(), file.stat()
    os.truncate(file, 1000)
    refused("must", store.copy, ("encoder", 0, 1), slot(empty(), 1))
    file.write_bytes(content)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    check(store, ("encoder", 0, 1))


@pytest.mark.parametrize("first", [True, False])
def test_a_file_that_is_replaced_or_removed_after_loading_is_read_as_it_was(store, file, first, tmp_path):
    if first:
        check(store, ("encoder", 0, 0))
    other = write(tmp_path / "other", {name: tensor + 1 for name, tensor in TENSORS.items()})
    os.replace(other / file.name, file)
    check(store, ("encoder", 1, 3))
    shutil.rmtree(file.parent)
    check(store, ("decoder", 1, 7))


def test_a_disk_that_fails(store, monkeypatch):
    def fail(descriptor, memories, offset):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    refused(
        r"must be read from `.*`, but cannot be \(Input/output error\)", store.copy, ("encoder", 0, 1), slot(empty(), 1)
    )


def test_files_are_closed(tmp_path):
    folder = write(tmp_path, shards=3)

    def held():
        links = [os.path.join("/proc/self/fd", each) for each in os.listdir("/proc/self/fd")]
        return [link for link in links if os.path.exists(link) and str(folder) in os.readlink(link)]

    pager = paged(folder).pager
    for expert in experts():
        check(pager.store, expert)
    assert len(held()) == 3
    pager.close()
    assert not held()


# what a model takes


def held(model):
    """Bytes of all tensors of a model that is loaded, but for the tables of slots, eight bytes an expert."""
    tables = [buffer for name, buffer in model.named_buffers() if not name.endswith("slot_of")]
    return sum(tensor.nbytes for tensor in [*model.parameters(), *tables])


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model", [TINY, "mini"], ids=["tiny", "mini"])
def test_weighed_is_what_a_model_takes(model, dtype):
    weighed, loaded = weigh(model, dtype=dtype), load_model(model, dtype=dtype)
    experts = sum(weighed.expert[stack.name] * stack.experts * len(stack.layers) for stack in weighed.spec.stacks)
    assert weighed.fixed + experts == held(loaded)
    assert weighed.dtype == next(loaded.parameters()).dtype
    assert weighed.spec.fingerprint == load_spec(model).fingerprint


@pytest.mark.parametrize("scheme", [None, "int8", "int4"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_weighed_is_what_an_export_takes(exported, scheme, dtype):
    folder, kept = exported(scheme)
    weighed = weigh(folder, dtype=dtype)
    experts = sum(weighed.expert[stack] * sum(map(len, mask)) for stack, mask in kept.items())
    assert weighed.fixed + experts == held(load_model(folder, dtype=dtype))
    assert weighed.pruning is not None
    assert weighed.masks is not None


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_weighed_is_what_a_dense_model_takes(dtype):
    weighed = weigh("mini-dense", dtype=dtype)
    assert weighed.fixed == held(load_model("mini-dense", dtype=dtype))
    assert not weighed.expert


def test_a_paged_model_takes_what_its_slots_do():
    weighed, loaded = weigh(TINY), paged(slots=3)
    assert weighed.fixed + 4 * 3 * weighed.expert["encoder"] == held(loaded.model)
    loaded.pager.close()


def test_the_dtype_of_a_file_is_told(tmp_path):
    folder = shutil.copytree(model_folder("mini"), tmp_path / "mini", ignore=shutil.ignore_patterns("text"))
    assert weigh(folder, dtype="auto").dtype == torch.float16
    assert weigh(folder).dtype == torch.float32
