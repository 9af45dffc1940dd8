"""Time planning at the size of NLLB-200: 202 languages, 6 + 6 sparse layers, 128 experts, random statistics."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nllb_prune import ExpertStatistics
from nllb_prune.calibration.statistics import Table, empty_table
from nllb_prune.languages import language_set
from nllb_prune.model.spec import Fingerprint, ModelSpec, ParameterCounts, Stack
from nllb_prune.planning import CRITERIA, SCOPES, plan, top_per_layer

STACKS = (
    Stack("encoder", "source", tuple(range(3, 24, 4)), 128),
    Stack("decoder", "target", tuple(range(3, 24, 4)), 128),
)
TOKENS = 30_000


def random_statistics() -> ExpertStatistics:
    """Draw statistics of the group `core` for every language."""
    spec = ModelSpec(
        family="nllb-moe",
        stacks=STACKS,
        top_k=2,
        output_scale=0.8,
        fingerprint=Fingerprint.of(STACKS, [1.0] * sum(stack.total for stack in STACKS)),
        parameters=ParameterCounts(
            dense=3 * 10**9, router=3 * 10**6, expert={stack.name: 33_564_672 for stack in STACKS}
        ),
    )
    random = np.random.default_rng(0)
    tables = {(stack.name, code): _table(stack, random) for code in language_set("nllb-202").codes for stack in STACKS}
    return ExpertStatistics(spec, "language", tables, items=("all",), signature={"mode": "references"})


def _table(stack: Stack, random: np.random.Generator) -> Table:
    table = empty_table(stack)
    table["tokens"][:] = TOKENS
    share = random.dirichlet(np.full(stack.experts, 0.2), size=table["first"].shape[:2])
    table["first"][:] = share * TOKENS
    table["second"][:] = random.permutation(share) * TOKENS
    table["p_first"][:] = table["first"] * random.uniform(0.2, 0.9, share.shape)
    table["p_all"][:] = share * TOKENS
    table["gate"][:] = share * TOKENS
    return table


def milliseconds(call: Callable[[], object], repetitions: int) -> float:
    """Return the median time of a call."""
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "statistics.safetensors"
        random_statistics().save(path)
        print(f"statistics file: {path.stat().st_size / 1e6:.0f} MB\n\n| what | ms |\n|---|---|")
        rows: dict[str, Callable[[], object]] = {"read the file": lambda: ExpertStatistics.load(path)}
        found = ExpertStatistics.load(path)
        rows |= {
            f"plan, {scope}": lambda scope=scope: plan(found, kept=0.1875, scope=scope)  # type: ignore[misc]
            for scope in SCOPES
        }
        core = [name for name, each in CRITERIA.items() if not each.groups and not each.same_as]
        rows |= {
            f"plan, {name}": lambda name=name: plan(found, kept=0.1875, criterion=name)  # type: ignore[misc]
            for name in core
            if name != "importance"
        }
        rows |= {
            "plan for a memory of 24 GiB": lambda: plan(found, memory=24 << 30),
            "plan, global": lambda: plan(found, kept=0.1875, granularity="global"),
        }
        scores = np.random.default_rng(1).random((6, 128))
        rows["one selection"] = lambda: top_per_layer(scores, (36,) * 6)
        for name, call in rows.items():
            print(f"| {name} | {milliseconds(call, options.repetitions):.2f} |", flush=True)


if __name__ == "__main__":
    main()
