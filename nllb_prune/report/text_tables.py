"""The summary as plain tables: TSV of all directions, Markdown for a model card."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nllb_prune.evaluation.summary.groups import ALL
from nllb_prune.evaluation.summary.summary import ConfigurationSummary, Summary
from nllb_prune.evaluation.summary.table import HEADER, NONE, figure_of, probability, table_rows
from nllb_prune.report.names import groups, interval, metric_name, number, second_metric, significant
from nllb_prune.report.tables import search_words, signature_rows, summary_header, worst

_WORST = 3  # directions of each configuration


def directions_tsv(summary: Summary) -> str:
    """Return `direction  spBLEU  chrF++  len_ratio  configuration`, a line for each direction and configuration.

    BLEU stands in the place of spBLEU, and is named so, where spBLEU was not scored.
    """
    second = second_metric(summary) or "bleu"
    lines = [("direction", metric_name(second), "chrF++", "len_ratio", "configuration")]
    for c in summary.configurations:
        for d in c.directions:
            values = (d.figures[second], d.figures["chrf"], d.figures["length_ratio"])
            lines.append((d.direction, *_plain(values), " ".join(c.name.split())))
    return "".join("\t".join(line) + "\n" for line in lines)


def _plain(values: tuple[float, float, float]) -> tuple[str, str, str]:
    second, chrf, length = values
    return f"{second:.2f}", f"{chrf:.2f}", f"{length:.3f}"


def markdown(summary: Summary) -> str:
    """Return a section for a model card: verdicts, the table, losses by group, worst directions and signatures."""
    table = _table(summary_header(summary), [_cells(row, summary) for row in table_rows(summary)])
    lines = ["## Evaluation", "", _introduction(summary), "", *_verdicts(summary), "", *table, ""]
    if any(c.figure("chrf").change is not None for c in summary.configurations):
        lines += [f"### Change of chrF++ against {_safe(summary.baseline)}", "", *_groups(summary), ""]
        lines += ["### Worst directions", "", *_worst(summary), ""]
    return "\n".join([*lines, "### Signatures", "", *_signatures(summary)]) + "\n"


def _introduction(summary: Summary) -> str:
    count = len(summary.configurations[0].directions)
    return (
        f"{_safe(summary.model)}: {count:,} directions, {summary.sentences:,} sentences each, "
        f"{search_words(summary)}; means over directions, compared with {_safe(summary.baseline)}."
    )


def _verdicts(summary: Summary) -> Iterator[str]:
    for c in summary.configurations:
        if c.verdict is not None:
            yield f"- **{_safe(c.name)}: {c.verdict.outcome}**"
            yield from (f"  - {_safe(reason)}" for reason in c.verdict.reasons)


def _cells(row: Sequence[str], summary: Summary) -> list[str]:
    shown = summary_header(summary)
    return [cell for name, cell in zip(HEADER, row, strict=True) if name in shown]


def _groups(summary: Summary) -> list[str]:
    names = list(dict.fromkeys([ALL, *groups(summary)]))
    rows = [
        [c.name, *(_change(c, name) for name in names)]
        for c in summary.configurations
        if c.figure("chrf").change is not None
    ]
    return _table(["configuration", *names], rows)


def _change(configuration: ConfigurationSummary, group: str) -> str:
    figure = figure_of(configuration, "chrf", group)
    if figure is None or figure.change is None:
        return NONE
    change = figure.change
    mark = "**" if significant(change) else ""
    return f"{mark}{number(change.value, sign=True)}{mark} ({interval(change.low, change.high)})"


def _worst(summary: Summary) -> list[str]:
    rows = [
        [
            c.name,
            d.direction,
            f"{d.figures['chrf']:.1f}",
            number(d.changes["chrf"].value, 1, sign=True),
            probability(d.changes["chrf"].q),
            f"{d.figures['length_ratio']:.2f}",
        ]
        for c in summary.configurations
        for d in worst(c, _WORST)
    ]
    return _table(["configuration", "direction", "chrF++", "change", "q", "length"], rows)


def _signatures(summary: Summary) -> Iterator[str]:
    yield from (f"- {_safe(name)}: `{signature}`" for name, signature in signature_rows(summary, None))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    align = [":--", *["--:"] * (len(header) - 1)]
    return ["| " + " | ".join(map(_safe, row)) + " |" for row in (header, align, *rows)]


def _safe(text: str) -> str:
    """Escape what Markdown would take for a mark of its own."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
