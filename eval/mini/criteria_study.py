"""Every criterion and scope on `mini`: what each keeps of the quality, on test text.

`python -m eval.mini.criteria_study --output DIR [--other-text DIR]` calibrates on dev text with every group of
statistics, plans, scores and writes `CRITERIA.md` into DIR. `--other-text` names a folder of `CODE.txt` of another
domain, to calibrate on it too. It continues if killed; `--part K/N` scores the K-th of N parts of the configurations,
for several processes on one folder, and a run without it writes the report.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from nllb_prune import ExpertStatistics, MaskSet, ParallelText, calibrate, evaluate, load_model, load_tokenizer, plan
from nllb_prune.calibration.fields import GROUPS
from nllb_prune.evaluation.evaluation import Evaluation
from nllb_prune.evaluation.measuring import SCORES_ONLY
from nllb_prune.evaluation.significance.bootstrap import paired_bootstrap_over_directions
from nllb_prune.evaluation.summary.groups import INTO_ENGLISH
from nllb_prune.evaluation.summary.summarise import summarise
from nllb_prune.evaluation.summary.summary import ConfigurationSummary, Summary
from nllb_prune.languages import Direction, english_and_ring, parse_directions
from nllb_prune.model.source import embedded_text
from nllb_prune.planning import plan_in_rounds
from nllb_prune.planning.criteria import CRITERIA, distinct_criteria
from nllb_prune.planning.scopes import SCOPES

BUDGETS = (0.25, 0.125)
RATIOS = ("3:1", "1:1")
SEEDS = (0, 1, 2)
ROUNDS = 4
IN_ROUNDS = ("importance", "mc_ean")

Configurations = dict[str, MaskSet | None]


@dataclass(frozen=True)
class Bench:
    """The model, its text and where results are kept."""

    model: nn.Module
    tokenizer: Any
    output: Path
    sentences: int

    def statistics(
        self, name: str, text: ParallelText, directions: Sequence[Direction], **how: Any
    ) -> ExpertStatistics:
        """Calibrate, or read what an earlier run calibrated."""
        path = self.output / f"{name}.safetensors"
        if not path.exists():
            work = self.output / f"{name}.work"
            made = calibrate(self.model, self.tokenizer, text, directions, folder=work, progress=progress(name), **how)
            made.save(path)
        return ExpertStatistics.load(path)

    def score(
        self, test: ParallelText, directions: Sequence[Direction], configurations: Configurations, folder: str
    ) -> Evaluation:
        """Translate and score."""
        return evaluate(
            self.model,
            self.tokenizer,
            test,
            directions,
            configurations,
            folder=self.output / folder,
            sentences=self.sentences,
            measuring=SCORES_ONLY,
            progress=progress(folder),
        )


def progress(what: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
    """Show a bar."""
    return lambda items: tqdm(items, desc=what, leave=False)


def name_of(what: str, kept: float, ratio: str) -> str:
    """Name a configuration; names are folders too."""
    return f"{what} {1 - kept:.1%} {ratio.replace(':', '-')}"


def by_criterion(statistics: ExpertStatistics, kept: float, ratio: str) -> Configurations:
    """Plan with every criterion, those that rank identically once, `random` with three seeds."""
    planned: Configurations = {}
    for criterion in distinct_criteria():
        for seed in SEEDS if criterion == "random" else (0,):
            what = f"random {seed}" if criterion == "random" else criterion
            planned[name_of(what, kept, ratio)] = plan(
                statistics, kept=kept, ratio=ratio, criterion=criterion, seed=seed
            )
    return planned


def by_scope(statistics: ExpertStatistics, kept: float) -> Configurations:
    """Plan with importance in every scope but the usual one."""
    others = [scope for scope in SCOPES if scope != "layer"]
    return {name_of(scope, kept, "3:1"): plan(statistics, kept=kept, scope=scope) for scope in others}


def in_rounds(bench: Bench, development: ParallelText, statistics: ExpertStatistics, kept: float) -> Configurations:
    """Plan a step at a time, observing the model within the masks of the step before."""
    directions = parse_directions("all", development.languages)
    planned: Configurations = {}
    for criterion in IN_ROUNDS:
        path = bench.output / f"{name_of(f'{criterion} {ROUNDS} rounds', kept, '3:1')}.json"
        how = {"pairs_per_target": "all", "collect": CRITERIA[criterion].groups}

        def observe(masks: MaskSet, how: dict[str, Any] = how) -> ExpertStatistics:
            return bench.statistics(f"rounds-{masks.signature}", development, directions, masks=masks, **how)

        if not path.exists():
            plan_in_rounds(statistics, observe, rounds=ROUNDS, kept=kept, criterion=criterion).save(path)
        planned[path.stem] = MaskSet.load(path)
    return planned


def table(summary: Summary, names: Iterable[str]) -> list[str]:
    """Return the lines of a Markdown table, best first."""
    header = ("", "chrF++", "lowest", "worst loss", "into eng", "BLEU", "length", "repeat %", "p")
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    found = sorted((summary[name] for name in names), key=lambda each: -quality(each))
    for each in found:
        worst = each.worst()
        change = each.figure("chrf").change
        cells = (
            each.name,
            f"{quality(each):.2f}",
            f"{min(d.figures['chrf'] for d in each.directions):.2f}",
            "" if worst is None else f"{worst.direction} {worst.changes['chrf'].value:+.1f}",
            f"{each.figure('chrf', INTO_ENGLISH).value:.2f}",
            f"{each.figure('bleu').value:.2f}",
            f"{each.figure('length_ratio').value:.3f}",
            f"{100 * each.figure('repeat_rate_4').value:.1f}",
            "" if change is None else f"{change.p:.3f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def quality(configuration: ConfigurationSummary) -> float:
    """Return the mean chrF++ over directions."""
    return configuration.figure("chrf").value


def best(summary: Summary, names: Iterable[str], count: int) -> list[str]:
    """Return the configurations of highest mean chrF++."""
    return sorted(names, key=lambda name: -quality(summary[name]))[:count]


def difference(evaluation: Evaluation, a: str, b: str) -> str:
    """Say how much better one configuration is than another."""
    statistics = [evaluation.statistics(name, "chrf") for name in (a, b)]
    found = paired_bootstrap_over_directions(*statistics, metric="chrf")
    return f"- {a} against {b}: {found.difference:+.2f} chrF++, p {found.p_value:.3f}"


def part_of(configurations: Configurations, part: str | None) -> Configurations:
    """Return the K-th of N parts of configurations."""
    if part is None:
        return configurations
    number, count = map(int, part.split("/"))
    return dict(list(configurations.items())[number - 1 :: count])


def other_domain(bench: Bench, path: Path, test: ParallelText, development: ParallelText) -> list[str]:
    """Compare masks calibrated on another domain with those of the usual one, over the languages of both."""
    other = ParallelText.open(path)
    codes = sorted(set(other.languages) & set(development.languages))
    directions = parse_directions("all", codes)
    groups = ("norms",)
    usual = bench.statistics("shared", development, directions, pairs_per_target="all", collect=groups)
    lines = len(development.lines(codes[0]))
    foreign = bench.statistics("foreign", other.head(lines), directions, pairs_per_target="all", collect=groups)
    planned: Configurations = {"full": None}
    for kept in BUDGETS:
        for criterion in ("importance", "reap"):
            planned[name_of(f"{criterion}, own domain", kept, "3:1")] = plan(usual, kept=kept, criterion=criterion)
            planned[name_of(f"{criterion}, other domain", kept, "3:1")] = plan(foreign, kept=kept, criterion=criterion)
    evaluation = bench.score(test, directions, planned, "scores-domain")
    summary = summarise(evaluation, test, detectors=())
    pairs = [(name, name.replace("own", "other")) for name in planned if ", own" in name]
    return [
        "## Calibrated on another domain",
        "",
        f"The {len(directions)} directions among {', '.join(codes)}; {lines} lines of each text, spread.",
        "",
        *table(summary, planned),
        "",
        *(difference(evaluation, other, own) for own, other in pairs),
        "",
    ]


def beside(title: str) -> list[str]:
    """Return the configurations that a table is to be compared with."""
    criteria = {"Scopes": ("importance",), "Rounds": IN_ROUNDS}.get(title.split()[0], ())
    return [name_of(criterion, kept, "3:1") for criterion in criteria for kept in BUDGETS if f"{1 - kept:.1%}" in title]


def report(bench: Bench, summary: Summary, sections: Sequence[tuple[str, Iterable[str]]]) -> list[str]:
    """Return the head of the report and a table for each section."""
    lines = [
        "# Criteria, scopes and calibration on `mini`",
        "",
        f"Test text, {bench.sentences} sentences in each of {len(summary['full'].directions)} directions (all into and",
        "out of English and a ring through the others), greedy; masks per language, calibrated on all dev lines of",
        "each target spread over the sources. `p` against the full model: paired bootstrap over directions. Names say",
        "what is pruned and encoder-decoder. Criteria that rank identically by definition appear once. Made by",
        "`python -m eval.mini.criteria_study`.",
        "",
    ]
    for title, names in sections:
        lines += [f"## {title}", "", *table(summary, names), ""]
    return lines


def pairs_and_rounds(
    bench: Bench, development: ParallelText, statistics: ExpertStatistics, kept: float
) -> Configurations:
    """Plan in rounds, and per pair and per language from the same statistics."""
    everything = parse_directions("all", development.languages)
    lines = len(development.lines("eng_Latn")) // 9 * 2
    pairs = bench.statistics("pairs", development, everything, sentences=lines, granularity="pair")
    return {
        **in_rounds(bench, development, statistics, kept),
        name_of("per pair", kept, "3:1"): plan(pairs, kept=kept, granularity="pair"),
        name_of("per language of the same", kept, "3:1"): plan(pairs.as_language(), kept=kept),
    }


def differences(evaluation: Evaluation) -> list[str]:
    """Compare rounds with one shot and pairs with languages."""
    lines = []
    for kept in BUDGETS:
        for criterion in IN_ROUNDS:
            rounds = name_of(f"{criterion} {ROUNDS} rounds", kept, "3:1")
            lines.append(difference(evaluation, rounds, name_of(criterion, kept, "3:1")))
        single = name_of("per language of the same", kept, "3:1")
        lines.append(difference(evaluation, name_of("per pair", kept, "3:1"), single))
    return lines


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--other-text", type=Path)
    parser.add_argument("--sentences", type=int, default=100)
    parser.add_argument("--part", help="K/N")
    options = parser.parse_args()
    bench = Bench(load_model("mini"), load_tokenizer("mini"), options.output, options.sentences)
    development, test = (ParallelText.open(embedded_text(), split=split) for split in ("dev", "test"))
    everything = parse_directions("all", development.languages)
    statistics = bench.statistics("spread", development, everything, pairs_per_target="all", collect=GROUPS)
    directions = english_and_ring(development.languages, others=12)

    groups: dict[str, Configurations] = {
        f"Criteria, {1 - kept:.1%} pruned, {ratio}": by_criterion(statistics, kept, ratio)
        for kept in BUDGETS
        for ratio in RATIOS
    }
    groups |= {f"Scopes with importance, {1 - kept:.1%} pruned": by_scope(statistics, kept) for kept in BUDGETS}
    planned: Configurations = {"full": None}
    for group in groups.values():
        planned |= group
    evaluation = bench.score(test, directions, part_of(planned, options.part), "scores")
    if options.part is not None:
        return

    for kept in BUDGETS:
        extra = groups[f"Rounds and pairs, {1 - kept:.1%} pruned"] = pairs_and_rounds(
            bench, development, statistics, kept
        )
        evaluation = evaluation.joined(bench.score(test, directions, extra, "scores"))
    summary = summarise(evaluation, test, detectors=())
    lines = report(bench, summary, [(title, ["full", *beside(title), *group]) for title, group in groups.items()])
    lines += differences(evaluation)
    chosen = best(summary, [name for name in planned if "75.0%" in name and "random" not in name], 3)
    widest = bench.score(test, everything, {"full": None, **{n: planned[n] for n in chosen}}, "scores")
    lines += ["", f"## The best three at 75 % over all {len(everything)} directions", ""]
    lines += [*table(summarise(widest, test, detectors=()), ["full", *chosen]), ""]
    if options.other_text:
        lines += other_domain(bench, options.other_text, test, development)
    (options.output / "CRITERIA.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
