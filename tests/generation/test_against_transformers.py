"""`mini` in one mixed batch against what transformers 4.57.6 translates with the stock model, a direction at a time."""

import hashlib
import json
from itertools import permutations
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from nllb_prune.corpus import ParallelText
from nllb_prune.generation.decode import decode
from nllb_prune.generation.loop import Sentence
from nllb_prune.generation.search import SearchSettings
from nllb_prune.model.blocks import blocks_of
from nllb_prune.model.source import embedded_text, model_folder
from nllb_prune.tokenization import encode, language_id

FILE = Path(__file__).parent.parent / "reference" / "mini-translations.safetensors"
COMMAND = "python tests/reference/make_translations.py (with transformers 4.57.6)"
PAD, END = 1, 2

# The same search over float32 sums in another order: another translation only where two are as good as equal.
IDENTICAL = 0.999
NEAR_TIE = 1e-4


class Reference:
    """Frozen translations of every direction, and how they were made."""

    def __init__(self) -> None:
        if not FILE.exists():
            pytest.fail(f"`{FILE.name}` is missing; make the reference anew: {COMMAND}", pytrace=False)
        with safe_open(FILE, "pt") as file:
            self.made = json.loads(file.metadata()["nllb-prune"])
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        weights = model_folder("mini") / "model.safetensors"
        if self.made["model"] != hashlib.sha256(weights.read_bytes()).hexdigest():
            reason = f"`{FILE.name}` is of other weights of `mini`"
            pytest.fail(f"{reason}; make the reference anew: {COMMAND}", pytrace=False)
        self.languages = self.made["languages"]
        self.directions = list(permutations(self.languages, 2))

    def sources(self) -> dict[tuple[str, str, int], list[int]]:
        """Source tokens by direction and number."""
        rows = dict(zip(self.languages, self.tensors["sources"].tolist(), strict=True))
        return {
            (*direction, n): [token for token in row if token != PAD]
            for direction in self.directions
            for n, row in enumerate(rows[direction[0]])
        }

    def translations(self, search: str) -> list[tuple[tuple[int, ...], bool]]:
        """Tokens after the language token and whether they ended, in the order of `sources`."""
        rows = self.tensors[search].flatten(0, 1).tolist()
        return [(tuple(token for token in row if token not in (PAD, END)), END in row) for row in rows]


@pytest.fixture(scope="module")
def reference():
    return Reference()


@pytest.fixture(scope="module")
def sentences(reference, tokenizer):
    return [
        Sentence(
            key=key,
            source=source,
            language=language_id(tokenizer, key[1]),
            limit=reference.made["new_tokens"],
        )
        for key, source in reference.sources().items()
    ]


@pytest.fixture(scope="module")
def greedy(model, sentences):
    return decode(model, blocks_of(model), sentences, SearchSettings())


@pytest.fixture(scope="module")
def beam(model, sentences, reference):
    settings = SearchSettings(beams=reference.made["beams"])
    return decode(model, blocks_of(model), sentences, settings, positions=8192)


def compared(found, sentences, theirs):
    """Return the sentences that differ, with our hypothesis and theirs."""
    rows = [(sentence, found[sentence.key][0], expected) for sentence, expected in zip(sentences, theirs, strict=True)]
    return [row for row in rows if (row[1].tokens, row[1].ended) != row[2]]


def test_sources(reference, tokenizer):
    """Ours tokenize as the stock tokenizer of 4.57.6."""
    text = ParallelText.open(embedded_text(), "test")
    assert list(text.languages) == reference.languages
    for code, rows in zip(reference.languages, reference.tensors["sources"].tolist(), strict=True):
        ours = encode(tokenizer, text.lines(code)[: len(rows)], code)
        assert ours == [[token for token in row if token != PAD] for row in rows]


def test_nearly_all_are_identical(reference, sentences, greedy, beam):
    different = compared(greedy, sentences, reference.translations("greedy"))
    different += compared(beam, sentences, reference.translations("beam"))
    assert len(different) <= (1 - IDENTICAL) * 2 * len(sentences), [row[0].key for row in different]


def test_scores_of_beams(reference, sentences, beam):
    theirs = reference.tensors["beam_scores"].flatten().tolist()
    ours = [beam[sentence.key][0].score for sentence in sentences]
    assert ours == pytest.approx(theirs, abs=NEAR_TIE)


def test_greedy_differs_only_at_near_ties(reference, sentences, greedy, blocks, forced):
    for sentence, ours, (theirs, theirs_ended) in compared(greedy, sentences, reference.translations("greedy")):
        mine, other = (
            (*tokens, END) if ended else tokens for tokens, ended in ((ours.tokens, ours.ended), (theirs, theirs_ended))
        )
        first = next(n for n, pair in enumerate(zip(mine, other, strict=False)) if pair[0] != pair[1])
        row = forced(blocks, sentence, mine[:first])[-1]
        assert abs(float(row[mine[first]] - row[other[first]])) <= NEAR_TIE, sentence.key


def test_beams_differ_only_at_near_ties(reference, sentences, beam, blocks, log_probability):
    def score(sentence, tokens, ended):
        return log_probability(blocks, sentence, tokens, ended) / (1 + len(tokens) + ended)

    for sentence, ours, theirs in compared(beam, sentences, reference.translations("beam")):
        assert abs(score(sentence, ours.tokens, ours.ended) - score(sentence, *theirs)) <= NEAR_TIE, sentence.key


def test_frozen_scores_are_those_of_our_model(reference, sentences, blocks, log_probability):
    """Of some: whatever the search, both models must say the same of the same translation."""
    frozen = zip(sentences, reference.translations("beam"), reference.tensors["beam_scores"].flatten(), strict=True)
    for sentence, (tokens, ended), score in list(frozen)[:: len(sentences) // 90]:
        total = log_probability(blocks, sentence, tokens, ended)
        assert total / (1 + len(tokens) + ended) == pytest.approx(float(score), abs=NEAR_TIE)


def test_the_reference_says_something(reference, sentences):
    greedy, beam = (reference.translations(name) for name in ("greedy", "beam"))
    assert len(sentences) == len(greedy) == 90 * 10
    assert torch.tensor([len(tokens) for tokens, _ in greedy]).float().std() > 1
    assert sum(a != b for a, b in zip(greedy, beam, strict=True)) > 50
