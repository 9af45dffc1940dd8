"""The model card of a pruned checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nllb_prune._version import __version__
from nllb_prune.exporting.settings import ExportSettings
from nllb_prune.exporting.tokenisation import TokenisationChange
from nllb_prune.languages import Direction, find_language, language
from nllb_prune.model.pruned import ExpertPruning

_CARD = """\
---
{front}---

# {base}, pruned for {languages}

{kept} of {link}, chosen and copied by nllb-prune {version}; nothing was trained again.

## Use

```python
import nllb_prune  # without it transformers does not know the experts that were left out
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

folder = "PATH"  # or the Hub id of this checkpoint
model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
```

or, with faster decoding, `nllb-prune translate FOLDER "TEXT" --source {source} --target {target}`.

## What was kept

{table}

{how}
{tokenisation}
## Not for

- Other languages than {languages}: their experts are not there, and translations into or out of them are wrong. A call
  with one of them warns.
- Anything that the base model is not for; its limits and its licence hold for this one too.
{evaluation}"""


def model_card(
    folder: Path,
    pruning: ExpertPruning,
    settings: ExportSettings,
    *,
    evaluation: str | None = None,
    tokenisation: Mapping[str, TokenisationChange] | None = None,
) -> str:
    """Return the card in Markdown, with the licence of the base model's card in front.

    Args:
        folder: Of the base model.
        pruning: What the checkpoint says of itself.
        settings: How it was written.
        evaluation: Markdown of an evaluation of it.
        tokenisation: What a trimmed vocabulary does to text by language.
    """
    example = _example(pruning)
    spoken = pruning.languages() or "all its languages"
    return _CARD.format(
        front=_front(folder, pruning),
        base=pruning.base_model,
        link=f"[{pruning.base_model}](https://huggingface.co/{pruning.base_model})"
        if "/" in pruning.base_model
        else pruning.base_model,
        languages=spoken,
        kept=f"{sum(map(_size, pruning.kept.values())):,} experts",
        version=__version__,
        source=example[0],
        target=example[1],
        table=_table(pruning),
        how=_how(pruning, settings),
        tokenisation=_tokenisation(tokenisation or {}),
        evaluation="" if evaluation is None else f"\n## Evaluation\n\n{evaluation.strip()}\n",
    )


def _example(pruning: ExpertPruning) -> Direction:
    """Return a direction to show."""
    if pruning.directions:
        return pruning.directions[0]
    pairs = ((source, target) for source in pruning.sources for target in pruning.targets if source != target)
    return next(pairs, ("eng_Latn", "fra_Latn"))


def _size(mask: tuple[tuple[int, ...], ...]) -> int:
    return sum(map(len, mask))


def _front(folder: Path, pruning: ExpertPruning) -> str:
    import yaml

    base = _metadata(folder)
    spoken = sorted({*pruning.sources, *pruning.targets})
    content: dict[str, Any] = {
        "base_model": pruning.base_model,
        **{name: base[name] for name in ("license", "license_name", "license_link") if name in base},
        "language": [_code(each) for each in spoken] or base.get("language", []),
        "pipeline_tag": "translation",
        "library_name": "transformers",
        "tags": ["nllb-prune", "pruned", "mixture-of-experts", "translation"],
    }
    front: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None)
    return front


def _code(code: str) -> str:
    """Return the ISO 639 code that the Hub asks for."""
    return language(code).iso639_1 or code.partition("_")[0]


def _metadata(folder: Path) -> Mapping[str, Any]:
    """Return the front matter of the base model's card; nothing without one."""
    from huggingface_hub.repocard import metadata_load

    card = folder / "README.md"
    return (metadata_load(card) or {}) if card.is_file() else {}


def _table(pruning: ExpertPruning) -> str:
    rows = ["| stack | experts in each sparse layer | in all |", "|---|---|---|"]
    for stack, mask in pruning.kept.items():
        counts = [len(ids) for ids in mask]
        each = str(counts[0]) if len(set(counts)) == 1 else ", ".join(map(str, counts))
        rows.append(f"| {stack} | {each} | {sum(counts)} |")
    return "\n".join(rows)


def _tokenisation(changes: Mapping[str, TokenisationChange]) -> str:
    """Return what a trimmed vocabulary does to text."""
    if not changes:
        return ""
    rows = [
        "",
        "Tokens a sentence with the whole vocabulary and with this one, and the share of them that are unknown:",
        "",
        "| text in | tokens | unknown |",
        "|---|---|---|",
    ]
    for code, change in changes.items():
        before, after = change.tokens_per_sentence
        unknown = " → ".join(f"{share:.2%}" for share in change.unknown_share)
        rows.append(f"| {code} | {before:.1f} → {after:.1f} | {unknown} |")
    return "\n".join(rows) + "\n"


def _how(pruning: ExpertPruning, settings: ExportSettings) -> str:
    plan = ", ".join(f"{name} {_shown(value)}" for name, value in sorted(pruning.plan.items()))
    lines = [
        f"- masks `{pruning.masks}`" + (f": {plan}" if plan else ""),
        f"- sources: {_names(pruning.sources)}",
        f"- targets: {_names(pruning.targets)}",
    ]
    if pruning.base_revision is not None:
        lines.append(f"- revision of the base model: `{pruning.base_revision}`")
    if settings.dtype_name is not None:
        lines.append(f"- weights in {settings.dtype_name}")
    if settings.experts is not None:
        lines.append(f"- matrices of experts in {settings.experts}")
    if pruning.vocabulary is not None:
        lines.append(f"- {pruning.vocabulary['pieces']:,} of {pruning.vocabulary['before']:,} pieces of the vocabulary")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _names(codes: tuple[str, ...]) -> str:
    found = [find_language(code) for code in codes]
    return ", ".join(map(str, filter(None, found))) or "all"
