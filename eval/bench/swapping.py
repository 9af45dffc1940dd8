"""Time a swap of experts against a copy of as many bytes and against moving a whole model; see `README.md`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from eval.bench.loading import forget
from eval.shape.checkpoint import Format, generate
from eval.shape.shapes import EMBEDDED_TOKENS, Shape
from nllb_prune import MaskSet, ParallelText, load_model, load_spec, load_tokenizer, mask_rows
from nllb_prune.expert_mask import ExpertMask, union
from nllb_prune.generation.loop import DecodingLoop, Sentence
from nllb_prune.generation.search import SearchSettings
from nllb_prune.model.blocks import blocks_of
from nllb_prune.model.paged import load_paged, weigh
from nllb_prune.model.pager import Copying
from nllb_prune.model.source import embedded_text, model_folder
from nllb_prune.model.spec import ModelSpec
from nllb_prune.serving.residency import Arrival, Residency, Swap
from nllb_prune.tokenization import encode, language_id

LANGUAGES = ("eng_Latn", "deu_Latn")
KEPT = {"encoder": 36 / 128, "decoder": 12 / 128}
OVERLAP = {"encoder": 0.397, "decoder": 0.191}
"""Mean Jaccard index of two of 202 languages' experts in the published index, which keeps 36 and 12 of 128."""
SIDES = {"encoder": ("encoder",), "decoder": ("decoder",), "both": ("encoder", "decoder")}
LARGE = Shape(
    d_model=2048,
    ffn=8192,
    layers=2,
    sparse_step=2,
    experts=16,
    heads=16,
    vocabulary=EMBEDDED_TOKENS,
    counts=(4, 2),
    random_experts=True,
)
"""Two sparse layers with experts of NLLB-MoE's size."""
SETTLE = 0.02  # seconds before each call: OpenMP threads of the one before spin on for some milliseconds
ROWS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A checkpoint, and the dtype it runs in."""

    model: str
    """`mini` or `large`."""
    stored: str
    dtype: str
    format: Format = "safetensors"
    """`bin`: tensors begin at multiples of 64 bytes; in a file of the safetensors library at multiples of 8."""

    @property
    def name(self) -> str:
        """What to call it in a table."""
        form = "" if self.format == "safetensors" else f" (.{self.format})"
        return f"{self.model}, {self.stored}" + ("" if self.stored == self.dtype else f" in {self.dtype}") + form


CASES = (
    Case(model="mini", stored="float32", dtype="float32"),
    Case(model="mini", stored="float16", dtype="float32"),
    Case(model="large", stored="float32", dtype="float32"),
    Case(model="large", stored="float32", dtype="bfloat16"),
    Case(model="large", stored="bfloat16", dtype="bfloat16"),
    Case(model="large", stored="bfloat16", dtype="bfloat16", format="bin"),
    Case(model="large", stored="float16", dtype="float32"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is timed, with its peers."""

    what: str
    experts: int
    bytes: int
    """In memory."""
    call: Callable[[], object]
    peers: Mapping[str, Callable[[], object]]
    """`copy`: of as many bytes between two tensors of the model's dtype; `convert`: from one of the file's."""
    rounds: int
    before: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Medians; ratios are those of the same round."""

    case: str
    what: str
    experts: int
    bytes: int
    seconds: float
    over_copy: float | None
    over_convert: float | None
    over_swap: float
    """Over that of both sides."""


# checkpoints and masks


def write(case: Case, folder: Path, *, experts: int) -> None:
    """Write the checkpoint of a case, unless it is there."""
    if folder.exists():
        return
    if case.model == "large":
        generate(folder, shape=replace(LARGE, experts=experts), format=case.format, dtype=case.stored)
        return
    shutil.copytree(model_folder("mini"), folder, ignore=shutil.ignore_patterns("text"))
    tensors = load_file(folder / "model.safetensors")
    converted = {name: tensor.to(getattr(torch, case.stored)) for name, tensor in tensors.items()}
    save_file(converted, folder / "model.safetensors")


def draw_masks(spec: ModelSpec, *, seed: int = 0) -> MaskSet:
    """Draw masks of two languages with the published counts and overlaps."""
    drawn = random.Random(seed)
    masks: dict[str, dict[str, ExpertMask]] = {}
    for stack in spec.stacks:
        kept = max(spec.top_k, round(KEPT[stack.name] * stack.experts))
        common = round(2 * kept * OVERLAP[stack.name] / (1 + OVERLAP[stack.name]))
        orders = [drawn.sample(range(stack.experts), stack.experts) for _ in stack.layers]
        masks[stack.name] = {
            language: tuple(tuple(sorted(order[first : first + kept])) for order in orders)
            for language, first in zip(LANGUAGES, (0, kept - common), strict=True)
        }
    assert spec.fingerprint is not None, "it was read from weights"
    return MaskSet(
        model_name="bench",
        fingerprint=spec.fingerprint,
        stacks=spec.stacks,
        top_k=spec.top_k,
        granularity="language",
        masks=masks,
    )


# what is timed


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A swap that was begun."""

    swap: Swap
    copying: Copying


