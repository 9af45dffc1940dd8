"""The sparse layers of a plain model of fairseq2: padding, packed batches, observers and masks."""

import dataclasses

import pytest
import torch

from nllb_prune import clear_masks, load_spec, mask_rows, routing, set_masks
from nllb_prune.errors import UsageError
from nllb_prune.model.dispatch import slot_table
from nllb_prune.model.routing import routing_of
from nllb_prune.model.spec import Fingerprint
from tests.on_fairseq2.sides import fairseq2_states, load_by_card, transformers_states

pytestmark = pytest.mark.fairseq2

DIRECTION = ("eng_Latn", "deu_Latn")
CLOSE = {"rtol": 0, "atol": 1e-5}


class Tokens:
    """Keeps how many tokens each sparse layer saw, and their inputs."""

    wants_outputs = False

    def __init__(self):
        self.seen = {}

    def observe(self, stack, layer, routed):
        assert routed.chosen.shape == (len(routed.inputs), 2)
        self.seen.setdefault((stack, layer), []).append(routed.inputs.clone())

    def counts(self):
        return {place: [len(inputs) for inputs in calls] for place, calls in self.seen.items()}


@pytest.fixture(scope="module")
def model():
    return load_by_card("mini")


def packed(rows, extra=0):
    """Rows one after the other, and as many positions of padding, with their layout."""
    from fairseq2.nn import BatchLayout

    from nllb_prune.on_fairseq2.vocabulary import ids_for_fairseq2

    ids = ids_for_fairseq2(torch.tensor([number for row in rows for number in row] + [1] * extra))
    return ids, BatchLayout.of(ids, [len(row) for row in rows], packed=True)


