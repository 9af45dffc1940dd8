"""Search: the rules of transformers' `generate`, and what must hold whatever the candidates are."""

import math
import random
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from transformers import M2M100Config, M2M100ForConditionalGeneration

from nllb_prune.errors import UsageError
from nllb_prune.generation.decode import decode
from nllb_prune.generation.loop import Sentence
from nllb_prune.generation.search import GreedySearch, SearchSettings, new_search
from nllb_prune.model.blocks import blocks_of
from nllb_prune.model.loading import load_model

TINY = Path(__file__).parent.parent / "reference" / "tiny"
PAD, END = 1, 2
PENALTIES = (0.0, 1.0, -0.5, 2.0)
STOPPING = (False, True, "never")

# as transformers: generate

WORDS = range(4, 58)
SOURCE_LANGUAGE, TARGET_LANGUAGE = 58, 59


def _dense(folder):
    """Write a dense model whose translations end early, late and not at all, with about equal chances."""
    config = M2M100Config(
        vocab_size=60,
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        max_position_embeddings=64,
    )
    model = M2M100ForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            if name.endswith("shared.weight"):
                draw *= 0.4
            elif name.endswith("bias"):
                draw *= 0.1
            elif (
                name != "model.decoder.layer_norm.weight"
            ):  # that one with signs: otherwise each step repeats its input
                draw = 1 + 0.1 * draw if "layer_norm" in name else 2 * draw / math.sqrt(draw.shape[1])
            parameter.copy_(draw)
        model.model.shared.weight[PAD] = 0
        end = model.model.shared.weight[END]
        model.model.decoder.layer_norm.bias.copy_(4 * end / end.dot(end))  # 4 is added to the logit of `</s>`
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return load_model(_dense(tmp_path_factory.mktemp("dense")))


@pytest.fixture(scope="module")
def sparse():
    return load_model(TINY)


def draw_sources(count, seed):
    chance = random.Random(seed)
    return [[SOURCE_LANGUAGE, *chance.choices(WORDS, k=chance.randint(1, 9)), END] for _ in range(count)]


@torch.inference_mode()
def generated(model, sources, settings, limit):
    """Return tokens after the language token and score of each alternative, by transformers."""
    longest = max(map(len, sources))
    ids = torch.tensor([source + [PAD] * (longest - len(source)) for source in sources])
    output = model.generate(
        input_ids=ids,
        attention_mask=ids.ne(PAD).long(),
        forced_bos_token_id=TARGET_LANGUAGE,
        do_sample=False,
        max_new_tokens=limit,
        num_beams=settings.beams,
        num_return_sequences=settings.alternatives,
        length_penalty=settings.length_penalty,
        early_stopping=settings.early_stopping,
        decoder_start_token_id=END,
        return_dict_in_generate=True,
        output_scores=True,
    )
    words = [row[2 : row.index(END, 2) + 1 if END in row[2:] else None] for row in output.sequences.tolist()]
    flat = list(zip([tuple(row) for row in words], output.sequences_scores.tolist(), strict=True))
    count = settings.alternatives
    return [flat[n * count : (n + 1) * count] for n in range(len(sources))]


def looped(model, sources, settings, limit):
    """Return the same by our loop."""
    sentences = [
        Sentence(key=key, source=source, language=TARGET_LANGUAGE, limit=limit) for key, source in enumerate(sources)
    ]
    found = decode(model, blocks_of(model), sentences, settings)
    return [[((*h.tokens, END) if h.ended else h.tokens, h.score) for h in found[key]] for key in range(len(sources))]


def agree(ours, theirs):
    """Compare alternatives; those whose scores are a near-tie may change places."""
    for mine, others in zip(ours, theirs, strict=True):
        scores = [score for _, score in others]
        assert [score for _, score in mine] == pytest.approx(scores, abs=1e-4, rel=1e-5)
        if all(best - next_best > 1e-4 for best, next_best in pairwise(scores)):
            assert [tokens for tokens, _ in mine] == [tokens for tokens, _ in others]


@pytest.mark.parametrize("beams", [2, 3, 4])
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("stopping", STOPPING)
def test_beam_search_is_that_of_transformers(dense, beams, penalty, stopping):
    settings = SearchSettings(beams=beams, alternatives=beams, length_penalty=penalty, early_stopping=stopping)
    for limit, seed in ((14, beams), (4, beams + 10)):
        sources = draw_sources(32, seed)
        agree(looped(dense, sources, settings, limit), generated(dense, sources, settings, limit))


@pytest.mark.parametrize("beams", [2, 4])
@pytest.mark.parametrize("stopping", STOPPING)
def test_beam_search_of_a_sparse_model(sparse, beams, stopping):
    settings = SearchSettings(beams=beams, early_stopping=stopping)
    sources = draw_sources(16, 3)
    agree(looped(sparse, sources, settings, 16), generated(sparse, sources, settings, 16))


