"""Masking a full model and loading only the kept experts are the same function; rows, padding and residency rules."""

from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nllb_prune.errors import UsageError
from nllb_prune.masks import MaskSet
from nllb_prune.model.expert_bank import ExpertBank
from nllb_prune.model.loading import load_model, load_spec
from nllb_prune.model.routing import clear_masks, mask_rows, routing, routing_of, set_masks
from nllb_prune.model.sparse_ffn import SparseFfn

TINY = Path(__file__).parent.parent / "reference" / "tiny"
SPEC = load_spec(TINY)
ENGLISH, GERMAN, FRENCH = "eng_Latn", "deu_Latn", "fra_Latn"
DIRECTION = (ENGLISH, GERMAN)
NEAR_TIE = 1e-5
RELATIVE = 1e-5
PAD = 1

SOURCE = torch.tensor([[94, 7, 8, 9, 21, 2], [94, 33, 60, 2, PAD, PAD], [94, 12, 2, PAD, PAD, PAD]])
TARGET = torch.tensor([[2, 95, 40, 41, 42], [2, 95, 77, PAD, PAD], [2, 95, 11, 12, PAD]])

layer_mask = st.sets(st.integers(0, 7), min_size=2).map(lambda ids: tuple(sorted(ids)))
stack_mask = st.tuples(layer_mask, layer_mask)


def mask_set(encoder, decoder):
    """Masks by language; `encoder` and `decoder` map codes to kept ids by layer."""
    return MaskSet(
        model_name="tiny",
        fingerprint=SPEC.fingerprint,
        stacks=SPEC.stacks,
        granularity="language",
        masks={"encoder": encoder, "decoder": decoder},
    )


FIRST = mask_set({ENGLISH: ((0, 3, 5), (1, 2, 6, 7))}, {GERMAN: ((2, 4, 7), (0, 1, 5))})
TWO = mask_set(
    {ENGLISH: ((0, 3, 5), (1, 2, 6, 7)), GERMAN: ((1, 2), (0, 4, 5))},
    {GERMAN: ((2, 4, 7), (0, 1, 5)), FRENCH: ((0, 1, 3), (3, 6))},
)
DIRECTIONS = [(ENGLISH, GERMAN), (GERMAN, FRENCH), (ENGLISH, FRENCH)]


class Recorder:
    """Remembers what each sparse layer did, and the closest second and third logits."""

    wants_outputs = False

    def __init__(self):
        self.calls = []
        self.gap = float("inf")

    def observe(self, stack, layer, routed):
        self.calls.append((stack, layer, routed))
        best = routed.probabilities.log().topk(3, dim=-1).values
        self.gap = min(self.gap, float((best[:, 1] - best[:, 2]).min()))


@pytest.fixture(scope="module")
def full():
    return load_model(TINY)


@torch.inference_mode()
def forward(model, source=SOURCE, target=TARGET, **routed):
    with routing(model, **routed):
        return model(
            input_ids=source,
            attention_mask=source.ne(PAD).long(),
            decoder_input_ids=target,
            decoder_attention_mask=target.ne(PAD).long(),
            use_cache=False,
        ).logits


@torch.inference_mode()
def greedy(model, source=SOURCE, beams=1, **routed):
    """Return tokens, and how close the best two logits of any step were."""
    with routing(model, **routed):
        made = model.generate(
            input_ids=source,
            attention_mask=source.ne(PAD).long(),
            forced_bos_token_id=95,
            num_beams=beams,
            do_sample=False,
            max_new_tokens=8,
            output_scores=True,
            return_dict_in_generate=True,
        )
    best = torch.stack(made.scores).topk(2, dim=-1).values
    return made.sequences, float((best[..., 0] - best[..., 1]).min())


def relative(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())


@settings(max_examples=20, deadline=None)
@given(encoder=stack_mask, decoder=stack_mask)
def test_mask_equals_structure(full, encoder, decoder):
    masks = mask_set({ENGLISH: encoder}, {GERMAN: decoder})
    rows, recorder = mask_rows(masks, [DIRECTION]), Recorder()
    expected = forward(full, masks=rows, observer=recorder)
    assume(recorder.gap > NEAR_TIE)
    pruned = load_model(TINY, masks=masks, direction=DIRECTION)
    valid = TARGET.ne(PAD)
    assert relative(forward(pruned)[valid], expected[valid]) <= RELATIVE
    recorder = Recorder()
    tokens, margin = greedy(full, masks=rows, observer=recorder)
    assume(min(margin, recorder.gap) > NEAR_TIE)
    assert torch.equal(greedy(pruned)[0], tokens)


