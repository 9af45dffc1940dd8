"""The text of `mini`: aligned lines by language, with the partition that MASSIVE gives them.

A folder of text holds one file a language (`eng_Latn.txt`, line n the same request in each) and
`index.tsv` (`id partition scenario intent slots literal`, a header and one row a line).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PARTITIONS = ("train", "dev", "test")
_FINAL_MARKS = (".", "?", "!")
_LOCAL_MARKS = {
    "zho_Hans": {".": "。"},
    "hin_Deva": {".": "।"},
    "arb_Arab": {"?": "؟"},
}


@dataclass(frozen=True, slots=True)
class AlignedText:
    """Aligned lines: `lines[language][partition][n]` is the same request in every language."""

    lines: dict[str, dict[str, list[str]]]

    def size(self, partition: str) -> int:
        """Return the number of lines of a partition."""
        return len(next(iter(self.lines.values()))[partition])


def local_mark(mark: str, language: str) -> str:
    """Return how `language` writes the final punctuation `mark`, one of `.`, `?` and `!`."""
    return _LOCAL_MARKS.get(language, {}).get(mark, mark)


def final_marks(language: str) -> tuple[str, ...]:
    """Return the final punctuation marks of a language: full stop, question, exclamation."""
    return tuple(local_mark(mark, language) for mark in _FINAL_MARKS)


def capitalised(line: str, language: str) -> str:
    """Return the line with a capital first letter; Turkish `i` has a capital of its own."""
    first = "İ" if language == "tur_Latn" and line[:1] == "i" else line[:1].upper()
    return first + line[1:]


def read_text(folder: Path, languages: Sequence[str]) -> AlignedText:
    """Read the folder, keep `literal` dev and test lines, drop what leaks and what repeats.

    A dev or test line is dropped if it occurs in train, or earlier in test or dev, in *any* of
    the languages: a request that is new in English may still be known in Swahili.
    """
    with (folder / "index.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    columns = {
        code: (folder / f"{code}.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n") for code in languages
    }
    for code, column in columns.items():
        if len(column) != len(rows):
            raise ValueError(f"`{code}.txt` must have {len(rows)} lines, but has {len(column)} instead.")

    members: dict[str, list[int]] = {}
    members["train"] = [n for n, row in enumerate(rows) if row["partition"] == "train"]
    seen = {code: {columns[code][n] for n in members["train"]} for code in languages}
    for partition in ("test", "dev"):
        members[partition] = []
        for n, row in enumerate(rows):
            if row["partition"] != partition or row["literal"] != "1":
                continue
            known = any(columns[code][n] in seen[code] for code in languages)
            for code in languages:
                seen[code].add(columns[code][n])
            if not known:
                members[partition].append(n)
    return AlignedText(
        {
            code: {partition: [columns[code][n] for n in members[partition]] for partition in PARTITIONS}
            for code in languages
        }
    )


def write_flores_layout(text: AlignedText, folder: Path, partitions: Sequence[str]) -> None:
    """Write partitions as `folder/<partition>/<language>.<partition>`, the layout of FLORES-200."""
    for partition in partitions:
        (folder / partition).mkdir(parents=True, exist_ok=True)
        for code, parts in text.lines.items():
            path = folder / partition / f"{code}.{partition}"
            path.write_text("\n".join(parts[partition]) + "\n", encoding="utf-8")
