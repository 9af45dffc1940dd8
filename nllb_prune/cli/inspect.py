"""`nllb-prune inspect`: what a model is to the pruner."""

from __future__ import annotations

import argparse
import dataclasses
import json

from nllb_prune.cli._options import table

HELP = "describe a model: its stacks of sparse layers, routing and fingerprint"
EXAMPLE = "nllb-prune inspect mini"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument("model", metavar="MODEL", help="`mini` (embedded), a folder, or a Hub id")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(options: argparse.Namespace) -> None:
    """Print the spec."""
    from nllb_prune.model.loading import load_spec

    spec = load_spec(options.model)
    assert spec.fingerprint is not None
    if options.json:
        content = dataclasses.asdict(spec) | {"stacks": [stack.to_json() for stack in spec.stacks]}
        print(json.dumps(content, sort_keys=True))
        return
    rows = [
        (stack.name, stack.keyed_by, ", ".join(map(str, stack.layers)), str(stack.experts), str(stack.total))
        for stack in spec.stacks
    ]
    routing = f"{spec.experts} experts, top-{spec.top_k}"
    print(f"{options.model}: {spec.family}, {routing}, fingerprint {spec.fingerprint.short}")
    print(table(("stack", "mask by", "sparse layers", "experts each", "in all"), rows))
