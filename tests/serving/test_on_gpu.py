"""Experts from page-locked memory on a stream of their own: `pytest -m gpu`."""

import random

import pytest
import torch

from nllb_prune import Translator, UsageError
from nllb_prune.model.describe import load_spec
from nllb_prune.model.loading import load_model
from nllb_prune.model.move import Move
from nllb_prune.model.paged import expert_ids, load_paged

pytestmark = pytest.mark.gpu


def least_memory(masks):
    with pytest.raises(UsageError) as told:
        Translator("mini", masks, memory=1, longest=64, beams=1, device="cuda", dtype="float32")
    return int(str(told.value).split("(")[1].split(" ")[0])


def test_swaps_on_every_batch_change_nothing(masks, requests, alone):
    least = least_memory(masks)
    with Translator("mini", masks, memory=least, longest=64, beams=1, device="cuda", dtype="float32") as translator:
        texts, sources, targets = zip(*requests, strict=True)
        found = translator.translate(texts, sources, targets, whole=True)
        assert translator.figures().swaps > 50
    equal = sum(ours.text == theirs[0].text for ours, theirs in zip(found, alone, strict=True))
    assert equal >= 0.97 * len(alone)  # sums of another device: near-ties


def test_masks_are_changed_while_it_runs(masks, fewer, requests, offline):
    with Translator("mini", masks, device="cuda", dtype="float32") as translator:
        for used in (fewer, masks):
            translator.reload(used)
            texts, sources, targets = zip(*requests[:60], strict=True)
            found = translator.translate(texts, sources, targets, whole=True)
            expected = offline(requests[:60], masks=used)
            assert sum(ours.text == best[0].text for ours, best in zip(found, expected, strict=True)) >= 58
            held = {*translator._opened.pager.store._tensors}
            assert held == {*expert_ids(translator._opened.serving.now.kept)}


def test_slots_hold_what_was_copied_whatever_runs_beside():
    spec = load_spec("mini")
    kept = {stack.name: tuple(tuple(range(stack.experts)) for _ in stack.layers) for stack in spec.stacks}
    slots = {stack.name: [4] * len(stack.layers) for stack in spec.stacks}
    paged, full = load_paged("mini", kept=kept, slots=slots, device="cuda"), load_model("mini", device="cuda")
    chance, held = random.Random(0), {}
    for _ in range(100):
        moves = []
        for stack in spec.stacks:
            for layer in range(len(stack.layers)):
                slot, expert = chance.randrange(4), chance.randrange(stack.experts)
                if expert not in {held.get((stack.name, layer, other)) for other in range(4)}:
                    moves.append(Move(stack.name, layer, slot, expert, held.get((stack.name, layer, slot))))
                    held[stack.name, layer, slot] = expert
        copying = paged.pager.begin(moves)
        torch.ones(2000, 2000, device="cuda").mm(torch.ones(2000, 2000, device="cuda"))
        paged.pager.finish(copying)
    torch.cuda.synchronize()
    for (stack, layer, slot), expert in held.items():
        bank = paged.pager.banks[stack, layer]
        path = f"model.{stack}.layers.{spec.stack(stack).layers[layer]}.ffn"
        assert torch.equal(bank.fc1_weight[slot], full.get_submodule(path).bank.fc1_weight[expert])
        assert int(bank.slot_of[expert]) == slot
    paged.pager.close()
