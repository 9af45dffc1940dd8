"""The pass itself: position classes, and gradients against a layer and a loss written here."""

from functools import partial

import numpy as np
import pytest
import torch

from nllb_prune.calibration import teacher_forced
from nllb_prune.calibration.collectors import PARTS, Sizes
from nllb_prune.calibration.fields import fields_of
from nllb_prune.calibration.observer import StatisticsObserver
from nllb_prune.calibration.teacher_forced import IGNORED, decoder_classes, encoder_classes, observe_pairs
from nllb_prune.masks import MaskSet
from nllb_prune.model.routing import mask_rows, routing_of
from nllb_prune.model.sparse_ffn import SparseFfn
from nllb_prune.tokenization import encode

DIRECTION = ("eng_Latn", "deu_Latn")
END = 2


def test_classes_of_padded_rows():
    source = torch.tensor([[94, 7, 8, 2], [94, 2, 1, 1]])
    parts = encoder_classes(source, END)
    assert parts[0].tolist() == [0, 1, 1, 2]
    assert parts[1, :2].tolist() == [0, 2]
    labels = torch.tensor([[95, 7, 8, 2], [95, 2, IGNORED, IGNORED]])
    parts = decoder_classes(labels, END)
    assert parts[0].tolist() == [0, 1, 2, 3]
    assert parts[1, :2].tolist() == [0, 3]
    assert decoder_classes(labels[:, :1], END).tolist() == [[0], [0]]


def test_a_target_that_was_cut_has_no_end():
    parts = decoder_classes(torch.tensor([[95, 7, 8], [95, 7, 2]]), END)
    assert [[PARTS["decoder"][part] for part in row] for row in parts] == [
        ["start", "language", "inner"],
        ["start", "language", "end"],
    ]


def pairs_of(tokenizer, text, direction=DIRECTION):
    return [encode(tokenizer, text.lines(code), code) for code in direction]


def collect(model, sources, targets, *groups, backward=False, masks=None):
    sizes = Sizes(vocabulary=96, d_model=32, seed=0)
    observer = StatisticsObserver(routing_of(model).spec, collect=groups, sizes=sizes)
    observe_pairs(model, sources, targets, observer, backward=backward, masks=masks)
    return observer.tables()


class SlowGradients:
    """The gradient of the loss by what is added to each expert's output, one sentence and one token at a time."""

    def __init__(self, model, checkpoint, monkeypatch):
        self.model, self.checkpoint, self.added = model, checkpoint, []
        for path, module in model.named_modules():
            if isinstance(module, SparseFfn):
                monkeypatch.setattr(module.bank, "forward", partial(self._mixed, path, module))

    def _mixed(self, path, module, tokens, chosen, gates, *, scale, tap=None):
        rows = []
        for x, experts, weights in zip(tokens, chosen.tolist(), gates, strict=True):
            total = torch.zeros(32)
            for expert, weight in zip(experts, weights, strict=True):
                zero = torch.zeros(32, requires_grad=True)
                self.added.append((module.routing.stack, module.layer, expert, zero))
                total = total + weight * scale * (self._expert(path, expert, x) + zero)
            rows.append(total)
        return torch.stack(rows)

    def _expert(self, path, expert, x):
        weight = {
            name: torch.from_numpy(self.checkpoint[f"{path}.experts.expert_{expert}.{name}"])
            for name in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
        }
        return weight["fc2.weight"] @ (weight["fc1.weight"] @ x + weight["fc1.bias"]).clamp(min=0) + weight["fc2.bias"]

    def tables(self, sources, targets):
        tables = {
            stack: {name: np.zeros((2, 8, 32)) for name in fields_of(["gradients"])} for stack in ("encoder", "decoder")
        }
        for source, target in zip(sources, targets, strict=True):
            self.added.clear()
            reads = torch.tensor([[END, *target[:-1]]])
            scores = self.model(input_ids=torch.tensor([source]), decoder_input_ids=reads, use_cache=False).logits[0]
            loss = -sum(scores[n].log_softmax(-1)[token] for n, token in enumerate(target))
            gradients = torch.autograd.grad(loss, [zero for *_, zero in self.added])
            for (stack, layer, expert, _), gradient in zip(self.added, gradients, strict=True):
                tables[stack]["gradient_sum"][layer, expert] += gradient.double().numpy()
                tables[stack]["gradient_squared"][layer, expert] += gradient.double().numpy() ** 2
        return tables


@pytest.mark.parametrize("positions", [4096, 30])
def test_gradients_equal_those_of_a_loss_written_out(tiny, tokenizer, text, checkpoint, monkeypatch, positions):
    monkeypatch.setattr(teacher_forced, "BATCH_POSITIONS", positions)
    sources, targets = pairs_of(tokenizer, text)
    ours = collect(tiny, sources, targets, "gradients", backward=True)
    expected = SlowGradients(tiny, checkpoint, monkeypatch).tables(sources, targets)
    for stack, table in expected.items():
        for name, values in table.items():
            assert abs(values).max() > 0
            near = 1e-4 * abs(values).max()
            np.testing.assert_allclose(ours[stack][name], values, rtol=1e-3, atol=near, err_msg=f"{stack} {name}")


def test_going_backward_changes_nothing_else(tiny, tokenizer, text):
    pairs = pairs_of(tokenizer, text)
    forward = collect(tiny, *pairs, "norms", "dimensions", "coselection")
    backward = collect(tiny, *pairs, "norms", "dimensions", "coselection", "gradients", backward=True)
    for stack, table in forward.items():
        for name, values in table.items():
            np.testing.assert_allclose(backward[stack][name], values, rtol=1e-6)
    assert all(parameter.grad is None for parameter in tiny.parameters())
    assert not any(parameter.requires_grad for parameter in tiny.parameters())


def test_within_masks_no_other_expert_is_counted(tiny, tokenizer, text):
    spec = routing_of(tiny).spec
    masks = MaskSet(
        model_name="tiny",
        fingerprint=spec.fingerprint,
        stacks=spec.stacks,
        granularity="language",
        masks={"encoder": {"eng_Latn": ((0, 3, 5), (1, 2))}, "decoder": {"deu_Latn": ((2, 4, 7), (0, 1, 5, 6))}},
    )
    tables = collect(tiny, *pairs_of(tokenizer, text), "norms", "vocabulary", masks=mask_rows(masks, [DIRECTION]))
    for stack, table in tables.items():
        outside = ~masks.as_array(stack, *DIRECTION)  # (layers, experts)
        for name in ("first", "second", "p_first", "p_second", "p_all", "gate", "norm", "norm_max"):
            assert not table[name][:, outside].any(), name
        assert not table["token_ids"][outside].any()
        np.testing.assert_array_equal(table["first"].sum(-1), np.stack([table["tokens"]] * 2, axis=1))
