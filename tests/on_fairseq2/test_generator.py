"""Decoding with fairseq2's beam search against our loop, and against the scores that our model gives."""

from itertools import permutations

import pytest
import torch

from nllb_prune.calibration.calibrate import calibrate
from nllb_prune.corpus import ParallelText
from nllb_prune.errors import UsageError
from nllb_prune.exporting.export import export
from nllb_prune.generation.decode import decode
from nllb_prune.generation.loop import Sentence
from nllb_prune.generation.search import Hypothesis, SearchSettings
from nllb_prune.generation.translate import length_limit, translations
from nllb_prune.masks import MaskSet
from nllb_prune.model.blocks import blocks_of
from nllb_prune.model.loading import load_model
from nllb_prune.model.routing import mask_rows, routing, routing_of
from nllb_prune.model.source import embedded_masks, embedded_text
from nllb_prune.model.teacher_forcing import forced_batch, forced_states
from nllb_prune.planning.plan import plan
from nllb_prune.tokenization import encode, language_id
from tests.on_fairseq2.sides import CPU, EMBEDDED_LANGUAGES, lines, load_by_card

pytestmark = pytest.mark.fairseq2

END = 2
DIRECTIONS = tuple(permutations(EMBEDDED_LANGUAGES, 2))
RING = tuple(zip(EMBEDDED_LANGUAGES, (*EMBEDDED_LANGUAGES[1:], EMBEDDED_LANGUAGES[0]), strict=True))
"""Ten directions, every language on both sides."""

# The same sums in another order: another token only where two are as good as equal.
NEAR_TIE = 1e-4
IDENTICAL = 0.999
GREEDY = SearchSettings()
BEAMS = SearchSettings(beams=4, alternatives=4)


@pytest.fixture(scope="module")
def on_fairseq2():
    from nllb_prune.on_fairseq2.loading import load_model as load

    return load


@pytest.fixture(scope="module")
def theirs(on_fairseq2):
    return on_fairseq2("mini")


@pytest.fixture(scope="module")
def make_sentences(tokenizer):
    """(directions, count, masks) -> sentences to decode, with keys of their own."""

    def make(directions, count, masks=None):
        kept = {each: {} if masks is None else keep_of(masks, each) for each in directions}
        return [
            Sentence(
                key=(source, target, n),
                source=ids,
                language=language_id(tokenizer, target),
                limit=length_limit(len(ids)),
                keep=kept[source, target],
            )
            for source, target in directions
            for n, ids in enumerate(encode(tokenizer, lines(source, "test")[:count], source))
        ]

    return make


@pytest.fixture(scope="module")
def union(mini, tokenizer, tmp_path_factory):
    """A pruned checkpoint for all ten languages: a quarter of the experts, the same for every direction."""
    folder = tmp_path_factory.mktemp("union")
    text = ParallelText.open(embedded_text(), "dev")
    statistics = calibrate(mini, tokenizer, text, DIRECTIONS, pairs_per_target=45, folder=folder / "work")
    masks = plan(statistics, kept=0.25, granularity="union", budget_for="union", languages=EMBEDDED_LANGUAGES)
    export("mini", folder / "pruned", masks=masks, directions=list(DIRECTIONS))
    return folder / "pruned"


@pytest.fixture(scope="module")
def one_direction(tmp_path_factory):
    """A pruned checkpoint for English into German."""
    folder = tmp_path_factory.mktemp("one") / "pruned"
    export("mini", folder, masks=MaskSet.load(embedded_masks()), directions=[("eng_Latn", "deu_Latn")])
    return folder


def keep_of(masks, direction):
    return {name: rows[0] for name, rows in mask_rows(masks, [direction]).items()}


def by_ours(model, sentences, settings=GREEDY):
    return decode(model, blocks_of(model), sentences, settings)


def by_theirs(model, sentences, settings=GREEDY, **how):
    return decode(model, None, sentences, settings, **how)


