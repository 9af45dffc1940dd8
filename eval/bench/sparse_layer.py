"""Time the sparse layer against that of transformers 4.57.6 and against what the machine allows; see `README.md`."""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import transformers
from torch import Tensor, nn

from nllb_prune.model.expert_bank import PARAMETERS, ExpertBank
from nllb_prune.model.routing import StackRouting
from nllb_prune.model.sparse_ffn import SparseFfn

TRANSFORMERS = "4.57.6"
TOP_K = 2
TOKEN_DROPOUT = 0.2
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of the largest output
READ_BYTES = 1 << 30
SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Sizes of the layer and where it runs."""

    d_model: int
    ffn: int
    experts: int
    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Weights:
    """The one copy of all experts that both layers view, and the rows of the router."""

    experts: dict[str, Tensor]
    """By the names of the bank's parameters, experts first."""
    router: Tensor
    """float32 ``(experts, d_model)``"""

    def expert_bytes(self) -> int:
        """Return the bytes of one expert."""
        return sum(tensor[0].nbytes for tensor in self.experts.values())


@dataclass(frozen=True, slots=True)
class Case:
    """Which experts there are: `resident` in memory, and of those `keep` after masking."""

    name: str
    resident: slice
    keep: Tensor | None
    """``(1, 1, experts)``, boolean; `None` keeps all."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Rates that bound the layer, the best of their repetitions."""

    multiply_adds: float
    """A second, in one dense matrix product."""
    bandwidth: float
    """Bytes read a second."""
    read_by: str
    """What read fastest: `sum`, or `copy` with its writes counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table; times are medians in seconds."""

    case: str
    kept: int
    tokens: int
    touched: int
    """Experts that got a token."""
    difference: float
    """Largest difference of the outputs, of the largest output."""
    ours: float
    peer: float
    limit: float
    limited_by: str


def setting_of(options: argparse.Namespace) -> Setting:
    """Return what the command line asks for."""
    return Setting(
        d_model=options.d_model,
        ffn=options.ffn,
        experts=options.experts,
        device=torch.device(options.device),
        dtype=getattr(torch, options.dtype),
    )


def draw_weights(setting: Setting) -> Weights:
    """Draw weights that keep activations near 1 and routing undisturbed by ties."""
    generator = torch.Generator(setting.device).manual_seed(SEED)

    def draw(*shape: int, fan_in: int, dtype: torch.dtype = setting.dtype) -> Tensor:
        empty = torch.empty(*shape, dtype=dtype, device=setting.device)
        return empty.normal_(0, 1 / math.sqrt(fan_in), generator=generator)

    count, wide, narrow = setting.experts, setting.ffn, setting.d_model
    experts = {
        "fc1_weight": draw(count, wide, narrow, fan_in=narrow),
        "fc1_bias": draw(count, wide, fan_in=narrow),
        "fc2_weight": draw(count, narrow, wide, fan_in=wide),
        "fc2_bias": draw(count, narrow, fan_in=wide),
    }
    return Weights(experts, draw(count, narrow, fan_in=narrow, dtype=torch.float32))


def our_layer(setting: Setting, weights: Weights, case: Case) -> SparseFfn:
    """Make our layer over views of the weights, masked as a request would."""
    bank = ExpertBank(
        expert_ids=range(setting.experts)[case.resident],
        experts=setting.experts,
        d_model=setting.d_model,
        ffn=setting.ffn,
        dtype=setting.dtype,
        device=setting.device,
    )
    for name in PARAMETERS:
        setattr(bank, name, _parameter(weights.experts[name][case.resident]))
    layer = SparseFfn(
        layer=0,
        bank=bank,
        d_model=setting.d_model,
        top_k=TOP_K,
        output_scale=1 - TOKEN_DROPOUT,
        routing=StackRouting("encoder", keep=case.keep),
        device=setting.device,
    )
    layer.router_weight = _parameter(weights.router)
    return layer.eval()


