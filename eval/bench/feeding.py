"""Time how calibration is fed: our own tokens and batches against the data pipeline of fairseq2; see `README.md`."""

from __future__ import annotations

import argparse
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Any, NamedTuple

import fairseq2
import numpy as np
import torch
from fairseq2.data.data_pipeline import DataPipeline, DataPipelineBuilder, create_bucket_sizes, read_sequence
from fairseq2.data.tokenizers.hub import load_tokenizer as load_fairseq2_tokenizer
from torch import Tensor

from nllb_prune import ParallelText
from nllb_prune.backends import FAIRSEQ2, named_backend
from nllb_prune.calibration.observer import StatisticsObserver
from nllb_prune.calibration.teacher_forced import BATCH_POSITIONS, IGNORED, decoder_classes, encoder_classes
from nllb_prune.languages import Direction, language
from nllb_prune.model.routing import routing, routing_of
from nllb_prune.model.source import embedded_text, load_tokenizer
from nllb_prune.model.teacher_forcing import ForcedBatch, forced_batch, forced_states
from nllb_prune.on_fairseq2.card_tokenizer import CardTokenizer
from nllb_prune.on_fairseq2.vocabulary import ids_for_transformers
from nllb_prune.tokenization import MAX_LENGTH, batches_by_length, encode, known_languages

