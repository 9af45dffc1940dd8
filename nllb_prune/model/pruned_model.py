"""What the classes of pruned checkpoints do otherwise than those of transformers that they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nllb_prune.errors import UsageError
from nllb_prune.model.pruned import pruning_of
from nllb_prune.model.routing import routing_of, warn_unplanned

_OF_THE_HUB = {
    "adapter_kwargs",
    "attn_implementation",
    "cache_dir",
    "code_revision",
    "force_download",
    "local_files_only",
    "low_cpu_mem_usage",
    "proxies",
    "resume_download",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
    "use_auth_token",
    "use_safetensors",
}


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
            others: What the Auto classes pass on.
        """
        from nllb_prune.model.loading import load_model

        unknown = sorted(name for name, value in others.items() if name not in _OF_THE_HUB and value is not None)
        if arguments or unknown:
            raise UsageError(
                f"`from_pretrained` of a pruned checkpoint must be given a path, `dtype` and `device_map` only, but is "
                f"given {', '.join(unknown) or 'more'} too."
            )
        return load_model(pretrained_model_name_or_path, dtype=dtype or torch_dtype, device_map=device_map)

    def save_pretrained(self, save_directory: str | Path, *, max_shard_size: int | str = "5GB", **others: Any) -> None:
        """Write the checkpoint again: configuration, experts under their original ids, everything else as named."""
        from nllb_prune.exporting.saving import save

        save(self, Path(save_directory), max_shard_size=max_shard_size)

    def generate(self, inputs: Any = None, *arguments: Any, **named: Any) -> Any:
        """Generate as transformers does, with a warning for a language that the checkpoint was not planned for."""
        config: Any = self.config  # type: ignore[attr-defined]
        pruning, ids = pruning_of(config), named.get("input_ids", inputs)
        if pruning is not None and isinstance(ids, torch.Tensor):
            languages = {token: code for code, token in pruning.tokens.items()}
            forced = named.get("forced_bos_token_id", getattr(self.generation_config, "forced_bos_token_id", None))  # type: ignore[attr-defined]
            for first in sorted(set(ids[:, 0].tolist())):
                if first in languages and forced in languages:
                    warn_unplanned(routing_of(self), languages[first], languages[forced])  # type: ignore[arg-type]
        return super().generate(inputs, *arguments, **named)  # type: ignore[misc]
