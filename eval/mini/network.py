"""The network that is trained: NLLB-MoE's (or M2M-100's) function and tensor names, written for a fast CPU step.

Differences from the model it becomes are those of training alone: dropout, expert-output masking, the losses of the
routers, and experts as stacked tensors. `state_for_transformers` gives the tensors under the names of
transformers; a test checks that both compute the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """Shape of the network; `experts` 0 gives a dense network."""

    vocabulary: int
    d_model: int
    heads: int
    ffn: int
    encoder_layers: int
    decoder_layers: int
    experts: int = 0
    encoder_sparse_step: int = 0
    decoder_sparse_step: int = 0
    dropout: float = 0.1
    expert_output_masking: float = 0.2
    pad: int = 1


class MaskPool(nn.Module):
    """Dropout from a pool of random bits: a random window of it is a mask, at the price of a multiplication."""

    def __init__(self, *, dropout: float, size: int = 1 << 24) -> None:
        super().__init__()
        self.dropout = dropout
        self.size = size
        self.refill(0)

    def refill(self, seed: int) -> None:
        """Draw the pool anew."""
        keep = 1 - self.dropout
        drawn = torch.rand(self.size, generator=torch.Generator().manual_seed(seed))
        self.pool = (drawn < keep).to(torch.float32) / keep

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with each element zeroed with probability `dropout`, the rest scaled to keep the mean."""
        if not self.training or self.dropout == 0:
            return x
        start = int(torch.randint(self.size - x.numel(), ()))
        return x * self.pool[start : start + x.numel()].view_as(x)


