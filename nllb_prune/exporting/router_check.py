"""Whether weights are those that masks were planned for, told from the routers as they pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nllb_prune.errors import UsageError
from nllb_prune.masks import MaskSet
from nllb_prune.model.describe import row_norms
from nllb_prune.model.spec import Fingerprint
from nllb_prune.weights.stored import StoredTensor


class RouterCheck:
    """Compares the norms of router rows with those of a fingerprint, one sparse layer at a time.

    The whole fingerprint would take every file of a model that is fetched one file at a time.

    Args:
        masks: Planned for the model.
        routers: Name of each router's rows -> stack and number of the sparse layer.
    """

    def __init__(self, masks: MaskSet, routers: Mapping[str, tuple[str, int]]) -> None:
        self._masks, self._routers = masks, routers
        self._norms = _by_layer(masks)

    def see(self, tensors: Iterable[StoredTensor]) -> None:
        """Check the routers among some tensors.

        Raises:
            UsageError: at the first that is of another model.
        """
        for stored in tensors:
            layer = self._routers.get(stored.name)
            if layer is None:
                continue
            found = Fingerprint.of((), row_norms(stored.read()))
            if not Fingerprint.of((), self._norms[layer]).matches(found):
                raise UsageError(
                    f"`masks` must belong to the model, but are of {self._masks.model_name} (fingerprint "
                    f"{self._masks.fingerprint.short}), and `{stored.name}` is another's. "
                    "Plan masks from statistics of this model."
                )


def _by_layer(masks: MaskSet) -> dict[tuple[str, int], tuple[float, ...]]:
    norms, found, start = masks.fingerprint.router_norms, {}, 0
    for stack in masks.stacks:
        for number in range(len(stack.layers)):
            found[stack.name, number] = norms[start : start + stack.experts]
            start += stack.experts
    return found