def test_a_row_does_not_depend_on_padding(model, pairs):
    memory, logits = fairseq2_states(model, pairs)
    memories = memory.split([len(ids) for ids in pairs.sources])
    rows = logits.split([len(ids) for ids in pairs.prefixes])
    assert len({len(each) for each in memories}) > 5
    for number in range(0, 20, 4):
        alone = fairseq2_states(model, pairs.row(number))
        torch.testing.assert_close(alone[0], memories[number], **CLOSE)
        torch.testing.assert_close(alone[1], rows[number], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("extra", [0, 5])
def test_packed_rows_are_as_padded_ones(extra, model, pairs):
    seqs, layout = packed(pairs.sources, extra)
    assert layout.padded == bool(extra)
    prefixes, prefix_layout = packed(pairs.prefixes, extra)
    memory, logits = fairseq2_states(model, pairs)
    with torch.inference_mode():
        ours = model.encoder(*model.encoder_frontend(seqs, layout))
        from nllb_prune.on_fairseq2.vocabulary import columns_for_transformers

        own_logits = columns_for_transformers(model(seqs, layout, prefixes, prefix_layout))
    torch.testing.assert_close(ours[: len(memory)], memory, **CLOSE)
    torch.testing.assert_close(own_logits[: len(logits)], logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", ["padded", "packed", "packed and padded"])
def test_observers_see_no_padding(how, model, pairs):
    observer = Tokens()
    lengths = {"encoder": sum(map(len, pairs.sources)), "decoder": sum(map(len, pairs.prefixes))}
    with routing(model, observer=observer), torch.inference_mode():
        if how == "padded":
            fairseq2_states(model, pairs)  # its encoder runs twice
        else:
            extra = 3 if "padded" in how else 0
            model(*packed(pairs.sources, extra), *packed(pairs.prefixes, extra))
    calls = {"encoder": 2 if how == "padded" else 1, "decoder": 1}
    assert observer.counts() == {
        (stack, layer): [lengths[stack]] * calls[stack] for stack in lengths for layer in range(3)
    }
    fairseq2_states(model, pairs.row(0))
    assert all(len(inputs) <= 2 for inputs in observer.seen.values())  # it is told of nothing more


def test_observers_see_what_they_see_on_transformers_side(model, mini, pairs):
    ours, theirs = Tokens(), Tokens()
    with routing(model, observer=ours):
        fairseq2_states(model, pairs)
    with routing(mini, observer=theirs):
        transformers_states(mini, pairs)
    assert ours.seen.keys() == theirs.seen.keys()
    for place, inputs in theirs.seen.items():
        torch.testing.assert_close(ours.seen[place][0], inputs[0], rtol=1e-5, atol=1e-5)


def test_padding_comes_out_of_experts_as_zeros(model, pairs):
    from fairseq2.nn import BatchLayout

    outputs = []
    hook = model.encoder.layers[1].ffn.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        fairseq2_states(model, pairs)
    finally:
        hook.remove()
    padding = pairs.source_ids.eq(1)
    assert padding.any()
    assert outputs[0][padding].eq(0).all()
    assert not outputs[0][~padding].eq(0).all(-1).any()
    with torch.inference_mode():  # nothing of the layout is left for a batch without padding
        full = torch.full((2, 4), 50)
        model.encoder(*model.encoder_frontend(full, BatchLayout.of(full)))
    assert routing_of(model).stacks["encoder"].valid is None


def test_layouts_may_be_given_by_name(model, pairs):
    from fairseq2.nn import BatchLayout

    from nllb_prune.on_fairseq2.vocabulary import ids_for_fairseq2

    source, prefix = ids_for_fairseq2(pairs.source_ids), ids_for_fairseq2(pairs.prefix_ids)
    layout = BatchLayout.of(source, [len(ids) for ids in pairs.sources])
    prefix_layout = BatchLayout.of(prefix, [len(ids) for ids in pairs.prefixes])
    with torch.inference_mode():
        seqs, _ = model.encoder_frontend(source, layout)
        memory = model.encoder(seqs=seqs, seqs_layout=layout)
        targets, _ = model.decoder_frontend(prefix, prefix_layout)
        states = model.decoder(targets, seqs_layout=prefix_layout, encoder_output=memory, encoder_output_layout=layout)
        assert torch.equal(memory, model.encoder(seqs, layout))
        assert torch.equal(states, model.decoder(targets, prefix_layout, memory, layout))


def test_masks_are_the_pruned_model(model, masks, pairs, exports):
    """A whole model within masks, by call or until they are cleared, and one that holds nothing else."""
    whole, pruned = fairseq2_states(model, pairs), fairseq2_states(load_by_card(exports([DIRECTION])), pairs)
    with routing(model, masks=mask_rows(masks, [DIRECTION])):
        within = fairseq2_states(model, pairs)
    set_masks(model, masks, DIRECTION)
    try:
        until = fairseq2_states(model, pairs)
    finally:
        clear_masks(model)
    for ours, others, again in zip(within, until, pruned, strict=True):
        assert torch.equal(ours, others)
        torch.testing.assert_close(ours, again, rtol=1e-5, atol=1e-5)
    assert all(map(torch.equal, fairseq2_states(model, pairs), whole))
    assert not torch.allclose(whole[1], pruned[1], atol=0.1)


def test_a_model_is_known_by_its_fingerprint(model, masks, exports):
    from fairseq2.nn.utils.module import reset_non_persistent_buffers

    assert routing_of(model).spec.fingerprint == load_spec("mini").fingerprint
    set_masks(load_by_card(exports([DIRECTION])), masks, DIRECTION)
    foreign = dataclasses.replace(masks, fingerprint=Fingerprint.of(masks.stacks, [1.0] * 384))
    with pytest.raises(UsageError, match="`masks` must belong to the model"):
        set_masks(model, foreign, DIRECTION)
    with torch.no_grad():  # whatever fairseq2 fills it with next
        routers = [each.sparse.router_weight for each in model.modules() if hasattr(each, "sparse")]
        before = [each.clone() for each in routers]
        for each in routers:
            each.fill_(160**-0.5)
        try:
            reset_non_persistent_buffers(model)
            set_masks(model, foreign, DIRECTION)
        finally:
            clear_masks(model)
            for each, old in zip(routers, before, strict=True):
                each.copy_(old)
            reset_non_persistent_buffers(model)


def test_a_row_may_have_a_mask_of_its_own(model, masks, pairs):
    directions = [(source, target) for source in ("eng_Latn", "rus_Cyrl") for target in ("deu_Latn", "zho_Hans")] * 5
    with routing(model, masks=mask_rows(masks, directions)):
        _, together = fairseq2_states(model, pairs)
    rows = together.split([len(ids) for ids in pairs.prefixes])
    for number in (0, 5, 10, 15):
        with routing(model, masks=mask_rows(masks, [directions[number]])):
            _, alone = fairseq2_states(model, pairs.row(number))
        torch.testing.assert_close(alone, rows[number], rtol=1e-5, atol=1e-5)


def test_experts_that_were_left_out_cannot_be_asked_for(masks, exports, pairs):
    model = load_by_card(exports([DIRECTION]))
    assert routing_of(model).resident == masks.direction(*DIRECTION)
    with (
        pytest.raises(UsageError, match="which was left out"),
        routing(model, masks=mask_rows(masks, [("rus_Cyrl", "deu_Latn")])),
    ):
        fairseq2_states(model, pairs)


def test_slots_are_known_after_fairseq2_emptied_the_model(exports, masks):
    model = load_by_card(exports([DIRECTION]))
    for number, layer in enumerate((1, 3, 5)):
        bank = model.encoder.layers[layer].ffn.sparse.bank
        ids = masks.direction(*DIRECTION)["encoder"][number]
        assert torch.equal(bank.slot_of, slot_table(ids, experts=64, device=None))
        assert bank.slot_of[list(ids)].tolist() == list(range(len(ids)))
