"""Which masks a server starts with."""

from __future__ import annotations

from pathlib import Path

from nllb_prune.model.source import embedded_masks

_NONE = "none"


def masks_to_serve(
    model: str, masks: str | Path | None, *, full: bool, memory: int | str | None
) -> tuple[Path | None, bool]:
    """Return the file of masks, and whether to offer the full model; `mini` shows both unless told otherwise.

    Args:
        model: To serve.
        masks: A file, `none` for all experts, or `None` for what the model has itself.
        full: Whether the full model is asked for.
        memory: That there is for the model, if it is bounded.
    """
    if masks is None and model == "mini":
        return embedded_masks(), full or memory is None
    return (None if masks is None or str(masks) == _NONE else Path(masks)), full
