"""A fairseq2 model behind the surface that calibration and evaluation use, against the model of transformers' side."""

import pytest
import torch

from nllb_prune.corpus import ParallelText
from nllb_prune.errors import UsageError
from nllb_prune.evaluation.fidelity.full_model import FullDirection
from nllb_prune.evaluation.fidelity.held_out import HeldOut
from nllb_prune.generation.batched import carried_decoder
from nllb_prune.model.blocks import blocks_of
from nllb_prune.model.routing import clear_masks, mask_rows, routing, routing_of, set_masks
from nllb_prune.model.source import embedded_text
from nllb_prune.model.teacher_forcing import forced_batch, forced_states
from nllb_prune.tokenization import encode
from tests.on_fairseq2.sides import CPU, Pairs, lines

pytestmark = pytest.mark.fairseq2

PAD = 1


@pytest.fixture(scope="module")
def theirs():
    from nllb_prune.on_fairseq2.loading import load_model

    return load_model("mini")


@pytest.fixture(scope="module")
def theirs_dense():
    from nllb_prune.on_fairseq2.loading import load_model

    return load_model("mini-dense")


def logits(model, pairs, *, mask=True):
    """Return the logits at the tokens ``(tokens, vocabulary)``; without a cache, so that the steps are the same."""
    source, prefix = pairs.source_ids, pairs.prefix_ids
    seen = source.ne(PAD)
    given = {"attention_mask": seen} if mask else {}
    with torch.inference_mode():
        memory = model.get_encoder()(input_ids=source, **given).last_hidden_state
        states = model.get_decoder()(
            input_ids=prefix, encoder_hidden_states=memory, encoder_attention_mask=seen, use_cache=False
        ).last_hidden_state
        return model.get_output_embeddings()(states)[prefix.ne(PAD)]


