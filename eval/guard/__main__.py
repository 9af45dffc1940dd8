"""The study in one command: `python -m eval.guard --work DIR [--model NAME_OR_FOLDER ...]`.

It calibrates, plans, cures and scores each model, less than an hour on a core each, and writes `results-MODEL.json`,
the pictures and `RESULTS.md` beside this file. How the second model is trained is in `mini-unmasked/README.md`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from . import plots, tables
from .study import study

HERE = Path(__file__).parent


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="keeps what is finished")
    parser.add_argument("--model", nargs="+", default=["mini", str(HERE / "mini-unmasked")])
    parser.add_argument("--sentences", type=int, default=200, help="scored in each direction (default: 200)")
    parser.add_argument("--output", type=Path, default=HERE)
    options = parser.parse_args()
    studies: list[dict[str, Any]] = []
    for model in options.model:
        found = study(model, options.work / Path(model).name, sentences=options.sentences)
        path = options.output / f"results-{found['model']}.json"
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        plots.save(found, options.output)
        studies.append(found)
    (options.output / "RESULTS.md").write_text(tables.results(studies), encoding="utf-8")


if __name__ == "__main__":
    main()
