"""Time what observing costs: each group of statistics, and every expert on every token, over a bare forward."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eval.bench.sparse_layer import Case, draw_weights, in_turns, our_layer, setting_of
from nllb_prune import ParallelText, load_model, load_tokenizer
from nllb_prune.calibration.collectors import Sizes
from nllb_prune.calibration.observer import StatisticsObserver
from nllb_prune.calibration.teacher_forced import observe_pairs
from nllb_prune.model.routing import RoutedTokens, routing_of
from nllb_prune.model.source import embedded_text
from nllb_prune.model.sparse_ffn import SparseFfn
from nllb_prune.model.spec import ModelSpec, Stack
from nllb_prune.tokenization import encode

GROUPS = ((), ("norms",), ("vocabulary",), ("coselection",), ("dimensions",), ("reservoir",))
LANGUAGES = ("eng_Latn", "deu_Latn")


class Nothing:
    """An observer that hears of nothing."""

    wants_outputs = False

    def __init__(self) -> None:
        self.classes: dict[str, Tensor] = {}
        self.ids: dict[str, Tensor] = {}

    def observe(self, stack: str, layer: int, routed: RoutedTokens) -> None:
        """Do nothing."""


class EveryExpert(Nothing):
    """Runs every expert on every token, as REAP's observer does, and adds up g |f|."""

    def __init__(self, layers: dict[tuple[str, int], SparseFfn]) -> None:
        super().__init__()
        self.layers = layers
        self.sums: dict[tuple[str, int, int], Tensor] = {}

    def observe(self, stack: str, layer: int, routed: RoutedTokens) -> None:
        """Run all experts."""
        bank = self.layers[stack, layer].bank
        for expert in range(bank.experts):
            hidden = bank.activation(torch.addmm(bank.fc1_bias[expert], routed.inputs, bank.fc1_weight[expert].T))
            outputs = torch.addmm(bank.fc2_bias[expert], hidden, bank.fc2_weight[expert].T)
            weighted = routed.probabilities[:, expert] * torch.linalg.vector_norm(outputs, dim=1)
            self.sums[stack, layer, expert] = self.sums.get((stack, layer, expert), torch.zeros(())) + weighted.sum()


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    where: str
    what: str
    seconds: float
    bare: float


def whole_pass(sentences: int, repetitions: int) -> list[Row]:
    """Time the teacher-forced pass of `mini` over embedded text, head and loss left out as when calibrating."""
    model, tokenizer = load_model("mini"), load_tokenizer("mini")
    text = ParallelText.open(embedded_text(), split="dev").head(sentences)
    sources, targets = (encode(tokenizer, text.lines(code), code) for code in LANGUAGES)
    spec = routing_of(model).spec
    vocabulary, d_model = model.get_input_embeddings().weight.shape
    sizes = Sizes(vocabulary=vocabulary, d_model=d_model, seed=0)
    layers = {(m.routing.stack, m.layer): m for m in model.modules() if isinstance(m, SparseFfn)}

    def forward(observer: object) -> Callable[[], None]:
        return lambda: observe_pairs(model, sources, targets, observer)  # type: ignore[arg-type]

    observers = [StatisticsObserver(spec, collect=groups, sizes=sizes) for groups in GROUPS]
    calls = [forward(each) for each in (Nothing(), *observers, EveryExpert(layers))]
    return _rows(f"mini, {len(sources)} sentences", calls, repetitions)


def one_layer(options: argparse.Namespace) -> list[Row]:
    """Time one sparse layer of another size, alone: attention and the rest of a model would hide some of the cost."""
    setting = setting_of(options)
    layer = our_layer(setting, draw_weights(setting), Case("all", slice(None), None))
    stack = Stack("encoder", "source", (0,), setting.experts)
    spec = ModelSpec(family="nllb-moe", stacks=(stack,), top_k=layer.top_k, output_scale=1.0)
    hidden = torch.randn(1, options.tokens, setting.d_model, device=setting.device).to(setting.dtype)
    places = torch.ones(1, options.tokens, dtype=torch.int64, device=setting.device)
    sizes = Sizes(vocabulary=options.vocabulary, d_model=setting.d_model, seed=0)

    def forward(observer: StatisticsObserver | Nothing | None) -> Callable[[], None]:
        def call() -> None:
            if observer is not None:
                observer.classes, observer.ids = {"encoder": places}, {"encoder": places}
            layer.routing.observer = observer  # type: ignore[assignment]
            with torch.inference_mode():
                layer(hidden)

        return call

    observers = [StatisticsObserver(spec, collect=groups, sizes=sizes, device=setting.device) for groups in GROUPS]
    calls = [forward(each) for each in (None, *observers, EveryExpert({("encoder", 0): layer}))]
    where = f"layer of {setting.experts} experts, {setting.d_model} x {setting.ffn}, {options.tokens} tokens"
    return _rows(where, calls, options.repetitions, device=setting.device)


def _rows(
    where: str, calls: Sequence[Callable[[], None]], repetitions: int, *, device: torch.device | None = None
) -> list[Row]:
    names = ["bare", *("core" if not groups else f"core, {groups[0]}" for groups in GROUPS), "every expert"]
    times = in_turns(*calls, device=device or torch.device("cpu"), repetitions=repetitions)
    return [Row(where, name, time, times[0]) for name, time in zip(names, times, strict=True)]


def main() -> None:
    """Run and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=400)
    parser.add_argument("--d-model", type=int, default=1024)
    parser.add_argument("--ffn", type=int, default=4096)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=256_206)
    parser.add_argument("--device", default="cpu", help="of the layer; `mini` runs on the CPU")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.dtype}, medians\n")
    print("| where | observed | ms | over bare |\n|---|---|---|---|")
    for row in [*whole_pass(options.sentences, options.repetitions), *one_layer(options)]:
        print(f"| {row.where} | {row.what} | {1e3 * row.seconds:.1f} | {row.seconds / row.bare - 1:+.1%} |", flush=True)


if __name__ == "__main__":
    main()
