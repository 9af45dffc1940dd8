"""Lengths by script: how `NORMS` of `nllb_prune/evaluation/detectors/length.py` was made, and what it is worth.

`python -m eval.detectors.length_norms DIR`, where DIR has MASSIVE as `index.tsv` and one `CODE.txt` a language.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from nllb_prune.evaluation.detectors.length import ADDED
from nllb_prune.evaluation.scores.writing import visible

PAIRS = 100_000


def lengths(folder: Path, partition: str) -> dict[str, np.ndarray]:
    """Return the characters of the literal lines of a partition, by language."""
    rows = [line.split("\t") for line in (folder / "index.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    wanted = [n for n, row in enumerate(rows) if row[1] == partition and row[5] == "1"]
    found = {}
    for path in sorted(folder.glob("*_*.txt")):
        lines = path.read_text(encoding="utf-8").splitlines()
        found[path.stem] = np.array([len(visible(lines[n])) for n in wanted], np.float64)
    return found


def norms(counts: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the geometric mean over the languages of a script of characters / characters of English."""
    logs: dict[str, list[float]] = {}
    for code, each in counts.items():
        logs.setdefault(code.partition("_")[2], []).append(np.log(each.sum() / counts["eng_Latn"].sum()))
    return {script: round(float(np.exp(np.mean(each))), 2) for script, each in sorted(logs.items())}


def beyond(counts: dict[str, np.ndarray], by_script: dict[str, float], *, added: int, factor: float) -> float:
    """Return the share of random pairs of lines longer than expected by the factor or more."""
    random, codes, over = np.random.default_rng(0), sorted(counts), 0
    for _ in range(PAIRS):
        source, target = (codes[n] for n in random.choice(len(codes), 2, replace=False))
        line = random.integers(len(counts[source]))
        norm = by_script[target.partition("_")[2]] / by_script[source.partition("_")[2]]
        over += counts[target][line] + added >= factor * (counts[source][line] * norm + added)
    return over / PAIRS


def main() -> None:
    """Print the norms, and the false alarms with them."""
    folder = Path(sys.argv[1])
    by_script, test = norms(lengths(folder, "train")), lengths(folder, "test")
    print(by_script)
    for added in (0, ADDED):
        print(
            f"added {added}: {beyond(test, by_script, added=added, factor=2.0):.2%} twice as long as expected or more"
        )


if __name__ == "__main__":
    main()
