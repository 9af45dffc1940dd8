"""The processes that torchrun starts, each with its share of the items."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

_PATIENCE = timedelta(weeks=4)
"""How long the others are waited for; torch's own 30 minutes are less than the parts of a long run may differ."""


@dataclass(frozen=True, slots=True)
class Processes:
    """Which of the processes of one run is at work here."""

    rank: int
    count: int
    local_rank: int = 0
    """Among the processes of this machine."""

    def device(self, wanted: str) -> str:
        """Return where this process runs its model: plain `cuda` is shared out over the devices of the machine."""
        import torch

        if wanted != "cuda" or not torch.cuda.is_available():
            return wanted
        return f"cuda:{self.local_rank % torch.cuda.device_count()}"

    def wait(self) -> None:
        """Return when all have come this far."""
        import torch.distributed

        torch.distributed.barrier()


@contextmanager
def process_group() -> Iterator[Processes | None]:
    """Join the other processes of torchrun; `None` if this is the only one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield None
        return
    import torch.distributed

    torch.distributed.init_process_group("gloo", timeout=_PATIENCE)  # there is nothing to send, only to wait for
    try:
        rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
        yield Processes(rank, count, int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        torch.distributed.destroy_process_group()
