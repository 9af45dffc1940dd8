"""`nllb-prune inspect`: what a model is to the pruner, and whether a checkpoint is whole."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from nllb_prune.cli._options import progress_bar, table
from nllb_prune.errors import UsageError

if TYPE_CHECKING:
    from nllb_prune.model.pruned import ExpertPruning
    from nllb_prune.model.spec import ModelSpec

HELP = "describe a model: its stacks of sparse layers, routing and fingerprint, what was pruned; verify a checkpoint"
EXAMPLE = "nllb-prune inspect mini"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument("model", metavar="MODEL", help="`mini` (embedded), a folder, or a Hub id")
    parser.add_argument(
        "--verify", action="store_true", help="of a folder of `export`: compare every file with the manifest's checksum"
    )
    parser.add_argument("--quick", action="store_true", help="verify sizes alone, not checksums")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(options: argparse.Namespace) -> None:
    """Print the spec, after the files are verified if that is wanted."""
    from nllb_prune.model.loading import load_spec
    from nllb_prune.model.pruned import pruning_of
    from nllb_prune.model.source import model_folder, read_config

    verified = _verified(options.model, quick=options.quick) if options.verify or options.quick else None
    spec = load_spec(options.model)
    pruning = pruning_of(read_config(model_folder(options.model)))
    if options.json:
        print(json.dumps(_content(spec, pruning, verified), sort_keys=True))
    else:
        _show(options.model, spec, pruning, verified)


def _verified(model: str, *, quick: bool) -> int:
    """Compare all files with the manifest, and return how many there are."""
    from nllb_prune.model.source import model_folder
    from nllb_prune.weights.manifest import MANIFEST, Manifest, verify

    folder = model_folder(model)
    if not (folder / MANIFEST).exists():
        raise UsageError(f"`--verify` must be of a folder that `export` wrote, but `{model}` has no {MANIFEST}.")
    problems = verify(folder, quick=quick, progress=progress_bar("verifying"))
    if problems:
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise UsageError(f"`{folder}` must be as its manifest says, but is not: {problems[0]}{more}. Export it again.")
    return len(Manifest.load(folder).files)


def _content(spec: ModelSpec, pruning: ExpertPruning | None, verified: int | None) -> dict[str, Any]:
    return {
        **dataclasses.asdict(spec),
        "stacks": [stack.to_json() for stack in spec.stacks],
        **({} if pruning is None else {"expert_pruning": pruning.to_json()}),
        **({} if verified is None else {"verified_files": verified}),
    }


def _show(model: str, spec: ModelSpec, pruning: ExpertPruning | None, verified: int | None) -> None:
    assert spec.fingerprint is not None
    rows: list[tuple[str, ...]] = [
        (stack.name, stack.keyed_by, ", ".join(map(str, stack.layers)), str(stack.experts), str(stack.total))
        for stack in spec.stacks
    ]
    header = ["stack", "mask by", "sparse layers", "experts each", "in all"]
    if pruning is not None:
        header.append("kept")
        rows = [(*row, str(sum(map(len, pruning.kept[row[0]])))) for row in rows]
    routing = f"{spec.experts} experts, top-{spec.top_k}"
    print(f"{model}: {spec.family}, {routing}, fingerprint {spec.fingerprint.short}")
    if pruning is not None:
        spoken = pruning.languages() or "all languages"
        stored = "" if pruning.scheme is None else f", experts in {pruning.scheme.name}"
        print(f"pruned from {pruning.base_model} for {spoken}, by the masks {pruning.masks}{stored}")
    print(table(header, rows))
    if verified is not None:
        print(f"{verified} files are as the manifest says")
