"""Who decodes in `decoding.py`: our loop, `generate` of transformers 4.57.6, and CTranslate2."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from nllb_prune.generation.decode import decode
from nllb_prune.generation.loop import Sentence
from nllb_prune.generation.search import SearchSettings
from nllb_prune.model.blocks import blocks_of
from nllb_prune.model.source import model_folder
from nllb_prune.tokenization import pad

POSITIONS = 1 << 40  # so that rows alone limit a batch

Tokens = dict[Hashable, tuple[int, ...]]
"""Translations by key of the sentence, after the language token, without `</s>`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to translate, and how."""

    sentences: Sequence[Sentence]
    batch: int
    """Sentences decoded together at most."""
    beams: int
    threads: int

    def batches(self) -> list[list[Sentence]]:
        """Return batches of similar length, the longest first, as the loop takes them."""
        ordered = sorted(self.sentences, key=lambda sentence: -len(sentence.source))
        return [ordered[n : n + self.batch] for n in range(0, len(ordered), self.batch)]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job made ready: `call` is what is timed, `tokens` reads what it returned."""

    call: Callable[[], Any]
    tokens: Callable[[Any], Tokens]


class Peer(Protocol):
    """Something that decodes."""

    def prepare(self, job: Job) -> Prepared:
        """Make a job ready to be timed."""


class OurLoop:
    """`nllb_prune.generation.decode` on a model of `load_model`."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.blocks = model, blocks_of(model)

    def prepare(self, job: Job) -> Prepared:
        """Decode all sentences in one call, each within its own experts."""
        assert self.blocks is not None
        blocks, settings = self.blocks, SearchSettings(beams=job.beams)
        return Prepared(
            lambda: decode(self.model, blocks, job.sentences, settings, rows=job.batch, positions=POSITIONS),
            lambda found: {key: best[0].tokens for key, best in found.items()},
        )


class LanguagesInTurn:
    """Another peer, one target language after the other."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    def prepare(self, job: Job) -> Prepared:
        """Make a job of each language."""
        by_language: dict[int, list[Sentence]] = {}
        for sentence in job.sentences:
            by_language.setdefault(sentence.language, []).append(sentence)
        parts = [self.peer.prepare(replace(job, sentences=alike)) for alike in by_language.values()]
        return Prepared(
            lambda: [part.call() for part in parts],
            lambda found: {k: v for part, each in zip(parts, found, strict=True) for k, v in part.tokens(each).items()},
        )


class Transformers:
    """`generate` of the stock model: a batch at a time, of one target language."""

    def __init__(self, name: str, *, dtype: torch.dtype, device: torch.device) -> None:
        from transformers import AutoModelForSeq2SeqLM

        loaded = AutoModelForSeq2SeqLM.from_pretrained(model_folder(name), dtype=dtype, local_files_only=True)
        self.model: Any = loaded.to(device).eval()

    def prepare(self, job: Job) -> Prepared:
        """Sort into batches."""
        batches, end = job.batches(), self.model.config.eos_token_id
        keys = [sentence.key for batch in batches for sentence in batch]

        def tokens(found: list[list[int]]) -> Tokens:
            words = [row[2:] for row in found]
            return {
                key: tuple(row[: row.index(end)] if end in row else row) for key, row in zip(keys, words, strict=True)
            }

        return Prepared(lambda: [row for batch in batches for row in self._generate(batch, job.beams)], tokens)

    def _generate(self, batch: Sequence[Sentence], beams: int) -> list[list[int]]:
        padding = self.model.config.pad_token_id
        source = pad([sentence.source for sentence in batch], padding).to(self.model.device)
        output = self.model.generate(
            input_ids=source,
            attention_mask=source.ne(padding).long(),
            forced_bos_token_id=batch[0].language,
            max_new_tokens=batch[0].limit,
            num_beams=beams,
            do_sample=False,
            length_penalty=1.0,
            early_stopping=False,
        )
        rows: list[list[int]] = output.tolist()
        return rows


class CTranslate2:
    """CTranslate2 on a dense model, converted into `folder`; a translator for each number of threads."""

    def __init__(self, name: str, tokenizer: Any, *, compute_type: str, device: torch.device, folder: Path) -> None:
        converters = importlib.import_module("ctranslate2.converters")
        converters.TransformersConverter(str(model_folder(name))).convert(str(folder), force=True)
        self.tokenizer, self.compute_type, self.device, self.folder = tokenizer, compute_type, device, folder
        self._translators: dict[int, Any] = {}

    def prepare(self, job: Job) -> Prepared:
        """Turn tokens into strings, and back when the time is taken."""
        names = self.tokenizer.convert_ids_to_tokens
        sources = [names(list(sentence.source)) for sentence in job.sentences]
        prefixes = [[names(sentence.language)] for sentence in job.sentences]
        translator = self._translator(job.threads)

        def tokens(found: list[Any]) -> Tokens:
            words = [self.tokenizer.convert_tokens_to_ids(result.hypotheses[0][1:]) for result in found]
            return {sentence.key: tuple(row) for sentence, row in zip(job.sentences, words, strict=True)}

        return Prepared(
            lambda: translator.translate_batch(
                sources,
                target_prefix=prefixes,
                max_batch_size=job.batch,
                beam_size=job.beams,
                max_decoding_length=job.sentences[0].limit,
                replace_unknowns=False,
            ),
            tokens,
        )

    def _translator(self, threads: int) -> Any:
        if threads not in self._translators:
            self._translators[threads] = importlib.import_module("ctranslate2").Translator(
                str(self.folder),
                device=self.device.type,
                device_index=self.device.index or 0,
                compute_type=self.compute_type,
                inter_threads=1,
                intra_threads=threads,
            )
        return self._translators[threads]


def why_not_ctranslate2(*, compute_type: str, device: torch.device) -> str | None:
    """Return why CTranslate2 cannot run here, or `None` if it can."""
    try:
        ctranslate2: Any = importlib.import_module("ctranslate2")
    except ImportError:
        return "not installed"
    if device.type == "cuda" and ctranslate2.get_cuda_device_count() == 0:
        return "without CUDA"
    if compute_type not in ctranslate2.get_supported_compute_types(device.type, device.index or 0):
        return f"no {compute_type} here"
    return None