def peer_layer(setting: Setting, weights: Weights, case: Case) -> nn.Module:
    """Make the layer of transformers over the same views, with the masked logits at -inf."""
    from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeConfig, NllbMoeSparseMLP

    config = NllbMoeConfig(
        d_model=setting.d_model,
        num_experts=len(range(setting.experts)[case.resident]),
        moe_token_dropout=TOKEN_DROPOUT,
        moe_eval_capacity_token_fraction=1.0,
        router_dtype="float32",
    )
    with torch.device("meta"):
        layer = NllbMoeSparseMLP(config, setting.ffn)
    views = {name: tensor[case.resident] for name, tensor in weights.experts.items()}
    for slot, expert in enumerate(layer.experts.values()):
        expert.fc1.weight, expert.fc1.bias = _parameter(views["fc1_weight"][slot]), _parameter(views["fc1_bias"][slot])
        expert.fc2.weight, expert.fc2.bias = _parameter(views["fc2_weight"][slot]), _parameter(views["fc2_bias"][slot])
    layer.router.classifier.weight = _parameter(weights.router[case.resident])
    if case.keep is not None:
        dropped = ~case.keep[0, 0]
        layer.router.classifier.register_forward_hook(lambda _m, _i, logits: logits.masked_fill(dropped, -math.inf))
    return layer.eval()


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Time one call, until the device has finished it."""
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_machine(setting: Setting, weights: Weights, *, size: int, repetitions: int) -> Machine:
    """Measure one dense product in the layer's dtype and the reading of up to 1 GiB of its weights."""
    one = torch.randn(size, size, device=setting.device).to(setting.dtype)
    # bfloat16 is read as pairs: summing halves is slower than reading them on most processors
    source = weights.experts["fc1_weight"].flatten().view(torch.float32)[: READ_BYTES // 4]
    target = torch.empty_like(source)

    def best(call: Callable[[], object]) -> float:
        call()
        return min(seconds(call, setting.device) for _ in range(repetitions))

    rates = {
        "sum": source.nbytes / best(source.sum),
        "copy": 2 * source.nbytes / best(lambda: target.copy_(source)),
    }
    read_by = max(rates, key=rates.__getitem__)
    return Machine(size**3 / best(lambda: one @ one), rates[read_by], read_by)


def compare(case: Case, setting: Setting, weights: Weights, machine: Machine, *, tokens: int, repetitions: int) -> Row:
    """Check that both layers agree, then time them in turns."""
    generator = torch.Generator(setting.device).manual_seed(SEED + tokens)
    hidden = torch.randn(1, tokens, setting.d_model, generator=generator, device=setting.device).to(setting.dtype)
    ours, peer = our_layer(setting, weights, case), peer_layer(setting, weights, case)
    expected, (gates, _) = peer(hidden, None)
    difference = agreement(ours(hidden), expected, what=f"{case.name}, {tokens} tokens")
    touched = int((gates != 0).any(0).sum())
    times = in_turns(lambda: ours(hidden), lambda: peer(hidden, None), device=setting.device, repetitions=repetitions)
    compute = tokens * TOP_K * 2 * setting.d_model * setting.ffn / machine.multiply_adds
    read = touched * weights.expert_bytes() / machine.bandwidth
    return Row(
        case=case.name,
        kept=len(range(setting.experts)[case.resident]) if case.keep is None else int(case.keep.sum()),
        tokens=tokens,
        touched=touched,
        difference=difference,
        ours=times[0],
        peer=times[1],
        limit=max(compute, read),
        limited_by="arithmetic" if compute > read else "reading",
    )


def in_turns(*calls: Callable[[], object], device: torch.device, repetitions: int) -> list[float]:
    """Return the median time of each call, timed in turns after one turn to warm up."""
    turns = [[seconds(call, device) for call in calls] for _ in range(repetitions + 1)]
    return [statistics.median(times) for times in zip(*turns[1:], strict=True)]


def agreement(ours: Tensor, expected: Tensor, *, what: str) -> float:
    """Return the largest difference relative to the largest output; a larger one than allowed ends the run."""
    difference = float((ours.float() - expected.float()).abs().max() / expected.float().abs().max())
    allowed = TOLERANCE[expected.dtype]
    if not difference <= allowed:
        raise SystemExit(
            f"The outputs ({what}) must agree to {allowed:g}, but differ by {difference:.2g} instead; "
            "the layer or its rounding is wrong, so times would mean nothing."
        )
    return difference


def run(setting: Setting, options: argparse.Namespace) -> tuple[Machine, list[Row]]:
    """Measure the machine, then every case at every number of tokens."""
    weights = draw_weights(setting)
    machine = measure_machine(setting, weights, size=options.matmul, repetitions=options.repetitions)
    everything, some = slice(None), slice(0, setting.experts, setting.experts // options.kept)
    keep = torch.zeros(1, 1, setting.experts, dtype=torch.bool, device=setting.device)
    keep[..., some] = True
    cases = (Case("all", everything, None), Case("masked", everything, keep), Case("pruned", some, None))
    rows = [
        compare(case, setting, weights, machine, tokens=tokens, repetitions=options.repetitions)
        for case in cases
        for tokens in options.tokens
    ]
    return machine, rows


def environment(setting: Setting, options: argparse.Namespace) -> dict[str, object]:
    """Say what was run, where."""
    processor = torch.cuda.get_device_name(setting.device) if setting.device.type == "cuda" else platform.machine()
    return {
        "d_model": setting.d_model,
        "ffn": setting.ffn,
        "experts": setting.experts,
        "dtype": str(setting.dtype).removeprefix("torch."),
        "device": processor,
        "threads": torch.get_num_threads(),
        "repetitions": options.repetitions,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def table(described: dict[str, object], machine: Machine, rows: list[Row]) -> str:
    """Return the result as Markdown."""
    lines = [
        ", ".join(f"{name} {value}" for name, value in described.items()),
        f"dense product {2e-9 * machine.multiply_adds:.1f} GFLOP/s, "
        f"reading {1e-9 * machine.bandwidth:.1f} GB/s (by {machine.read_by})",
        "",
        "| case | kept | tokens | experts touched | ours ms | 4.57.6 ms | 4.57.6 / ours | limit ms | ours / limit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.case} | {row.kept} | {row.tokens} | {row.touched} | {1e3 * row.ours:.2f} | {1e3 * row.peer:.2f} "
            f"| {row.peer / row.ours:.2f} | {1e3 * row.limit:.2f} ({row.limited_by}) | {row.ours / row.limit:.2f} |"
        )
    return "\n".join(lines)


def parse_options() -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--d-model", type=int, default=1024)
    parser.add_argument("--ffn", type=int, default=4096)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--kept", type=int, default=32, help="experts of the masked and the pruned case")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8, 512, 2048])
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--matmul", type=int, default=4096, help="rows and columns of the dense product")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, help="of the processor; torch's choice by default")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    if options.kept < TOP_K or options.experts % options.kept:
        parser.error(
            f"`--kept` must be at least {TOP_K} and divide the {options.experts} experts, "
            f"but is {options.kept} instead; choose for example {options.experts // 4}."
        )
    return options


@torch.inference_mode()
def main() -> None:
    """Run the comparison and print it."""
    options = parse_options()
    if transformers.__version__ != TRANSFORMERS:
        raise SystemExit(
            f"`transformers` must be {TRANSFORMERS}, but is {transformers.__version__} instead; "
            "later lines compute this layer wrongly, so there is nothing to compare with."
        )
    if options.threads:
        torch.set_num_threads(options.threads)
    setting = setting_of(options)
    machine, rows = run(setting, options)
    described = environment(setting, options)
    if options.json:
        content = {"setting": described, "machine": asdict(machine), "rows": [asdict(row) for row in rows]}
        print(json.dumps(content, indent=1))
    else:
        print(table(described, machine, rows))


if __name__ == "__main__":
    main()
