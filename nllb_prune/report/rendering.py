"""The templates of pages, and what all of them are given."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from nllb_prune._version import __version__
from nllb_prune.report.theme import on_page, style_variables


def render_template(name: str, **values: Any) -> str:
    """Return a page; equal values give equal text."""
    light, dark = style_variables()
    return (
        _environment()
        .get_template(name)
        .render(
            **values,
            light=Markup(light),
            dark=Markup(dark),
            tool=f"nllb-prune {__version__}",
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(_text)
    )
    environment.globals |= {"asset": _asset, "svg": Markup, "variable": _variable}
    return environment


def _text(name: str) -> str:
    return files("nllb_prune.report").joinpath("templates", name).read_text(encoding="utf-8")


def _asset(name: str) -> Markup:
    """Return a style sheet or a script as it is."""
    return Markup(_text(name).strip())


def _variable(colour: str) -> Markup:
    """Return a light colour as the variable of the style sheet that follows the scheme."""
    return Markup(on_page(colour))
