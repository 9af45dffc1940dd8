"""One model's study: calibrate, plan, cure, evaluate; a JSON file of all figures. A killed run continues."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nllb_prune import MaskSet, ParallelText, calibrate, evaluate, load_model, load_tokenizer
from nllb_prune.calibration.pairing import ring
from nllb_prune.evaluation.detectors.flagging import fitted
from nllb_prune.evaluation.evaluation import Evaluation
from nllb_prune.evaluation.fidelity.held_out import HeldOut
from nllb_prune.evaluation.measuring import usual_measuring
from nllb_prune.evaluation.summary.groups import ALL, INTO_ENGLISH
from nllb_prune.evaluation.summary.summarise import summarise
from nllb_prune.evaluation.summary.summary import ConfigurationSummary, Summary
from nllb_prune.languages import english_and_ring, parse_directions
from nllb_prune.model.source import embedded_text
from nllb_prune.planning.measured import Tolerances

from .cures import cures
from .plans import BUDGETS, OTHERS, Remembering, plans_at

SOURCES, SENTENCES = 4, 32
"""Of each target, and of each direction, that plans are measured on."""


def every(step: int, first: int, text: ParallelText, *, most: int | None = None) -> ParallelText:
    """Return every so-manieth line: neighbours in the text are alike, and calibration must not see what is measured."""
    chosen = {code: text.lines(code)[first::step][:most] for code in text.languages}
    return ParallelText({code: partial(tuple, lines) for code, lines in chosen.items()})


def study(model_name: str, folder: Path, *, sentences: int) -> dict[str, Any]:
    """Run the study of a model in a folder and return its figures."""
    model, tokenizer = load_model(model_name), load_tokenizer(model_name)
    development, test = (ParallelText.open(embedded_text(), split=split) for split in ("dev", "test"))
    directions = parse_directions("all", development.languages)
    statistics = calibrate(
        model,
        tokenizer,
        every(2, 0, development),
        directions,
        pairs_per_target="all",
        folder=folder / "statistics.work",
        progress=_bar("calibrating"),
    )
    statistics.save(folder / "statistics.safetensors")
    measured = [(source, target) for target, sources in ring(directions, SOURCES).items() for source in sources]
    held_out = HeldOut.of(
        model,
        tokenizer,
        every(2, 1, development),
        measured,
        sentences=SENTENCES,
        decoded=SENTENCES,
        progress=_bar("full model"),
    )
    measure = Remembering(held_out)
    _check_same(folder / "settings.json", statistics.digest(), held_out.signature)
    masks = _plans(folder, statistics, measure)
    cured = _once(folder / "cures.json", lambda: cures(statistics, measure))
    text = every(max(1, len(test.lines("eng_Latn")) // sentences), 0, test, most=sentences)
    measuring = usual_measuring(tokenizer)
    evaluation = evaluate(
        model,
        tokenizer,
        text,
        english_and_ring(development.languages, others=OTHERS),
        {"full": None, **masks},
        folder=folder / "scores",
        measuring=measuring,
        progress=_bar("evaluating"),
    )
    detectors = fitted(measuring.detectors, evaluation.of_configuration("full"))
    summary = summarise(evaluation, text, detectors=detectors, progress=_bar("summing up"))
    summary.save(folder / "summary.json")
    return {
        "model": Path(model_name).name,
        "sentences": summary.sentences,
        "directions": len(evaluation.directions),
        "measured": {"directions": len(measured), "sentences": SENTENCES},
        "full": _figures(summary["full"], summary),
        "plans": {name: _plan(each) | _figures(summary[name], summary) for name, each in masks.items()},
        "against": _against(evaluation, text, detectors, masks),
        "cures": cured,
    }


def _check_same(path: Path, digest: str, measured: Mapping[str, Any]) -> None:
    """Refuse a folder whose plans were made from other statistics, text or tolerances."""
    settings = {"statistics": digest, "measured": dict(measured), "tolerances": asdict(Tolerances())}
    if not path.exists():
        path.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    if json.loads(path.read_text(encoding="utf-8")) != settings:
        raise SystemExit(f"`{path.parent}` must hold plans of the same settings, but holds others. Use another --work.")


def _plans(folder: Path, statistics: Any, measure: Remembering) -> dict[str, MaskSet]:
    """Return all plans by `NN.NN % name`; those of finished budgets are read."""
    found: dict[str, MaskSet] = {}
    for kept in BUDGETS:
        here = folder / "masks" / f"{1 - kept:.2%}"
        if not here.exists():
            beside = here.with_suffix(".tmp")
            for name, masks in plans_at(kept, statistics, measure, told=print).items():
                masks.save(beside / f"{name}.json")
            beside.rename(here)
        found |= {f"{1 - kept:.2%} {path.stem}": MaskSet.load(path) for path in sorted(here.iterdir())}
    return found


def _once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    if not path.exists():
        path.write_text(json.dumps(make(), indent=1), encoding="utf-8")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _plan(masks: MaskSet) -> dict[str, Any]:
    """Return what a plan says of itself, without the figures of every mask."""
    told = {name: masks.plan.get(name) for name in ("kept_experts", "ratio_search", "layer_search")}
    guarded = masks.plan.get("guard")
    counts = {
        stack.name: [
            round(sum(len(mask[n]) for mask in masks.masks[stack.name].values()) / len(masks.masks[stack.name]), 2)
            for n in range(len(stack.layers))
        ]
        for stack in masks.stacks
    }
    if guarded is not None:
        told["guard"] = {name: guarded[name] for name in ("measures", "reserve", "failed")}
        told["guard"]["grown"] = {
            f"{stack}/{key}": each["kept"] - each["planned"]
            for stack, by_key in guarded["masks"].items()
            for key, each in by_key.items()
            if each["kept"] > each["planned"]
        }
    return {"counts": counts, **{name: value for name, value in told.items() if value is not None}}


def _figures(configuration: ConfigurationSummary, summary: Summary) -> dict[str, Any]:
    """Return scores, lengths and rates with their changes against the full model, and the worst direction."""
    found: dict[str, Any] = {"kept": round(configuration.kept, 4)}
    for group in (ALL, INTO_ENGLISH):
        figures = configuration.group(group).figures
        names = [name for name in ("chrf", "bleu", "length_ratio", "any", *summary.detectors) if name in figures]
        found[group] = {
            name: {
                "value": round(figures[name].value, 4),
                **(
                    {}
                    if (change := figures[name].change) is None
                    else {"change": round(change.value, 4), "p": round(change.p, 4), "q": round(change.q, 4)}
                ),
            }
            for name in names
        }
    worst = configuration.worst()
    if worst is not None:
        found["worst"] = {"direction": worst.direction, "chrf": round(worst.changes["chrf"].value, 3)}
        lengths = {d.direction: d.changes["length_ratio"] for d in configuration.directions}
        base = {d.direction: d.figures["length_ratio"] for d in summary["full"].directions}
        moved = {name: change.value / base[name] for name, change in lengths.items()}
        name = max(moved, key=lambda each: abs(moved[each]))
        beyond = sum(
            min(abs(change.low), abs(change.high)) > 0.03 * base[each] and change.low * change.high > 0
            for each, change in lengths.items()
        )
        found["length"] = {
            "largest": round(moved[name], 4),
            "direction": name,
            "beyond 3 %": sum(abs(value) > 0.03 for value in moved.values()),
            "beyond 3 % by interval": beyond,
        }
        found["verdict"] = configuration.verdict.outcome if configuration.verdict else ""
    return found


def _against(
    evaluation: Evaluation, text: ParallelText, detectors: Sequence[Any], masks: Mapping[str, MaskSet]
) -> dict[str, Any]:
    """Compare plans with 3:1 of equal size: at the budget, or as large as the guard let them grow."""
    found = {}
    for kept in BUDGETS:
        budget = f"{1 - kept:.2%}"
        names = [name.removeprefix(f"{budget} ") for name in masks if name.startswith(f"{budget} ")]
        for name in names:
            fixed = f"3:1 as large as {name}" if f"3:1 as large as {name}" in names else "3:1"
            if name == fixed or name.startswith("3:1 as"):
                continue
            pair = (f"{budget} {fixed}", f"{budget} {name}")
            two = replace(
                evaluation,
                digests={each: evaluation.digests[each] for each in pair},
                plans={each: evaluation.plans[each] for each in pair},
            )
            summary = summarise(two, text, detectors=detectors, baseline=pair[0])
            change, worst = summary[pair[1]].figure("chrf").change, summary[pair[1]].worst()
            assert change is not None
            assert worst is not None
            found[pair[1]] = {
                "baseline": fixed,
                "chrf": round(change.value, 3),
                "p": round(change.p, 4),
                "worst": {"direction": worst.direction, "chrf": round(worst.changes["chrf"].value, 3)},
            }
    return found


def _bar(what: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
    return lambda items: tqdm(items, desc=what, leave=False)
