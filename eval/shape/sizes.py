"""What a checkpoint of one direction takes in each form: of `mini` written and scored, of NLLB-MoE 54B computed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tqdm import tqdm

from nllb_prune import MaskSet, ParallelText, calibrate, evaluate, load_model, load_tokenizer, plan
from nllb_prune.evaluation.measuring import SCORES_ONLY
from nllb_prune.exporting.conversion import Conversion
from nllb_prune.exporting.export import export
from nllb_prune.exporting.settings import ExportSettings
from nllb_prune.languages import Direction, parse_directions
from nllb_prune.model.expected import expected_tensors
from nllb_prune.model.families import family_of
from nllb_prune.model.source import embedded_text, model_folder
from nllb_prune.weights.stored import StoredTensor

from .shapes import Shape

DIRECTIONS: tuple[Direction, ...] = (("eng_Latn", "deu_Latn"), ("swh_Latn", "eng_Latn"), ("zho_Hans", "spa_Latn"))
RATIO = "3:1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a checkpoint is stored."""

    kept: float
    """Share of the experts."""
    settings: ExportSettings
    trimmed: bool = False
    """Whether the vocabulary is that of the two languages' development text."""

    @property
    def name(self) -> str:
        """What to call it in a table."""
        parts = [
            "all experts" if self.kept == 1 else f"{1 - self.kept:.2%} pruned",
            *([self.settings.dtype_name] if self.settings.dtype_name else []),
            *([f"experts in {self.settings.experts}"] if self.settings.experts else []),
            *(["trimmed vocabulary"] if self.trimmed else []),
        ]
        return ", ".join(parts)


def forms(dtype: torch.dtype | None) -> Iterator[Form]:
    """Yield the forms in the order of the table; the dtype is one to convert to, `None` keeps that of the file."""
    for kept in (1.0, 0.25, 0.1875):
        yield Form(kept=kept, settings=ExportSettings())
        if dtype is not None:
            yield Form(kept=kept, settings=ExportSettings(dtype=dtype))
        for experts in ("int8", "int4"):
            yield Form(kept=kept, settings=ExportSettings(dtype=dtype, experts=experts))
        if kept < 1:
            yield Form(kept=kept, settings=ExportSettings(dtype=dtype, experts="int4"), trimmed=True)


def of_mini(work: Path, *, sentences: int) -> list[dict[str, Any]]:
    """Export `mini` in each form for a few directions, and return bytes of the weights and chrF++ of each.

    Masks are of `importance` at 3:1, from the development text; scores are of test sentences, greedy.
    """
    model, tokenizer = load_model("mini"), load_tokenizer("mini")
    development, test = (ParallelText.open(embedded_text(), split=split) for split in ("dev", "test"))
    every = parse_directions("all", development.languages)
    statistics = calibrate(model, tokenizer, development, every, pairs_per_target="all", folder=work / "statistics")
    del model
    rows = []
    for form in tqdm(list(forms(None)), desc="sizes of mini", leave=False):
        masks = plan(statistics, kept=form.kept, ratio=RATIO if form.kept < 1 else "1:1", model_name="mini")
        found = [
            _exported(work / "export", form, masks, direction, development, test, sentences=sentences)
            for direction in DIRECTIONS
        ]
        rows.append({
            "form": form.name,
            "bytes": [size for size, _ in found],
            "chrf": [round(chrf, 2) for _, chrf in found],
        })  # fmt: skip
    return rows


def _exported(
    folder: Path,
    form: Form,
    masks: MaskSet,
    direction: Direction,
    development: ParallelText,
    test: ParallelText,
    *,
    sentences: int,
) -> tuple[int, float]:
    """Return the bytes of an export's weights, and its chrF++."""
    text = development if form.trimmed else None
    written = export("mini", folder, masks=masks, directions=[direction], settings=form.settings, vocabulary=text)
    results = folder.with_name("results")
    evaluation = evaluate(
        load_model(folder),
        load_tokenizer(folder),
        test,
        [direction],
        {"export": None},
        folder=results,
        measuring=SCORES_ONLY,
        sentences=sentences,
    )
    chrf = evaluation.result("export", direction).scores["chrf"].value
    for each in (folder, results):
        shutil.rmtree(each)
    return written.bytes_written, chrf


def of_shape(shape: Shape, *, dtype: str, rows: int) -> list[dict[str, Any]]:
    """Return the bytes that the export of a checkpoint of a shape writes in each form, without writing any.

    Args:
        shape: Of the model.
        dtype: Of its checkpoint.
        rows: Of the embedding that a trimmed vocabulary keeps.
    """
    return [
        {"form": form.name, "bytes": shape_bytes(shape, form, dtype=dtype, rows=rows)} for form in forms(torch.bfloat16)
    ]


def shape_bytes(shape: Shape, form: Form, *, dtype: str, rows: int) -> int:
    """Return the bytes of the tensors of one form."""
    from transformers import AutoConfig

    content = shape.config(bare=False, dtype=dtype)
    config = AutoConfig.for_model(content.pop("model_type"), **content)
    family = family_of(config)
    spec = family.spec(config)
    kept = {
        stack.name: (tuple(range(count)),) * len(stack.layers)
        for stack, count in zip(spec.stacks, counts(shape, form.kept), strict=True)
    }
    expected = expected_tensors(family, config, spec, kept)
    tied = {name for group in expected.tied for name in group}
    second = {name for group in expected.tied for name in group[1:]}
    conversion = Conversion(
        dtype=form.settings.dtype,
        scheme=form.settings.scheme,
        matrices={name for name, expert in expected.experts.items() if expert.matrix},
        rows=range(rows) if form.trimmed else None,
        embeddings=tied,
    )
    shapes = {**expected.dense, **expected.router_shapes, **expected.expert_shapes}
    stored = (
        StoredTensor(name=name, path=Path(name), offset=0, dtype=getattr(torch, dtype), shape=size)
        for name, size in shapes.items()
        if name not in second
    )
    return sum(
        torch.Size(output.shape).numel() * output.dtype.itemsize
        for each in stored
        for output in conversion.outputs(each)
    )


def counts(shape: Shape, kept: float) -> tuple[int, int]:
    """Return the experts of each layer of encoder and decoder: equal if all are kept, 3:1 otherwise."""
    if kept == 1:
        return shape.experts, shape.experts
    both = round(2 * shape.experts * kept)
    return both - both // 4, both // 4


def markdown_mini(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lay out the sizes and scores of `mini`."""
    names = [f"{source}-{target}" for source, target in DIRECTIONS]
    lines = ["| form | weights, MB | of all | " + " | ".join(f"chrF++ {name}" for name in names) + " |"]
    lines.append("|---" * (3 + len(names)) + "|")
    full = model_folder("mini") / "model.safetensors"
    lines.append(f"| the embedded file | {full.stat().st_size / 1e6:.1f} | 1 |" + " |" * len(names))
    for row in rows:
        size = fmean(row["bytes"])
        scores = " | ".join(f"{chrf:.2f}" for chrf in row["chrf"])
        lines.append(f"| {row['form']} | {size / 1e6:.1f} | {size / full.stat().st_size:.3f} | {scores} |")
    return lines


def markdown_shape(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lay out computed sizes."""
    full = rows[0]["bytes"]
    lines = ["| form | weights, GB | of all |", "|---|---|---|"]
    return lines + [f"| {row['form']} | {row['bytes'] / 1e9:.2f} | {row['bytes'] / full:.3f} |" for row in rows]