def force(model, sentence, tokens, ended):
    """Return our log-probabilities: of the language token, the tokens, and `</s>` if it ended."""
    taken = [sentence.language, *tokens, *([END] if ended else [])]
    batch = forced_batch(model, [sentence.source], [taken])
    keep = {name: rows.unsqueeze(0) for name, rows in sentence.keep.items()}
    with torch.inference_mode(), routing(model, masks=keep or None):
        table = model.get_output_embeddings()(forced_states(model, batch))[0].double().log_softmax(-1)
    return table[torch.arange(len(taken)), taken]


def margin(model, sentence, ours, theirs):
    """Return how far the first two tokens that differ lie apart, given what is before them."""
    mine, other = ((*each.tokens, END) if each.ended else each.tokens for each in (ours, theirs))
    first = next(n for n, pair in enumerate(zip(mine, other, strict=False)) if pair[0] != pair[1])
    one, two = (force(model, sentence, tokens[: first + 1], False)[-1] for tokens in (mine, other))
    return abs(float(one - two))


def assert_same_greedy(ours, theirs, sentences):
    found, other = by_ours(ours, sentences), by_theirs(theirs, sentences)
    different = []
    for sentence in sentences:
        [one], [two] = found[sentence.key], other[sentence.key]
        if (one.tokens, one.ended) == (two.tokens, two.ended):
            assert two.log_probability == pytest.approx(one.log_probability, abs=NEAR_TIE), sentence.key
        else:
            different.append(sentence)
            assert margin(ours, sentence, one, two) < NEAR_TIE, sentence.key
    assert len(different) <= (1 - IDENTICAL) * len(sentences), [sentence.key for sentence in different]


def test_greedy_is_ours_in_every_direction(mini, theirs, make_sentences):
    assert_same_greedy(mini, theirs, make_sentences(DIRECTIONS, 20))


def test_greedy_is_ours_within_masks(mini, theirs, make_sentences):
    masks = MaskSet.load(embedded_masks())
    assert_same_greedy(mini, theirs, make_sentences(RING, 20, masks))


def test_greedy_is_ours_of_a_union(union, on_fairseq2, make_sentences):
    assert_same_greedy(load_model(union), on_fairseq2(union), make_sentences(DIRECTIONS, 5))


def test_greedy_is_ours_of_one_direction(one_direction, on_fairseq2, make_sentences):
    sentences = make_sentences([("eng_Latn", "deu_Latn")], 100)
    assert_same_greedy(load_model(one_direction), on_fairseq2(one_direction), sentences)


def test_greedy_is_ours_of_a_dense_model(mini_dense, on_fairseq2, make_sentences):
    assert_same_greedy(mini_dense, on_fairseq2("mini-dense"), make_sentences(RING, 10))


def test_runaway_outputs_are_cut_where_ours_are(mini, theirs, make_sentences):
    """With two experts a layer the model is hardly one: some of what it writes never ends."""
    spec = routing_of(mini).spec
    masks = MaskSet(
        model_name="mini",
        fingerprint=spec.fingerprint,
        stacks=spec.stacks,
        granularity="global",
        masks={stack.name: {"*": [(0, 1)] * len(stack.layers)} for stack in spec.stacks},
    )
    sentences = make_sentences(RING, 20, masks)
    assert_same_greedy(mini, theirs, sentences)
    found = by_theirs(theirs, sentences)
    cut = [(sentence, each) for sentence in sentences for each in found[sentence.key] if not each.ended]
    assert len(cut) > 10
    for sentence, each in cut:
        assert len(each.tokens) == sentence.limit - 1
        assert each.score == pytest.approx(each.log_probability / sentence.limit)


