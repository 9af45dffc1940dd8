"""Time translation against `generate` of transformers 4.57.6 and against CTranslate2; see `README.md`."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from eval.bench.decoding_peers import (
    CTranslate2,
    Job,
    LanguagesInTurn,
    OurLoop,
    Peer,
    Prepared,
    Tokens,
    Transformers,
    why_not_ctranslate2,
)
from nllb_prune import MaskSet, ParallelText, calibrate, load_model, load_tokenizer, mask_rows, plan
from nllb_prune.generation.loop import Sentence
from nllb_prune.languages import Direction
from nllb_prune.model.source import embedded_text
from nllb_prune.tokenization import encode, language_id

TRANSFORMERS = "4.57.6"
FULL_PEER = f"transformers {TRANSFORMERS}"
DENSE_PEER = f"{FULL_PEER}, dense"
RATIO = "3:1"
SETTLE = 0.05  # seconds before each call: OpenMP threads of the library that ran last spin on for some milliseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A row of the table."""

    name: str
    peer: Peer | str
    """Or why there is none."""
    sentences: Sequence[Sentence] = ()
    like: str | None = None
    """Name of the case that must give the same tokens."""
    smallest_batch: int = 1
    """Below it the case means nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A case at one number of threads, batch and beams."""

    case: str
    threads: int
    batch: int
    beams: int
    sentences: int
    tokens: int
    """Generated, `</s>` not counted."""
    seconds: float
    """Median of the repetitions."""
    ratio: float
    """Sentences a second, of those of transformers on the whole model."""
    like: str | None
    same: int | None
    """Sentences with the tokens of the case `like`."""

    @property
    def rate(self) -> float:
        """Return sentences a second."""
        return self.sentences / self.seconds


class Text:
    """Sentences of the embedded test text of about one length, as often as they are wanted."""

    def __init__(self, tokenizer: Any, options: argparse.Namespace) -> None:
        shortest, longest = options.lengths
        ids = encode(tokenizer, ParallelText.open(embedded_text(), split="test").lines(options.source), options.source)
        self._sources = [each for each in ids if shortest <= len(each) <= longest]
        self._tokenizer, self._limit = tokenizer, options.limit
        if not self._sources:
            raise SystemExit(
                f"`--lengths` must hold the lengths of some sentences of {options.source}, {min(map(len, ids))} to "
                f"{max(map(len, ids))} tokens, but is {shortest} {longest} instead."
            )

    def sentences(
        self, count: int, targets: Sequence[str], keep: Mapping[str, Mapping[str, Tensor]] | None = None
    ) -> list[Sentence]:
        """Return sentences into the targets by turns, with the masks of each target."""
        chosen = zip(islice(cycle(self._sources), count), cycle(targets), strict=False)
        return [
            Sentence(
                key=number,
                source=source,
                language=language_id(self._tokenizer, target),
                limit=self._limit,
                keep={} if keep is None else keep[target],
            )
            for number, (source, target) in enumerate(chosen)
        ]


def plan_masks(
    model: nn.Module, tokenizer: Any, options: argparse.Namespace, directions: Sequence[Direction]
) -> MaskSet:
    """Calibrate on dev text and plan by `importance`."""
    text = ParallelText.open(embedded_text(), split="dev")
    with tempfile.TemporaryDirectory() as folder:
        counted = calibrate(
            model, tokenizer, text, directions, sentences=options.calibration_sentences, folder=Path(folder)
        )
    return plan(counted, kept=options.kept, ratio=RATIO)


def kept_experts(
    masks: MaskSet, directions: Sequence[Direction], device: torch.device
) -> dict[str, Mapping[str, Tensor]]:
    """Return by target the kept experts of each stack ``(layers, experts)``; one tensor for each language's mask."""
    tables: dict[tuple[str, str], Tensor] = {}
    return {
        target: {
            stack.name: tables.setdefault(
                (stack.name, stack.key(source, target)),
                mask_rows(masks, [(source, target)], device=device)[stack.name][0],
            )
            for stack in masks.stacks
        }
        for source, target in directions
    }