class Served:
    """A paged model with room for the experts of one direction, which swaps between those of two."""

    def __init__(self, folder: Path, *, dtype: str, device: torch.device) -> None:
        weighed = weigh(folder, dtype=dtype, device=device)
        self.masks, self._expert = draw_masks(weighed.spec), weighed.expert
        by_stack = self.masks.masks
        slots = {stack: [len(ids) for ids in masks[LANGUAGES[0]]] for stack, masks in by_stack.items()}
        kept = {stack: union(masks.values()) for stack, masks in by_stack.items()}
        self._pager = load_paged(folder, kept=kept, slots=slots, dtype=dtype, device=device).pager
        sides = {(stack, key): mask for stack, masks in by_stack.items() for key, mask in masks.items()}
        self._residency = Residency(sides, slots)
        self._at = dict.fromkeys(by_stack, 0)
        self.swap(SIDES["both"])

    def begin(self, stacks: Sequence[str]) -> UnderWay:
        """Start to bring in the other language of some stacks."""
        self._at |= {stack: 1 - self._at[stack] for stack in stacks}
        swap = self._residency.swap([(stack, LANGUAGES[self._at[stack]]) for stack in stacks])
        assert swap is not None, "there are slots for one language"
        return UnderWay(swap, self._pager.begin(swap.moves))

    def done(self, under_way: UnderWay) -> bool:
        """Return whether there is nothing to wait for."""
        return self._pager.done(under_way.copying)

    def end(self, under_way: UnderWay) -> int:
        """Wait for it, let its experts be found, and return their bytes in memory."""
        self._pager.finish(under_way.copying)
        self._residency.arrived(under_way.swap, Arrival(under_way.swap.moves))
        return self.size(under_way.swap)

    def swap(self, stacks: Sequence[str]) -> Swap:
        """Do both."""
        under_way = self.begin(stacks)
        self.end(under_way)
        return under_way.swap

    def close(self) -> None:
        """Let go of the files."""
        self._pager.close()

    def size(self, swap: Swap) -> int:
        """Return the bytes that the experts of a swap take in memory."""
        return sum(self._expert[move.stack] for move in swap.moves)


