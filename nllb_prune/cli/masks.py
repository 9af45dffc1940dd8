"""`nllb-prune masks`: look at masks, compare and unite them, read and write the published index format."""

from __future__ import annotations

import argparse
from pathlib import Path

from nllb_prune.cli._masks_compare import compare
from nllb_prune.cli._masks_show import show
from nllb_prune.cli._options import add_debug_to_actions
from nllb_prune.cli.plan import describe

HELP = "show, compare, unite, import or export masks"
EXAMPLE = "nllb-prune masks compare masks.json other.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-verbs."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    shown = actions.add_parser("show", help="what masks keep, have in common, and how they were planned")
    compared = actions.add_parser("compare", help="similarity of two sets of masks, language by language")
    united = actions.add_parser("union", help="one mask for several directions, of one or more sets of masks")
    imported = actions.add_parser("import", help="read the published index: expert numbers by language or direction")
    exported = actions.add_parser("export", help="write the published index format")
    _add_show(shown)
    _add_compare(compared)
    united.add_argument("masks", type=Path, nargs="+")
    united.add_argument(
        "--directions", default="all", help="as in `eng_Latn-deu_Latn,*-eng_Latn`; `all` (default) is all with masks"
    )
    united.add_argument("--output", type=Path, required=True)
    imported.add_argument("index", type=Path)
    imported.add_argument("--model", required=True, help="the model the index is of")
    imported.add_argument(
        "--disk", metavar="SIZE", help="of a Hub id: fetch its files one at a time in so much disk, and keep none"
    )
    imported.add_argument("--output", type=Path, required=True)
    exported.add_argument("masks", type=Path)
    exported.add_argument("--output", type=Path, required=True)
    add_debug_to_actions((shown, compared, united, imported, exported))


def _add_show(action: argparse.ArgumentParser) -> None:
    action.add_argument("masks", type=Path)
    what = action.add_mutually_exclusive_group()
    what.add_argument("--direction", metavar="SRC-TGT", help="list the experts that a direction keeps")
    what.add_argument(
        "--swap", nargs=2, metavar="SRC-TGT", help="count what must move from the first direction to the second"
    )
    what.add_argument("--matrix", action="store_true", help="also the Jaccard similarity of every two masks")
    action.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw kept experts and similarities, `.png` or `.svg`"
    )
    action.add_argument("--json", action="store_true", help="print as JSON, with all ids")


def _add_compare(action: argparse.ArgumentParser) -> None:
    action.add_argument("masks", type=Path)
    action.add_argument("other", type=Path)
    action.add_argument("--plot", type=Path, metavar="FILE", help="draw the differences, `.png` or `.svg`")
    action.add_argument("--json", action="store_true", help="print as JSON")


def run(options: argparse.Namespace) -> None:
    """Do the action."""
    actions = {"show": show, "compare": compare, "union": _union, "import": _import, "export": _export}
    actions[options.action](options)


def _union(options: argparse.Namespace) -> None:
    from nllb_prune.cli._directions import planned_directions
    from nllb_prune.masks import MaskSet
    from nllb_prune.planning.union import check_same_model, global_union

    first, *others = parts = [MaskSet.load(path) for path in options.masks]
    for path, other in zip(options.masks[1:], others, strict=True):
        check_same_model(first, other, name=str(path))
    directions = planned_directions(options.directions, parts)
    masks = global_union(parts, directions)
    masks.save(options.output)
    print(describe(masks))
    over = f", the union over {len(directions):,} directions" if any(part.languages() for part in parts) else ""
    print(f"written to {options.output}{over}")


def _import(options: argparse.Namespace) -> None:
    from nllb_prune._files import read_json
    from nllb_prune.model.loading import load_spec
    from nllb_prune.planning.index_format import masks_from_index
    from nllb_prune.planning.memory import parse_memory

    index = read_json(options.index, what="an index of experts by language")
    disk = None if options.disk is None else parse_memory(options.disk, name="--disk")
    spec = load_spec(options.model, disk=disk)
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