@pytest.mark.parametrize("beams", [1, 4])
def test_limits_of_their_own_in_a_batch(mini, theirs, make_sentences, beams):
    settings = SearchSettings(beams=beams)
    whole = make_sentences([("eng_Latn", "deu_Latn")], 12)
    sentences = [
        Sentence(key=n, source=each.source, language=each.language, limit=2 + n, keep={})
        for n, each in enumerate(whole)
    ]
    found, other = by_ours(mini, sentences, settings), by_theirs(theirs, sentences, settings)
    for sentence in sentences:
        [one], [two] = found[sentence.key], other[sentence.key]
        assert len(two.tokens) + two.ended <= sentence.limit - 1
        if beams == 1:
            assert (one.tokens, one.ended) == (two.tokens, two.ended)
            assert two.log_probability == pytest.approx(one.log_probability, abs=NEAR_TIE)
        forced = force(mini, sentence, two.tokens, two.ended)
        assert two.log_probability == pytest.approx(float(forced[1:].sum()), abs=NEAR_TIE)
    assert not other[0][0].ended
    assert any(each[0].ended for each in other.values())


def test_a_model_with_few_positions_cuts_too(theirs, make_sentences):
    """What fairseq2 ends because its tables of positions do, the model did not end."""
    from fairseq2.assets import AssetCard

    from nllb_prune.on_fairseq2.card import card_of
    from nllb_prune.on_fairseq2.loading import adopt

    positions = 10
    config = {**card_of("mini")["model_config"], "max_seq_len": positions}
    card = AssetCard("few", {**card_of("mini"), "model_config": config})
    few = adopt(load_by_card("mini", model_config=config), card)
    sentences = [each for each in make_sentences(RING, 20) if len(each.source) <= positions]
    whole, found = by_theirs(theirs, sentences), by_theirs(few, sentences)
    room = positions - 3  # `</s>`, the language, and the token that would be the limit
    for [longer], [cut] in zip(whole.values(), found.values(), strict=True):
        assert cut.tokens == longer.tokens[:room]
        assert cut.ended == (len(longer.tokens) < room)
    assert 0 < sum(each[0].ended for each in found.values()) < len(found)


def test_which_sentences_share_a_batch_changes_nothing(theirs, make_sentences):
    sentences = make_sentences(RING, 3)
    alone, together = by_theirs(theirs, sentences, rows=1), by_theirs(theirs, sentences)
    for key, [hypothesis] in alone.items():
        assert hypothesis.tokens == together[key][0].tokens


@pytest.fixture(scope="module")
def beam_sentences(make_sentences):
    return make_sentences(DIRECTIONS, 3)


@pytest.fixture(scope="module")
def beams_by_theirs(theirs, beam_sentences):
    return by_theirs(theirs, beam_sentences, BEAMS)


def test_scores_of_beams_are_those_of_our_model(mini, beam_sentences, beams_by_theirs):
    """Score: log-probability of the language token, the words and `</s>` over their number."""
    for sentence in beam_sentences[::3]:
        for found in beams_by_theirs[sentence.key]:
            assert found.ended
            forced = force(mini, sentence, found.tokens, found.ended)
            assert found.log_probability == pytest.approx(float(forced[1:].sum()), abs=NEAR_TIE)
            assert found.score == pytest.approx(float(forced.mean()), abs=NEAR_TIE)


def test_alternatives_come_best_first(beam_sentences, beams_by_theirs):
    for sentence in beam_sentences:
        found = beams_by_theirs[sentence.key]
        assert len(found) == 4 == len({each.tokens for each in found})
        assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)


def test_beams_are_ours_but_for_the_language_token(mini, beam_sentences, beams_by_theirs):
    """Ours, stopped at as many finished ones as beams and ranked with the language token counted, are theirs."""
    settings = SearchSettings(beams=4, alternatives=4, early_stopping=True)
    found = by_ours(mini, beam_sentences, settings)
    same = 0
    for sentence in beam_sentences:
        given = float(force(mini, sentence, (), False)[0])
        ranked = max(found[sentence.key], key=lambda each: (each.log_probability + given) / (len(each.tokens) + 2))
        same += ranked.tokens == beams_by_theirs[sentence.key][0].tokens
    assert same >= IDENTICAL * len(beam_sentences)


