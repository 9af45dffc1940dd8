"""Rows of the loop do not feel each other: whoever joins, leaves or is cancelled, a sentence is translated as alone."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest

from nllb_prune.errors import UsageError
from nllb_prune.generation.cache import SourceMemory, TargetCache
from nllb_prune.generation.loop import DecodingLoop
from nllb_prune.generation.search import SearchSettings
from nllb_prune.model.blocks import blocks_of

# Float32: rows of another batch are summed in another order, 1e-7 of logits up to 20 a token, some ten tokens.
TOLERANCE = 1e-4

SETTINGS = {
    "greedy": SearchSettings(),
    "beam": SearchSettings(beams=4, alternatives=4),
    "beam, one of two": SearchSettings(beams=2, length_penalty=0.0, early_stopping="never"),
}
NEVER = -1  # no token


def run(loop, sentences):
    """Translate sentences that join together."""
    done = loop.add(sentences)
    while len(loop):
        done |= loop.step()
    return done


def alone(blocks, settings, sentences):
    return {sentence.key: run(DecodingLoop(blocks, settings), [sentence])[sentence.key] for sentence in sentences}


def disturbed(loop, sentences, seed, *, cancelled=()):
    """Let sentences join at random, in any order, and cancel some at any time; return what came out."""
    chance = random.Random(seed)
    waiting, cancelling = chance.sample(sentences, len(sentences)), list(cancelled)
    inside, done = set(), {}
    while waiting or len(loop):
        if chance.random() < 0.4:
            joining = [waiting.pop() for _ in range(min(len(waiting), chance.randint(0, 6)))]
            inside |= {sentence.key for sentence in joining}
            found = loop.add(joining)
        elif chance.random() < 0.3 and cancelling and (here := [key for key in cancelling if key in inside]):
            leaving = chance.sample(here, chance.randint(1, len(here)))
            loop.cancel([*leaving, "nobody"])
            cancelling = [key for key in cancelling if key not in leaving]
            inside -= set(leaving)
            found = {}
        else:
            found = loop.step()
        assert set(found) <= inside
        assert not set(found) & set(done)
        inside -= set(found)
        done |= found
        assert len(loop) == len(inside)
    return done


def same(found, expected):
    assert found.keys() == expected.keys()
    for key, hypotheses in found.items():
        assert len(hypotheses) == len(expected[key])
        for ours, theirs in zip(hypotheses, expected[key], strict=True):
            assert ours.log_probability == pytest.approx(theirs.log_probability, abs=TOLERANCE), key
            assert ours.score == pytest.approx(theirs.score, abs=TOLERANCE), key
        # those of a near-tie may change places
        scores = [hypothesis.score for hypothesis in hypotheses]
        if all(best - next_best > TOLERANCE for best, next_best in pairwise(scores)):
            assert [(h.tokens, h.ended) for h in hypotheses] == [(h.tokens, h.ended) for h in expected[key]], key


@pytest.fixture(scope="module", params=SETTINGS)
def settings(request):
    return SETTINGS[request.param]


@pytest.fixture(scope="module")
def expected(model, settings, mixed_sentences):
    return alone(blocks_of(model), settings, mixed_sentences)


def test_the_sentences_are_mixed(mixed_sentences):
    assert len({sentence.language for sentence in mixed_sentences}) > 5
    assert len({len(sentence.source) for sentence in mixed_sentences}) > 5
    kept = [tuple(sorted(sentence.keep)) for sentence in mixed_sentences]
    assert {(), ("encoder",), ("decoder",), ("decoder", "encoder")} == set(kept)


def test_together_as_alone(blocks, settings, mixed_sentences, expected):
    same(run(DecodingLoop(blocks, settings), mixed_sentences), expected)


@pytest.mark.parametrize("seed", range(3))
def test_any_order_and_time_of_joining(blocks, settings, mixed_sentences, expected, seed):
    same(disturbed(DecodingLoop(blocks, settings), mixed_sentences, seed), expected)


@pytest.mark.parametrize("seed", range(2))
def test_cancelled_ones_change_nothing(blocks, settings, mixed_sentences, expected, seed):
    cancelled = range(seed, len(mixed_sentences), 3)
    found = disturbed(DecodingLoop(blocks, settings), mixed_sentences, seed, cancelled=cancelled)
    assert len(found) < len(mixed_sentences)
    assert set(expected) - set(found) <= set(cancelled)
    same(found, {key: expected[key] for key in found})


def test_a_loop_that_was_empty_is_as_new(blocks, settings, mixed_sentences, expected):
    loop = DecodingLoop(blocks, settings)
    few = mixed_sentences[:6]
    wanted = {sentence.key: expected[sentence.key] for sentence in few}
    same(run(loop, few), wanted)
    assert len(loop) == 0
    same(run(loop, few[::-1]), wanted)
    loop.add(mixed_sentences[6:12])
    loop.step()
    loop.cancel(sentence.key for sentence in mixed_sentences)
    assert len(loop) == 0
    assert loop.step() == {}
    same(run(loop, few), wanted)


# longer than what the cache begins with


def endless(blocks, settings, sentences, gap):
    """Let a sentence join every `gap` steps while nothing ever ends before its limit."""
    blocks.end = NEVER
    loop, done, steps = DecodingLoop(blocks, settings), {}, 0
    waiting = list(sentences)
    while waiting or len(loop):
        if waiting and steps % gap == 0:
            done |= loop.add([waiting.pop(0)])
        done |= loop.step()
        steps += 1
    return done, steps


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize(
    ("limits", "gap"),
    [
        pytest.param([12] * 30, 5, id="columns are dropped at the front"),
        pytest.param([130] + [9, 30, 2] * 6, 7, id="one row looks back to the first column"),
        pytest.param([20, 90, 45, 70, 8, 60, 33, 80, 50], 12, id="rows of any age"),
    ],
)
def test_long_runs(blocks, mixed_sentences, beams, limits, gap):
    settings = SearchSettings(beams=beams)
    sentences = [
        replace(sentence, limit=limit) for sentence, limit in zip(mixed_sentences[: len(limits)], limits, strict=True)
    ]
    found, steps = endless(blocks, settings, sentences, gap)
    assert steps > 120
    assert all(len(hypotheses[0].tokens) == limits[key] - 1 for key, hypotheses in found.items())
    same(found, alone(blocks, settings, sentences))


# what comes out


def test_log_probability_is_that_of_one_pass(blocks, settings, mixed_sentences, expected, log_probability):
    for sentence in mixed_sentences:
        for found in expected[sentence.key]:
            total = log_probability(blocks, sentence, found.tokens, found.ended)
            assert found.log_probability == pytest.approx(total, abs=TOLERANCE)


def test_fields_of_a_hypothesis(blocks, settings, mixed_sentences, expected):
    ends = set()
    for sentence in mixed_sentences:
        found = expected[sentence.key]
        assert len(found) == settings.alternatives
        assert len({(each.tokens, each.ended) for each in found}) == len(found)
        assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
        for each in found:
            assert blocks.end not in each.tokens
            generated = 1 + len(each.tokens) + each.ended
            assert generated <= sentence.limit if each.ended else generated == sentence.limit
            assert each.mean_log_probability == pytest.approx(each.log_probability / (generated - 1))
            assert each.score == pytest.approx(each.log_probability / generated**settings.length_penalty)
            ends.add(each.ended)
    assert ends == {True, False}


def test_greedy_takes_the_best_token(blocks, mixed_sentences, forced):
    found = run(DecodingLoop(blocks, SearchSettings()), mixed_sentences)
    for sentence in mixed_sentences:
        (hypothesis,) = found[sentence.key]
        taken = [*hypothesis.tokens, blocks.end] if hypothesis.ended else list(hypothesis.tokens)
        table = forced(blocks, sentence, hypothesis.tokens)[: len(taken)]
        chosen = table.gather(1, table.new_tensor(taken).long()[:, None])[:, 0]
        assert (table.amax(-1) - chosen).max() < TOLERANCE


def test_nothing_to_do(blocks, settings):
    loop = DecodingLoop(blocks, settings)
    assert loop.add([]) == {}
    assert loop.step() == {}
    loop.cancel([1, "nobody"])
    assert len(loop) == 0


def test_a_sentence_of_one_token_never_takes_a_step(blocks, settings, mixed_sentences):
    loop = DecodingLoop(blocks, settings)
    sentences = [replace(mixed_sentences[0], limit=2), replace(mixed_sentences[1], limit=9)]
    found = loop.add(sentences)
    assert list(found) == [mixed_sentences[0].key]
    assert len(loop) == 1
    assert all(len(each.tokens) + each.ended == 1 for each in found[mixed_sentences[0].key])


@pytest.mark.parametrize("limit", [1, 0, -3])
def test_a_limit_without_room_is_refused(blocks, settings, mixed_sentences, limit):
    loop = DecodingLoop(blocks, settings)
    with pytest.raises(UsageError, match="`limit` must be 2 or more"):
        loop.add([mixed_sentences[0], replace(mixed_sentences[1], limit=limit)])
    assert len(loop) == 0
    assert run(loop, mixed_sentences[:1]).keys() == {mixed_sentences[0].key}


def test_a_key_is_of_one_sentence(blocks, mixed_sentences):
    loop = DecodingLoop(blocks, SearchSettings())
    loop.add(mixed_sentences[:2])
    with pytest.raises(UsageError, match="`key` must be of one sentence alone"):
        loop.add(mixed_sentences[1:3])
    assert len(loop) == 2


def test_rows_that_could_not_join_leave_no_trace(blocks, mixed_sentences, monkeypatch):
    expected = alone(blocks, SearchSettings(), mixed_sentences[:3])
    loop = DecodingLoop(blocks, SearchSettings())
    found = loop.add(mixed_sentences[:3]) | loop.step()

    def fail(*_arguments):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(type(blocks.decoder[-1]), "__call__", fail)
        with pytest.raises(MemoryError):
            loop.add(mixed_sentences[3:6])
    while len(loop):
        found |= loop.step()
    same(found, expected)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_sources_that_could_not_all_be_written_leave_no_trace(blocks, mixed_sentences, monkeypatch, layers):
    """Memory may run out after some layers have room for the new rows and others have not."""
    expected = alone(blocks, SearchSettings(), mixed_sentences[:3])
    loop = DecodingLoop(blocks, SearchSettings())
    found = loop.add(mixed_sentences[:3]) | loop.step()
    real = SourceMemory.join

    def fail(self, made, visible, lengths):
        before, held = list(self._memory), list(self._lengths)
        real(self, made, visible, lengths)
        self._memory[layers:], self._lengths = before[layers:], held
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(SourceMemory, "join", fail)
        with pytest.raises(MemoryError):
            loop.add(mixed_sentences[3:6])
    while len(loop):
        found |= loop.step()
    same(found, expected)


@pytest.mark.parametrize("beams", [1, 2, 4])
def test_masks_of_steps_are_aligned(blocks, mixed_sentences, monkeypatch, beams):
    """As kernels on GPUs demand: however late the rows joined that are left."""
    seen, begin = [], TargetCache.begin_step

    def watched(self):
        seen.append(begin(self))
        return seen[-1]

    monkeypatch.setattr(TargetCache, "begin_step", watched)
    loop = DecodingLoop(blocks, SearchSettings(beams=beams))
    waiting = [replace(each, key=(turn, each.key)) for turn in range(3) for each in mixed_sentences]
    while waiting or len(loop):
        if waiting:
            loop.add([waiting.pop()])
        loop.step()
    offsets = {visible.storage_offset() for visible in seen if visible is not None}
    assert len(offsets) > 1
    assert all(offset % 8 == 0 for offset in offsets)
