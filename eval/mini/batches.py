"""Training batches: sentence pairs drawn over all directions, sorted by length, filled to a number of positions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .text import AlignedText, capitalised, final_marks

BLOCK = 24_000  # sentence pairs that are drawn, sorted and shuffled together
PAD, END, IGNORED = 1, 2, -100


@dataclass(frozen=True, slots=True)
class Batch:
    """Source ids (B, S), decoder input ids (B, T) and labels (B, T), -100 where nothing is predicted."""

    source: Tensor
    decoder_input: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True)
class TokenisedText:
    """Token ids without special tokens: `plain[language][n]` and the same line with a capital first letter."""

    languages: tuple[str, ...]
    language_ids: dict[str, int]
    plain: dict[str, list[list[int]]]
    capital: dict[str, list[list[int]]]
    marks: dict[str, tuple[list[int], ...]]


def tokenise(text: AlignedText, partition: str, tokenizer_file: str) -> TokenisedText:
    """Tokenise a partition once, with the fast tokenizer's file."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(tokenizer_file)

    def encode(lines: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in tokenizer.encode_batch(lines, add_special_tokens=False)]

    languages = tuple(text.lines)
    lines = {code: text.lines[code][partition] for code in languages}
    marks: dict[str, tuple[list[int], ...]] = {}
    for code in languages:
        joined = encode([f"a{mark}" for mark in final_marks(code)])
        stem = encode(["a"])[0]
        marks[code] = tuple(ids[len(stem) :] for ids in joined)
    return TokenisedText(
        languages,
        {code: tokenizer.token_to_id(code) for code in languages},
        {code: encode(lines[code]) for code in languages},
        {code: encode([capitalised(line, code) for line in lines[code]]) for code in languages},
        marks,
    )


def draw_directions(
    generator: np.random.Generator, count: int, languages: tuple[str, ...], english_share: float
) -> NDArray[np.int64]:
    """Draw (source, target) indices (count, 2): `english_share` of them with English, half of those into it."""
    english = languages.index("eng_Latn")
    others = np.array([n for n in range(len(languages)) if n != english])
    first = generator.integers(len(others), size=count)
    second = (first + generator.integers(1, len(others), size=count)) % len(others)
    pairs = np.stack([others[first], others[second]], axis=1)
    kind = generator.random(count)
    pairs[kind < english_share, 1] = english
    pairs[kind < english_share / 2] = pairs[kind < english_share / 2][:, ::-1]
    return pairs


def blocks(
    text: TokenisedText, *, seed: int, batch_tokens: int, english_share: float, punctuation_share: float
) -> Iterator[list[Batch]]:
    """Yield lists of batches without end; block n depends on the seed and n alone."""
    number = 0
    while True:
        generator = np.random.default_rng([seed, number])
        yield _block(text, generator, batch_tokens, english_share, punctuation_share)
        number += 1


def _block(
    text: TokenisedText,
    generator: np.random.Generator,
    batch_tokens: int,
    english_share: float,
    punctuation_share: float,
) -> list[Batch]:
    size = len(text.plain[text.languages[0]])
    lines = np.concatenate([generator.permutation(size) for _ in range(BLOCK // size + 1)])[:BLOCK]
    pairs = draw_directions(generator, BLOCK, text.languages, english_share)
    marked = np.where(generator.random(BLOCK) < punctuation_share, generator.integers(3, size=BLOCK), -1)
    upper = generator.random((BLOCK, 2)) < 0.2
    examples = []
    for line, (source, target), mark, capitals in zip(lines, pairs, marked, upper, strict=True):
        sides = []
        for code, capital in ((text.languages[source], capitals[0]), (text.languages[target], capitals[1])):
            words = (text.capital if capital else text.plain)[code][line]
            sides.append([text.language_ids[code], *words, *(text.marks[code][mark] if mark >= 0 else ()), END])
        examples.append(sides)
    order = sorted(range(BLOCK), key=lambda n: (len(examples[n][1]), len(examples[n][0])))
    groups: list[list[int]] = [[]]
    longest = [0, 0]
    for n in order:
        longest = [max(a, len(b)) for a, b in zip(longest, examples[n], strict=True)]
        if groups[-1] and (len(groups[-1]) + 1) * sum(longest) > batch_tokens:
            groups.append([])
            longest = [len(side) for side in examples[n]]
        groups[-1].append(n)
    generator.shuffle(groups)
    return [collate([examples[n] for n in group]) for group in groups]


def collate(examples: list[list[list[int]]]) -> Batch:
    """Pad sources and targets; the decoder reads `</s>` first and the language token is not predicted."""
    source = _padded([source for source, _ in examples], PAD)
    labels = _padded([[IGNORED, *target[1:]] for _, target in examples], IGNORED)
    decoder_input = _padded([[END, *target[:-1]] for _, target in examples], PAD)
    return Batch(source, decoder_input, labels)


def _padded(rows: list[list[int]], value: int) -> Tensor:
    table = torch.full((len(rows), max(map(len, rows))), value, dtype=torch.int64)
    for n, row in enumerate(rows):
        table[n, : len(row)] = torch.tensor(row)
    return table
