"""What the classes of pruned checkpoints do otherwise than those of transformers that they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nllb_prune.errors import UsageError
from nllb_prune.model.pruned import pruning_of
from nllb_prune.model.routing import routing_of, warn_unplanned

_HARMLESS = {
    "adapter_kwargs",
    "code_revision",
    "low_cpu_mem_usage",
    "resume_download",
    "trust_remote_code",
    "use_safetensors",
}
"""What the Auto classes pass on, or users do, and what changes nothing here."""
_SAVING = {"is_main_process", "safe_serialization"}
_EAGER = ("attn_implementation", "eager")


class PrunedModel:
    """Loading, saving and generating of a pruned checkpoint."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *arguments: Any,
        config: Any = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        device_map: Any = None,
        revision: str | None = None,
        **others: Any,
    ) -> Any:
        """Load as `nllb_prune.load_model` does: only experts that are there are made, no tensor is left to chance.

        Args:
            pretrained_model_name_or_path: A folder of `export`, or a Hub id.
            arguments: None.
            config: Of the checkpoint; read from it by default.
            dtype: Of the weights, or `auto`: as stored.
            torch_dtype: The same, as older versions of transformers call it.
            device_map: A device, or where each module goes.
            revision: Branch, tag or commit on the Hub.
            others: What the Auto classes pass on.
        """
        from nllb_prune.model.loading import load_model

        given = {name: value for name, value in others.items() if name not in _HARMLESS and value}
        attention = getattr(config, "_attn_implementation", None)  # where the Auto classes put it
        given |= {} if attention is None else {_EAGER[0]: attention}
        unknown = sorted(name for name, value in given.items() if (name, value) != _EAGER)
        if arguments or unknown:
            raise UsageError(
                f"`from_pretrained` of a pruned checkpoint must be given a path, `dtype`, `device_map` and `revision` "
                f"only, but is given {', '.join(unknown) or 'more'} too."
            )
        return load_model(
            pretrained_model_name_or_path, dtype=dtype or torch_dtype, device_map=device_map, revision=revision
        )

    def save_pretrained(self, save_directory: str | Path, *, max_shard_size: int | str = "5GB", **others: Any) -> None:
        """Write the checkpoint again: what is in memory of it, experts under their original ids, and its masks."""
        unknown = sorted(name for name, value in others.items() if value and name not in _SAVING)
        if unknown:
            raise UsageError(
                f"`save_pretrained` of a pruned checkpoint must be given a folder and `max_shard_size` only, but is "
                f"given {', '.join(unknown)} too."
            )
        from nllb_prune.exporting.saving import save

        save(self, Path(save_directory), max_shard_size=max_shard_size)

    def generate(self, inputs: Any = None, *arguments: Any, **named: Any) -> Any:
        """Generate as transformers does, with a warning for a language that the checkpoint was not planned for."""
        config: Any = self.config  # type: ignore[attr-defined]
        pruning, ids = pruning_of(config), named.get("input_ids", inputs)
        if pruning is not None and isinstance(ids, torch.Tensor):
            languages = {token: code for code, token in pruning.tokens.items()}
            forced = _language(named, self.generation_config)  # type: ignore[attr-defined]
            for first in sorted(set(ids[:, 0].tolist())):
                if first in languages and forced in languages:
                    warn_unplanned(routing_of(self), languages[first], languages[forced])  # type: ignore[arg-type]
        return super().generate(inputs, *arguments, **named)  # type: ignore[misc]


def _language(named: dict[str, Any], usual: Any) -> Any:
    """Return the token of the language that a call is to translate into."""
    started = named.get("decoder_input_ids")
    if isinstance(started, torch.Tensor) and started.shape[-1] > 1:
        return int(started[0, 1])
    given = named.get("generation_config") or usual
    return named.get("forced_bos_token_id", getattr(given, "forced_bos_token_id", None))