class Bench:
    """The models and the masks; makes the cases of a number of sentences."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.device, dtype = options, torch.device(options.device), getattr(torch, options.dtype)
        tokenizer = load_tokenizer(options.model)
        self.text = Text(tokenizer, options)
        self.directions = [(options.source, target) for target in target_languages(options)]
        model = load_model(options.model, dtype=dtype, device=self.device)
        self.masks = plan_masks(model, tokenizer, options, self.directions)
        self.keep = kept_experts(self.masks, self.directions, self.device)
        pruned = load_model(
            options.model, masks=self.masks, direction=self.directions[0], dtype=dtype, device=self.device
        )
        self.ours, self.ours_pruned = OurLoop(model), OurLoop(pruned)
        self.peer = Transformers(options.model, dtype=dtype, device=self.device)
        self.dense = dense_peers(options, tokenizer, folder) if options.dense else {}

    def cases(self, count: int) -> list[Case]:
        """Return all cases; those that others must equal come with them."""
        targets = [target for _, target in self.directions]
        many = len(targets)
        plain = self.text.sentences(count, targets[:1])
        masked = self.text.sentences(count, targets[:1], self.keep)
        mixed = self.text.sentences(count, targets, self.keep)
        kept = f"{self.options.kept:.0%}"
        in_turn = f"ours, {kept} masked, {many} targets in turn"
        return [
            Case(name=FULL_PEER, peer=self.peer, sentences=plain),
            Case(name="ours", peer=self.ours, sentences=plain, like=FULL_PEER),
            Case(name=f"ours, {kept} in memory", peer=self.ours_pruned, sentences=plain),
            Case(name=f"ours, {kept} masked", peer=self.ours, sentences=masked, like=f"ours, {kept} in memory"),
            Case(name=in_turn, peer=LanguagesInTurn(self.ours), sentences=mixed, smallest_batch=2),
            Case(
                name=f"ours, {kept} masked, {many} targets mixed",
                peer=self.ours,
                sentences=mixed,
                like=in_turn,
                smallest_batch=2,
            ),
            *(
                Case(name=name, peer=peer, sentences=plain, like=None if name == DENSE_PEER else DENSE_PEER)
                for name, peer in self.dense.items()
            ),
        ]


def dense_peers(options: argparse.Namespace, tokenizer: Any, folder: Path) -> dict[str, Peer | str]:
    """Load the dense model into each runtime, or say why it cannot be."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    why_not = why_not_ctranslate2(compute_type=options.dtype, device=device)
    return {
        DENSE_PEER: Transformers(options.dense, dtype=dtype, device=device),
        "ours, dense": OurLoop(load_model(options.dense, dtype=dtype, device=device)),
        "CTranslate2, dense": why_not
        or CTranslate2(options.dense, tokenizer, compute_type=options.dtype, device=device, folder=folder / "dense"),
    }


def target_languages(options: argparse.Namespace) -> list[str]:
    """Return the targets, the one that is asked for first."""
    languages = ParallelText.open(embedded_text(), split="test").languages
    for name, code in (("--source", options.source), ("--target", options.target)):
        if code not in languages:
            raise SystemExit(f"`{name}` must be one of {', '.join(languages)}, but is {code} instead.")
    others = [code for code in languages if code not in (options.source, options.target)]
    return [options.target, *others]


def seconds(prepared: Prepared, device: torch.device) -> float:
    """Time one call, until the device has finished it."""
    time.sleep(SETTLE)
    _wait(device)
    start = time.perf_counter()
    prepared.call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare(
    cases: Sequence[Case], *, threads: int, batch: int, beams: int, repetitions: int, device: torch.device
) -> list[Result]:
    """Translate once to warm up and to see who agrees, then time all cases in turns."""
    runs = {
        case.name: case.peer.prepare(Job(sentences=case.sentences, batch=batch, beams=beams, threads=threads))
        for case in cases
        if not isinstance(case.peer, str) and batch >= case.smallest_batch
    }
    found = {name: run.tokens(run.call()) for name, run in runs.items()}
    turns = [{name: seconds(run, device) for name, run in runs.items()} for _ in range(repetitions)]
    medians = {name: statistics.median(turn[name] for turn in turns) for name in runs}
    reference = len(found[FULL_PEER]) / medians[FULL_PEER]
    return [
        Result(
            case=case.name,
            threads=threads,
            batch=batch,
            beams=beams,
            sentences=len(found[case.name]),
            tokens=sum(map(len, found[case.name].values())),
            seconds=medians[case.name],
            ratio=len(found[case.name]) / medians[case.name] / reference,
            like=case.like,
            same=None if case.like is None else agreeing(found[case.name], found[case.like]),
        )
        for case in cases
        if case.name in runs
    ]


def agreeing(ours: Tokens, expected: Tokens) -> int:
    """Return how many sentences have equal tokens."""
    return sum(ours[key] == tokens for key, tokens in expected.items())


def run(bench: Bench, options: argparse.Namespace) -> tuple[list[Case], list[Result]]:
    """Time every case at every number of threads, batch and beams."""
    results: list[Result] = []
    cases: list[Case] = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for batch in options.batches:
            cases = bench.cases(sentence_count(batch, options))
            for beams in options.beams:
                results += compare(
                    cases,
                    threads=threads,
                    batch=batch,
                    beams=beams,
                    repetitions=options.repetitions,
                    device=bench.device,
                )
    return cases, results


