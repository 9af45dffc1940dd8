"""Freeze what transformers 4.57.6 computes for a tiny random NLLB-MoE; `README.md` lists the tensors."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GenerationConfig, NllbMoeConfig, NllbMoeForConditionalGeneration
from transformers.modeling_outputs import MoEModelOutput

TRANSFORMERS = "4.57.6"
SEED = 263  # one of the few draws that `check` accepts
BOS, PAD, END, UNKNOWN = range(4)
SOURCE_LANGUAGE, TARGET_LANGUAGE = 94, 95
WORDS = range(4, 94)
SOURCE_LENGTHS = (13, 5, 9, 3, 11)
TARGET_LENGTHS = (6, 12, 3, 9, 10)
STEPS = 10
NEW_TOKENS = 12
SPARSE_LAYERS = ("encoder.1", "encoder.3", "decoder.1", "decoder.3")
LAYERS_ALONE = ("encoder.1", "decoder.3")
KEPT_COUNTS = ((5, 3, 4, 2), (2, 6, 3, 4))  # of 8 experts: one row for each mask, one column for each sparse layer
ROW_MASK = (0, 1, 0, 1, 1)  # the mask of each sentence in the `mixed` tensors

Tensors = dict[str, Tensor]


def tiny_config() -> NllbMoeConfig:
    """Describe a model with two sparse layers of eight experts in each stack."""
    return NllbMoeConfig(
        vocab_size=96,
        d_model=32,
        encoder_layers=4,
        decoder_layers=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_sparse_step=2,
        decoder_sparse_step=2,
        num_experts=8,
        moe_token_dropout=0.2,
        moe_eval_capacity_token_fraction=1.0,
        router_dtype="float32",
        max_position_embeddings=64,
        scale_embedding=True,
        tie_word_embeddings=True,
    )


def tiny_model() -> NllbMoeForConditionalGeneration:
    """Draw every parameter so that routing is decisive and generation varied."""
    model = NllbMoeForConditionalGeneration(tiny_config()).eval()
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(_scaled(name, draw))
        model.model.shared.weight[PAD] = 0
        model.model.shared.weight[END] *= 1.2
    return model


def _scaled(name: str, draw: Tensor) -> Tensor:
    if name.endswith("shared.weight"):
        return 0.5 * draw
    if name == "model.decoder.layer_norm.weight":
        return draw  # signs at random: otherwise the tied embedding makes every step repeat its input
    if "layer_norm.weight" in name:
        return 1 + 0.1 * draw
    if name.endswith("bias"):
        return 0.1 * draw
    return 2 * draw / math.sqrt(draw.shape[1])


def draw_inputs() -> Tensors:
    """Draw five sentences and their translations, padded on the right, and kept experts."""
    generator = torch.Generator().manual_seed(SEED + 1)

    def words(count: int) -> list[int]:
        return torch.randint(WORDS.start, WORDS.stop, (count,), generator=generator).tolist()

    source = _padded([[SOURCE_LANGUAGE, *words(n - 2), END] for n in SOURCE_LENGTHS])
    target = _padded([[END, TARGET_LANGUAGE, *words(n - 2)] for n in TARGET_LENGTHS])
    steps = _padded([[END, TARGET_LANGUAGE, *words(STEPS - 2)] for _ in SOURCE_LENGTHS])
    return {
        "inputs/source": source,
        "inputs/source_valid": source != PAD,
        "inputs/target": target,
        "inputs/target_valid": target != PAD,
        "inputs/steps": steps,
        "masks/kept": torch.stack([_kept(counts, generator) for counts in KEPT_COUNTS]),
        "masks/rows": torch.tensor(ROW_MASK),
    }


def _padded(rows: list[list[int]]) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])


def _kept(counts: tuple[int, ...], generator: torch.Generator) -> Tensor:
    kept = torch.zeros(len(counts), tiny_config().num_experts, dtype=torch.bool)
    for layer, count in enumerate(counts):
        kept[layer, torch.randperm(kept.shape[1], generator=generator)[:count]] = True
    return kept  # (sparse layers, experts)


def sparse_layer(model: NllbMoeForConditionalGeneration, name: str) -> nn.Module:
    """Return the sparse layer called `stack.index`."""
    stack, index = name.split(".")
    return getattr(model.model, stack).layers[int(index)].ffn


@contextmanager
def only(model: NllbMoeForConditionalGeneration, kept: Tensor | None) -> Iterator[None]:
    """Put the router logits of all other experts at -inf; `kept` is (sparse layers, experts) or None for all."""
    if kept is None:
        yield
        return

    def hide(mask: Tensor):
        return lambda _module, _inputs, logits: logits.masked_fill(~mask, float("-inf"))

    classifiers = [sparse_layer(model, name).router.classifier for name in SPARSE_LAYERS]
    handles = [c.register_forward_hook(hide(mask)) for c, mask in zip(classifiers, kept, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def record(model: NllbMoeForConditionalGeneration, inputs: Tensors, kept: Tensor | None) -> Tensors:
    """Return every output of the model for these rows with the kept experts."""
    with only(model, kept):
        return {
            **_forward(model, inputs),
            "steps_logits": _step_by_step(model, inputs),
            **_greedy(model, inputs),
            **_beam(model, inputs, "beam", early_stopping=False),
            **_beam(model, inputs, "beam_early", early_stopping=True),
            **_layers_alone(model, inputs),
        }


def _forward(model: NllbMoeForConditionalGeneration, inputs: Tensors) -> Tensors:
    output = model(
        input_ids=inputs["inputs/source"],
        attention_mask=inputs["inputs/source_valid"].long(),
        decoder_input_ids=inputs["inputs/target"],
        decoder_attention_mask=inputs["inputs/target_valid"].long(),
        use_cache=False,
    )
    return {"encoder": output.encoder_last_hidden_state, "logits": output.logits}


def _step_by_step(model: NllbMoeForConditionalGeneration, inputs: Tensors) -> Tensor:
    mask = inputs["inputs/source_valid"].long()
    encoder = MoEModelOutput(model.model.encoder(inputs["inputs/source"], mask).last_hidden_state)
    cache, logits = None, []
    for step in inputs["inputs/steps"].split(1, dim=1):
        output = model(
            encoder_outputs=encoder,
            attention_mask=mask,
            decoder_input_ids=step,
            past_key_values=cache,
            use_cache=True,
        )
        cache = output.past_key_values
        logits.append(output.logits)
    return torch.cat(logits, dim=1)  # STEPS x (rows, 1, vocabulary) -> (rows, STEPS, vocabulary)


def _generate(model: NllbMoeForConditionalGeneration, inputs: Tensors, **options):
    return model.generate(
        input_ids=inputs["inputs/source"],
        attention_mask=inputs["inputs/source_valid"].long(),
        forced_bos_token_id=TARGET_LANGUAGE,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
        **options,
    )


def _greedy(model: NllbMoeForConditionalGeneration, inputs: Tensors) -> Tensors:
    output = _generate(model, inputs, num_beams=1, output_logits=True)
    best = torch.stack(output.logits, dim=1).float().topk(2).values  # (rows, new tokens, 2)
    margin = best[..., 0] - best[..., 1]
    margin[:, 0] = float("inf")
    margin[output.sequences[:, 1:] == PAD] = float("inf")
    missing = NEW_TOKENS - margin.shape[1]
    return {
        "greedy": _filled(output.sequences),
        "greedy_margin": nn.functional.pad(margin, (0, missing), value=float("inf")),
    }


def _beam(model: NllbMoeForConditionalGeneration, inputs: Tensors, name: str, *, early_stopping: bool) -> Tensors:
    output = _generate(
        model, inputs, num_beams=4, length_penalty=1.0, early_stopping=early_stopping, output_scores=True
    )
    return {name: _filled(output.sequences), f"{name}_scores": output.sequences_scores.float()}


def _filled(sequences: Tensor) -> Tensor:
    return nn.functional.pad(sequences, (0, 1 + NEW_TOKENS - sequences.shape[1]), value=PAD)


def _layers_alone(model: NllbMoeForConditionalGeneration, inputs: Tensors) -> Tensors:
    tensors: Tensors = {}
    for name in LAYERS_ALONE:
        side = "source" if name.startswith("encoder") else "target"
        valid = inputs[f"inputs/{side}_valid"]
        hidden = inputs[f"layer/{name}/input"]
        for kind, shown in (("padded", valid), ("unpadded", torch.ones_like(valid))):
            found = _layer_alone(sparse_layer(model, name), hidden, shown)
            tensors |= {f"layer/{name}/{kind}/{key}": tensor for key, tensor in found.items()}
    return tensors


def _layer_alone(layer: nn.Module, hidden: Tensor, valid: Tensor) -> Tensors:
    # (rows, 1, 1, tokens), additive, as the model's attention hands it over
    bias = torch.zeros(valid.shape, dtype=hidden.dtype).masked_fill(~valid, torch.finfo(hidden.dtype).min)
    output, (weights, first) = layer(hidden, bias[:, None, None])
    logits = layer.router.classifier(hidden.float())
    weights = weights.view(*hidden.shape[:2], -1)  # (rows * tokens, experts) -> (rows, tokens, experts)
    first = first.view(hidden.shape[:2])[..., None]
    assert torch.equal((weights != 0).sum(-1), 2 * valid), "each valid token must have two experts"
    others = weights.float().scatter(-1, first, 0.0)
    experts = torch.cat([first, others.argmax(-1, keepdim=True)], dim=-1)
    ranked = logits.sort(-1, descending=True).values
    gap = torch.where(ranked[..., 2].isinf(), float("inf"), ranked[..., 1] - ranked[..., 2])
    return {
        "output": output,
        "experts": experts.masked_fill(~valid[..., None], -1),
        "weights": weights.gather(-1, experts) * valid[..., None],
        "gap": gap,
    }


def record_layer_inputs(model: NllbMoeForConditionalGeneration, inputs: Tensors) -> Tensors:
    """Return what reaches each of the layers that are recorded alone, in the whole model with all experts."""
    tensors: Tensors = {}

    def keep(name: str):
        return lambda _module, arguments: tensors.update({f"layer/{name}/input": arguments[0]})

    handles = [sparse_layer(model, name).register_forward_pre_hook(keep(name)) for name in LAYERS_ALONE]
    _forward(model, inputs)
    for handle in handles:
        handle.remove()
    return tensors


def record_mixed(model: NllbMoeForConditionalGeneration, inputs: Tensors) -> Tensors:
    """Run the rows of each mask apart and put them back into one batch."""
    rows, masks = inputs["masks/rows"], inputs["masks/kept"]
    mixed: Tensors = {}
    for number, kept in enumerate(masks):
        chosen = rows == number
        subset = {k: v if k.startswith("masks/") else v[chosen] for k, v in inputs.items()}
        for name, tensor in record(model, subset, kept).items():
            mixed.setdefault(name, tensor.new_empty(len(rows), *tensor.shape[1:]))[chosen] = tensor
    return mixed


def record_all(model: NllbMoeForConditionalGeneration, inputs: Tensors) -> Tensors:
    """Return inputs and outputs under their names in the file."""
    inputs = inputs | record_layer_inputs(model, inputs)
    cases = {
        "full": record(model, inputs, None),
        "masked": record(model, inputs, inputs["masks/kept"][0]),
        "mixed": record_mixed(model, inputs),
    }
    return inputs | {f"{case}/{name}": tensor for case, found in cases.items() for name, tensor in found.items()}


def shaken(model: NllbMoeForConditionalGeneration) -> NllbMoeForConditionalGeneration:
    """Return a copy with every weight changed by about 1e-5 of itself."""
    copied = deepcopy(model)
    generator = torch.Generator().manual_seed(SEED + 2)
    for parameter in copied.parameters():
        parameter.mul_(1 + 1e-5 * torch.randn(parameter.shape, generator=generator))
    return copied


def check(tensors: Tensors, near: Tensors | None) -> None:
    """Refuse references that say little: undecided routing, dull translations, anything else than in `near`."""
    cases = ("full", "masked", "mixed")
    assert any(not torch.equal(tensors[f"{case}/beam"], tensors[f"{case}/beam_early"]) for case in cases)
    for name, tensor in tensors.items():
        kind = name.rsplit("/", 1)[-1]
        assert kind in ("gap", "greedy_margin") or tensor.float().isfinite().all(), name
        if kind in ("encoder", "logits", "steps_logits") and near is not None:
            assert (tensor - near[name]).abs().max() < 1e-2, name  # so no token changed its experts
        if kind == "gap":
            assert (tensor > 1e-3).float().mean() > 0.99, (name, tensor.min())
        if kind in ("greedy", "beam", "beam_early"):
            words = [[token for token in row if token >= WORDS.start] for row in tensor[:, 2:].tolist()]
            assert len({tuple(row) for row in words}) == len(words), name
            assert sum(map(len, words)) > 20, name
            assert sum(len(set(row)) for row in words) > 0.4 * sum(map(len, words)), name
            assert len({row.count(PAD) for row in tensor.tolist()}) > 1, name
            assert near is None or torch.equal(tensor, near[name]), name


def save(folder: Path, name: str, tensors: Tensors) -> None:
    """Write one file; its metadata says how it was made."""
    made = {
        "format": "nllb-prune/reference",
        "version": 1,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "script": hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16],
    }
    contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
    # one metadata key: safetensors does not keep the order of several
    save_file(contiguous, folder / f"{name}.safetensors", {"nllb-prune": json.dumps(made, sort_keys=True)})


def write_model(folder: Path) -> None:
    """Save the tiny model as a transformers checkpoint in float32."""
    model = tiny_model()
    model.generation_config = GenerationConfig(
        bos_token_id=BOS, pad_token_id=PAD, eos_token_id=END, decoder_start_token_id=END
    )
    model.save_pretrained(folder)


@torch.inference_mode()
def main() -> None:
    """Write the checkpoint and one file of references for each dtype."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to (default: here)")
    out: Path = parser.parse_args().out
    if transformers.__version__ != TRANSFORMERS:
        raise SystemExit(
            f"`transformers` must be {TRANSFORMERS}, but is {transformers.__version__} instead; "
            f"run in an environment made with `pip install transformers=={TRANSFORMERS}`."
        )
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    write_model(out / "tiny")
    inputs = draw_inputs()
    for dtype in (torch.float32, torch.bfloat16):
        model = NllbMoeForConditionalGeneration.from_pretrained(out / "tiny", dtype=dtype).eval()
        tensors = record_all(model, inputs)
        check(tensors, record_all(shaken(model), inputs) if dtype == torch.float32 else None)
        save(out, str(dtype).removeprefix("torch."), tensors)


if __name__ == "__main__":
    main()
