"""Scores and p-values against the command line of sacrebleu, on files."""

import os
import random
import re
import subprocess
import sys

import pytest

from nllb_prune.corpus import ParallelText
from nllb_prune.evaluation.scores.metrics import score
from nllb_prune.evaluation.significance.bootstrap import paired_bootstrap
from nllb_prune.evaluation.significance.randomisation import paired_randomisation
from nllb_prune.model.source import embedded_text

# A cell of its table: score, mean and half the interval (of the bootstrap), then on the next line the p-value.
_CELL = re.compile(r"(\d+\.\d+)(?: \((\d+\.\d+) ± (\d+\.\d+)\))?\s*$")
_P_VALUE = re.compile(r"\(p = (\d\.\d+)\)\*?")


def outputs(lines, *, kept, seed):
    generator = random.Random(seed)
    return [" ".join(word for word in line.split() if generator.random() < kept) for line in lines]


def command_line(folder, *options):
    """Return the rows of the table that sacrebleu prints: cells by line and column."""
    environment = {name: value for name, value in os.environ.items() if name != "SACREBLEU_SEED"}
    command = [sys.executable, "-m", "sacrebleu", "reference", "-i", "baseline", "system", "-m", "chrf", "bleu"]
    settings = ["--chrf-word-order", "2", "--width", "4", "-f", "text", *options]
    printed = subprocess.run(
        [*command, *settings], cwd=folder, env=environment, check=True, capture_output=True, text=True
    ).stdout
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in printed.splitlines() if line[:1] == "│"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with references and two systems, and their texts."""
    folder = tmp_path_factory.mktemp("sacrebleu")
    references = list(ParallelText.open(embedded_text(), "test").head(80).lines("deu_Latn"))
    texts = {
        "reference": references,
        "baseline": outputs(references, kept=0.8, seed=1),
        "system": outputs(references, kept=0.77, seed=2),
    }
    for name, lines in texts.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder, texts


@pytest.fixture(scope="module")
def scored(files):
    _, texts = files
    return {name: score(texts[name], texts["reference"], target="deu_Latn") for name in ("system", "baseline")}


def test_paired_bootstrap(files, scored):
    folder, _ = files
    _, baseline, system, p_values = command_line(folder, "--paired-bs")
    for column, metric in ((1, "chrf"), (2, "bleu")):
        found = paired_bootstrap(*(scored[name][metric].statistics for name in ("system", "baseline")), metric=metric)
        for cells, estimate in ((baseline, found.baseline), (system, found.system)):
            value, mean, interval = map(float, _CELL.search(cells[column]).groups())
            assert estimate.value == pytest.approx(value, abs=6e-5)
            assert (estimate.mean, estimate.interval) == pytest.approx((mean, interval), abs=2e-4)  # theirs: float32
        p_value = float(_P_VALUE.search(p_values[column])[1])
        assert found.p_value == pytest.approx(p_value, abs=6e-5)
        assert 0.001 < p_value < 1


def test_paired_approximate_randomisation(files, scored):
    folder, _ = files
    _, baseline, system, p_values = command_line(folder, "--paired-ar")
    for column, metric in ((1, "chrf"), (2, "bleu")):
        pair = [scored[name][metric] for name in ("system", "baseline")]
        for cells, found in zip((system, baseline), pair, strict=True):
            assert found.value == pytest.approx(float(_CELL.search(cells[column])[1]), abs=6e-5)
        tested = paired_randomisation(*(each.statistics for each in pair), metric=metric)
        p_value = float(_P_VALUE.search(p_values[column])[1])
        assert tested.p_value == pytest.approx(p_value, abs=6e-5)
        assert 0.0005 < p_value < 1