def sentence_count(batch: int, options: argparse.Namespace) -> int:
    """Return how many sentences are translated at a time: four batches, or 32 one by one."""
    usual = 32 if batch == 1 else max(128, 4 * batch)
    return options.sentences or usual


def environment(bench: Bench, options: argparse.Namespace) -> dict[str, object]:
    """Say what was run, where."""
    on_gpu = bench.device.type == "cuda"
    try:
        ctranslate2 = version("ctranslate2")
    except PackageNotFoundError:
        ctranslate2 = "none"
    return {
        "model": options.model,
        "dense": options.dense or "none",
        "direction": f"{options.source}-{options.target}",
        "experts kept": f"{bench.masks.kept(options.source, options.target)}",
        "source tokens": "{}-{}".format(*options.lengths),
        "limit": options.limit,
        "dtype": options.dtype,
        "device": torch.cuda.get_device_name(bench.device) if on_gpu else platform.machine(),
        "repetitions": options.repetitions,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "ctranslate2": ctranslate2,
    }


def tables(described: dict[str, object], cases: Sequence[Case], results: Sequence[Result]) -> str:
    """Return the result as Markdown, a table for each number of threads."""
    lines = [", ".join(f"{name} {value}" for name, value in described.items())]
    for threads in dict.fromkeys(result.threads for result in results):
        here = [result for result in results if result.threads == threads]
        columns = list(dict.fromkeys((result.batch, result.beams) for result in here))
        header = [f"batch {batch}, {'greedy' if beams == 1 else f'beam {beams}'}" for batch, beams in columns]
        lines += [
            "",
            f"Sentences/s (times {FULL_PEER}), threads: {threads}",
            "",
            f"| case | {' | '.join(header)} | same tokens |",
            "|---" * (len(header) + 2) + "|",
        ]
        lines += [table_row(case, columns, [r for r in here if r.case == case.name]) for case in cases]
    return "\n".join(lines)


def table_row(case: Case, columns: Sequence[tuple[int, int]], results: Sequence[Result]) -> str:
    """Return the line of a case."""
    by_column = {(result.batch, result.beams): f"{result.rate:.1f} ({result.ratio:.2f})" for result in results}
    missing = case.peer if isinstance(case.peer, str) else "-"
    cells = [by_column.get(column, missing) for column in columns]
    same = [result.same for result in results if result.same is not None]
    total = sum(result.sentences for result in results)
    agreement = f"{sum(same)} of {total} ({case.like})" if same else "-"
    return f"| {case.name} | {' | '.join(cells)} | {agreement} |"


def parse_options() -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mini", help="an NLLB-MoE: `mini`, a folder or a Hub id")
    parser.add_argument("--dense", help="a dense model beside it; `mini-dense` beside `mini`, otherwise none")
    parser.add_argument("--source", default="eng_Latn")
    parser.add_argument("--target", default="deu_Latn")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--threads", type=int, nargs="+", help="of the processor; torch's choice by default")
    parser.add_argument("--sentences", type=int, help="at a time; by default 32 at batch 1, four batches above")
    parser.add_argument("--lengths", type=int, nargs=2, default=[14, 28], help="fewest and most tokens of a source")
    parser.add_argument("--limit", type=int, default=64, help="tokens to generate at most")
    parser.add_argument("--kept", type=float, default=0.25, help="share of the experts that the masks keep")
    parser.add_argument("--calibration-sentences", type=int, default=60, help="of each direction")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    options.dense = ("mini-dense" if options.model == "mini" else "") if options.dense is None else options.dense
    options.threads = options.threads or [torch.get_num_threads()]
    counts = {"batches": options.batches, "beams": options.beams, "threads": options.threads}
    for name, values in (counts | {"repetitions": [options.repetitions]}).items():
        if min(values) < 1:
            parser.error(f"`--{name}` must be 1 or more, but is {min(values)} instead.")
    return options


@torch.inference_mode()
def main() -> None:
    """Run the comparison and print it."""
    options = parse_options()
    if transformers.__version__ != TRANSFORMERS:
        raise SystemExit(
            f"`transformers` must be {TRANSFORMERS}, but is {transformers.__version__} instead; "
            "later lines compute the sparse layer wrongly, so there is nothing to compare with."
        )
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        cases, results = run(bench, options)
    described = environment(bench, options)
    if options.json:
        rows = [asdict(result) | {"sentences_per_second": result.rate} for result in results]
        print(json.dumps({"setting": described, "rows": rows}, indent=1))
    else:
        print(tables(described, cases, results))


if __name__ == "__main__":
    main()
