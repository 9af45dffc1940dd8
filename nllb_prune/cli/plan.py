"""`nllb-prune plan`: statistics to masks."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nllb_prune.cli._options import add_device, add_stream, positive
from nllb_prune.cli._plan_measured import SEARCHES, add_measured, decisions_of, measured_arguments, plan_on_model
from nllb_prune.cli._plan_rounds import plan_rounds_on_model
from nllb_prune.cli._plan_show import describe, list_criteria

__all__ = ["EXAMPLE", "HELP", "add_arguments", "describe", "run"]

HELP = "choose the experts to keep for each language"
EXAMPLE = "nllb-prune plan mini-statistics.safetensors --keep 0.25 --ratio 3:1 --output masks.json"

_BUDGETS = ("keep", "prune", "memory", "counts")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.set_defaults(wrong_usage=parser.error, usual_split="dev")
    parser.add_argument("statistics", type=Path, nargs="?", metavar="STATISTICS", help="from `nllb-prune calibrate`")
    _add_budget(parser.add_argument_group("budget (one of the first four, or a set's)"))
    _add_choice(parser.add_argument_group("choice of experts"))
    _add_masks(parser.add_argument_group("masks"))
    _add_model(parser.add_argument_group("model, for what follows"))
    parser.add_argument_group("rounds").add_argument(
        "--rounds",
        type=positive,
        default=1,
        metavar="N",
        help="drop experts in N steps and calibrate again within the masks of each (default: 1, needs no model)",
    )
    add_measured(parser.add_argument_group("measured on held-out text"))
    parser.add_argument("--output", type=Path, metavar="FILE", help="masks, `.json`")
    parser.add_argument("--dry-run", action="store_true", help="show what would be kept, write nothing")
    parser.add_argument("--list-criteria", action="store_true", help="print every criterion and its formula")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_budget(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--keep", metavar="N", help="share of all experts (0.25, 25%%) or their number (288)")
    group.add_argument("--prune", metavar="SHARE", help="share of all experts that goes (0.8, 80%%)")
    group.add_argument("--memory", metavar="SIZE", help="what the weights of a direction must fit in (24GiB, 16GB)")
    group.add_argument(
        "--counts", metavar="C", help="experts of each layer (encoder=36,decoder=12), or one a layer (encoder=36/40/36)"
    )
    group.add_argument(
        "--ratio", metavar="E:D", help="encoder to decoder experts (default: 3:1), `auto` or `auto-per-language`"
    )
    group.add_argument("--minimum", type=int, metavar="N", help="fewest experts of a layer")
    group.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="(default: bfloat16)"
    )
    group.add_argument("--set", metavar="NAME", help="a language set whose criterion, budget and overrides to take")
    group.add_argument("--overrides", type=Path, metavar="FILE", help="TOML: experts of each layer of some languages")


def _add_choice(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--criterion", help="score of an expert (default: importance)")
    group.add_argument("--reverse", action="store_true", help="drop what the criterion would keep first")
    group.add_argument(
        "--scope",
        choices=("layer", "threshold", "stack-threshold", "ranking", "divergence"),
        default="layer",
        help="how layers share the budget (default: layer, the same in each)",
    )
    group.add_argument("--reference", default="eng_Latn", metavar="LANG", help="of `divergence` (default: eng_Latn)")
    group.add_argument("--protect-end", type=int, default=0, metavar="K", help="keep the best K where sentences end")
    group.add_argument("--protect-super", action="store_true", help="keep super experts; needs the group `norms`")
    group.add_argument("--within", type=Path, metavar="MASKS", help="keep only what these masks keep")
    group.add_argument("--seed", type=int, default=0, help="of the `random` criterion")


def _add_masks(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--granularity", choices=("language", "pair", "global", "union"), default="language")
    group.add_argument("--languages", metavar="LANGS", help="only these (deu_Latn,fra_Latn), or those of the union")
    group.add_argument(
        "--budget-for", choices=("each", "union"), default="each", help="whose budget it is (default: each language's)"
    )
    group.add_argument("--aggregation", choices=("pooled", "mean-of-directions"), default="pooled")


def _add_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", help="to calibrate again or to measure masks on")
    add_device(group)
    add_stream(group)
    group.add_argument(
        "--text",
        metavar="PATH",
        help="for rounds, the text that the statistics were made from; to measure, its other lines, or other text "
        "(`mini` has its own)",
    )
    group.add_argument("--split", help="of a FLORES folder (default: dev)")
    group.add_argument(
        "--work", type=Path, metavar="DIR", help="keeps finished rounds (default: OUTPUT.work, none of a dry run)"
    )


def run(options: argparse.Namespace) -> None:
    """Plan and write the masks."""
    if options.list_criteria:
        print(list_criteria(as_json=options.json))
        return
    _check_usage(options)
    from nllb_prune.calibration.statistics import ExpertStatistics
    from nllb_prune.planning.memory import fitting_cards
    from nllb_prune.planning.plan import plan

    statistics = ExpertStatistics.load(options.statistics)
    asked = _asked(options, statistics)
    decisions = decisions_of(options)
    if decisions:
        masks = plan_on_model(options, statistics, asked, decisions)
    elif options.rounds > 1:
        masks = plan_rounds_on_model(options, statistics, asked)
    else:
        masks = plan(statistics, **asked)
    if not options.dry_run:
        masks.save(options.output)
    output = None if options.dry_run else str(options.output)
    if options.json:
        fits = {"fits_gb": fitting_cards(masks.plan["bytes"])} if "bytes" in masks.plan else {}
        print(json.dumps({"output": output, "signature": masks.signature, "plan": masks.plan, **fits}))
        return
    print(describe(masks))
    print("nothing written" if output is None else f"written to {output}")


def _check_usage(options: argparse.Namespace) -> None:
    """End with status 2 where arguments that argparse cannot require are missing."""
    if options.statistics is None:
        options.wrong_usage("the following arguments are required: STATISTICS")
    if options.output is None and not options.dry_run:
        options.wrong_usage("the following arguments are required: --output, or --dry-run")
    given = [name for name in _BUDGETS if getattr(options, name) is not None]
    if len(given) > 1:
        options.wrong_usage(f"argument --{given[1]}: not allowed with argument --{given[0]}")
    measured = [name for name, asked in measured_arguments(options).items() if asked]
    if options.rounds > 1 and measured:
        options.wrong_usage(f"argument {measured[0]}: not allowed with argument --rounds")
    if options.model is None and (options.rounds > 1 or measured):
        options.wrong_usage(f"argument {measured[0] if measured else '--rounds'}: needs --model")
    if not given and options.set is None:
        options.wrong_usage("one of the arguments --keep --prune --memory --counts --set is required")


def _asked(options: argparse.Namespace, statistics: Any) -> dict[str, Any]:
    """Return the arguments of `plan`; what was not asked comes from the set, if there is one."""
    from nllb_prune.masks import MaskSet

    asked = {
        name: getattr(options, name)
        for name in (
            "aggregation", "budget_for", "dtype", "granularity", "minimum", "protect_end", "protect_super", "reference",
            "reverse", "scope", "seed",
        )
    }  # fmt: skip
    return {
        **_from_set(options, statistics),
        **asked,
        **_budget(options),
        **({} if options.criterion is None else {"criterion": options.criterion}),
        **({} if options.languages is None else {"languages": _languages(options.languages)}),
        **({} if options.within is None else {"within": MaskSet.load(options.within)}),
    }


def _from_set(options: argparse.Namespace, statistics: Any) -> dict[str, Any]:
    """Return what a language set says, without what cannot go with the flags."""
    if options.set is None:
        return {}
    from nllb_prune.languages import language_set
    from nllb_prune.planning.members import languages_of
    from nllb_prune.planning.scopes import SCOPES

    usual = language_set(options.set).pruning
    settings: dict[str, Any] = {"criterion": usual.criterion}
    if all(getattr(options, name) is None for name in _BUDGETS):
        settings["kept"] = usual.kept
    if options.counts is None and options.ratio not in SEARCHES and not SCOPES[options.scope].whole_model:
        settings["ratio"] = usual.ratio
    one_budget = options.granularity == "global" or options.budget_for == "union"
    if options.counts is None and not one_budget:
        known = languages_of(statistics)
        settings["overrides"] = {code: each for code, each in usual.languages.items() if code in known}
    return settings


def _budget(options: argparse.Namespace) -> dict[str, Any]:
    """Return the budget that was asked for."""
    from nllb_prune.planning.budget import parse_kept, parse_pruned
    from nllb_prune.planning.counts import parse_counts, read_overrides
    from nllb_prune.planning.memory import parse_memory

    readers: dict[str, tuple[Any, Callable[[Any], Any]]] = {
        "kept": (options.keep, parse_kept),
        "pruned": (options.prune, parse_pruned),
        "memory": (options.memory, parse_memory),
        "counts": (options.counts, parse_counts),
        "ratio": (None if options.ratio in SEARCHES else options.ratio, str),
        "overrides": (options.overrides, read_overrides),
    }
    return {name: read(text) for name, (text, read) in readers.items() if text is not None}


def _languages(text: str) -> tuple[str, ...]:
    """Return the codes of languages under any name; what is no language of NLLB-200 stays as it is."""
    from nllb_prune.languages import find_language

    names = [name.strip() for name in text.split(",") if name.strip()]
    return tuple(found.code if (found := find_language(name)) else name for name in names)
