"""The sparse layer: route, mask, dispatch, combine; tells an observer what it did.

It computes what `NllbMoeSparseMLP` of transformers 4.57.6 computes, on every transformers line: 5.x (5.0.0 to 5.23.0)
sends all tokens through experts 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nllb_prune.model.dispatch import Tap
from nllb_prune.model.quantised_bank import Bank
from nllb_prune.model.routing import Observer, RoutedTokens, StackRouting


def choose_experts(
    logits: Tensor, *, top_k: int, dtype: torch.dtype, renormalise: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the experts of each token from the router's float32 logits, -inf where an expert is masked.

    As transformers 4.57.6 does: softmax in float32, rounded to the activation dtype; the first expert is the best of
    the *rounded* probabilities, the others the best of the *logits* among those left; ties go to the lowest id.

    Returns:
        Rounded probabilities ``(tokens, experts)``, chosen ids and combining weights ``(tokens, top_k)``.
    """
    probabilities = logits.softmax(-1, dtype=torch.float32).to(dtype)
    choices = [probabilities.argmax(-1, keepdim=True)]
    left = logits
    for _ in range(top_k - 1):
        left = left.scatter(1, choices[-1], float("-inf"))
        choices.append(left.argmax(-1, keepdim=True))
    chosen = torch.cat(choices, dim=1)
    gates = probabilities.gather(1, chosen)
    if renormalise:
        gates = gates / gates.sum(-1, keepdim=True).clamp_min(torch.finfo(dtype).eps)
    return probabilities, chosen, gates


class SparseFfn(nn.Module):
    """A router over E experts and the bank that holds them.

    Args:
        layer: Number of this sparse layer in its stack.
        bank: The experts.
        top_k: Experts that run for a token.
        output_scale: Factor on every expert's output.
        renormalise: Whether the combining weights of a token sum to 1.
        routing: What the stack's calls carry; shared by its layers.
        wrap_output: Makes of the output what the surrounding layer expects of its `ffn`.
    """

    def __init__(
        self,
        *,
        layer: int,
        bank: Bank,
        d_model: int,
        top_k: int,
        output_scale: float,
        routing: StackRouting,
        renormalise: bool = True,
        router_bias: bool = False,
        wrap_output: Callable[[Tensor], Any] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.bank = bank
        self.top_k = top_k
        self.output_scale = output_scale
        self.renormalise = renormalise
        self.routing = routing
        self.wrap_output = wrap_output
        # rows of all experts, resident or not: 1 MB a layer at NLLB's size buys one rule for every kind of bank
        self.router_weight = _float32_parameter(bank.experts, d_model, device=device)
        self.router_bias = _float32_parameter(bank.experts, device=device) if router_bias else None

    def forward(self, hidden_states: Tensor, *_attention_mask: object) -> Any:
        """Run the layer on ``(rows, length, d_model)``; padding comes out as zeros."""
        rows, length, _ = hidden_states.shape
        flat = hidden_states.flatten(0, 1)
        positions = self.routing.positions(rows, length)
        keep = self.routing.kept(self.layer, rows=rows, length=length, positions=positions)
        if positions is not None:
            positions = positions.to(flat.device)  # where it differs, the model is on several
        if keep is not None:
            keep = keep.to(flat.device)
        output = self.mix(flat, positions=positions, keep=keep, rows=rows).view_as(hidden_states)
        return output if self.wrap_output is None else self.wrap_output(output)

    def mix(self, flat: Tensor, *, positions: Tensor | None, keep: Tensor | None, rows: int) -> Tensor:
        """Run the layer on the tokens of a call, whoever makes it.

        Args:
            flat: Inputs, padding included ``(rows * length, d_model)``.
            positions: Indices of the tokens among them ``(tokens,)``; `None` for all.
            keep: Experts that each token may use ``(tokens or 1, experts)``, boolean; `None` for all.
            rows: Rows of the call, for the observer.

        Returns:
            As `flat`, zeros at padding.
        """
        tokens = flat if positions is None else flat[positions]
        logits = self._mask(self._logits(tokens), keep)
        probabilities, chosen, gates = choose_experts(
            logits, top_k=self.top_k, dtype=flat.dtype, renormalise=self.renormalise
        )
        tap = None
        if self.routing.observer is not None:
            tap = self._tell(self.routing.observer, RoutedTokens(probabilities, chosen, gates, tokens, positions, rows))
        output = self.bank(tokens, chosen, gates, scale=self.output_scale, tap=tap)
        return output if positions is None else torch.zeros_like(flat).index_copy_(0, positions, output)

    def _tell(self, observer: Observer, routed: RoutedTokens) -> Tap | None:
        """Tell an observer of a call; return how it sees the outputs, if it wants to."""
        observer.observe(self.routing.stack, self.layer, routed)
        if not observer.wants_outputs:
            return None
        return partial(observer.observe_outputs, self.routing.stack, self.layer, routed)

    def _logits(self, tokens: Tensor) -> Tensor:
        # (tokens, D) -> (tokens, E), always in float32, as NLLB was trained, whatever the module was converted to
        bias = None if self.router_bias is None else self.router_bias.float()
        return functional.linear(tokens.float(), self.router_weight.float(), bias)

    def _mask(self, logits: Tensor, keep: Tensor | None) -> Tensor:
        if not self.bank.complete:
            keep = self.bank.resident if keep is None else keep & self.bank.resident
        return logits if keep is None else logits.masked_fill(~keep, float("-inf"))


def _float32_parameter(*shape: int, device: torch.device | str | None) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, dtype=torch.float32, device=device), requires_grad=False)
