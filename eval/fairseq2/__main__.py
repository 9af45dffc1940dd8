"""The study in one command: `python -m eval.fairseq2`, in an environment with fairseq2, 20 minutes on a core.

It writes `results.json` and `RESULTS.md` beside this file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eval.fairseq2 import beams, greedy, scores, states, statistics, tables

HERE = Path(__file__).parent
PACKAGES = ("fairseq2", "torch", "transformers")
PARTS: dict[str, Callable[[Path, argparse.Namespace], Any]] = {
    "states": lambda work, options: states.study(work, sentences=options.sentences),
    "greedy": lambda work, options: greedy.study(work, sentences=options.sentences),
    "beams": lambda _, options: beams.study(sentences=options.searched),
    "statistics": lambda work, options: statistics.study(work, lines=options.lines),
    "scores": lambda work, options: scores.study(work, sentences=options.sentences),
}


def main() -> None:
    """Run the parts asked for; the figures of others stay as they are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--sentences", type=int, default=20, help="of each of 90 directions (default: 20)")
    parser.add_argument("--searched", type=int, default=100, help="with beams, of each direction (default: 100)")
    parser.add_argument("--lines", type=int, help="of the dev text, to calibrate on (default: all)")
    parser.add_argument("--output", type=Path, default=HERE)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for part in options.parts:
        with tempfile.TemporaryDirectory() as work:
            results[part] = PARTS[part](Path(work), options)
        results["versions"] = {name: version(name) for name in PACKAGES}
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (options.output / "RESULTS.md").write_text(tables.results(results), encoding="utf-8")


if __name__ == "__main__":
    main()
