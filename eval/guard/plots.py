"""The figures of a study as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nllb_prune.report.sheet import Sheet
from nllb_prune.report.theme import colour, series

SHOWN = (
    "3:1",
    "3:1 + protect-end",
    "1:1",
    "auto ratio",
    "auto ratio + auto layers",
    "auto ratio + auto layers + guard",
)
"""Plans of the quality figure, in the order of their colours."""
_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP, _COLUMN = 300, 220, 64, 84, 84, 260


def quality(study: Mapping[str, Any]) -> Sheet:
    """Return chrF++ over all directions and of the worst, and the length into English, by experts kept."""
    panels = (
        ("Mean chrF++ against full", lambda each: each["all"]["chrf"]["change"]),
        ("Worst direction, chrF++ against full", lambda each: each["worst"]["chrf"]),
        ("Length into English against full", lambda each: each["into English"]["length_ratio"]["change"]),
    )
    sheet = _sheet(f"{study['model']}: plans by experts kept", len(panels))
    for number, (title, value) in enumerate(panels):
        axes = _axes(sheet, number, title)
        for n, name in enumerate(SHOWN):
            points = sorted(
                (100 * each["kept"], value(each))
                for plan, each in study["plans"].items()
                if plan.split(" ", 1)[1] == name
            )
            axes.plot(*zip(*points, strict=True), color=series(n), marker="o", markersize=4, linewidth=1.6)
        axes.axhline(0, color=colour("line"), linewidth=1)
        axes.set_xlabel("% of the experts kept", color=colour("soft"))
    _legend(sheet, SHOWN)
    return sheet


def cures(study: Mapping[str, Any]) -> Sheet:
    """Return loss and runaway translations by experts added, in every way."""
    found = study["cures"]
    names = tuple(found["cures"])
    panels = (
        ("Change of token loss, nats", "all", "loss_change", 1),
        ("Runaway translations, %", "all", "runaway_change", 100),
        ("Runaway into English, %", "into English", "runaway_change", 100),
    )
    sheet = _sheet(f"{study['model']}: 87.5 % pruned at 3:1, and experts added to each mask", len(panels))
    for number, (title, group, figure, scale) in enumerate(panels):
        axes = _axes(sheet, number, title)
        start = scale * found["start"][group][figure]
        for n, name in enumerate(names):
            doses = found["cures"][name]
            axes.plot(
                [0, *(each["added"] for each in doses)],
                [start, *(scale * each[group][figure] for each in doses)],
                color=series(n), marker="o", markersize=4, linewidth=1.6,
            )  # fmt: skip
        axes.axhline(0, color=colour("line"), linewidth=1)
        axes.set_xlabel("experts added to a mask", color=colour("soft"))
    _legend(sheet, names)
    return sheet


def ratios(study: Mapping[str, Any]) -> Sheet:
    """Return the curves of the automatic ratio at each budget."""
    sheet = _sheet(f"{study['model']}: loss on held-out text by encoder share", 1)
    axes = _axes(sheet, 0, "Change of token loss, nats")
    names = []
    for name, each in study["plans"].items():
        budget, plan = name.split(" ", 1)
        if plan != "auto ratio":
            continue
        curve = each["ratio_search"]["curve"]
        points = [
            (point["experts"]["encoder"] / sum(point["experts"].values()), point["loss_change"]) for point in curve
        ]
        axes.plot(*zip(*points, strict=True), color=series(len(names)), marker="o", markersize=4, linewidth=1.6)
        names.append(f"{budget} pruned")
    axes.axvline(0.75, color=colour("line"), linewidth=1)
    axes.set_xlabel("share of the kept experts in the encoder (3:1 is .75)", color=colour("soft"))
    axes.set_ylim(bottom=0)
    _legend(sheet, names)
    return sheet


def save(study: Mapping[str, Any], folder: Path) -> None:
    """Write all pictures."""
    for name, draw in (("quality", quality), ("cures", cures), ("ratios", ratios)):
        draw(study).save(folder / f"{study['model']}-{name}.png")


def _sheet(title: str, panels: int) -> Sheet:
    sheet = Sheet(max(560, _LEFT + panels * (_WIDTH + _GAP)), _TOP + _HEIGHT + 150)
    sheet.text(24, 18, title, size=17, weight="bold")
    return sheet


def _axes(sheet: Sheet, number: int, title: str) -> Any:
    left = _LEFT + number * (_WIDTH + _GAP)
    sheet.text(left, _TOP - 30, title, size=13, weight="bold")
    axes = sheet.axes(left, _TOP, _WIDTH, _HEIGHT)
    axes.grid(axis="y", color=colour("line"), linewidth=0.6)
    return axes


def _legend(sheet: Sheet, names: Sequence[str]) -> None:
    columns = int((sheet.width - 24) // _COLUMN)
    for n, name in enumerate(names):
        left, top = 24 + _COLUMN * (n % columns), _TOP + _HEIGHT + 56 + 22 * (n // columns)
        sheet.axes(left, top + 2, 12, 12).set(facecolor=series(n), xticks=[], yticks=[])
        sheet.text(left + 20, top, name, role="soft")