def test_pruned_model_holds_only_its_experts():
    pruned = load_model(TINY, masks=FIRST, direction=DIRECTION)
    banks = [module for module in pruned.modules() if isinstance(module, ExpertBank)]
    assert [bank.expert_ids for bank in banks] == [(0, 3, 5), (1, 2, 6, 7), (2, 4, 7), (0, 1, 5)]
    assert [bank.fc1_weight.shape[0] for bank in banks] == [3, 4, 3, 3]
    whole = load_model(TINY)
    per_expert = 2 * 32 * 48 + 48 + 32
    size = sum(p.numel() for p in whole.parameters()) - sum(p.numel() for p in pruned.parameters())
    assert size == (32 - 13) * per_expert


def test_only_kept_experts_are_chosen(full):
    recorder = Recorder()
    forward(full, masks=mask_rows(TWO, DIRECTIONS), observer=recorder)
    assert len(recorder.calls) == 4
    for stack, layer, routed in recorder.calls:
        length = (SOURCE if stack == "encoder" else TARGET).shape[1]
        for token, position in enumerate(routed.positions.tolist()):
            kept = TWO.mask(stack, *DIRECTIONS[position // length])[layer]
            assert set(routed.chosen[token].tolist()) <= set(kept)
            outside = [expert for expert in range(8) if expert not in kept]
            assert (routed.probabilities[token, outside] == 0).all()


@pytest.mark.parametrize("row", range(3))
def test_directions_in_one_batch_equal_each_alone(full, row):
    together = forward(full, masks=mask_rows(TWO, DIRECTIONS))[row]
    alone = forward(full, SOURCE[row : row + 1], TARGET[row : row + 1], masks=mask_rows(TWO, DIRECTIONS[row : row + 1]))
    valid = TARGET[row].ne(PAD)
    assert relative(together[valid], alone[0][valid]) <= RELATIVE


@pytest.mark.parametrize("beams", [1, 3])
def test_directions_in_one_batch_translate_as_alone(full, beams):
    together = greedy(full, beams=beams, masks=mask_rows(TWO, DIRECTIONS))[0]
    for row, direction in enumerate(DIRECTIONS):
        own = SOURCE[row : row + 1, : int(SOURCE[row].ne(PAD).sum())]
        alone = greedy(full, own, beams=beams, masks=mask_rows(TWO, [direction]))[0][0]
        assert torch.equal(together[row][: len(alone)], alone)
        assert together[row][len(alone) :].eq(PAD).all()


def test_masks_change_the_outcome(full):
    assert relative(forward(full, masks=mask_rows(FIRST, [DIRECTION])), forward(full)) > 1e-3


@pytest.mark.parametrize("copies", [1, 2, 5])
def test_row_belongs_to_sentence_row_over_copies(full, copies):
    masks = mask_rows(TWO, DIRECTIONS)
    once = forward(full, masks=masks)
    repeated = forward(full, SOURCE.repeat_interleave(copies, 0), TARGET.repeat_interleave(copies, 0), masks=masks)
    valid = TARGET.ne(PAD).repeat_interleave(copies, 0)
    assert relative(repeated[valid], once.repeat_interleave(copies, 0)[valid]) <= RELATIVE


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 7])
def test_rows_that_do_not_fit_the_sentences_are_refused(full, rows):
    masks = mask_rows(TWO, DIRECTIONS)
    source, target = SOURCE.repeat(3, 1)[:rows], TARGET.repeat(3, 1)[:rows]
    with pytest.raises(UsageError, match=rf"multiple of the 3 sentences.*but are {rows} instead"):
        forward(full, source, target, masks=masks)


def test_equal_directions_share_a_row():
    assert {name: rows.shape[0] for name, rows in mask_rows(TWO, [DIRECTION] * 7).items()} == dict.fromkeys(
        ("encoder", "decoder"), 1
    )
    assert mask_rows(TWO, DIRECTIONS)["decoder"].shape == (3, 2, 8)


def test_set_and_clear_masks(full):
    before = forward(full)
    expected = forward(full, masks=mask_rows(FIRST, [DIRECTION]))
    try:
        set_masks(full, FIRST, DIRECTION)
        assert torch.equal(forward(full), expected)
        other = mask_rows(TWO, [(GERMAN, FRENCH)])
        inside = forward(full, masks=other)
        assert not torch.equal(inside, expected)
        assert torch.equal(forward(full), expected)  # what was set returned
    finally:
        clear_masks(full)
    assert torch.equal(forward(full), before)
    assert torch.equal(forward(full, masks=other), inside)