@pytest.mark.parametrize("alternatives", [1, 2, 3])
def test_fewer_alternatives_than_beams(dense, alternatives):
    sources = draw_sources(16, 4)
    settings = SearchSettings(beams=4, alternatives=alternatives)
    ours = looped(dense, sources, settings, 12)
    agree(ours, generated(dense, sources, settings, 12))
    every = looped(dense, sources, SearchSettings(beams=4, alternatives=4), 12)
    assert ours == [found[:alternatives] for found in every]


def test_the_settings_make_a_difference(dense):
    """Otherwise the comparisons above would say little."""
    sources = draw_sources(32, 4)

    def found(**options):
        return looped(dense, sources, SearchSettings(beams=4, alternatives=4, **options), 14)

    usual = found()
    ended = [hypothesis[0][-1:] == (END,) for hypotheses in usual for hypothesis in hypotheses]
    assert 0.2 < sum(ended) / len(ended) < 0.8
    for options in ({"early_stopping": True}, {"early_stopping": "never"}, {"length_penalty": 0.0}):
        assert found(**options) != usual
    for pair in ((0.0, -0.5), (1.0, 2.0)):
        assert found(length_penalty=pair[0]) != found(length_penalty=pair[1])


# whatever the candidates


class Table:
    """Log-probabilities of the next word after any words, at random but always the same."""

    def __init__(self, seed, vocabulary):
        self.seed, self.vocabulary = seed, vocabulary
        self.rows = {}

    def __getitem__(self, words):
        if words not in self.rows:
            chance = random.Random(f"{self.seed} {words}")
            logits = [chance.gauss(0, 2) for _ in range(self.vocabulary)]
            normaliser = math.log(sum(map(math.exp, logits)))
            self.rows[words] = [logit - normaliser for logit in logits]
        return self.rows[words]

    def total(self, hypothesis):
        words = (*hypothesis.tokens, END) if hypothesis.ended else hypothesis.tokens
        return sum(self[words[:n]][word] for n, word in enumerate(words))


def searched(table, settings, limit, *, candidates=None):
    """Feed a search until it is over; return its hypotheses."""
    search = new_search(settings, end=END, limit=limit)
    beams, count = [()], settings.candidates if candidates is None else candidates
    for _ in range(limit):
        offered = [
            (score + log_probability, token, parent)
            for parent, (words, score) in enumerate(zip(beams, search.scores, strict=True))
            for token, log_probability in enumerate(table[words])
        ]
        offered = sorted(offered, reverse=True)[:count]
        parents = search.advance(*zip(*offered, strict=True))
        if parents is None:
            return search.hypotheses()
        beams = [(*beams[parent], token) for parent, token in zip(parents, search.tokens, strict=True)]
        assert END not in search.tokens
        assert search.scores == sorted(search.scores, reverse=True)
    raise AssertionError("a search is over at its limit")


def enumerated(table, penalty, limit):
    """Return score, tokens and whether it ended of every hypothesis there is, best first."""
    words = [word for word in range(table.vocabulary) if word != END]
    found = []
    for length in range(limit):
        for tokens in product(words, repeat=length):
            for ended in (True, False):
                generated_tokens = 1 + length + ended
                if generated_tokens > limit or (not ended and generated_tokens < limit):
                    continue
                taken = (*tokens, END) if ended else tokens
                total = sum(table[taken[:n]][word] for n, word in enumerate(taken))
                found.append((total / generated_tokens**penalty, tokens, ended))
    return sorted(found, reverse=True)


@st.composite
def any_settings(draw, most=4):
    beams = draw(st.integers(1, most))
    return SearchSettings(
        beams=beams,
        alternatives=draw(st.integers(1, beams)),
        length_penalty=draw(st.sampled_from((*PENALTIES, 0.6))),
        early_stopping=draw(st.sampled_from(STOPPING)),
    )


@examples(max_examples=300, deadline=None)
@given(any_settings(), st.integers(2, 9), st.integers(8, 12), st.integers(0, 10**6))
def test_hypotheses(settings, limit, vocabulary, seed):
    table = Table(seed, vocabulary)
    found = searched(table, settings, limit)
    assert len(found) == settings.alternatives
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
    assert len({(h.tokens, h.ended) for h in found}) == len(found)
    for hypothesis in found:
        assert END not in hypothesis.tokens
        length = 1 + len(hypothesis.tokens) + hypothesis.ended
        assert length <= limit if hypothesis.ended else length == limit
        assert hypothesis.log_probability == pytest.approx(table.total(hypothesis), rel=1e-9)
        assert hypothesis.score == pytest.approx(hypothesis.log_probability / length**settings.length_penalty)
        assert hypothesis.mean_log_probability == pytest.approx(hypothesis.log_probability / (length - 1))


