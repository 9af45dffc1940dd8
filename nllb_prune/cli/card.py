"""`nllb-prune card`: the asset card by which fairseq2 finds a model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HELP = "write the asset card by which fairseq2 loads a model by name"
EXAMPLE = "nllb-prune card nllb-eng-deu --name nllb-eng-deu --output ~/.config/fairseq2/assets/nllb-eng-deu.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument("model", metavar="MODEL", help="`mini` (embedded), or a folder: whole, dense, or an export")
    parser.add_argument("--name", help="what fairseq2 is to call it (default: the folder's name)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="(default: standard output)")


def run(options: argparse.Namespace) -> None:
    """Describe the model and write its card."""
    from nllb_prune._files import write_text
    from nllb_prune.on_fairseq2.card import TOKENIZER, card_of, card_text

    card = card_of(options.model, name=options.name)
    if TOKENIZER not in card:
        print(
            "The card names no tokenizer: the folder has none of sentencepiece's, as with a trimmed vocabulary.",
            file=sys.stderr,
        )
    if options.output is None:
        sys.stdout.write(card_text(card))
        return
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.output, card_text(card))
    print(f"{options.output}: {card['name']}")