MODEL, ASSET = "mini", "nllb-prune-mini"
PADDING, END = 1, 2
OURS = "ours"
PREFETCHED = 2
"""Batches that wait."""
ANY_LENGTH = 10**6
BUCKETS = [
    *create_bucket_sizes(max_num_elements=BATCH_POSITIONS, max_seq_len=MAX_LENGTH),
    (BATCH_POSITIONS // MAX_LENGTH, ANY_LENGTH),
]
"""(sentences, tokens of the longest) of batches, as fairseq2 would have them, and a last one for what is cut."""


class Fed(NamedTuple):
    """A batch, and which of the directions in a row it is of."""

    place: int
    batch: ForcedBatch


Feeding = Callable[[Sequence[Direction]], Iterator[Fed]]


class Feedings:
    """The ways of making batches of the lines of directions.

    Args:
        text: Aligned lines.
        model: `mini`, of the backend fairseq2.
    """

    def __init__(self, text: ParallelText, model: Any) -> None:
        self.text, self.model = text, model
        self._tokenizer, self._theirs = load_tokenizer(MODEL), load_fairseq2_tokenizer(ASSET)
        self.languages = tuple(code for code in known_languages(self._tokenizer) if code in text.languages)

    @cached_property
    def named(self) -> Mapping[str, Feeding]:
        """All of them, ours first."""
        one_by_one: dict[str, Callable[[Direction], Iterable[ForcedBatch]]] = {
            OURS: self.ours,
            "ours, again": self.ours,
            "ours, tokens of the asset card's tokenizer": partial(self.ours, tokenizer=CardTokenizer(self._theirs)),
            "fairseq2's pipeline": self.pipeline,
            "fairseq2's pipeline, 2 calls": partial(self.pipeline, calls=2),
            "our groups, fairseq2's tokens and collating": self.grouped,
            "our tokens and groups, fairseq2's prefetching": self.prefetched,
            "made beforehand": self.made_beforehand,
        }
        named = {name: partial(_in_a_row, feed) for name, feed in one_by_one.items()}
        return {**named, "fairseq2's pipeline, directions prefetched": self.across}

    def ours(self, direction: Direction, tokenizer: Any = None) -> Iterator[ForcedBatch]:
        """Feed as `calibrate` does."""
        pairs = self._pairs(direction, tokenizer)
        for group in _groups(pairs):
            yield forced_batch(self.model, *_columns(pairs, group))

    def prefetched(self, direction: Direction) -> DataPipeline:
        """Feed the same batches, made by a thread of the pipeline."""
        pairs = self._pairs(direction)
        made = read_sequence(_groups(pairs)).map(lambda group: forced_batch(self.model, *_columns(pairs, group)))
        return made.prefetch(PREFETCHED).and_return()

    def grouped(self, direction: Direction) -> Iterator[ForcedBatch]:
        """Feed the same batches, of tokens of the pipeline, put together by its collater."""
        pairs = list(self.tokenised(direction).and_return())
        groups = _groups([(pair["source"], pair["target"]) for pair in pairs])
        made = read_sequence([[pairs[n] for n in group] for group in groups]).collate(pad_value=0)
        return iter(made.map(_forced).and_return())

    def pipeline(self, direction: Direction, *, calls: int = 1) -> DataPipeline:
        """Feed by the pipeline alone, in its buckets."""
        return self._bucketed(direction, calls).map(_forced).prefetch(PREFETCHED).and_return()

    def across(self, directions: Sequence[Direction]) -> Iterator[Fed]:
        """Feed by one pipeline, which makes the batches of the next direction while those of one are used."""

        def of(place: int) -> DataPipeline:
            return self._bucketed(directions[place]).map(lambda each: Fed(place, _forced(each))).and_return()

        places = list(range(len(directions)))
        most = max(len(list(self.made_beforehand(direction))) for direction in directions)
        return iter(read_sequence(places).yield_from(of).prefetch(most).and_return())

    def made_beforehand(self, direction: Direction) -> Sequence[ForcedBatch]:
        """Feed what was made once: nothing can be faster."""
        if direction not in self._made:
            self._made[direction] = list(self.ours(direction))
        return self._made[direction]

    @cached_property
    def _made(self) -> dict[Direction, list[ForcedBatch]]:
        return {}

    def _pairs(self, direction: Direction, tokenizer: Any = None) -> list[tuple[list[int], list[int]]]:
        tokenizer = self._tokenizer if tokenizer is None else tokenizer
        return list(zip(*(encode(tokenizer, self.text.lines(code), code) for code in direction), strict=True))

    def tokenised(self, direction: Direction, calls: int = 1) -> DataPipelineBuilder:
        """Return pairs of tokens, in fairseq2's numbers; `calls` lines at once."""
        source, target = (self._theirs.create_encoder(lang=language(code).token, mode="source") for code in direction)
        lines = zip(*(self.text.lines(code) for code in direction), strict=True)
        pairs = [{"source": first.strip(), "target": second.strip()} for first, second in lines]
        builder = read_sequence(pairs).map(source, selector="source", num_parallel_calls=calls)
        return builder.map(target, selector="target", num_parallel_calls=calls)

    def _bucketed(self, direction: Direction, calls: int = 1) -> DataPipelineBuilder:
        return self.tokenised(direction, calls).bucket_by_length(BUCKETS, selector="source,target").collate(pad_value=0)


def _in_a_row(feed: Callable[[Direction], Iterable[ForcedBatch]], directions: Sequence[Direction]) -> Iterator[Fed]:
    return (Fed(place, batch) for place, direction in enumerate(directions) for batch in feed(direction))


def _groups(pairs: Sequence[tuple[Any, Any]]) -> list[list[int]]:
    lengths = [max(len(source), len(target)) for source, target in pairs]
    return batches_by_length(lengths, positions=BATCH_POSITIONS)


def _columns(pairs: Sequence[tuple[list[int], list[int]]], group: Sequence[int]) -> tuple[list[list[int]], ...]:
    return [pairs[n][0] for n in group], [pairs[n][1] for n in group]


def _forced(collated: Mapping[str, Mapping[str, Any]]) -> ForcedBatch:
    """Return a batch of the collater as the forward pass takes one."""
    source, target = _cut(collated["source"]), _cut(collated["target"])
    read = target.roll(1, dims=1)  # (rows, positions)
    read[read == END] = PADDING
    read[:, 0] = END
    return ForcedBatch(source, read, target.masked_fill(target == PADDING, IGNORED))


def _cut(column: Mapping[str, Any]) -> Tensor:
    """Return sequences in transformers' numbers ``(rows, longest)``, those too long cut as `encode` cuts them."""
    ids = ids_for_transformers(column["seqs"])
    if ids.shape[1] > MAX_LENGTH:
        ids = ids[:, :MAX_LENGTH].clone()
        ids[torch.as_tensor(column["seq_lens"]) > MAX_LENGTH, -1] = END
    return ids


def observe(feedings: Feedings, feeding: Feeding, directions: Sequence[Direction]) -> list[StatisticsObserver]:
    """Run the pass of `calibrate` over what is fed, and return what observed each direction."""
    model = feedings.model
    observers = [StatisticsObserver(routing_of(model).spec) for _ in directions]
    with torch.inference_mode():
        for place, batch in feeding(directions):
            each = observers[place]
            each.classes = {
                "encoder": encoder_classes(batch.source, END),
                "decoder": decoder_classes(batch.labels, END),
            }
            each.ids = {"encoder": batch.source, "decoder": batch.decoder_input}
            with routing(model, observer=each):
                forced_states(model, batch)
    return observers


def differing(ours: Sequence[StatisticsObserver], others: Sequence[StatisticsObserver]) -> dict[str, tuple[int, float]]:
    """Return, for each field of integers that differs, in how many cells, and by how much at most."""
    found: dict[str, tuple[int, float]] = {}
    for one, other in zip(ours, others, strict=True):
        theirs = other.tables()
        for stack, table in one.tables().items():
            for name, array in table.items():
                apart = np.abs(array - theirs[stack][name])
                if array.dtype.kind == "i" and apart.any():
                    cells, most = found.get(name, (0, 0.0))
                    found[name] = cells + int((apart > 0).sum()), max(most, float(apart.max()))
    return found


class Seconds(NamedTuple):
    """What a call took: by the clock, and of all cores together."""

    clock: float
    cores: float


def timed(call: Callable[[], object]) -> Seconds:
    """Time a call."""
    clock, cores = time.perf_counter(), time.process_time()
    call()
    return Seconds(time.perf_counter() - clock, time.process_time() - cores)


def in_turns(calls: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, list[Seconds]]:
    """Time the calls by turns, each turn begun by another of them; they ran before."""
    times: dict[str, list[Seconds]] = {name: [] for name in calls}
    for turn in range(repetitions):
        order = deque(calls)
        order.rotate(-turn)
        for name in order:
            times[name].append(timed(calls[name]))
    return times


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ratios of two times of the same turns."""

    quartiles: tuple[float, float, float]

    @classmethod
    def of(cls, ours: Iterable[float], others: Iterable[float]) -> Ratio:
        """Divide, turn by turn."""
        low, middle, high = np.quantile([a / b for a, b in zip(ours, others, strict=True)], (0.25, 0.5, 0.75))
        return cls((float(low), float(middle), float(high)))

    def __str__(self) -> str:
        low, middle, high = self.quartiles
        return f"{middle:.3f} ({low:.2f} to {high:.2f})"


def print_times(title: str, calls: Mapping[str, Callable[[], object]], repetitions: int) -> None:
    """Time and print a table."""
    print(f"\n{title}, {repetitions} turns\n")
    print(
        "| feeding | ms, median | ours / it, by the clock | ours / it, time of cores |\n|---|---|---|---|", flush=True
    )
    times = in_turns(calls, repetitions)
    for name, own in times.items():
        clock, cores = (Ratio.of((t[n] for t in times[OURS]), (t[n] for t in own)) for n in (0, 1))
        print(f"| {name} | {1e3 * statistics.median(t.clock for t in own):.1f} | {clock} | {cores} |", flush=True)


def print_batches(feedings: Feedings, directions: Sequence[Direction]) -> None:
    """Print what each feeds, and which counts differ."""
    print("| feeding | batches | padding | counts that differ from ours |\n|---|---|---|---|", flush=True)
    ours = observe(feedings, feedings.named[OURS], directions)
    for name, feeding in feedings.named.items():
        batches = [fed.batch for fed in feeding(directions)]
        positions = sum(batch.source.numel() + batch.labels.numel() for batch in batches)
        tokens = sum(int((b.source != PADDING).sum() + (b.labels != IGNORED).sum()) for b in batches)
        found = differing(ours, observe(feedings, feeding, directions))
        said = ", ".join(f"`{field}` in {cells} cells, by {most:g}" for field, (cells, most) in found.items()) or "none"
        print(f"| {name} | {len(batches)} | {1 - tokens / positions:.2%} | {said} |", flush=True)


def main() -> None:
    """Run and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", help="corpus with the languages of `mini`; the embedded dev text by default")
    parser.add_argument("--sentences", type=int, default=10**9, help="first lines of the text; all by default")
    parser.add_argument("--directions", type=int, nargs="+", default=[1, 9], help="in a row")
    parser.add_argument("--repetitions", type=int, default=9, help="turns of the whole pass; feeding alone has 5 times")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    text = ParallelText.open(embedded_text(), split="dev") if options.text is None else ParallelText.open(options.text)
    feedings = Feedings(text.head(options.sentences), named_backend(FAIRSEQ2).load_model(MODEL))
    codes = feedings.languages
    lines = len(feedings.text.lines(codes[0]))
    print(f"fairseq2 {fairseq2.__version__}, torch {torch.__version__}, {options.threads} threads, {lines} lines")
    for count in options.directions:
        directions = list(islice(zip(codes, codes[1:] + codes[:1], strict=True), count))
        print(f"\n{len(directions)} in a row: {', '.join('-'.join(each) for each in directions)}\n")
        print_batches(feedings, directions)
        alone = {name: partial(_spent, feed, directions) for name, feed in feedings.named.items()}
        del alone["made beforehand"]
        print_times("Feeding alone", alone, 5 * options.repetitions)
        whole = {name: partial(observe, feedings, feed, directions) for name, feed in feedings.named.items()}
        print_times("Whole pass", whole, options.repetitions)


def _spent(feeding: Feeding, directions: Sequence[Direction]) -> None:
    deque(feeding(directions), maxlen=0)


if __name__ == "__main__":
    main()
