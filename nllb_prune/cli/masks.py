"""`nllb-prune masks`: look at masks, compare them, read and write the published index format."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from nllb_prune.cli._options import add_debug_to_actions, table
from nllb_prune.cli.plan import describe

HELP = "show, compare, import or export masks"
EXAMPLE = "nllb-prune masks compare masks.json other.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-verbs."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("show", help="what masks keep and how they were planned")
    show.add_argument("masks", type=Path)
    compare = actions.add_parser("compare", help="Jaccard similarity of two sets of masks, language by language")
    compare.add_argument("masks", type=Path)
    compare.add_argument("other", type=Path)
    imported = actions.add_parser("import", help="read the published index: expert numbers by language or direction")
    imported.add_argument("index", type=Path)
    imported.add_argument("--model", required=True, help="the model the index is of")
    imported.add_argument("--output", type=Path, required=True)
    exported = actions.add_parser("export", help="write the published index format")
    exported.add_argument("masks", type=Path)
    exported.add_argument("--output", type=Path, required=True)
    add_debug_to_actions((show, compare, imported, exported))


def run(options: argparse.Namespace) -> None:
    """Do the action."""
    {"show": _show, "compare": _compare, "import": _import, "export": _export}[options.action](options)


def _show(options: argparse.Namespace) -> None:
    from nllb_prune.masks import MaskSet

    masks = MaskSet.load(options.masks)
    print(f"{options.masks}: masks of {masks.model_name}, by {masks.granularity}")
    print(describe(masks))
    print(json.dumps(masks.plan, sort_keys=True))


def _compare(options: argparse.Namespace) -> None:
    from nllb_prune.errors import UsageError
    from nllb_prune.masks import MaskSet
    from nllb_prune.planning.similarity import jaccard

    ours, theirs = MaskSet.load(options.masks), MaskSet.load(options.other)
    if ours.stacks != theirs.stacks:
        raise UsageError(f"`{options.other}` must be masks of the same layers as `{options.masks}`, but is not.")
    rows = []
    for stack in ours.stacks:
        for key in sorted(set(ours.masks[stack.name]) & set(theirs.masks[stack.name])):
            similarity = jaccard(ours.masks[stack.name][key], theirs.masks[stack.name][key])
            rows.append((f"{stack.name} {key}", f"{similarity:.3f}"))
    print(table(("mask", "Jaccard"), rows))


def _import(options: argparse.Namespace) -> None:
    from nllb_prune._files import read_json
    from nllb_prune.model.loading import load_spec
    from nllb_prune.planning.index_format import masks_from_index

    spec = load_spec(options.model)
    index = read_json(options.index, what="an index of experts by language")
    assert spec.fingerprint is not None
    masks = masks_from_index(
        index, spec.stacks, fingerprint=spec.fingerprint, model_name=options.model, top_k=spec.top_k
    )
    masks.save(options.output)
    print(describe(masks))


def _export(options: argparse.Namespace) -> None:
    from nllb_prune._files import write_json
    from nllb_prune.masks import MaskSet
    from nllb_prune.planning.index_format import masks_to_index

    write_json(options.output, masks_to_index(MaskSet.load(options.masks)))