def tensor_copy(size: int, *, stored: str, dtype: str, device: torch.device) -> Callable[[], object]:
    """Return what fills a tensor of so many bytes on a device from one in memory, page-locked for CUDA."""
    target = torch.ones(size // getattr(torch, dtype).itemsize, dtype=getattr(torch, dtype), device=device)
    source = torch.ones(len(target), dtype=getattr(torch, stored), pin_memory=device.type == "cuda")
    return partial(target.copy_, source, non_blocking=True)


def whole_copy(model: nn.Module, device: torch.device) -> tuple[int, Callable[[], object]]:
    """Return the bytes of a model's weights, and what fills them from memory."""
    weights = [parameter.detach() for parameter in model.parameters()]
    held = [torch.ones_like(each, device="cpu", pin_memory=device.type == "cuda") for each in weights]

    def copy() -> None:
        for weight, source in zip(weights, held, strict=True):
            weight.copy_(source, non_blocking=True)

    return sum(each.nbytes for each in weights), copy


def subjects(case: Case, folder: Path, served: Served, options: argparse.Namespace) -> Iterator[Subject]:
    """Yield what is to be timed of a case."""
    device = torch.device(options.device)
    for name, stacks in SIDES.items():
        swap = served.swap(stacks)
        size = served.size(swap)
        peers = {"copy": tensor_copy(size, stored=case.dtype, dtype=case.dtype, device=device)}
        if case.stored != case.dtype:
            peers["convert"] = tensor_copy(size, stored=case.stored, dtype=case.dtype, device=device)
        warm = Subject(
            what=f"swap, {name}",
            experts=len(swap.moves),
            bytes=size,
            call=partial(served.swap, stacks),
            peers=peers,
            rounds=options.rounds,
        )
        yield warm
    if device.type == "cpu":  # elsewhere experts come from memory
        yield replace(warm, what="swap, both, from the disk", before=partial(forget, folder), rounds=options.loads)
    load = partial(
        load_model, folder, masks=served.masks, direction=(LANGUAGES[0],) * 2, dtype=case.dtype, device=device
    )
    size, copy = whole_copy(load(), device)
    whole = Subject(what="whole model, copied", experts=0, bytes=size, call=copy, peers={}, rounds=options.rounds)
    yield whole
    yield replace(whole, what="whole model, loaded", call=load, peers={"copy": copy}, rounds=options.loads)


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds until all is done that a call begins."""
    time.sleep(SETTLE)
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(case: Case, folder: Path, served: Served, options: argparse.Namespace) -> list[Row]:
    """Time everything of a case in turns, each after its peers."""
    device = torch.device(options.device)
    every = list(subjects(case, folder, served, options))
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(options.rounds + 1):  # the first warms up
        found: dict[str, dict[str, float]] = {}
        for subject in every:
            if number > subject.rounds:
                continue
            times = {name: timed(peer, device) for name, peer in subject.peers.items()}
            if subject.before is not None:
                subject.before()
            found[subject.what] = {**times, "own": timed(subject.call, device)}
        rounds.append(found)
    return [_row(case, subject, rounds[1:]) for subject in every]


def _row(case: Case, subject: Subject, rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> Row:
    there = [found for found in rounds if subject.what in found]
    own = [found[subject.what] for found in there]

    def over(peer: str) -> float | None:
        return statistics.median(each["own"] / each[peer] for each in own) if peer in subject.peers else None

    return Row(
        case=case.name,
        what=subject.what,
        experts=subject.experts,
        bytes=subject.bytes,
        seconds=statistics.median(each["own"] for each in own),
        over_copy=over("copy"),
        over_convert=over("convert"),
        over_swap=statistics.median(each[subject.what]["own"] / each["swap, both"]["own"] for each in there),
    )


# decoding beside swaps


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step of decoding, beside swaps of some model that follow each other without a pause."""

    beside: str
    seconds: float
    """Median."""
    over_alone: float
    """Over a step without swaps, in the same round."""
    swaps: float
    """A second, median."""
    bytes: float
    """That they moved, a second."""


class Copied:
    """Copies of as many bytes as a swap of a model, in a thread: what any work beside decoding costs."""

    def __init__(self, served: Served) -> None:
        self._size = served.size(served.swap(SIDES["both"]))
        self._copy = tensor_copy(self._size, stored="float32", dtype="float32", device=torch.device("cpu"))
        self._thread = ThreadPoolExecutor(1)

    def begin(self, stacks: Sequence[str]) -> Future[object]:
        """Start to copy."""
        return self._thread.submit(self._copy)

    def done(self, copying: Future[object]) -> bool:
        """Return whether it is done."""
        return copying.done()

    def end(self, copying: Future[object]) -> int:
        """Wait for it."""
        copying.result()
        return self._size

    def close(self) -> None:
        """Let go of the thread."""
        self._thread.shutdown()


def decoding_loop(model: nn.Module, steps: int, device: torch.device) -> DecodingLoop:
    """Return a loop of `mini` with sentences that are not over before so many steps, within their own experts."""
    tokenizer, blocks = load_tokenizer("mini"), blocks_of(model)
    assert blocks is not None, "its family has them"
    blocks.end = -1  # so that none ends before its limit
    lines = ParallelText.open(embedded_text(), split="test").lines(LANGUAGES[0])[:ROWS]
    rows = mask_rows(draw_masks(load_spec("mini")), [(LANGUAGES[0], LANGUAGES[1])], device=device)
    sentences = [
        Sentence(
            key=number,
            source=source,
            language=language_id(tokenizer, LANGUAGES[1]),
            limit=steps + 3,
            keep={stack: table[0] for stack, table in rows.items()},
        )
        for number, source in enumerate(encode(tokenizer, lines, LANGUAGES[0]))
    ]
    loop = DecodingLoop(blocks, SearchSettings(), device=device)
    loop.add(sentences)
    return loop


def take_steps(loop: DecodingLoop, steps: int, beside: Served | Copied | None) -> list[int]:
    """Take steps, and swap beside them as a server would; return the bytes that each swap moved."""
    if beside is None:
        for _ in range(steps):
            loop.step()
        return []
    moved: list[int] = []
    under_way: Any = beside.begin(SIDES["both"])
    for _ in range(steps):
        loop.step()
        if beside.done(under_way):
            moved.append(beside.end(under_way))
            under_way = beside.begin(SIDES["both"])
    return [*moved, beside.end(under_way)]


def measure_steps(beside: Mapping[str, Served | Copied | None], options: argparse.Namespace) -> list[Step]:
    """Time steps in turns; the first is what the others are compared with."""
    device = torch.device(options.device)
    model = load_model("mini", device=device)
    rounds: list[dict[str, tuple[float, list[int]]]] = []
    for _ in range(options.rounds + 1):
        found: dict[str, tuple[float, list[int]]] = {}
        for name, served in beside.items():
            loop, moved = decoding_loop(model, options.steps, device), list[int]()
            seconds = timed(lambda: moved.extend(take_steps(loop, options.steps, served)), device)  # noqa: B023
            found[name] = seconds, moved
        rounds.append(found)
    alone = next(iter(beside))
    return [
        Step(
            beside=name,
            seconds=statistics.median(found[name][0] for found in rounds[1:]) / options.steps,
            over_alone=statistics.median(found[name][0] / found[alone][0] for found in rounds[1:]),
            swaps=statistics.median(len(found[name][1]) / found[name][0] for found in rounds[1:]),
            bytes=statistics.median(sum(found[name][1]) / found[name][0] for found in rounds[1:]),
        )
        for name in beside
    ]


def show(row: Row) -> str:
    """Return a line of the table of swaps."""
    over = ("-" if each is None else f"{each:.2f}" for each in (row.over_copy, row.over_convert, row.over_swap))
    return (
        f"| {row.case} | {row.what} | {row.experts or '-'} | {row.bytes / 1e6:,.1f} | {row.seconds * 1e3:,.2f} "
        f"| {row.bytes / row.seconds / 1e9:.2f} | {' | '.join(over)} |"
    )


def show_step(step: Step) -> str:
    """Return a line of the table of steps."""
    return (
        f"| {step.beside} | {step.seconds * 1e3:.2f} | {step.over_alone:.2f} | {step.swaps:.1f} "
        f"| {step.bytes / 1e9:.2f} |"
    )


def main() -> None:
    """Run and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", nargs="+", default=["mini", "large"], choices=["mini", "large"])
    parser.add_argument("--experts", type=int, default=LARGE.experts, help="of each layer of the large model")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--loads", type=int, default=3, help="rounds of what takes seconds")
    parser.add_argument("--steps", type=int, default=60, help="of decoding")
    parser.add_argument("--work", type=Path, help="folder with room for 9 GB; the temporary one by default")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    beside: dict[str, Served | Copied | None] = {"no swaps": None}
    if not options.json:
        versions = f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores"
        print(f"{options.device}, {options.threads} threads, {versions}, load {os.getloadavg()[0]:.1f}\n")
        print("| checkpoint | what | experts | MB | ms | GB/s | / copy | / converting copy | / swap |")
        print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        for case in (each for each in CASES if each.model in options.models):
            folder = Path(work) / f"{case.model}-{case.stored}-{case.format}"
            write(case, folder, experts=options.experts)
            served = Served(folder, dtype=case.dtype, device=torch.device(options.device))
            found = measure(case, folder, served, options)
            if not options.json:
                print(*map(show, found), sep="\n", flush=True)
            rows += found
            if options.device == "cpu" and all(case.model not in name for name in beside):
                beside[f"copies of as many bytes as swaps of {case.name}"] = Copied(served)
            beside[f"swaps of {case.name}"] = served
        steps = measure_steps(beside, options)
        for each in beside.values():
            if each is not None:
                each.close()
    if options.json:
        print(json.dumps({"swaps": [asdict(row) for row in rows], "steps": [asdict(step) for step in steps]}))
    else:
        print("\n| decoding beside | ms a step | / no swaps | swaps/s | GB/s |\n|---|---|---|---|---|")
        print(*map(show_step, steps), sep="\n")


if __name__ == "__main__":
    main()
