"""Keep, for each language, only the experts that a multilingual mixture-of-experts translation model needs for it.

The flow: text (`ParallelText`) -> `calibrate` -> `ExpertStatistics` -> `plan` -> `MaskSet` -> `translate`, `evaluate`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nllb_prune import _auto_classes
from nllb_prune._version import __version__
from nllb_prune.errors import Unavailable, UsageError

if TYPE_CHECKING:
    from nllb_prune.calibration.calibrate import calibrate
    from nllb_prune.calibration.statistics import ExpertStatistics
    from nllb_prune.corpus import ParallelText
    from nllb_prune.evaluation.evaluate import evaluate
    from nllb_prune.evaluation.fidelity.held_out import HeldOut
    from nllb_prune.exporting.export import Exported, export
    from nllb_prune.exporting.settings import ExportSettings
    from nllb_prune.generation.search import SearchSettings
    from nllb_prune.generation.translate import Translation, translate, translations
    from nllb_prune.masks import MaskSet
    from nllb_prune.model.loading import load_model, load_spec
    from nllb_prune.model.routing import clear_masks, mask_rows, routing, set_masks
    from nllb_prune.model.source import load_tokenizer
    from nllb_prune.model.streamed import load_streamed
    from nllb_prune.planning.measured import Decisions, plan_measured
    from nllb_prune.planning.plan import plan
    from nllb_prune.serving.translator import Translator

_HOMES = {
    "Decisions": "planning.measured",
    "ExpertStatistics": "calibration.statistics",
    "ExportSettings": "exporting.settings",
    "Exported": "exporting.export",
    "HeldOut": "evaluation.fidelity.held_out",
    "MaskSet": "masks",
    "ParallelText": "corpus",
    "SearchSettings": "generation.search",
    "Translation": "generation.translate",
    "Translator": "serving.translator",
    "calibrate": "calibration.calibrate",
    "clear_masks": "model.routing",
    "evaluate": "evaluation.evaluate",
    "export": "exporting.export",
    "load_model": "model.loading",
    "load_spec": "model.loading",
    "load_streamed": "model.streamed",
    "load_tokenizer": "model.source",
    "mask_rows": "model.routing",
    "plan": "planning.plan",
    "plan_measured": "planning.measured",
    "routing": "model.routing",
    "set_masks": "model.routing",
    "translate": "generation.translate",
    "translations": "generation.translate",
}

__all__ = [
    "Decisions",
    "ExpertStatistics",
    "ExportSettings",
    "Exported",
    "HeldOut",
    "MaskSet",
    "ParallelText",
    "SearchSettings",
    "Translation",
    "Translator",
    "Unavailable",
    "UsageError",
    "__version__",
    "calibrate",
    "clear_masks",
    "evaluate",
    "export",
    "load_model",
    "load_spec",
    "load_streamed",
    "load_tokenizer",
    "mask_rows",
    "plan",
    "plan_measured",
    "routing",
    "set_masks",
    "translate",
    "translations",
]


def __getattr__(name: str) -> Any:
    # torch and transformers take seconds to import; whoever wants only masks should not wait for them
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"nllb_prune.{_HOMES[name]}"), name)


_auto_classes.install()