def test_routing_restores_after_an_error(full):
    with pytest.raises(RuntimeError, match="inside"), routing(full, masks=mask_rows(FIRST, [DIRECTION])):
        raise RuntimeError("inside")
    assert all(stack.keep is None and stack.observer is None for stack in routing_of(full).stacks.values())


def test_an_inner_block_keeps_the_observer_of_the_outer_one(full):
    recorder = Recorder()
    with routing(full, observer=recorder):
        forward(full, masks=mask_rows(FIRST, [DIRECTION]))
    assert len(recorder.calls) == 4


def test_masks_of_one_stack_leave_the_other_alone(full):
    rows, recorder = mask_rows(FIRST, [DIRECTION]), Recorder()
    forward(full, masks={"decoder": rows["decoder"]}, observer=recorder)
    used = {stack: set() for stack in ("encoder", "decoder")}
    for stack, _, routed in recorder.calls:
        used[stack] |= set(routed.chosen.flatten().tolist())
        assert (routed.probabilities.gt(0).sum(1) == (8 if stack == "encoder" else 3)).all()


def test_padding_never_runs_through_an_expert(full, monkeypatch):
    seen, experts = [], []
    run, project = ExpertBank.forward, ExpertBank._project

    def counted(self, tokens, chosen, gates, *, scale, tap=None):
        seen.append(len(tokens))
        return run(self, tokens, chosen, gates, scale=scale, tap=tap)

    def counted_rows(self, number, rows, used):
        assert sum(used.rows) == len(rows)
        experts.extend(used.rows if number == 1 else [])
        return project(self, number, rows, used)

    monkeypatch.setattr(ExpertBank, "forward", counted)
    monkeypatch.setattr(ExpertBank, "_project", counted_rows)
    forward(full)
    valid = [int(SOURCE.ne(PAD).sum())] * 2 + [int(TARGET.ne(PAD).sum())] * 2
    assert seen == valid
    assert sum(experts) == 2 * sum(valid)
    assert all(experts)


def test_finished_sentences_run_no_expert_while_decoding(full):
    recorder = Recorder()
    tokens = greedy(full, masks=mask_rows(TWO, DIRECTIONS), observer=recorder)[0]
    decoded = [len(routed.chosen) for stack, layer, routed in recorder.calls if (stack, layer) == ("decoder", 0)]
    read = tokens[:, : len(decoded)]
    assert decoded == read.ne(PAD).sum(0).tolist()


@pytest.mark.parametrize("fill", [0.0, 1e4])
def test_what_padding_holds_does_not_matter(full, fill):
    layer = full.get_submodule("model.encoder.layers.1.ffn")
    state = routing_of(full).stacks["encoder"]
    hidden = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(0))
    state.valid = torch.tensor([[True, True, True, False], [True, False, False, False]])
    try:
        hidden[~state.valid] = fill
        output = layer(hidden)
        output = output[0] if isinstance(output, tuple) else output
        assert (output[~state.valid] == 0).all()
        state.valid = None
        expected = layer(hidden[1:, :1])
        expected = expected[0] if isinstance(expected, tuple) else expected
        assert relative(output[1, 0], expected[0, 0]) <= RELATIVE
    finally:
        state.valid = None


def test_a_batch_row_of_padding_alone(full):
    source = torch.cat([SOURCE[:1], torch.full((1, SOURCE.shape[1]), PAD)])
    target = torch.cat([TARGET[:1], torch.full((1, TARGET.shape[1]), PAD)])
    logits = forward(full, source, target)
    assert logits[0].isfinite().all()
    assert relative(logits[0], forward(full, SOURCE[:1], TARGET[:1])[0]) <= RELATIVE


def test_nothing_is_observed_without_an_observer(full, monkeypatch):
    def refuse(*arguments, **named):
        raise AssertionError("the hot path made a record for nobody")

    monkeypatch.setattr("nllb_prune.model.sparse_ffn.RoutedTokens", refuse)
    forward(full, masks=mask_rows(TWO, DIRECTIONS))
    with pytest.raises(AssertionError, match="for nobody"):
        forward(full, observer=Recorder())


def test_observing_changes_nothing(full):
    assert torch.equal(forward(full, observer=Recorder()), forward(full))
    assert torch.equal(forward(full, observer=OutputRecorder()), forward(full))


class OutputRecorder(Recorder):
    """Remembers what each expert computed, and returns a multiple of it."""

    wants_outputs = True

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor, self.outputs = factor, []

    def observe_outputs(self, stack, layer, routed, values, order):
        assert self.calls[-1] == (stack, layer, routed)
        self.outputs.append((stack, layer, routed, values.clone(), order))
        return values * self.factor


