"""How good the detectors are: `python -m eval.detectors.study` writes `eval/detectors/RESULTS.md` in a minute.

`--massive DIR` adds the comparison of identifiers, see `eval/detectors/identifiers.py`.
"""

from __future__ import annotations

import argparse
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from eval.detectors.identifiers import CODES as IDENTIFIED
from eval.detectors.identifiers import measured
from eval.detectors.sample import CODES, Line, as_outputs, halves, references, translated, values
from nllb_prune.evaluation.detectors import (
    DETACHED,
    OFF_TARGET,
    Detector,
    can_run,
    flags,
    threshold_at,
    usual_detectors,
)
from nllb_prune.evaluation.detectors.annotated import Annotated
from nllb_prune.evaluation.detectors.identification import Py3LangId
from nllb_prune.evaluation.detectors.judgement import judge

ROOT = Path(__file__).parents[2]
CASES = ROOT / "tests" / "evaluation" / "detectors" / "cases.tsv"
RESULTS = Path(__file__).parent / "RESULTS.md"
# Languages of the same script as a target that the cases of a wrong language are in, beside those of `mini`.
MORE = ("jpn_Jpan", "mar_Deva", "pes_Arab", "ukr_Cyrl")
TRIES = 36_000
SHIFT = 40  # lines to the next one of the same target that an unrelated line is taken from


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def wrapped(note: str) -> str:
    """Break into lines of the usual length."""
    return textwrap.fill(" ".join(note.split()), 118) + "\n\n" if note else ""


def percent(share: float) -> str:
    """Show a share; nothing if there is none."""
    return "" if np.isnan(share) else f"{100 * share:.1f}"


def rate(detector: Detector, found: np.ndarray) -> str:
    """Return the share flagged of those counted."""
    counted = int((~np.isnan(found)).sum())
    return percent(flags(detector, found).sum() / counted) if counted else ""


def recall_on_cases() -> str:
    """Return the share flagged of each kind of the hand-made cases, by detector."""
    annotated = Annotated.read(CASES)
    detectors = usual_detectors(identifier=Py3LangId(), languages=(*CODES, *MORE))
    kinds = annotated.kinds("label")
    found = judge(detectors, annotated.values(detectors), {"label": kinds})
    names = sorted(set(kinds) - {""})
    good = np.array([not kind for kind in kinds])
    flagged = {
        each.name: flags(each, v) for each in detectors if (v := annotated.values([each]).get(each.name)) is not None
    }
    flagged["any"] = np.logical_or.reduce(list(flagged.values()))
    rows = [
        [
            name,
            *(percent(each.kinds[kind]) for kind in names),
            percent(float(flagged[name][good].mean())),
            f"{each.auc:.3f}",
        ]
        for name, each in found.labels["label"].items()
    ]
    head = ["detector", *(f"{kind} ({kinds.count(kind)})" for kind in names), f"good ({good.sum()})", "ROC AUC"]
    return table(head, rows)


def false_alarms(detectors: Sequence[Detector], lines: Sequence[Line]) -> str:
    """Return the raw rates on references and on the full model's outputs, in both halves."""
    first, second = halves(lines)
    rows = []
    for detector in detectors:
        cells = [detector.name, f"{detector.threshold:g}"]
        for output, known in ((reference, False), (reference, True), (own, False), (own, True)):
            cells += [rate(detector, values(detector, half, output, references=known)) for half in (first, second)]
        rows.append(cells)
    head = ["references", "references, themselves given", "outputs", "outputs, references given"]
    return table(["detector", "threshold", *(f"{name}, {half} half" for name in head for half in ("1st", "2nd"))], rows)


def calibrated(detectors: Sequence[Detector], lines: Sequence[Line]) -> str:
    """Return the thresholds that the first half of the outputs gives, the rate on the second, and recall there."""
    first, second = halves(lines)
    rows = []
    for detector in detectors:
        good = values(detector, first, own)
        if set(np.unique(good[~np.isnan(good)])) <= {0.0, 1.0}:  # nothing to choose
            continue
        chosen = Detector(detector.measure, threshold_at(good, rate=0.01))
        cells = [detector.name, f"{chosen.threshold:.3g}", rate(chosen, values(detector, second, own))]
        for each in (detector, chosen):
            cells += [rate(each, values(each, second, fault)) for fault in FAULTS.values()]
        rows.append(cells)
    faults = [f"{name}, {which}" for which in ("usual", "1 %") for name in FAULTS]
    return table(["detector", "threshold at 1 %", "2nd half", *faults], rows)


def reference(line: Line) -> str:
    """Return the reference as an output."""
    return line.reference


def own(line: Line) -> str:
    """Return the model's output."""
    return line.output


def doubled(line: Line) -> str:
    """Return the reference twice."""
    return " ".join([line.reference] * 2) if " " in line.reference else line.reference * 2


