"""`nllb-prune export`: a model and masks to a smaller checkpoint."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nllb_prune.cli._directions import planned_directions
from nllb_prune.cli._options import progress_bar, table
from nllb_prune.errors import UsageError

if TYPE_CHECKING:
    from nllb_prune.corpus import ParallelText
    from nllb_prune.exporting.export import Exported
    from nllb_prune.languages import Direction
    from nllb_prune.masks import MaskSet

HELP = "write a checkpoint that holds only the experts that some languages need"
EXAMPLE = "nllb-prune export mini --masks masks.json --source eng_Latn --target deu_Latn --output mini-eng-deu"

_DTYPES = ("float32", "float16", "bfloat16", "fp32", "fp16", "bf16")
_SCHEMES = ("int8", "int4")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument(
        "model", metavar="MODEL", help="`mini` (embedded), a folder (of Hugging Face or fairseq files), or a Hub id"
    )
    parser.add_argument("--masks", type=Path, required=True, metavar="FILE", help="experts to keep, of this model")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to write")
    _add_languages(parser.add_argument_group("languages", "one of these; global masks need none"))
    _add_content(parser.add_argument_group("content"))
    parser.add_argument(
        "--disk",
        metavar="SIZE",
        help="of a Hub id: what its weight files, fetched one at a time, and the output may take (as in 40GB)",
    )
    parser.add_argument("--restart", action="store_true", help="do not continue a killed run; replace --output")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")


def _add_languages(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--source", metavar="LANG", help="source language; more than one with commas")
    group.add_argument("--target", metavar="LANG", help="target language; more than one with commas")
    group.add_argument("--languages", metavar="LANG,...", help="all directions among these")
    group.add_argument("--directions", help="as in `eng_Latn-deu_Latn,*-eng_Latn`; `all` is all with masks")


def _add_content(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--parts", action="store_true", help="a file for each language side beside the dense part: any direction loads"
    )
    group.add_argument("--dtype", choices=_DTYPES, help="of all floats (default: as they are stored)")
    group.add_argument("--experts", choices=_SCHEMES, help="store the matrices of experts in 8 or 4 bits")
    group.add_argument("--shard-size", default="5GB", metavar="SIZE", help="of a weight file at most (default 5GB)")
    group.add_argument(
        "--trim-vocabulary",
        metavar="TEXT",
        help="aligned text, as for `calibrate --text`: pieces that do not occur in it are left out",
    )
    group.add_argument("--split", help="of that text, where it has splits (default: dev)")
    group.add_argument("--evaluation", type=Path, metavar="FILE", help="Markdown to put into the model card")


def run(options: argparse.Namespace) -> None:
    """Export."""
    from nllb_prune.exporting.export import export
    from nllb_prune.exporting.settings import DTYPES, ExportSettings
    from nllb_prune.masks import MaskSet
    from nllb_prune.planning.memory import parse_memory

    masks = MaskSet.load(options.masks)
    found = export(
        options.model,
        options.output,
        masks=masks,
        directions=_directions(options, masks),
        settings=ExportSettings(
            parts=options.parts,
            dtype=None if options.dtype is None else DTYPES[options.dtype],
            experts=options.experts,
            shard_bytes=parse_memory(options.shard_size, name="--shard-size"),
        ),
        vocabulary=_vocabulary(options.trim_vocabulary, options.split),
        evaluation=_evaluation(options.evaluation),
        disk=None if options.disk is None else parse_memory(options.disk, name="--disk"),
        restart=options.restart,
        progress=progress_bar("exporting"),
    )
    _tell(options, found)


def _directions(options: argparse.Namespace, masks: MaskSet) -> tuple[Direction, ...]:
    given = [name for name in ("source", "target", "languages", "directions") if getattr(options, name) is not None]
    if given in (["source"], ["target"]) or len(given) > 2 or (len(given) == 2 and given != ["source", "target"]):
        raise UsageError(
            "The languages must be `--source` and `--target`, or `--languages`, or `--directions`, but are "
            f"{' and '.join('`--' + name + '`' for name in given)} instead."
        )
    if not given:
        if masks.languages():
            raise UsageError("`--source` and `--target`, `--languages` or `--directions` must be given, but are not.")
        return ()
    pairs = _pairs(options)
    if not pairs:
        raise UsageError("The languages must be two or more different ones, but are one.")
    return planned_directions(pairs, [masks])


def _pairs(options: argparse.Namespace) -> str:
    """Return the directions asked for, as `parse_directions` reads them."""
    if options.directions is not None:
        text: str = options.directions
        return text
    both = options.languages is not None
    sources = _names(options.languages if both else options.source)
    targets = _names(options.languages if both else options.target)
    return ",".join(f"{source}-{target}" for source in sources for target in targets if source != target)


def _names(text: str) -> list[str]:
    from nllb_prune.languages import language

    return [language(name).code for name in text.split(",") if name.strip()]


def _vocabulary(path: str | None, split: str | None) -> ParallelText | None:
    from nllb_prune.corpus import ParallelText

    if path is None:
        if split is not None:
            raise UsageError("`--split` must come with `--trim-vocabulary`, whose text it is of, but comes alone.")
        return None
    usual = "dev" if (Path(path) / "dev").is_dir() else None  # other layouts have no splits
    return ParallelText.open(Path(path), split=split or usual)


def _evaluation(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"`{path}` must be a Markdown file, but cannot be read ({error}).") from None


def _tell(options: argparse.Namespace, found: Exported) -> None:
    ratio = found.bytes_read / found.bytes_kept if found.bytes_kept else 1.0
    if options.json:
        content: dict[str, Any] = {
            "output": str(found.folder),
            "experts": dict(found.experts),
            "tensors": found.tensors,
            "bytes_kept": found.bytes_kept,
            "bytes_read": found.bytes_read,
            "bytes_written": found.bytes_written,
        }
        print(json.dumps(content))
        return
    experts = ", ".join(f"{count:,} {stack}" for stack, count in found.experts.items())
    print(
        f"{found.folder}: {experts} experts, {found.bytes_written / 1e9:,.3f} GB written, "
        f"{found.bytes_read / 1e9:,.3f} GB read ({ratio:.3f} of what was kept)"
    )
    if found.pruning.vocabulary is not None:
        _tell_vocabulary(found)


def _tell_vocabulary(found: Exported) -> None:
    pieces = found.pruning.vocabulary or {}
    print(f"{pieces['pieces']:,} of {pieces['before']:,} pieces of the vocabulary; tokens a sentence of the text:")
    rows = [
        (code, *(f"{tokens:.1f}" for tokens in change.tokens_per_sentence), *(f"{u:.2%}" for u in change.unknown_share))
        for code, change in found.tokenisation.items()
    ]
    print(table(("language", "before", "now", "unknown before", "now"), rows))