class Attention(nn.Module):
    """Multi-head attention with the parameter names of transformers."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(d_model, d_model) for _ in range(4))
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.xavier_uniform_(projection.weight, gain=1 / math.sqrt(2))
        nn.init.xavier_uniform_(self.out_proj.weight)

    def _split(self, x: Tensor) -> Tensor:
        # (B, T, D) -> (B, heads, T, D / heads)
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """Attend from `x` (B, T, D) to `memory` (B, S, D) where `mask` (B, 1, T or 1, S) is true."""
        q, k, v = self._split(self.q_proj(x)), self._split(self.k_proj(memory)), self._split(self.v_proj(memory))
        # plain products: for sentences this short the fused kernel's backward pass is ten times slower on a CPU
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
        weights = scores.masked_fill(~mask, -1e4).softmax(-1).to(v.dtype)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(2))


class DenseFfn(nn.Module):
    """Two matrices with a ReLU between."""

    def __init__(self, d_model: int, ffn: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(d_model, ffn), nn.Linear(ffn, d_model)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.fc2(functional.relu(self.fc1(x)))


class SparseFfn(nn.Module):
    """Top-2 experts with expert-output masking; `balance` and `information` say how the last call was routed."""

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        d, f, e = settings.d_model, settings.ffn, settings.experts
        self.masking = settings.expert_output_masking
        self.router = nn.Linear(d, e, bias=False)
        nn.init.normal_(self.router.weight, std=0.5 / math.sqrt(d))
        bound = math.sqrt(6 / (d + f))
        self.fc1_weight = nn.Parameter(torch.empty(e, f, d).uniform_(-bound, bound))
        self.fc1_bias = nn.Parameter(torch.zeros(e, f))
        self.fc2_weight = nn.Parameter(torch.empty(e, d, f).uniform_(-bound, bound))
        self.fc2_bias = nn.Parameter(torch.zeros(e, d))
        self.balance = torch.zeros(())
        self.information = torch.zeros(())

    def forward(self, x: Tensor, languages: Tensor) -> Tensor:
        """(N, D) valid tokens, (N,) number of the language of each -> (N, D)."""
        experts = self.router.out_features
        with torch.autocast("cpu", enabled=False):
            probabilities = functional.linear(x.float(), self.router.weight).softmax(-1)
        best, chosen = probabilities.topk(2, dim=-1)  # (N, 2)
        share = functional.one_hot(chosen[:, 0], experts).float().mean(0)
        self.balance = experts * (share * probabilities.mean(0)).sum()
        self.information = mutual_information(probabilities, languages)
        gates = best / best.sum(-1, keepdim=True)
        if self.training and self.masking:
            gates = gates * (torch.rand_like(gates) >= self.masking)
        else:
            gates = gates * (1 - self.masking)
        order = chosen.flatten().argsort()
        token = order // 2
        rows = x.float()[token].split(chosen.flatten().bincount(minlength=experts).tolist())
        stacked = (self.fc1_weight, self.fc1_bias, self.fc2_weight, self.fc2_bias)
        weights = zip(*(tensor.unbind(0) for tensor in stacked), strict=True)
        # float32: with a new shape a call, compiling bfloat16 products costs more than they save
        with torch.autocast("cpu", enabled=False):
            outputs = [
                functional.linear(functional.relu(functional.linear(part, w1, b1)), w2, b2)
                for part, (w1, b1, w2, b2) in zip(rows, weights, strict=True)
                if len(part)
            ]
        weighted = torch.cat(outputs) * gates.flatten()[order].unsqueeze(-1)
        return torch.zeros_like(weighted[: len(x)]).index_add(0, token, weighted)


def mutual_information(probabilities: Tensor, languages: Tensor) -> Tensor:
    """Return the mutual information of the expert that a router would draw and the language, in nats.

    Training maximises it (arXiv 2212.08066 does, of experts and tasks) so that languages part, where balance would be
    as good with every language in every expert.

    Args:
        probabilities: Of the router ``(N, experts)``.
        languages: Number of the language of each token ``(N,)``.
    """
    member = functional.one_hot(languages).to(probabilities.dtype)  # (N, L)
    tokens = member.sum(0)
    given = (member.T @ probabilities) / tokens.clamp_min(1).unsqueeze(1)  # (L, experts)
    return _entropy(probabilities.mean(0)) - (_entropy(given) * tokens).sum() / tokens.sum()


def _entropy(probabilities: Tensor) -> Tensor:
    return -(probabilities * probabilities.clamp_min(1e-9).log()).sum(-1)


class Layer(nn.Module):
    """A pre-norm transformer layer; with `cross` it also attends to the encoder."""

    def __init__(self, settings: NetworkSettings, dropout: MaskPool, *, sparse: bool, cross: bool) -> None:
        super().__init__()
        d = settings.d_model
        self.self_attn, self.self_attn_layer_norm = Attention(d, settings.heads), nn.LayerNorm(d)
        if cross:
            self.cross_attention, self.cross_attention_layer_norm = Attention(d, settings.heads), nn.LayerNorm(d)
        self.cross = cross
        self.sparse = sparse
        self.ffn = SparseFfn(settings) if sparse else DenseFfn(d, settings.ffn)
        self.ff_layer_norm = nn.LayerNorm(d)
        self._dropout = (dropout,)  # shared, not a child

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        valid: Tensor,
        languages: Tensor,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D); `valid` holds the flat positions that are not padding, `languages` theirs."""
        dropout = self._dropout[0]
        normed = self.self_attn_layer_norm(x)
        x = x + dropout(self.self_attn(normed, normed, mask))
        if self.cross:
            assert memory is not None
            assert memory_mask is not None
            x = x + dropout(self.cross_attention(self.cross_attention_layer_norm(x), memory, memory_mask))
        normed = self.ff_layer_norm(x)
        if self.sparse:
            flat = normed.flatten(0, 1)
            out = (
                torch.zeros_like(flat).index_copy(0, valid, self.ffn(flat[valid], languages).to(flat.dtype)).view_as(x)
            )
        else:
            out = self.ffn(normed)
        return x + dropout(out)


class Stack(nn.Module):
    """The layers of an encoder or a decoder and the final norm."""

    def __init__(self, settings: NetworkSettings, dropout: MaskPool, *, layers: int, step: int, cross: bool) -> None:
        super().__init__()
        sparse = [settings.experts > 0 and step > 0 and (n + 1) % step == 0 for n in range(layers)]
        self.layers = nn.ModuleList(Layer(settings, dropout, sparse=s, cross=cross) for s in sparse)
        self.layer_norm = nn.LayerNorm(settings.d_model)