def test_as_a_user_of_fairseq2_decodes(theirs, tokenizer):
    """Its generator on the model that its `load_model` gives finds what `--beams 4` finds."""
    from fairseq2.data.tokenizers import load_tokenizer
    from fairseq2.generation.beam_search import BeamSearchSeq2SeqGenerator
    from fairseq2.generation.text import TextTranslator
    from fairseq2.models import load_model as fairseq2_load_model

    model = fairseq2_load_model("nllb-prune-mini", device=CPU, dtype=torch.float32)
    own = load_tokenizer("nllb-prune-mini")
    for source, target in RING[::3]:
        texts = lines(source, "test")[:6]
        generator = BeamSearchSeq2SeqGenerator(model, own.vocab_info, beam_size=4, max_gen_len=(2, 16))
        translator = TextTranslator(generator, own, source_lang=source, target_lang=target)
        search = SearchSettings(beams=4)
        found = translations(theirs, tokenizer, texts, source=source, target=target, search=search)
        for text, [best] in zip(texts, found, strict=True):
            theirs_text, output = translator(text)
            assert theirs_text.strip() == best.text
            assert float(output.hypotheses[0][0].score) == pytest.approx(best.score, abs=NEAR_TIE)


def test_length_penalty(theirs, beam_sentences):
    """Without one the likeliest wins, language token and all; with a large one the longest."""
    few = beam_sentences[::27]
    none = by_theirs(theirs, few, SearchSettings(beams=4, alternatives=4, length_penalty=0))
    large = by_theirs(theirs, few, SearchSettings(beams=4, alternatives=4, length_penalty=9))
    for found in none.values():
        sums = [each.log_probability for each in found]
        assert sums == sorted(sums, reverse=True)
    for found in large.values():
        lengths = [len(each.tokens) for each in found]
        assert lengths == sorted(lengths, reverse=True)


def test_never_is_refused(theirs, beam_sentences):
    for beams in (1, 4):
        with pytest.raises(UsageError, match="`early_stopping` must be left out with fairseq2"):
            by_theirs(theirs, beam_sentences[:1], SearchSettings(beams=beams, early_stopping="never"))


@pytest.mark.parametrize(
    ("words", "limit", "penalty", "expected"),
    [
        ([40, 41, 3], 9, 1.0, ((40, 41), -6.0, True, -1.7)),  # ended long before the limit
        ([40, 41, 3], 4, 1.0, ((40, 41), -6.0, True, -1.7)),  # `</s>` is the last that there is room for
        ([40, 41, 3], 3, 1.0, ((40, 41), -3.0, False, -1.0)),  # `</s>` where the limit would have ended it
        ([40, 41, 42, 43, 3], 3, 1.0, ((40, 41), -3.0, False, -1.0)),  # others of its batch had more room
        ([40, 41, 42, 43, 3], 3, 2.0, ((40, 41), -3.0, False, -1 / 3)),
        ([40, 41, 42, 43, 3], 3, 0.0, ((40, 41), -3.0, False, -3.0)),
        ([3], 9, 1.0, ((), -1.0, True, -1.7)),  # nothing
        ([40, 3], 2, 1.0, ((40,), -1.0, False, -0.5)),
        ([1, 2, 0, 3], 9, 1.0, ((3, 0, 1), -10.0, True, -1.7)),  # control symbols have other numbers
    ],
)
def test_a_hypothesis_of_theirs(words, limit, penalty, expected):
    from fairseq2.generation import Hypothesis as Found

    from nllb_prune.on_fairseq2.generator import _hypothesis

    steps = torch.tensor([0.0, -8.0, *(-1.0 - n for n in range(len(words)))])  # the language token costs 8
    found = Found(torch.tensor([3, 6002, *words]), torch.tensor(-1.7), steps)
    made = _hypothesis(found, limit, SearchSettings(length_penalty=penalty))
    tokens, total, ended, score = expected
    assert made == Hypothesis(tokens, total, ended, pytest.approx(score, abs=1e-6))
