"""The console script: one file a verb; a verb's own imports wait until it runs, so `--help` is quick."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Sequence

from nllb_prune._version import __version__
from nllb_prune.cli._options import add_debug
from nllb_prune.errors import UsageError

_CONTINUE = ("demo", "calibrate", "evaluate", "export")
VERBS = (
    "demo",
    "calibrate",
    "plan",
    "evaluate",
    "report",
    "export",
    "card",
    "translate",
    "serve",
    "keys",
    "inspect",
    "masks",
    "stats",
)

_DESCRIPTION = """\
Keep, for each language, only the experts that a multilingual mixture-of-experts
translation model needs for it.

  calibrate  text -> statistics     evaluate  masks -> scores
  plan       statistics -> masks    report    scores -> one HTML page
  export     masks -> a smaller checkpoint
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser with every verb."""
    top = argparse.ArgumentParser(
        prog="nllb-prune", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("--version", action="version", version=f"nllb-prune {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name in VERBS:
        module = importlib.import_module(f"nllb_prune.cli.{name}")
        verb = verbs.add_parser(
            name,
            help=module.HELP,
            description=module.HELP[0].upper() + module.HELP[1:] + ".",
            epilog=f"example:\n  {module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(verb)
        add_debug(verb)
        verb.set_defaults(run=module.run)
    return top


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse, and let sentences stand behind options too, which argparse allows only from 3.12 on."""
    top = parser()
    options, rest = top.parse_known_args(arguments)
    if rest and (not hasattr(options, "texts") or any(argument.startswith("-") for argument in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.texts = [*options.texts, *rest]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 is success, 1 a wrong input, 2 a wrong usage."""
    options = _parse(arguments)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    usual, warnings.formatwarning = (
        warnings.formatwarning,
        lambda message, *_: f"nllb-prune {options.verb}: {message}\n",
    )
    try:
        options.run(options)
    except (UsageError, OSError) as error:
        if options.debug:
            raise
        print(f"nllb-prune {options.verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        how = "; the same command continues where it stopped" if options.verb in _CONTINUE else ""
        print(f"nllb-prune {options.verb}: interrupted{how}.", file=sys.stderr)
        return 130
    finally:
        warnings.formatwarning = usual
    return 0
