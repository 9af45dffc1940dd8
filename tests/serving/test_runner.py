"""Sentences of all kinds at once never take more than their part of the memory."""

import random

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from nllb_prune.generation.loop import Sentence
from nllb_prune.generation.search import SearchSettings
from nllb_prune.generation.translate import length_limit
from nllb_prune.serving.jobs import Job
from nllb_prune.serving.opening import Settings, open_model
from nllb_prune.serving.runner import Kind, Request
from nllb_prune.serving.sides import joining, staying
from nllb_prune.tokenization import encode, language_id

LONGEST = 120


def opened(masks, memory):
    settings = Settings(
        memory=memory,
        pinned=(),
        languages=("eng_Latn", "deu_Latn", "spa_Latn"),
        longest=LONGEST,
        beams=3,
        rows=24,
        positions=4096,
        patience=1.0,
        linger=0.0,
    )
    return open_model("mini", masks, settings, dtype=None, device=None)


def jobs(made, text, count):
    chance = random.Random(2)
    for key in range(count):
        source, target = chance.choice(made.sides.directions)
        words = " ".join(chance.choices(text.lines(source)[:100], k=chance.choice([1, 1, 2, 6])))
        [ids] = encode(made.tokenizer, [words], source)
        ids = [*ids[: LONGEST - 1], ids[-1]]
        sides = made.sides.of(source, target)
        sentence = Sentence(
            key=key,
            source=ids,
            language=language_id(made.tokenizer, target),
            limit=length_limit(len(ids)),
            keep=made.sides.keep(sides, torch.device("cpu")),
        )
        kind = Kind(SearchSettings(beams=chance.choice([1, 3])), len(ids) > 64)
        yield Job(
            key=key,
            joining=joining(sides),
            staying=staying(sides),
            arrived=made.runner.now(),
            payload=Request(sentence, kind),
        )


@pytest.mark.parametrize("memory", [45_000_000, 60_000_000])
def test_working_memory_is_never_exceeded(masks, text, memory):
    made = opened(masks, memory)
    waiting = list(jobs(made, text, 60))
    kinds = {job.payload.kind for job in waiting}
    assert len(kinds) == 4
    made.engine.runner._blocks.reserve(length_limit(LONGEST) + 1)
    done = 0
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        for job in waiting:
            made.engine.add(job)
        while not made.engine.idle:
            outcomes = made.engine.turn()
            assert all(outcome.error is None for outcome in outcomes)
            done += len(outcomes)
    made.pager.close()
    events = (event for event in told.profiler.kineto_results.events() if event.name() == "[memory]")
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    assert done == 60
    assert made.plan.total == memory
    assert most <= made.runner.peak <= made.plan.working
    assert most > made.plan.working / 20  # the bound is one that matters


def test_the_divided_memory_is_what_the_model_takes(masks):
    made = opened(masks, 45_000_000)
    tensors = [*made.model.parameters(), *(buffer for buffer in made.model.buffers() if buffer.is_floating_point())]
    held = {tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    assert sum(held.values()) == made.plan.fixed + made.plan.experts
    made.pager.close()
