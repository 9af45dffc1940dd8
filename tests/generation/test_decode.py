"""Every sentence comes out once, in whatever batches, and memory that runs out is met with smaller ones."""

from dataclasses import replace

import pytest
import torch

from nllb_prune.errors import UsageError
from nllb_prune.generation.decode import decode
from nllb_prune.generation.search import SearchSettings
from nllb_prune.model.blocks import blocks_of

SETTINGS = {"greedy": SearchSettings(), "beam": SearchSettings(beams=3, alternatives=2)}


@pytest.fixture(scope="module", params=SETTINGS)
def settings(request):
    return SETTINGS[request.param]


@pytest.fixture(scope="module")
def sentences(mixed_sentences):
    """With keys of several kinds, in an order of their own."""
    keys = [lambda n: n, str, lambda n: ("line", n)]
    return [replace(sentence, key=keys[n % 3](n)) for n, sentence in enumerate(mixed_sentences[:20][::-1])]


@pytest.fixture(scope="module")
def expected(model, sentences, settings):
    blocks = blocks_of(model)
    return {sentence.key: decode(model, blocks, [sentence], settings)[sentence.key] for sentence in sentences}


def same(found, expected):
    assert found.keys() == expected.keys()
    for key, hypotheses in found.items():
        assert [h.tokens for h in hypotheses] == [h.tokens for h in expected[key]]
        scores = [h.log_probability for h in expected[key]]
        assert [h.log_probability for h in hypotheses] == pytest.approx(scores, abs=1e-4)


class Blocks:
    """Blocks that raise an error in `embed_target` calls number `after` and later, a number of times.

    Calls of up to `room` rows are left alone. Takes note of the largest call.
    """

    def __init__(self, blocks, error=None, *, room=0, after=0, times=10**6):
        self.blocks, self.error, self.room, self.after, self.times = blocks, error, room, after, times
        self.decoder = [self._watched(block) for block in blocks.decoder]
        self.calls = self.most_rows = self.most_positions = 0

    def __getattr__(self, name):
        return getattr(self.blocks, name)

    def embed_target(self, ids, positions):
        self.calls += 1
        if self.error is not None and self.calls > self.after and self.times and len(ids) > self.room:
            self.times -= 1
            raise self.error
        return self.blocks.embed_target(ids, positions)

    def _watched(self, block):
        watching = self

        class Watched:
            source = staticmethod(block.source)

            def __call__(self, states, source, call):
                rows, _, positions, _ = source.keys.shape
                watching.most_rows = max(watching.most_rows, rows)
                watching.most_positions = max(watching.most_positions, rows * positions)
                return block(states, source, call)

        return Watched()


@pytest.mark.parametrize(("rows", "positions"), [(1, 2048), (5, 2048), (128, 1), (128, 100), (4, 100), (128, 10**6)])
def test_every_sentence_comes_out_once(model, blocks, sentences, settings, expected, rows, positions):
    found = decode(model, blocks, sentences, settings, rows=rows, positions=positions)
    same(found, expected)


@pytest.mark.parametrize("rows", [1, 3, 10])
def test_rows_in_flight(model, blocks, sentences, settings, rows):
    watched = Blocks(blocks)
    decode(model, watched, sentences, settings, rows=rows)
    assert watched.most_rows == rows


@pytest.mark.parametrize("positions", [60, 150, 400])
def test_positions_in_flight(model, blocks, sentences, settings, positions):
    """Long sentences may still be there when short ones join."""
    watched = Blocks(blocks)
    long = [
        replace(sentence, key=f"long {n}", source=(*sentence.source[:-1] * 4, blocks.end), limit=40)
        for n, sentence in enumerate(sentences[:6])
    ]
    decode(model, watched, [*sentences, *long], settings, positions=positions)
    longest = max(len(sentence.source) for sentence in long)
    assert watched.most_positions * settings.beams <= max(positions, longest * settings.beams)


def test_nothing(model, blocks, settings):
    watched = Blocks(blocks)
    assert decode(model, watched, [], settings) == {}
    assert watched.calls == 0


# memory


@pytest.mark.parametrize(
    ("error", "after"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), 0),
        (torch.OutOfMemoryError("CUDA out of memory"), 1),
        (MemoryError(), 9),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64000000000 bytes."), 4),
    ],
)
def test_memory_that_runs_out_once(model, blocks, sentences, settings, expected, error, after):
    scarce = Blocks(blocks, error, after=after, times=1)
    with pytest.warns(UserWarning, match="memory ran out on cpu; going on with 4 sentences at a time") as warned:
        found = decode(model, scarce, sentences, settings, rows=8)
    assert len(warned) == 1
    same(found, expected)


def test_smaller_batches_are_what_helps(model, blocks, sentences, settings, expected):
    scarce = Blocks(blocks, torch.OutOfMemoryError("CUDA out of memory"), room=4)
    with pytest.warns(UserWarning, match="4 sentences"):
        same(decode(model, scarce, sentences, settings, rows=8), expected)


def test_what_was_done_is_not_done_again(model, blocks, sentences):
    """Two at a time: after some calls the first are done."""
    sentences = sentences[:12]
    first = Blocks(blocks)
    decode(model, first, sentences, SearchSettings(), rows=2)
    scarce = Blocks(blocks, MemoryError(), after=first.calls - 3, times=1)
    with pytest.warns(UserWarning, match="memory ran out"):
        decode(model, scarce, sentences, SearchSettings(), rows=2)
    assert scarce.calls < 1.5 * first.calls


@pytest.mark.parametrize("after", [0, 9])
def test_memory_that_is_always_too_small(model, blocks, sentences, settings, after):
    scarce = Blocks(blocks, torch.OutOfMemoryError("CUDA out of memory\nof 80 GiB"), after=after)
    with (
        pytest.warns(UserWarning, match="memory ran out"),
        pytest.raises(UsageError, match="The memory of cpu must hold the model and 4 sentences of up to") as raised,
    ):
        decode(model, scarce, sentences, settings, rows=8)
    assert "\n" not in str(raised.value)


@pytest.mark.filterwarnings("error")
def test_one_sentence_cannot_be_halved(model, blocks, sentences, settings):
    scarce = Blocks(blocks, MemoryError())
    with pytest.raises(UsageError, match="must hold the model and 1 sentences"):
        decode(model, scarce, sentences[:1], settings, rows=1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("no")])
def test_other_errors_pass_through(model, blocks, sentences, settings, error):
    with pytest.raises(type(error)) as raised:
        decode(model, Blocks(blocks, error, after=4), sentences, settings)
    assert raised.value is error
