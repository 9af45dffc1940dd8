"""Checkpoints as fairseq writes them: a file of what all ranks share, and one file of experts for each rank.

`checkpoint_2_300000-shared.pt` and `checkpoint_2_300000-rank-0.pt`, `-rank-1.pt`, ...: `model` in each is a table of
tensors. Every rank numbers its experts from 0, however many it has; as all have the same number of them, expert j of
rank r is expert r * (experts of a rank) + j of the model. Without rank files the shared one holds all experts. A dense
model is one file of any name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from nllb_prune.errors import UsageError

ORIGINAL_END = ".pt"
SHARED_END = f"-shared{ORIGINAL_END}"
_RANK = re.compile(r"-rank-(\d+)\.pt$")


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginalLayout:
    """What the original tensors of a family are called."""

    expert: re.Pattern[str] | None
    """Finds the number of an expert, its only group, in the name of a tensor; `None` of a dense model."""
    rename: Callable[[str], str | None]
    """Original name, with the expert's number in the model -> the family's; None for what is ignored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginalFiles:
    """The `Layout` of the original files of a folder."""

    files: tuple[str, ...]
    """The shared one, then those of the ranks in order; of a dense model its only one."""
    layout: OriginalLayout
    part: str = "model"
    weight_map: None = None

    def names(self, file: str, stored: Collection[str]) -> dict[str, str]:
        """Give the experts their numbers in the model, and translate."""
        rank = _RANK.search(file)
        numbers = [int(found[1]) for name in stored if (found := self._expert(name))]
        first = int(rank[1]) * (max(numbers, default=0) + 1) if rank else 0
        names = {self.layout.rename(self._renumbered(name, first)): name for name in stored}
        return {name: as_stored for name, as_stored in names.items() if name is not None}

    def _renumbered(self, name: str, first: int) -> str:
        found = self._expert(name)
        if found is None:
            return name
        return f"{name[: found.start(1)]}{first + int(found[1])}{name[found.end(1) :]}"

    def _expert(self, name: str) -> re.Match[str] | None:
        return None if self.layout.expert is None else self.layout.expert.search(name)


def find_original(folder: Path, layout: OriginalLayout) -> OriginalFiles | None:
    """Return the original files of a folder; None if it has none.

    Raises:
        UsageError: if it has those of several checkpoints, or a rank is missing.
    """
    shared = sorted(folder.glob(f"*{SHARED_END}"))
    if not shared:
        alone = [] if layout.expert is not None else sorted(folder.glob(f"*{ORIGINAL_END}"))
        return OriginalFiles(files=(alone[0].name,), layout=layout) if len(alone) == 1 else None
    if len(shared) > 1:
        raise UsageError(
            f"`{folder}` must hold one original checkpoint, but holds {len(shared)} ({shared[0].name}, "
            f"{shared[1].name}, ...); move the others away."
        )
    stem = shared[0].name.removesuffix(SHARED_END)
    ranks = {
        int(found[1]): path.name
        for path in folder.iterdir()
        if path.name.startswith(f"{stem}-rank-") and (found := _RANK.search(path.name))
    }
    missing = next((rank for rank in range(max(ranks, default=-1) + 1) if rank not in ranks), None)
    if missing is not None:
        raise UsageError(
            f"`{folder / f'{stem}-rank-{missing}.pt'}` must hold the experts of a rank, but there is no such file; "
            "fetch it again."
        )
    return OriginalFiles(files=(shared[0].name, *(ranks[rank] for rank in sorted(ranks))), layout=layout)
