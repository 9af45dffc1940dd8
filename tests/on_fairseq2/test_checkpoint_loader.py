"""Folders of models are read by our loader, all else by fairseq2's own; nothing that is damaged gets through."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from nllb_prune.model.source import model_folder
from nllb_prune.on_fairseq2.card import card_of
from tests.on_fairseq2.sides import CPU, fairseq2_states, load_by_card
from tests.on_fairseq2.test_config import of_folder
from tests.weights import test_original_layout as original

pytestmark = pytest.mark.fairseq2

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def pruned(exports):
    return exports()


@pytest.fixture(scope="module")
def model(pruned):
    return load_by_card(pruned)


@pytest.fixture
def copied(pruned, tmp_path):
    return shutil.copytree(pruned, tmp_path / "copy")


def hub():
    from nllb_prune.on_fairseq2.hub import get_nllb_moe_model_hub

    return get_nllb_moe_model_hub()


def refused(folder, **card):
    """Load what cannot be, and return what fairseq2 says of it, from its own error to ours."""
    from fairseq2.assets import AssetCard, AssetCardError
    from fairseq2.model_checkpoint import CorruptModelCheckpointError

    fields = card_of(original.MINI if not (folder / "config.json").exists() else folder) | card
    with pytest.raises(AssetCardError, match="Model checkpoint of the own asset card is erroneous") as error:
        hub().load_model(AssetCard("own", fields), device=CPU)
    cause = error.value.__cause__
    assert isinstance(cause, CorruptModelCheckpointError)
    assert "\n" not in str(cause)
    return str(cause)


def test_every_tensor_comes_once_as_it_is_stored(pruned):
    from nllb_prune.on_fairseq2.conversion import convert_nllb_moe_state_dict

    config = of_folder(pruned)
    wanted = convert_nllb_moe_state_dict(load_file(pruned / WEIGHTS), config)
    found = list(hub().iter_checkpoint(pruned, config))
    assert [name for name, _ in found] == list(wanted)
    assert all(torch.equal(tensor, wanted[name]) and tensor.dtype == wanted[name].dtype for name, tensor in found)


def test_a_file_is_not_read_before_its_tensors_are(copied):
    """The first tensors of a shard come, though the second shard is no file."""
    names, tensors = [], load_file(copied / WEIGHTS)
    early = {name: each for name, each in tensors.items() if "shared" in name or "encoder.layer_norm" in name}
    save_file(early, copied / "model-00001-of-00002.safetensors")
    late = {name: each for name, each in tensors.items() if name not in early}
    save_file(late, copied / "model-00002-of-00002.safetensors")
    (copied / WEIGHTS).unlink()
    index = {name: f"model-0000{1 if name in early else 2}-of-00002.safetensors" for name in tensors}
    (copied / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (copied / "model-00002-of-00002.safetensors").write_bytes(b"")
    from fairseq2.model_checkpoint import CorruptModelCheckpointError

    def read():
        for name, _ in hub().iter_checkpoint(copied, of_folder(copied)):
            names.append(name)

    with pytest.raises(CorruptModelCheckpointError, match=r"model-00002-of-00002\.safetensors"):
        read()
    assert names == ["encoder_frontend.embed.weight", "encoder.layer_norm.weight", "encoder.layer_norm.bias"]


NATIVE = ("pp_00/tp_00/sdp_00.pt", "model.pt")


@pytest.mark.parametrize("file", NATIVE)
@pytest.mark.parametrize("nested", [False, True])
def test_what_fairseq2_saved(file, nested, model, pruned, pairs, tmp_path):
    path = tmp_path / "saved" / file
    path.parent.mkdir(parents=True)
    state_dict = model.state_dict()
    torch.save({"model": state_dict} if nested else state_dict, path)
    where = tmp_path / "saved" if "pp" in file else path
    again = load_by_card(pruned, checkpoint=str(where))
    assert all(map(torch.equal, fairseq2_states(again, pairs), fairseq2_states(model, pairs)))


@pytest.mark.parametrize("file", ["model.pt", "model.bin", "model.safetensors"])
def test_a_file_of_transformers_names_alone(file, model, pruned, pairs, tmp_path):
    if file == WEIGHTS:
        shutil.copy(pruned / WEIGHTS, tmp_path)
    else:
        torch.save(load_file(pruned / WEIGHTS), tmp_path / file)
    again = load_by_card(pruned, checkpoint=str(tmp_path / file))
    assert all(map(torch.equal, fairseq2_states(again, pairs), fairseq2_states(model, pairs)))


def test_fewer_experts_than_the_folder_has(model, masks, pairs):
    """A card of the whole model that keeps those of a direction is the export of it."""
    fields = card_of("mini", kept=masks.direction("eng_Latn", "deu_Latn"))
    again = load_by_card("mini", model_config=fields["model_config"])
    assert all(map(torch.equal, fairseq2_states(again, pairs), fairseq2_states(model, pairs)))


def test_paths_that_it_can_load(pruned, tmp_path):
    from fairseq2.model_checkpoint import get_model_checkpoint_loader

    from nllb_prune.on_fairseq2.checkpoint_loader import NllbMoeCheckpointLoader

    loader = NllbMoeCheckpointLoader(get_model_checkpoint_loader())
    (tmp_path / "empty").mkdir()
    (tmp_path / "native" / "pp_00" / "tp_00").mkdir(parents=True)
    for file in ("model.pt", "text.txt", "native/pp_00/tp_00/sdp_00.pt"):
        (tmp_path / file).write_bytes(b"")
    answers = {
        pruned: True,
        model_folder("mini"): True,
        tmp_path / "model.pt": True,
        tmp_path / "native": True,
        tmp_path / "empty": False,
        tmp_path / "text.txt": False,
        tmp_path / "nothing": False,
        pruned / "config.json": False,
    }
    assert {path: loader.supports_path(path) for path in answers} == answers


def test_tensor_parallelism_is_refused(pruned):
    from fairseq2.assets import AssetCard, AssetCardError
    from fairseq2.gang import FakeGang, Gangs

    one, two = FakeGang(CPU), FakeGang(CPU, size=2)
    gangs = Gangs(root=two, dp=one, rdp=one, sdp=one, tp=two, pp=one)
    with pytest.raises(AssetCardError) as error:
        hub().load_model(AssetCard("own", card_of(pruned)), gangs=gangs)
    assert str(error.value.__cause__) == (
        f"{pruned.resolve()} must be loaded without tensor parallelism, but the gang has 2."
    )


def change(folder, make):
    tensors = load_file(folder / WEIGHTS)
    save_file(make(tensors), folder / WEIGHTS)


def an_expert(tensors):
    return next(name for name in sorted(tensors) if ".experts." in name and name.endswith("fc1.weight"))


DAMAGE = {
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "must hold the weights of a model"),
    "cut off": (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:100_000]),
        rf"{WEIGHTS}` must be a whole weight file, but is truncated or damaged",
    ),
    "empty": (lambda folder: (folder / WEIGHTS).write_bytes(b""), "truncated or damaged"),
    "no header": (lambda folder: (folder / WEIGHTS).write_bytes(b"\xff" * 5000), "truncated or damaged"),
    "a tensor missing": (
        lambda folder: change(folder, lambda tensors: {n: t for n, t in tensors.items() if n != an_expert(tensors)}),
        r"must hold `model\.decoder\.layers\..*\.fc1\.weight`, but does not",
    ),
    "a tensor too many": (
        lambda folder: change(folder, lambda tensors: tensors | {"model.extra": torch.zeros(2)}),
        r"but holds 1 others, first `model\.extra`",
    ),
    "a short expert": (
        lambda folder: change(folder, lambda tensors: tensors | {an_expert(tensors): torch.zeros(1, 160)}),
        r"must have one shape, but have \(1, 160\) and \(128, 160\)",
    ),
    "a short norm": (
        lambda folder: change(folder, lambda tensors: tensors | {"model.decoder.layer_norm.bias": torch.zeros(7)}),
        "is not compatible with the nllb_moe model",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_what_is_damaged_is_told(damage, message, copied):
    damage(copied)
    assert re.search(message, refused(copied))


def test_a_shape_that_no_layer_has_is_told(copied):
    from fairseq2.assets import AssetCard, AssetCardError

    change(copied, lambda tensors: tensors | {"model.decoder.layer_norm.bias": torch.zeros(7)})
    with pytest.raises(AssetCardError) as error:
        hub().load_model(AssetCard("own", card_of(copied)), device=CPU)
    assert "`decoder.layer_norm.bias` has a shape of (7,) in the checkpoint" in str(error.value.__cause__.__cause__)


def test_a_rank_is_missing(tmp_path):
    folder = original.write(tmp_path / "original", experts_of_a_rank=16)
    (folder / f"{original.STEM}-rank-2.pt").unlink()
    assert f"{original.STEM}-rank-2.pt` must hold the experts of a rank, but there is no such file" in refused(folder)


def test_a_configuration_that_is_none(copied):
    from fairseq2.model_checkpoint import CorruptModelCheckpointError

    config = of_folder(copied)
    (copied / "config.json").write_text("{")
    with pytest.raises(CorruptModelCheckpointError, match="must be a transformers configuration, but is not"):
        next(hub().iter_checkpoint(copied, config))


def test_wrong_names_in_a_single_file_are_told_too(pruned, tmp_path):
    tensors = load_file(pruned / WEIGHTS)
    torch.save(tensors | {"model.extra": torch.zeros(2)}, tmp_path / "model.pt")
    assert "but holds 1 others, first `model.extra`" in refused(pruned, checkpoint=str(tmp_path / "model.pt"))


class Code:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return _leave, (str(self.trace),)


def _leave(trace):
    with open(trace, "w") as file:
        file.write("run")


@pytest.mark.parametrize("file", ["pytorch_model.bin", f"{original.STEM}-shared.pt", *NATIVE])
def test_code_is_never_run(file, copied, tmp_path):
    trace, folder = tmp_path / "trace", copied
    if file in NATIVE:
        folder = tmp_path / "saved"
    (folder / WEIGHTS).unlink(missing_ok=True)
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    tensors = load_file(model_folder("mini-dense") / WEIGHTS)
    torch.save({"model": tensors, "code": Code(trace)}, folder / file)
    where = folder / file if file == "model.pt" else folder
    refused(copied, checkpoint=str(where))
    assert not trace.exists()
    torch.load(folder / file, weights_only=False)  # it would have
    assert trace.read_text() == "run"