def cut(line: Line) -> str:
    """Return the first quarter of the reference's characters, one at least."""
    return line.reference[: max(1, len(line.reference) // 4)].strip()


def looping(line: Line) -> str:
    """Return the reference and then its end six times more."""
    words = line.reference.split()
    return line.reference + line.reference[-4:] * 6 if len(words) == 1 else " ".join([*words, *(words[-2:] * 6)])


def copied(line: Line) -> str:
    """Return the source."""
    return line.text


FAULTS: dict[str, Callable[[Line], str]] = {
    "doubled": doubled,
    "first quarter": cut,
    "looping end": looping,
    "source copied": copied,
}


def detachment(detectors: Sequence[Detector], lines: Sequence[Line]) -> str:
    """Return how often beam search's outputs and unrelated lines are far from the reference and the greedy output."""
    detector = next(each for each in detectors if each.name == DETACHED)
    beam = translated(lines, beams=4)
    unrelated = [lines[(n + SHIFT) % len(lines)].reference for n in range(len(lines))]
    rows = []
    for limit in (5, 10, 15, 20):
        at = Detector(detector.measure, 100.0 - limit)
        cells = [str(limit)]
        for texts in ([line.output for line in beam], unrelated):
            by_text = dict(zip(map(id, lines), texts, strict=True))
            for full in (False, True):
                cells.append(rate(at, values(detector, lines, lambda line: by_text[id(line)], full=full)))  # noqa: B023
        rows.append(cells)
    head = ["outputs of beam 4, reference", "and greedy output", "unrelated lines, reference", "and greedy output"]
    return table(["chrF2 up to", *head], rows)


def identification(detector: Detector, lines: Sequence[Line]) -> str:
    """Return false alarms and recall of off-target by identification, at the usual threshold and at 2 % of one half."""
    first, second = halves(lines)
    at = threshold_at(values(detector, first, reference), rate=0.02)
    text = {(line.text, line.source) for line in second}
    others = sorted({(sentence, target) for sentence, code in text for target in CODES if target != code})
    wrong = np.concatenate(
        [detector.measure.text_values([s for s, t in others if t == code], code) for code in CODES]  # type: ignore[attr-defined]
    )
    rows = []
    for name, threshold in (("usual", detector.threshold), ("2 % of the 1st half", at)):
        chosen = Detector(detector.measure, threshold)
        alarms = [rate(chosen, values(detector, half, reference)) for half in (first, second)]
        outputs = rate(chosen, values(detector, second, own))
        rows.append([name, f"{threshold:.3g}", *alarms, outputs, rate(chosen, wrong)])
    head = ["threshold", "value", "references, 1st half", "references, 2nd half", "outputs, 2nd half"]
    return table([*head, f"recall on {len(wrong):,} lines in another language of `mini`"], rows)


def speed(detectors: Sequence[Detector], lines: Sequence[Line]) -> str:
    """Return milliseconds a sentence, with references, in one direction of many lines as runs have them."""
    rows, total = [], 0.0
    outputs = [as_outputs([line for line in lines if line.target == code] * 2, own, references=True) for code in CODES]
    for detector in detectors:
        start = time.perf_counter()
        for each in outputs:
            if can_run(detector, each):
                detector.values(each)
        milliseconds = (time.perf_counter() - start) / sum(len(each.sources) for each in outputs) * 1000
        total += milliseconds
        rows.append([detector.name, f"{milliseconds:.4f}"])
    rows.append(["all", f"{total:.4f}"])
    return table(["detector", "ms a sentence"], rows) + f"\n{TRIES:,} sentences: {total * TRIES / 1000:.1f} s.\n"


def main() -> None:
    """Measure, write the results and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--massive", type=Path, metavar="DIR")
    options = parser.parse_args()
    detectors = usual_detectors(identifier=Py3LangId(), languages=CODES)
    lines = translated(references())
    off_target = next(each for each in detectors if each.name == OFF_TARGET)
    parts = {
        "Known cases": recall_on_cases(),
        "False alarms": false_alarms(detectors, lines),
        "Thresholds from outputs, and faults made of references": calibrated(detectors, lines),
        "Detached": detachment(detectors, lines),
        "Identification": identification(off_target, lines),
        "Speed": speed(detectors, lines),
        "Signatures": "\n".join(f"- `{each.signature}`" for each in detectors) + "\n",
    }
    if options.massive is not None:
        header = ["identifier", *(code.partition("_")[0] for code in IDENTIFIED), "mean", "ms a line"]
        parts["Identifiers, percent wrong on MASSIVE's test lines"] = table(header, measured(options.massive))
    text = "# Detectors\n\nMade by `python -m eval.detectors.study --massive DIR`.\n\n" + "\n".join(
        f"## {name}\n\n{wrapped(NOTES[name])}{part}" for name, part in parts.items()
    )
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


NOTES = {
    "Known cases": """Percent flagged of each kind of the hand-made cases in `tests/evaluation/detectors/cases.tsv`
        (ten target languages) with the usual thresholds; a detector that cannot tell has not flagged. Identification is
        among the ten languages of `mini` and the four others that the cases are in. ROC AUC is of good against all
        faults together, so it says how much a detector does alone.""",
    "False alarms": """Raw percent flagged with the usual thresholds, nothing subtracted: on 1,000 references of
        `mini`'s test text taken as outputs, in 90 directions, and on the full model's greedy outputs for the same
        sentences. Halves are 500 each. Thresholds of repetition, short and unlikely outputs were set with dev text and
        this test text in view, so neither half is unseen for them; dev text alone gives nearly the same (at 1 %: short
        2.2, unlikely 1.9). `mini` is a small model, and outputs that are flagged need not be false alarms: 22 of the
        24 read of those flagged as short at a threshold of 2 had lost part of the source. With the reference alone,
        `detached` says how good a model is, not how often it hallucinates.""",
    "Thresholds from outputs, and faults made of references": """The lowest threshold that flags at most 1 % of the
        first half of the outputs, and what it flags of the second; then percent flagged of references of the second
        half that were made faulty, with the usual thresholds and with those.""",
    "Detached": """Percent flagged by how low chrF2 must be: outputs of beam search, of which little should be, and
        references of other lines of the same target, of which all should be. On short requests chrF2 of unrelated lines
        is often above 10: the detector misses what a model of meaning would see.""",
    "Identification": "Restricted to the ten languages of `mini`.",
    "Speed": """One core, with references and without the full model's outputs, with which `detached` takes twice as
        long.""",
    "Signatures": "",
    "Identifiers, percent wrong on MASSIVE's test lines": """2,474 lines a language. Restricted: only the ten languages
        can win.""",
}

if __name__ == "__main__":
    main()