@examples(max_examples=60, deadline=None)
@given(st.integers(2, 5), st.integers(3, 5), st.sampled_from(PENALTIES), st.integers(0, 10**6))
def test_with_room_for_everything_it_is_an_enumeration(limit, vocabulary, penalty, seed):
    table = Table(seed, vocabulary)
    everything = enumerated(table, penalty, limit)
    count = min(5, len(everything))
    settings = SearchSettings(beams=10**4, alternatives=count, length_penalty=penalty, early_stopping="never")
    found = searched(table, settings, limit)
    assert [(h.tokens, h.ended) for h in found] == [(tokens, ended) for _, tokens, ended in everything[:count]]
    assert [h.score for h in found] == pytest.approx([score for score, _, _ in everything[:count]])


@examples(max_examples=60, deadline=None)
@given(st.integers(2, 5), st.integers(0, 10**6))
def test_without_penalty_the_best_of_a_wide_search_is_the_best_there_is(limit, seed):
    """It may stop before its limit, but only when nothing better is open."""
    table = Table(seed, 4)
    wide = 3 ** (limit - 1)  # all that can be open, but not all that can be finished
    settings = SearchSettings(beams=wide, alternatives=1, length_penalty=0.0, early_stopping="never")
    (best,) = searched(table, settings, limit)
    assert (best.tokens, best.ended) == enumerated(table, 0.0, limit)[0][1:]


@examples(max_examples=60, deadline=None)
@given(st.integers(2, 9), st.integers(0, 10**6))
def test_greedy_takes_the_best_each_time(limit, seed):
    table = Table(seed, 6)
    (found,) = searched(table, SearchSettings(), limit)
    words = (*found.tokens, END) if found.ended else found.tokens
    for n, word in enumerate(words):
        assert table[words[:n]][word] == max(table[words[:n]])


@examples(max_examples=100, deadline=None)
@given(st.integers(2, 4), st.integers(2, 12), st.sampled_from(PENALTIES), st.integers(0, 10**6))
def test_never_finds_no_worse_than_the_others(beams, limit, penalty, seed):
    """The other ways of stopping see the beginning of what `never` sees, and without a bonus for length as much."""
    table = Table(seed, 8)
    true, false, never = (
        searched(
            table,
            SearchSettings(beams=beams, alternatives=beams, length_penalty=penalty, early_stopping=stopping),
            limit,
        )
        for stopping in (True, False, "never")
    )
    for some, more in ((true, false), (false, never)):
        assert all(a.score <= b.score + 1e-12 for a, b in zip(some, more, strict=True))
    if penalty <= 0:
        assert false == never


@pytest.mark.parametrize("stopping", [False, "never"])
def test_below_zero_the_best_an_open_one_can_be_is_what_it_is_now(stopping):
    """Growing to its limit would only make it worse, so that says nothing of when to stop."""
    settings = SearchSettings(beams=2, alternatives=2, length_penalty=-1.0, early_stopping=stopping)
    search = new_search(settings, end=END, limit=10)
    assert search.advance([-1.0, -2.0, -3.0, -4.0], [5, END, 6, 7], [0, 0, 0, 0]) == [0, 0]
    assert search.advance([-1.1, -2.5, -3.5, -4.0], [8, END, 6, 7], [0, 0, 1, 1]) == [0, 1]  # finished: -4, -7.5
    assert search.advance([-1.2, -3.0, -3.5, -4.0], [END, 5, 6, 7], [0, 0, 0, 1]) is None
    assert [(h.tokens, h.score) for h in search.hypotheses()] == [((), -4.0), ((5, 8), -4.8)]


# settings


def test_one_beam_is_greedy():
    assert isinstance(new_search(SearchSettings(), end=END, limit=5), GreedySearch)
    assert SearchSettings().candidates == 1
    assert SearchSettings(beams=3).candidates == 6


@pytest.mark.parametrize(("beams", "alternatives"), [(1, 2), (4, 5), (4, 0), (2, -1)])
def test_counts_that_mean_nothing(beams, alternatives):
    with pytest.raises(UsageError, match="`alternatives` must be from 1 to the number of beams") as raised:
        SearchSettings(beams=beams, alternatives=alternatives)
    assert "\n" not in str(raised.value)


def test_early_stopping_that_is_unknown():
    with pytest.raises(UsageError, match="`early_stopping` must be False, True or 'never', but is soon instead"):
        SearchSettings(early_stopping="soon")


@pytest.mark.parametrize("settings", [{"beams": 0}, {"beams": -1}, {"length_penalty": math.nan}, {"early_stopping": 1}])
def test_settings_that_mean_nothing(settings):
    with pytest.raises(UsageError, match=f"`{next(iter(settings))}` must be"):
        SearchSettings(**settings)
