"""The whole recipe in one command: text -> tokenizer -> training -> `mini` and `mini-dense` with their cards.

`python -m eval.mini --text DIR --work DIR --output DIR`, in an environment with transformers 4.57 (for the tokenizer
files) and the extra `train`. It takes hours on two cores; a killed run continues.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tomllib
from pathlib import Path

from .card import write_card
from .text import read_text, write_flores_layout
from .tokenizer import RECIPE


def _step(module: str, *arguments: str | Path) -> None:
    print(f"== eval.mini.{module}", flush=True)
    subprocess.run([sys.executable, "-m", f"eval.mini.{module}", *map(str, arguments)], check=True)


def main() -> None:
    """Run the steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True, help="files `CODE.txt` and `index.tsv`")
    parser.add_argument("--work", type=Path, required=True, help="tokenizer and checkpoints")
    parser.add_argument("--output", type=Path, required=True, help="gets `mini` and `mini-dense`")
    options = parser.parse_args()
    recipe = tomllib.loads(RECIPE.read_text(encoding="utf-8"))
    tokenizer = options.work / "tokenizer"
    if not (tokenizer / "tokenizer.json").exists():
        _step("tokenizer", "--text", options.text, "--output", tokenizer)
    for name, dense in (("mini", ()), ("mini-dense", ("--dense",))):
        phases = [options.work / name / f"phase-{n}" for n, _ in enumerate(recipe["phases"], 1)]
        initial: tuple[str | Path, ...] = ()
        for number, trained in enumerate(phases, 1):
            exported = trained / "exported" if trained != phases[-1] else options.output / name
            if not (trained / "final.pt").exists():
                inputs = ("--text", options.text, "--tokenizer", tokenizer, *initial)
                _step("train", *inputs, "--output", trained, "--phase", str(number), *dense)
            written = ("--output", exported, "--phase", str(number))
            _step("export", "--trained", trained, "--tokenizer", tokenizer, *written, *dense)
            initial = ("--initial", exported)
        write_flores_layout(
            read_text(options.text, recipe["languages"]), options.output / "mini" / "text", ("dev", "test")
        )
        write_card(options.output / name, phases, dense=bool(dense))


if __name__ == "__main__":
    main()