def close(found, expected):
    """For other kernels, or batches of another shape."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # logits are up to 14


def same(found, expected):
    """To the last bit: the same steps on the same numbers."""
    assert torch.equal(found, expected)


def test_logits(mini, theirs, pairs):
    """In the order of transformers, with padding on the right."""
    found = logits(theirs, pairs)
    assert found.shape == (sum(len(each) for each in pairs.prefixes), 6012)
    same(found, logits(mini, pairs))


def test_logits_of_a_dense_model(mini_dense, theirs_dense, pairs):
    same(logits(theirs_dense, pairs), logits(mini_dense, pairs))


def test_padding_is_seen_without_a_mask(theirs, pairs):
    same(logits(theirs, pairs, mask=False), logits(theirs, pairs))


def test_a_call_gives_logits(theirs, pairs):
    source, prefix = pairs.source_ids, pairs.prefix_ids
    for given in ({}, {"attention_mask": source.ne(PAD)}):
        with torch.inference_mode():
            found = theirs(input_ids=source, decoder_input_ids=prefix, **given).logits
        same(found[prefix.ne(PAD)], logits(theirs, pairs))


def test_padding_changes_nothing(theirs, pairs):
    together = logits(theirs, pairs)
    alone = torch.cat([logits(theirs, pairs.row(n)) for n in range(len(pairs.sources))])
    close(together, alone)


def test_stacks_and_head(mini, theirs, pairs):
    source, prefix = pairs.source_ids, pairs.prefix_ids
    mask, states = source.ne(PAD), []
    for model in (mini, theirs):
        with torch.inference_mode():
            memory = model.get_encoder()(input_ids=source, attention_mask=mask).last_hidden_state
            decoded = model.get_decoder()(
                input_ids=prefix, encoder_hidden_states=memory, encoder_attention_mask=mask, use_cache=False
            ).last_hidden_state
            head = model.get_output_embeddings()
            states.append((memory[mask], decoded[prefix.ne(PAD)], head(decoded)[prefix.ne(PAD)]))
    for ours, their in zip(*states, strict=True):
        same(their, ours)


def test_what_is_asked_of_a_model(mini, theirs):
    for name in ("bos_token_id", "pad_token_id", "eos_token_id", "decoder_start_token_id"):
        assert getattr(theirs.config, name) == getattr(mini.config, name)
    assert theirs.get_input_embeddings().weight.shape == (6012, 160)
    assert theirs.get_output_embeddings().weight is theirs.inner.final_proj.weight
    assert not theirs.training
    assert blocks_of(theirs) is None
    assert carried_decoder(theirs) is not None
    assert blocks_of(mini) is not None


def test_parameters_are_there_once(mini, theirs):
    sizes = [sum(each.numel() for each in model.parameters()) for model in (mini, theirs)]
    assert sizes[0] == sizes[1]


def test_rows_of_a_call_use_the_experts_of_their_directions(mini, theirs, masks, pairs):
    directions = [("eng_Latn", "deu_Latn"), ("spa_Latn", "tur_Latn")] * (len(pairs.sources) // 2)
    rows, found = mask_rows(masks, directions), []
    for model in (mini, theirs):
        with routing(model, masks=rows):
            found.append(logits(model, pairs))
    same(found[1], found[0])
    assert (found[1] - logits(theirs, pairs)).abs().max() > 0.1


def test_masks_that_are_set(mini, theirs, masks, pairs):
    expected = {}
    for model in (mini, theirs):
        set_masks(model, masks, ("eng_Latn", "deu_Latn"))
        try:
            expected[model] = logits(model, pairs)
        finally:
            clear_masks(model)
    same(expected[theirs], expected[mini])
    with routing(theirs, masks=mask_rows(masks, [("eng_Latn", "deu_Latn")])):
        same(logits(theirs, pairs), expected[mini])


class Recorder:
    """An observer that keeps what it is told."""

    wants_outputs = False

    def __init__(self):
        self.calls = []

    def observe(self, stack, layer, routed):
        self.calls.append((stack, layer, routed))


def observed(model, tokenizer, direction, count):
    """Return what routers did with sentence pairs in one teacher-forced batch, and the tokens of each side."""
    sources, targets = (encode(tokenizer, lines(code)[:count], code) for code in direction)
    recorder = Recorder()
    with torch.inference_mode(), routing(model, observer=recorder):
        forced_states(model, forced_batch(model, sources, targets))
    return recorder.calls, {"encoder": sum(map(len, sources)), "decoder": sum(map(len, targets))}


def test_observers_see_the_same(mini, theirs, tokenizer):
    """Routers of a teacher-forced batch: probabilities, chosen experts, inputs; nothing at padding."""
    seen = [observed(model, tokenizer, ("rus_Cyrl", "tur_Latn"), 15) for model in (mini, theirs)]
    assert len(seen[0][0]) == len(seen[1][0]) == 6
    for (stack, layer, ours), (their_stack, their_layer, their) in zip(seen[0][0], seen[1][0], strict=True):
        assert (their_stack, their_layer) == (stack, layer)
        assert len(their.chosen) == seen[0][1][stack]
        for name in ("chosen", "positions", "probabilities", "gates", "inputs"):
            same(getattr(their, name), getattr(ours, name))


@pytest.fixture(scope="module")
def directions():
    return [("eng_Latn", "deu_Latn"), ("hin_Deva", "eng_Latn"), ("tur_Latn", "zho_Hans")]


def test_fidelity_is_the_same(mini, theirs, tokenizer, masks, directions):
    for source, target in directions:
        texts = lines(source, "test")[:16], lines(target, "test")[:16]
        ours, their = (
            FullDirection.of(model, tokenizer, *texts, source=source, target=target).measure(masks)
            for model in (mini, theirs)
        )
        assert (their.statistics == ours.statistics).all()
        assert their.values() == ours.values()


def test_held_out_text_says_the_same(mini, theirs, tokenizer, masks, directions):
    text = ParallelText.open(embedded_text(), "dev")
    ours, their = (HeldOut.of(model, tokenizer, text, directions, sentences=12, decoded=6) for model in (mini, theirs))
    assert their.signature == ours.signature
    for direction in directions:
        assert their.decoded[direction].outputs == ours.decoded[direction].outputs
    losses, their_losses = (each.losses(masks, directions) for each in (ours, their))
    changes, their_changes = (each.translations(masks, directions) for each in (ours, their))
    for direction in directions:
        assert their_losses[direction] == losses[direction]
        assert their_changes[direction] == changes[direction]


def test_adopting_a_plain_model_of_fairseq2(theirs, masks, pairs):
    """It and what is returned share modules and routing: masks set on it are those of both."""
    from fairseq2.models import load_model as fairseq2_load_model

    from nllb_prune.on_fairseq2.loading import adopt

    model = fairseq2_load_model("nllb-prune-mini", device=CPU, dtype=torch.float32)
    adopted = adopt(model, "nllb-prune-mini")
    assert adopted.inner is model
    assert routing_of(adopted) is routing_of(model)
    assert routing_of(model).identity == routing_of(theirs).identity
    same(logits(adopted, pairs), logits(theirs, pairs))
    set_masks(model, masks, ("eng_Latn", "deu_Latn"))
    with routing(theirs, masks=mask_rows(masks, [("eng_Latn", "deu_Latn")])):
        same(logits(adopted, pairs), logits(theirs, pairs))


def test_masks_with_several_rows_are_refused_by_decoding(theirs, tokenizer, masks):
    from nllb_prune.generation.translate import translations

    rows = mask_rows(masks, [("eng_Latn", "deu_Latn"), ("spa_Latn", "tur_Latn")])
    with routing(theirs, masks=rows), pytest.raises(UsageError, match="`masks` must be given to this call"):
        translations(theirs, tokenizer, ["a", "b"], source="eng_Latn", target="deu_Latn")


def test_pairs_are_of_different_lengths(pairs):
    assert len({len(each) for each in pairs.sources}) > 3
    assert isinstance(pairs, Pairs)