def sinusoids(positions: int, dimension: int) -> Tensor:
    """Return the position table (positions, dimension): sines in the first half, cosines in the second."""
    half = dimension // 2
    frequency = torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))
    angle = torch.arange(positions).unsqueeze(1) * frequency.unsqueeze(0)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class Network(nn.Module):
    """An encoder-decoder with tied embeddings."""

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        self.settings = settings
        self.shared = nn.Embedding(settings.vocabulary, settings.d_model, padding_idx=settings.pad)
        nn.init.normal_(self.shared.weight, std=settings.d_model**-0.5)
        self.dropout = MaskPool(dropout=settings.dropout)
        self.encoder = Stack(
            settings, self.dropout, layers=settings.encoder_layers, step=settings.encoder_sparse_step, cross=False
        )
        self.decoder = Stack(
            settings, self.dropout, layers=settings.decoder_layers, step=settings.decoder_sparse_step, cross=True
        )
        self.register_buffer("positions", sinusoids(514, settings.d_model), persistent=False)

    def _embed(self, ids: Tensor) -> Tensor:
        valid = ids.ne(self.settings.pad)
        position = valid.cumsum(1) * valid + self.settings.pad
        x = self.shared(ids) * math.sqrt(self.settings.d_model) + self.positions[position]
        return self.dropout(x)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return decoder states (B, T, D) for source ids (B, S) and decoder input ids (B, T)."""
        pad = self.settings.pad
        source_mask = source.ne(pad)[:, None, None, :]
        source_valid = source.ne(pad).flatten().nonzero().squeeze(1)
        x = self._embed(source)
        languages = numbered(source[:, 0])[source_valid // source.shape[1]]
        for layer in self.encoder.layers:
            x = layer(x, source_mask, source_valid, languages)
        memory = self.encoder.layer_norm(x)
        length = target.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        target_valid = target.ne(pad).flatten().nonzero().squeeze(1)
        x = self._embed(target)
        languages = numbered(target[:, 1])[target_valid // length]
        for layer in self.decoder.layers:
            x = layer(x, causal, target_valid, languages, memory, source_mask)
        return self.decoder.layer_norm(x)

    def balance(self) -> Tensor:
        """Return the mean load-balancing loss of the last call; 1 is perfectly balanced."""
        return self._mean(lambda ffn: ffn.balance)

    def information(self) -> Tensor:
        """Return the mean mutual information of expert and language in the last call, in nats."""
        return self._mean(lambda ffn: ffn.information)

    def _mean(self, of: Callable[[SparseFfn], Tensor]) -> Tensor:
        losses = [of(layer.ffn) for stack in (self.encoder, self.decoder) for layer in stack.layers if layer.sparse]
        return torch.stack(losses).mean() if losses else torch.zeros(())


def numbered(tokens: Tensor) -> Tensor:
    """Return small numbers, equal where the tokens are equal."""
    return tokens.unique(return_inverse=True)[1]


def state_for_transformers(network: Network, *, copy: bool = True) -> dict[str, Tensor]:
    """Return the tensors under the names of `NllbMoeForConditionalGeneration` (dense: M2M-100's).

    Without `copy` they are views of the network's own.
    """
    dense = network.settings.experts == 0
    state: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        if dense:
            renamed = name.replace(".ffn.", ".").replace(".ff_layer_norm", ".final_layer_norm")
            renamed = renamed.replace("cross_attention_layer_norm", "encoder_attn_layer_norm")
            state["model." + renamed.replace("cross_attention", "encoder_attn")] = tensor
        elif ".ffn.router." in name:
            state["model." + name.replace(".router.", ".router.classifier.")] = tensor
        elif name.rsplit(".", 1)[-1] in ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias"):
            prefix, leaf = name.rsplit(".", 1)
            for expert, part in enumerate(tensor):
                state[f"model.{prefix}.experts.expert_{expert}.{leaf.replace('_', '.')}"] = (
                    part.clone() if copy else part
                )
        else:
            state["model." + name] = tensor
    return state


def load_from_transformers(network: Network, state: dict[str, Tensor]) -> None:
    """Fill a network from the tensors that `state_for_transformers` gave; raises KeyError if one is missing."""
    with torch.no_grad():
        for name, view in state_for_transformers(network, copy=False).items():
            view.copy_(state[name])
