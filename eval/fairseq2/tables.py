"""`RESULTS.md` from the figures."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from eval.fairseq2.common import NEAR

Figures = Mapping[str, Any]
COUNTS = ("first", "second", "rank")
SUMMED = ("every group", "own outputs", "within masks", "core", "core, fused attention")


def results(found: Figures) -> str:
    """Return the page."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    about = f"""Made by `python -m eval.fairseq2` ({versions}; float32, on a CPU); what they mean is in
        [README.md](README.md). Ours is what `nllb_prune.load_model` gives, theirs the same weights as fairseq2 loads
        them."""
    written = {"states": _states, "greedy": _greedy, "beams": _beams, "statistics": _statistics, "scores": _scores}
    parts = [write(found[name]) for name, write in written.items() if name in found]
    return "\n".join(
        ["# fairseq2's models against transformers': all figures\n", _wrapped(about).rstrip() + "\n", *parts]
    )


def _wrapped(note: str) -> str:
    """Break into lines of the usual length."""
    return textwrap.fill(" ".join(note.split()), 118, break_long_words=False, break_on_hyphens=False) + "\n\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def _section(title: str, about: str, rows: Sequence[Mapping[str, object]]) -> str:
    """Return a section of one table, whose rows are by the names of its columns."""
    return f"## {title}\n\n" + _wrapped(about) + _table(list(rows[0]), [list(row.values()) for row in rows])


def _states(found: Sequence[Figures]) -> str:
    about = """Output of encoders and logits on test sentences and their translations, without padding: how many
        numbers, and the largest difference; of how many it is beyond 1e-5. The verbs' attention takes the steps of
        transformers; the fused one is that of fairseq2's own `load_model`."""
    rows = [
        {
            "model": each["model"],
            "directions": each["directions"],
            "states": f"{each['numbers']['memory']:,}",
            "logits": f"{each['numbers']['logits']:,}",
            "states, the verbs'": _apart(each["attention"]["the verbs'"]["memory"]),
            "logits, the verbs'": _apart(each["attention"]["the verbs'"]["logits"]),
            "states, fused": _apart(each["attention"]["fused"]["memory"]),
            "logits, fused": _apart(each["attention"]["fused"]["logits"]),
            "beyond, fused": each["attention"]["fused"]["beyond"],
        }
        for each in found
    ]
    return _section("States", about, rows)


def _apart(value: float) -> str:
    return f"{value:.2e}" if value else "0"


def _greedy(found: Sequence[Figures]) -> str:
    about = f"""Sentences whose tokens, to the end or the limit, are the same; the others, and those of them where the
        first two tokens that differ are within {NEAR:g} in log-probability; the largest difference of a translation's
        log-probability where tokens are the same; translations that the limit ended."""
    rows = [
        {
            "model": each["model"],
            "directions": each["directions"],
            "sentences": f"{each['sentences']:,}",
            "same": f"{each['same']:,}",
            "others": each["sentences"] - each["same"],
            "near ties": each["near ties"],
            "log-probability": f"{each['log-probability']:.1e}",
            "ended by the limit": each["cut"],
        }
        for each in found
    ]
    return _section("Greedy", about, rows)


