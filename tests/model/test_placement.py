"""Where modules go: one device, a map, a policy; what cannot be is one clear line."""

import pytest
import torch

from nllb_prune import load_model, load_tokenizer, translate
from nllb_prune.errors import UsageError
from nllb_prune.model.placement import Placement, placement
from nllb_prune.model.routing import routing_of

CPU, META = torch.device("cpu"), torch.device("meta")
PATHS = ("model.shared", "model.encoder", "model.decoder", "lm_head")
TEXT = {"source": "eng_Latn", "target": "deu_Latn"}


def never():
    raise AssertionError("nothing is to be weighed")


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("model.encoder", CPU),
        ("model.encoder.layers.0.fc1.weight", CPU),
        ("model.encoderlike", META),
        ("lm_head.weight", META),
        ("", META),
    ],
)
def test_the_nearest_module_around_it_says_where(name, device):
    assert Placement({"": META, "model.encoder": CPU}).of(name) == device


def test_a_map_without_the_rest_is_refused():
    with pytest.raises(UsageError, match=r"must have a device for `lm_head\.weight`"):
        Placement({"model": CPU}).of("lm_head.weight")


@pytest.mark.parametrize(
    ("device", "device_map", "found"),
    [
        (None, None, {"": CPU}),
        ("meta", None, {"": META}),
        (None, "cpu", {"": CPU}),
        (None, torch.device("meta"), {"": META}),
        (None, {"": "cpu", "lm_head": "meta"}, {"": CPU, "lm_head": META}),
    ],
)
def test_devices_and_maps(device, device_map, found):
    assert placement(device, device_map, never).by_path == found


@pytest.mark.parametrize(
    ("device", "device_map", "message"),
    [
        ("cpu", "cpu", "must be left out"),
        (None, "everywhere", "must be a device that torch can use here, one of auto, balanced"),
        (None, {"": "nowhere"}, "has nowhere"),
    ],
)
def test_what_cannot_be_is_refused(device, device_map, message):
    with pytest.raises(UsageError, match=message):
        placement(device, device_map, never)


@pytest.mark.parametrize("device_map", ["auto", "sequential", {"": "cpu"}, dict.fromkeys(PATHS, "cpu")], ids=str)
def test_a_model_is_the_same_wherever_it_is(device_map):
    model = load_model("mini", device_map=device_map)
    assert {parameter.device for parameter in model.parameters()} == {CPU}
    assert translate(model, load_tokenizer("mini"), ["wake me up at nine"], **TEXT) == ["weck mich um neun uhr"]


def test_a_model_on_the_meta_device_is_only_described(tmp_path):
    model, full = load_model("mini", device="meta"), load_model("mini")
    assert {parameter.device for parameter in model.parameters()} == {META}
    assert [(n, p.shape) for n, p in model.named_parameters()] == [(n, p.shape) for n, p in full.named_parameters()]
    ours, theirs = routing_of(model), routing_of(full)
    assert (ours.identity, ours.spec) == (theirs.identity, theirs.spec)


def test_a_policy_needs_accelerate(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "accelerate", None)
    with pytest.raises(UsageError, match="needs the library accelerate"):
        load_model("mini", device_map="auto")


@pytest.mark.gpu
def test_a_model_on_two_devices_translates_as_on_one():
    model = load_model("mini", device_map={"": "cpu", "model.decoder.layers.1": "cuda", "model.encoder": "cuda"})
    assert routing_of(model).spread
    assert translate(model, load_tokenizer("mini"), ["wake me up at nine"], **TEXT) == ["weck mich um neun uhr"]
