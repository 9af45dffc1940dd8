"""The figures of a study as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ALL, ENGLISH = "all", "into English"


def results(studies: Sequence[Mapping[str, Any]]) -> str:
    """Return `RESULTS.md`."""
    parts = ["# Guard, ratio and layers: all figures", "", "Made by `python -m eval.guard`; what they mean is in"]
    parts.append("[README.md](README.md).")
    for study in studies:
        parts += ["", f"## {study['model']}", "", *_plans(study), "", *_against(study), "", *_searches(study)]
        parts += ["", *_guards(study), "", *_cures(study)]
    return "\n".join(parts) + "\n"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lay out a table."""
    return ["| " + " | ".join(header) + " |", "|---" * len(header) + "|", *("| " + " | ".join(r) + " |" for r in rows)]


def _plans(study: Mapping[str, Any]) -> list[str]:
    detectors = [name for name in study["full"][ALL] if name not in ("chrf", "bleu", "length_ratio", "any", "unlikely")]
    risen = "risen (q < .05)"
    header = ("plan", "kept", "chrF++", "into eng", "BLEU", "length", "into eng", "flagged", risen, "worst direction",
              "largest change of length", "verdict")  # fmt: skip
    rows = [_row("full", study["full"], detectors)]
    rows += [_row(name, each, detectors) for name, each in study["plans"].items()]
    return [
        f"{study['sentences']} test sentences in each of {study['directions']} directions, greedy. Plans were measured",
        f"on {study['measured']['sentences']} other sentences in each of {study['measured']['directions']} directions.",
        "`unlikely` is no fault by itself and left out. Lengths are output / reference; the largest change is of one",
        "direction, against the full model's.",
        "",
        *markdown(header, rows),
    ]


def _row(name: str, found: Mapping[str, Any], detectors: Sequence[str]) -> tuple[str, ...]:
    every, english = found[ALL], found[ENGLISH]
    risen = [
        f"{each} {100 * every[each]['change']:+.1f} %"
        for each in detectors
        if every[each].get("change", 0) > 0 and every[each]["q"] < 0.05
    ]
    worst = found.get("worst")
    length = found.get("length")
    return (
        name,
        f"{100 * found['kept']:.1f} %",
        f"{every['chrf']['value']:.2f}",
        f"{english['chrf']['value']:.2f}",
        f"{every['bleu']['value']:.2f}",
        f"{every['length_ratio']['value']:.3f}",
        f"{english['length_ratio']['value']:.3f}",
        f"{100 * every['any']['value']:.1f} %",
        ", ".join(risen) or "—",
        "—" if worst is None else f"{worst['direction']} {worst['chrf']:+.1f}",
        "—" if length is None else f"{100 * length['largest']:+.1f} % {length['direction']}",
        found.get("verdict", "baseline"),
    )


def _against(study: Mapping[str, Any]) -> list[str]:
    header = (
        "plan",
        "kept",
        "against",
        "kept",
        "chrF++",
        "p",
        "direction that loses most by it",
        "worst direction, against full",
    )
    rows = []
    for name, each in study["against"].items():
        fixed = f"{name.split(' ')[0]} {each['baseline']}"
        ours, theirs = (study["plans"][plan]["worst"]["chrf"] for plan in (name, fixed))
        rows.append((
            name, _share(study, name), each["baseline"], _share(study, fixed),
            f"{each['chrf']:+.2f}", f"{each['p']:.4f}",
            f"{each['worst']['direction']} {each['worst']['chrf']:+.1f}", f"{ours:+.1f} instead of {theirs:+.1f}",
        ))  # fmt: skip
    about = "Paired randomisation over sentences; where the guard added experts, 3:1 has as many."
    return ["### Against 3:1 with as many experts", "", about, "", *markdown(header, rows)]


def _share(study: Mapping[str, Any], name: str) -> str:
    return f"{100 * study['plans'][name]['kept']:.1f} %"


def _searches(study: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, each in study["plans"].items():
        layers = each.get("layer_search")
        ratio = each.get("ratio_search")
        if layers is None and ratio is None:
            continue
        counts = "; ".join("/".join(f"{n:g}" for n in each["counts"][stack]) for stack in each["counts"])
        losses = [] if layers is None else [layers["rounds"][0]["before"], layers["chosen"]["loss_change"]]
        before, after = (f"{loss:.3f}" for loss in losses) if losses else ("—", "—")
        measures = sum(found["measures"] for found in (ratio, layers) if found is not None)
        rows.append((name, counts, before, after, str(measures)))
    header = ("plan", "experts a layer, encoder; decoder", "dev loss, even layers", "dev loss, chosen", "measures")
    return ["### What the searches chose", "", *markdown(header, rows)]


def _guards(study: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, each in study["plans"].items():
        if (guard := each.get("guard")) is None:
            continue
        grown = ", ".join(f"{mask} +{number}" for mask, number in guard["grown"].items())
        passes = guard["measures"]["directions"] / study["measured"]["directions"]
        rows.append((name, grown or "none", ", ".join(guard["failed"]) or "none", f"{passes:.1f}"))
    return ["### What the guard did", "", *markdown(("plan", "grown by", "failed", "passes over all directions"), rows)]


def _cures(study: Mapping[str, Any]) -> list[str]:
    found = study["cures"]
    rows = [("nothing", "0", *_cure_cells(found["start"]))]
    rows += [(f"all experts but of the {stack}", "—", *_cure_cells(each)) for stack, each in found["alone"].items()]
    for name, doses in found["cures"].items():
        rows += [(name, str(each["added"]), *_cure_cells(each)) for each in doses]
    header = ("added", "experts a mask", "loss", "runaway", "length", "loss into eng", "runaway into eng",
              "length into eng", "late into eng")  # fmt: skip
    about = "87.5 % pruned at 3:1, on held-out text; changes against the full model."
    return ["### What cures it, per expert", "", about, "", *markdown(header, rows)]


def _cure_cells(each: Mapping[str, Any]) -> list[str]:
    cells = []
    for group in (ALL, ENGLISH):
        figures = each[group]
        cells += [f"{figures['loss_change']:+.3f}", f"{100 * figures['runaway_change']:+.1f} %"]
        cells.append(f"{100 * figures['length_change']:+.1f} %")
    return [*cells, f"{each[ENGLISH]['late_change']:+.3f}"]
