"""An exported checkpoint against the full model within the same masks: logits and translations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nllb_prune import MaskSet, ParallelText, load_model, load_tokenizer, set_masks, translate
from nllb_prune.languages import Direction
from nllb_prune.model.source import embedded_text
from nllb_prune.tokenization import encode

SENTENCES = 16


def compare(model: Path, export: Path, masks: Path, direction: Direction) -> list[dict[str, Any]]:
    """Return, for each way to load the export, how far it is from the full model that is held to the masks.

    Args:
        model: The full checkpoint.
        export: Made from it, for the direction.
        masks: That it was made with.
        direction: Source and target language.
    """
    kept = MaskSet.load(masks)
    wanted = _outputs(lambda: _masked(model, kept, direction), model, direction)
    unmasked = _outputs(lambda: load_model(model), model, direction)
    ways: dict[str, Callable[[], nn.Module]] = {
        "`load_model`": lambda: load_model(export),
        "`AutoModelForSeq2SeqLM`": lambda: _through_auto_class(export),
        "`load_model` of the full one with masks and direction": lambda: load_model(
            model, masks=kept, direction=direction
        ),
    }
    found = {name: _outputs(load, export, direction) for name, load in ways.items()}
    return [_difference(name, each, wanted) for name, each in {**found, "the full model, no masks": unmasked}.items()]


def markdown(rows: list[dict[str, Any]]) -> list[str]:
    """Lay out the differences."""
    lines = [
        "| loaded by | largest difference of a logit | of logits up to | equal translations |",
        "|---|---|---|---|",
    ]
    for row in rows:
        equal = f"{row['equal']} of {row['translations']}"
        lines.append(f"| {row['way']} | {row['difference']:.2e} | {row['largest']:.2f} | {equal} |")
    return lines


def _masked(model: Path, masks: MaskSet, direction: Direction) -> nn.Module:
    loaded = load_model(model)
    set_masks(loaded, masks, direction)
    return loaded


def _through_auto_class(export: Path) -> nn.Module:
    from transformers import AutoModelForSeq2SeqLM

    loaded: nn.Module = AutoModelForSeq2SeqLM.from_pretrained(export, dtype=torch.float32)
    return loaded


def _outputs(load: Callable[[], nn.Module], folder: Path, direction: Direction) -> tuple[Tensor, list[str]]:
    """Return logits of references ``(tokens, vocabulary)`` and greedy translations; the model goes before the next."""
    model, tokenizer = load(), load_tokenizer(folder)
    text = ParallelText.open(embedded_text(), split="test")
    lines = [text.lines(code)[:SENTENCES] for code in direction]
    sources, targets = (encode(tokenizer, each, code) for each, code in zip(lines, direction, strict=True))
    logits = [_logits(model, source, target) for source, target in zip(sources, targets, strict=True)]
    found = translate(model, tokenizer, lines[0], source=direction[0], target=direction[1])
    return torch.cat(logits), found


def _logits(model: Any, source: list[int], target: list[int]) -> Tensor:
    with torch.inference_mode():
        ids = torch.tensor([source]), torch.tensor([[model.config.decoder_start_token_id, *target[:-1]]])
        output = model(input_ids=ids[0], decoder_input_ids=ids[1], use_cache=False)
    logits: Tensor = output.logits[0]
    return logits


def _difference(way: str, found: tuple[Tensor, list[str]], wanted: tuple[Tensor, list[str]]) -> dict[str, Any]:
    pairs = list(zip(found[1], wanted[1], strict=True))
    return {
        "way": way,
        "difference": float((found[0] - wanted[0]).abs().max()),
        "largest": float(wanted[0].abs().max()),
        "equal": sum(ours == theirs for ours, theirs in pairs),
        "translations": len(pairs),
    }