def _beams(found: Figures) -> str:
    count, directions = found["sentences"], found["directions"]
    language, scores, apart = found["language token"], found["scores"], found["where they differ"]
    about = f"""{count:,} sentences, {count // directions} in each of {directions} directions. `fairseq2` is its
        `TextTranslator` with `BeamSearchSeq2SeqGenerator` on what its `load_model("nllb-prune-mini")` gives. Of its
        {scores["hypotheses"]:,} hypotheses the score is the sum of what our model gives the language token, the words
        and `</s>`, over their number, to {scores["largest difference"]:.1e}. The language token, which `mini` was never
        trained to predict, has a log-probability of {language["mean"]:.1f} ({language["least"]:.1f} to
        {language["most"]:.1f}). The same best hypothesis:"""
    where = f"""Where ours and fairseq2 differ, in {apart["sentences"]:,} sentences, theirs has more tokens in
        {apart["theirs is longer"]:,}. Means there, by our model; our score is the log-probability of words and `</s>`
        over their number and one, theirs has that of the language token in the sum:"""
    quality = "Against the references; p by paired randomisation, of the difference of chrF++; length in characters:"
    agreement = [(name, f"{same:,}", f"{100 * same / count:.2f} %") for name, same in found["agreement"].items()]
    return (
        f"## {found['beams']} beams\n\n"
        + _wrapped(about)
        + _table(("searches", "sentences", "share"), agreement)
        + "\n"
        + _wrapped(where)
        + _table(("best hypothesis of", "our score", "their score", "log-probability", "tokens"), _by_both_rules(apart))
        + f"\n{quality}\n\n"
        + _table(("search", "chrF++", "against ours", "p", "length / reference"), _quality(found["quality"]))
    )


def _by_both_rules(apart: Figures) -> list[Sequence[str]]:
    columns = ("our score", "their score", "log-probability", "tokens")
    return [(name, *(f"{apart[name][each]:.3f}" for each in columns)) for name in ("ours", "theirs")]


def _quality(found: Figures) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = []
    for name, each in found.items():
        tested = ("—", "—") if name == "ours" else (f"{each['against ours']:+.2f}", _p(each["p"]))
        rows.append((name, f"{each['chrF++']:.2f}", *tested, f"{each['length']:.3f}"))
    return rows


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _statistics(found: Figures) -> str:
    about = """`calibrate` on dev lines, those of each target spread over its sources: tokens of both stacks; cells of
        counts that differ, of how many, and by how much at most; masks planned from both that are equal (50, 25, 18.75
        and 12.5 % kept). `fused attention` is that of fairseq2's `load_model`; the verbs have another."""
    summed = "Sums: the largest difference, relative to the largest of its table."
    counts = [
        (
            each["run"],
            f"{each['tokens']:,}",
            *(_different(each["fields"][name]) for name in COUNTS),
            _others(each["fields"]),
            f"{each['equal plans']} of {each['plans']}",
        )
        for each in found["runs"]
    ]
    runs = {each["run"]: each["fields"] for each in found["runs"]}
    sums = [
        (name, *(_small(runs[run].get(name)) for run in SUMMED))
        for name, each in runs["every group"].items()
        if each["dtype"].startswith("float")
    ]
    return (
        "## Statistics\n\n"
        + _wrapped(about)
        + _table(("run", "tokens", *(f"`{name}`" for name in COUNTS), "other counts", "equal masks"), counts)
        + f"\n{summed}\n\n"
        + _table(("sum", *SUMMED), sums)
    )


def _small(each: Figures | None) -> str:
    return "" if each is None else f"{each['relative']:.1e}" if each["relative"] else "0"


def _different(each: Figures) -> str:
    return f"{each['different']:,} of {each['cells']:,}" + (f", by {each['largest']:.0f}" if each["different"] else "")


def _others(fields: Figures) -> str:
    others = [each for name, each in fields.items() if not each["dtype"].startswith("float") and name not in COUNTS]
    return f"{sum(each['different'] for each in others)} of {sum(each['cells'] for each in others):,}"


def _scores(found: Sequence[Figures]) -> str:
    about = """`evaluate` in 90 directions, greedy: hypotheses that are equal as text; mean chrF++; the largest
        difference of a mean log-probability a token, and of a measure of fidelity to the full model in a direction."""
    rows = [
        {
            "configuration": each["configuration"],
            "hypotheses": f"{each['hypotheses']:,}",
            "equal": f"{each['equal']:,}",
            "chrF++, ours and theirs": f"{each['chrF++']:.4f}, {each['their chrF++']:.4f}",
            "log-probability": f"{each['log-probability']:.1e}",
            "fidelity": _apart(each["fidelity"]) if "fidelity" in each else "—",
        }
        for each in found
    ]
    return _section("Scores", about, rows)
