"""Colours of the page and its figures, light and dark: one table, from which the style sheet and the figures come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nllb_prune.evaluation.summary.summary import Summary

DENSE = "dense"
"""What `evaluate` calls a model without experts that is scored beside the others."""

Ramp = tuple[str, ...]

# Name: colour in the light and in the dark scheme. Light colours are unique, as figures are drawn in them and then
# refer to the names.
_ROLES = {
    "paper": ("#ffffff", "#15181c"),
    "ink": ("#1b1f24", "#e7eaee"),
    "soft": ("#5d6875", "#9ba6b3"),
    "line": ("#e2e6eb", "#2d333b"),
    "strong": ("#fdfeff", "#0d1013"),
    "good": ("#177245", "#4cc38a"),
    "fair": ("#8f6200", "#e3b341"),
    "bad": ("#b92d1b", "#ff8d7a"),
    "loss": ("#d9752e", "#e0813f"),
    "gain": ("#3b83c7", "#4a93d6"),
}
_BASELINE, _DENSE = ("#39434f", "#cdd5de"), ("#8a939e", "#868f9a")
# Neighbours differ in lightness as well as in hue, for readers who see few hues.
_SERIES = (
    ("#1f6fd1", "#5aa2f5"),
    ("#e08a1e", "#f0a94b"),
    ("#0c7f66", "#3cbf9f"),
    ("#c9568f", "#e989b6"),
    ("#6a4fb3", "#a48df0"),
    ("#58a4c9", "#8fd0ec"),
    ("#a3431f", "#e0805a"),
    ("#7f9b2f", "#b4cf62"),
    ("#8c6d46", "#c2a37a"),
    ("#2b4c8c", "#7f9fe0"),
)

SEQUENTIAL: tuple[Ramp, Ramp] = (
    ("#f3f6fa", "#c9dcf0", "#86b3de", "#3f7fc1", "#1c4f93", "#0a2a5c"),
    ("#1b2027", "#17395c", "#225f97", "#4a90cc", "#93c4ec", "#e6f2fd"),
)
"""From nothing to the most, in the light and in the dark scheme: one hue by lightness, safe for colour-blind eyes."""
DIVERGING: tuple[Ramp, Ramp] = (
    ("#8a2c06", "#d9752f", "#f6c9a0", "#f5f6f7", "#a9cdee", "#3b83c6", "#0c4685"),
    ("#ffc79f", "#e0813f", "#70402a", "#1d2228", "#1f4a70", "#4a93d6", "#b5dbfb"),
)
"""Orange for losses, blue for gains, the page's own tone between them."""


def colour(role: str) -> str:
    """Return the light colour of a role; `on_page` makes it follow the scheme of the reader."""
    return _ROLES[role][0]


def series(n: int) -> str:
    """Return the (light) colour of the n-th of several things that stand side by side."""
    return _SERIES[n % len(_SERIES)][0]


def configuration_colours(summary: Summary) -> dict[str, str]:
    """Return the one (light) colour that each configuration has in every figure and table."""
    fixed = {DENSE: _DENSE[0], summary.baseline: _BASELINE[0]}
    others = [c.name for c in summary.configurations if c.name not in fixed]
    return fixed | {name: series(n) for n, name in enumerate(others)}


def on_page(text: str) -> str:
    """Replace light colours by the variables of the style sheet."""
    for name, (light, _) in _variables().items():
        text = text.replace(light, f"var(--{name})")
    return text


def style_variables() -> tuple[str, str]:
    """Return the declarations of the variables for the light and for the dark scheme."""
    light, dark = (
        [f"--{name}:{pair[scheme]}" for name, pair in _variables().items()]
        + [f"--sequential:{_gradient(SEQUENTIAL[scheme])}", f"--diverging:{_gradient(DIVERGING[scheme])}"]
        for scheme in (0, 1)
    )
    return ";".join(light), ";".join(dark)


def _variables() -> Mapping[str, tuple[str, str]]:
    series = {f"series-{n}": pair for n, pair in enumerate(_SERIES)}
    return {**_ROLES, "baseline": _BASELINE, "dense": _DENSE, **series}


def _gradient(stops: Iterable[str]) -> str:
    return f"linear-gradient(to right,{','.join(stops)})"