@pytest.mark.parametrize("pruned", [False, True])
def test_observed_outputs_are_those_of_the_chosen_experts(full, pruned):
    """Neither scaled nor weighted; in a pruned model the places are still those among the chosen ids."""
    model = load_model(TINY, masks=FIRST, direction=DIRECTION) if pruned else full
    masks, recorder = mask_rows(FIRST, [DIRECTION]), OutputRecorder()
    forward(model, masks=masks, observer=recorder)
    assert [(stack, layer) for stack, layer, *_ in recorder.outputs] == [call[:2] for call in recorder.calls]
    banks = {}
    for path, module in full.named_modules():
        if isinstance(module, SparseFfn):
            banks[path.split(".")[1], module.layer] = module.bank
    for stack, layer, routed, values, order in recorder.outputs:
        bank, ids = banks[stack, layer], routed.chosen.flatten()[order]
        assert sorted(order.tolist()) == list(range(routed.chosen.numel()))
        assert ids.tolist() == sorted(ids.tolist())
        for value, place, expert in zip(values, order.tolist(), ids.tolist(), strict=True):
            hidden = (bank.fc1_weight[expert] @ routed.inputs[place // 2] + bank.fc1_bias[expert]).relu()
            expected = bank.fc2_weight[expert] @ hidden + bank.fc2_bias[expert]
            assert relative(value, expected) <= RELATIVE


def test_what_an_observer_returns_is_what_is_added_up(full):
    layer = full.get_submodule("model.encoder.layers.1.ffn")
    hidden = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(0))
    routing_of(full).stacks["encoder"].valid = None
    outputs = []
    for factor in (1.0, -2.0):
        with routing(full, observer=OutputRecorder(factor)), torch.inference_mode():
            output = layer(hidden)
            outputs.append(output[0] if isinstance(output, tuple) else output)
    assert relative(outputs[1], -2 * outputs[0]) <= RELATIVE


def test_pruned_model_refuses_experts_it_lacks():
    pruned = load_model(TINY, masks=TWO, direction=DIRECTION)
    wanted = r"encoder layer 0 wants expert 1, which was left out; load the model without `direction`"
    with pytest.raises(UsageError, match=wanted):
        set_masks(pruned, TWO, (GERMAN, FRENCH))
    with pytest.raises(UsageError, match=wanted), routing(pruned, masks=mask_rows(TWO, [(GERMAN, FRENCH)])):
        pass
    set_masks(pruned, TWO, DIRECTION)
    smaller = mask_set({ENGLISH: ((0, 5), (1, 7))}, {GERMAN: ((2, 4), (0, 5))})
    expected = forward(load_model(TINY, masks=smaller, direction=DIRECTION))
    set_masks(pruned, smaller, DIRECTION)
    assert relative(forward(pruned), expected) <= RELATIVE


def test_unknown_languages_and_other_models_are_refused(full):
    with pytest.raises(UsageError, match=r"`source` must have a mask \(eng_Latn\), but is fra_Latn"):
        set_masks(full, FIRST, (FRENCH, GERMAN))
    with pytest.raises(UsageError, match=r"`target` must have a mask \(deu_Latn\), but is fra_Latn"):
        load_model(TINY, masks=FIRST, direction=(ENGLISH, FRENCH))
    norms = [norm * 1.1 for norm in SPEC.fingerprint.router_norms]
    other = MaskSet(
        model_name="another",
        fingerprint=type(SPEC.fingerprint).of(SPEC.stacks, norms),
        stacks=SPEC.stacks,
        granularity="language",
        masks=FIRST.masks,
    )
    for refuse in (
        lambda: set_masks(full, other, DIRECTION),
        lambda: load_model(TINY, masks=other),
        lambda: load_model(TINY, masks=other, direction=DIRECTION),
    ):
        with pytest.raises(UsageError, match="masks` must belong to the model nllb-moe"):
            refuse()
    assert all(stack.keep is None for stack in routing_of(full).stacks.values())


def test_masks_without_direction_load_every_expert(full):
    model = load_model(TINY, masks=FIRST)
    assert all(module.bank.complete for module in model.modules() if isinstance(module, SparseFfn))
    assert torch.equal(forward(model), forward(full))


def test_a_plain_model_has_no_routing():
    with pytest.raises(UsageError, match=r"must come from `nllb_prune.load_model`, but is a plain Linear"):
        set_masks(torch.nn.Linear(2, 2), FIRST, DIRECTION)
