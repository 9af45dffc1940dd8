"""Sentences of all kinds at once never take more than their part of the memory."""

import random

import pytest

from nllb_prune.errors import UsageError
from nllb_prune.exporting.export import export
from nllb_prune.exporting.settings import ExportSettings
from nllb_prune.generation.loop import Sentence
from nllb_prune.generation.search import SearchSettings
from nllb_prune.generation.translate import length_limit
from nllb_prune.serving.jobs import Job
from nllb_prune.serving.opening import open_model
from nllb_prune.serving.runner import Kind, Request
from nllb_prune.serving.settings import Settings
from nllb_prune.tokenization import encode, language_id
from tests.allocation import peak_of

LONGEST = 120
LANGUAGES = ("eng_Latn", "deu_Latn", "spa_Latn")


def opened(masks, memory, model="mini", dtype=None):
    settings = Settings(
        memory=memory,
        pinned=(),
        languages=LANGUAGES,
        longest=LONGEST,
        beams=3,
        rows=24,
        positions=4096,
        patience=1.0,
    )
    return open_model(model, masks, settings, dtype=dtype, device=None)


def jobs(made, text, count):
    chance = random.Random(2)
    for key in range(count):
        source, target = direction = chance.choice(made.serving.now.sides.directions)
        words = " ".join(chance.choices(text.lines(source)[:100], k=chance.choice([1, 1, 2, 6])))
        [ids] = encode(made.tokenizer, [words], source)
        ids = [*ids[: LONGEST - 1], ids[-1]]
        sentence = Sentence(
            key=key,
            source=ids,
            language=language_id(made.tokenizer, target),
            limit=length_limit(len(ids)),
        )
        kind = Kind(SearchSettings(beams=chance.choice([1, 3])), len(ids) > 64)
        yield Job(key=key, arrived=made.runner.now(), payload=Request(sentence, kind, direction))


def peak_until_finished(made, waiting):
    """Return the most bytes that were allocated at once until all sentences are finished."""
    done = []

    def run():
        for job in waiting:
            made.engine.add(job)
        while not made.engine.idle:
            outcomes = made.engine.turn()
            assert all(outcome.error is None for outcome in outcomes)
            done.extend(outcomes)

    most = peak_of(run)
    made.pager.close()
    assert len(done) == len(waiting)
    return most


@pytest.mark.parametrize("memory", [45_000_000, 60_000_000])
def test_working_memory_is_never_exceeded(masks, text, memory):
    made = opened(masks, memory)
    waiting = list(jobs(made, text, 60))
    assert len({job.payload.kind for job in waiting}) == 4
    most = peak_until_finished(made, waiting)
    assert made.serving.now.plan.total == memory
    assert most <= made.runner.peak <= made.serving.now.plan.working
    assert most > made.serving.now.plan.working / 20  # the bound is one that matters


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nor_where_quantised_experts_become_floats(masks, text, tmp_path, scheme, dtype):
    directions = [(a, b) for a in LANGUAGES for b in LANGUAGES if a != b]
    export("mini", tmp_path / "model", masks=masks, directions=directions, settings=ExportSettings(experts=scheme))
    with pytest.raises(UsageError) as told:
        opened(None, 1, tmp_path / "model", dtype)
    least = int(str(told.value).split("(")[1].split(" ")[0])
    made = opened(None, least, tmp_path / "model", dtype)
    most = peak_until_finished(made, list(jobs(made, text, 12)))
    assert most <= made.runner.peak <= made.serving.now.plan.working


def test_the_divided_memory_is_what_the_model_takes(masks):
    made = opened(masks, 45_000_000)
    tensors = [*made.model.parameters(), *(buffer for buffer in made.model.buffers() if buffer.is_floating_point())]
    held = {tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    assert sum(held.values()) == made.serving.now.plan.fixed + made.serving.now.plan.experts
    made.pager.close()
