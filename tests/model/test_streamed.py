"""A model that is read while it runs does what the same model in memory does, and reads no more than it must."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nllb_prune.corpus import ParallelText
from nllb_prune.errors import UsageError
from nllb_prune.evaluation.fidelity.held_out import HeldOut
from nllb_prune.exporting.export import export
from nllb_prune.exporting.settings import ExportSettings
from nllb_prune.generation.translate import translate
from nllb_prune.masks import MaskSet
from nllb_prune.model.blocks import blocks_of, carried_blocks
from nllb_prune.model.facts import dtype_name
from nllb_prune.model.loading import load_model
from nllb_prune.model.routing import clear_masks, routing, routing_of, set_masks
from nllb_prune.model.source import embedded_text, load_tokenizer
from nllb_prune.model.streamed import load_streamed, streamed_blocks
from nllb_prune.model.teacher_forcing import IGNORED, decoder_states, encoder_states, forced_batch
from nllb_prune.tokenization import encode

TINY = Path(__file__).parent.parent / "reference" / "tiny"
DIRECTION = ("deu_Latn", "eng_Latn")


@pytest.fixture(scope="module")
def model():
    return load_model("mini")


@pytest.fixture(scope="module")
def streamed():
    return load_streamed("mini")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("mini")


@pytest.fixture(scope="module")
def text():
    return ParallelText.open(embedded_text(), "dev")


@pytest.fixture(scope="module")
def batch(model, tokenizer, text):
    sides = (encode(tokenizer, text.lines(code)[:12], code) for code in DIRECTION)
    return forced_batch(model, *sides)


def mask_set(model, *, experts):
    """Masks of one direction, every stack and layer with other experts."""
    spec = routing_of(model).spec
    masks = {}
    for stack, code in zip(spec.stacks, DIRECTION, strict=True):
        ids = (torch.arange(experts) * stack.experts // experts).tolist()
        masks[stack.name] = {code: tuple(tuple(n + layer for n in ids) for layer in range(len(stack.layers)))}
    return MaskSet(
        model_name="mini", fingerprint=spec.fingerprint, stacks=spec.stacks, granularity="language", masks=masks
    )


def rows_of(masks, model):
    from nllb_prune.model.routing import mask_rows

    return mask_rows(masks, [DIRECTION], device=next(model.parameters()).device)


def banks(model):
    return [layer.bank for layers in streamed_blocks(model).layers.values() for layer in layers if layer.bank]


@torch.inference_mode()
def outputs(model, batch):
    """Encoder states, and logits where a token is predicted."""
    memory, counted = encoder_states(model, batch), batch.labels.ne(IGNORED)
    logits = model.get_output_embeddings()(decoder_states(model, batch, memory)[counted])
    return memory[batch.source.ne(model.config.pad_token_id)], logits


def assert_near(ours, theirs, tolerance=1e-5):
    for mine, other in zip(ours, theirs, strict=True):
        assert float((mine - other).abs().max() / other.abs().max()) <= tolerance


# what it computes


def test_it_is_the_same_model(model, streamed):
    ours, theirs = routing_of(streamed), routing_of(model)
    assert (ours.spec, ours.identity, ours.name) == (theirs.spec, theirs.identity, theirs.name)
    assert dtype_name(streamed) == "float32"
    assert next(streamed.parameters()).device.type == "cpu"
    assert streamed.get_input_embeddings().weight.shape == model.get_input_embeddings().weight.shape


@pytest.mark.parametrize("masked", [False, True])
def test_teacher_forcing(model, streamed, batch, masked):
    found = []
    for each in (streamed, model):
        with routing(each, masks=rows_of(mask_set(model, experts=6), model) if masked else None):
            found.append(outputs(each, batch))
    assert_near(*found)


def test_rows_with_masks_of_their_own(model, streamed, batch):
    generator = torch.Generator().manual_seed(3)
    masks = {}
    for stack in routing_of(model).spec.stacks:
        drawn = torch.rand(6, len(stack.layers), stack.experts, generator=generator)  # one for two rows
        masks[stack.name] = drawn.argsort(-1) < 9
    found = []
    for each in (streamed, model):
        with routing(each, masks=masks):
            found.append(outputs(each, batch))
    assert_near(*found)


def test_rows_that_are_no_multiple_of_the_masks(streamed, batch):
    masks = {stack.name: torch.ones(5, len(stack.layers), 64).bool() for stack in routing_of(streamed).spec.stacks}
    with routing(streamed, masks=masks), pytest.raises(UsageError, match="a multiple of the 5 sentences"):
        outputs(streamed, batch)


def test_masks_that_are_set(model, streamed, batch):
    masks = mask_set(model, experts=4)
    try:
        found = []
        for each in (streamed, model):
            set_masks(each, masks, DIRECTION)
            found.append(outputs(each, batch))
        assert_near(*found)
    finally:
        clear_masks(model)
        clear_masks(streamed)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_translations(model, streamed, tokenizer, text, beams, masked):
    lines, options = text.lines("deu_Latn")[:6], {"source": "deu_Latn", "target": "eng_Latn", "beams": beams}
    options["masks"] = mask_set(model, experts=16) if masked else None
    ours, theirs = (translate(each, tokenizer, lines, **options) for each in (streamed, model))
    assert ours == theirs
    assert all(ours)


def test_held_out(model, streamed, tokenizer, text):
    masks, found = mask_set(model, experts=12), []
    for each in (streamed, model):
        held = HeldOut.of(each, tokenizer, text, [DIRECTION], sentences=10, decoded=4, skipped=100)
        found.append((held.losses(masks, [DIRECTION])[DIRECTION], held.translations(masks, [DIRECTION])[DIRECTION]))
    (losses, lengths), (their_losses, their_lengths) = found
    assert losses == pytest.approx(their_losses, abs=1e-5)
    assert abs(their_losses["loss_change"]) > 0.01
    assert lengths == pytest.approx(their_lengths, nan_ok=True)


def test_half_precision(batch):
    """Arithmetic of the two differs in the last bit, which at times chooses another expert: compare what is usual."""
    ours, theirs = (outputs(load("mini", dtype=torch.bfloat16), batch)[1] for load in (load_streamed, load_model))
    assert ours.dtype == torch.bfloat16
    assert float((ours - theirs).abs().median() / theirs.abs().max()) < 0.01


def test_a_head_of_its_own(tmp_path):
    folder = changed(tmp_path, lambda tensors: tensors.update({"lm_head.weight": torch.randn(96, 32)}))
    edit_config(folder, tie_word_embeddings=False)
    theirs, ours = load_model(folder), load_streamed(folder)
    batch = forced_batch(theirs, [[94, 7, 8, 2], [94, 2]], [[95, 8, 9, 2], [95, 2]])
    assert_near(outputs(ours, batch), outputs(theirs, batch))


def test_the_bin_format_without_a_prefix(tmp_path):
    shutil.copytree(TINY, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = {name.removeprefix("model."): tensor for name, tensor in load_file(TINY / "model.safetensors").items()}
    torch.save(tensors, tmp_path / "model" / "pytorch_model.bin")
    theirs, ours = load_model(TINY), load_streamed(tmp_path / "model")
    batch = forced_batch(theirs, [[94, 7, 8, 2], [94, 2]], [[95, 8, 9, 2], [95, 2]])
    assert_near(outputs(ours, batch), outputs(theirs, batch))


def test_dense():
    theirs, ours = load_model("mini-dense"), load_streamed("mini-dense")
    batch = forced_batch(theirs, [[4, 7, 8, 2], [5, 2]], [[6, 8, 9, 2], [6, 2]])
    assert_near(outputs(ours, batch), outputs(theirs, batch))


# what is in memory


def in_memory(model):
    """Bytes of the values of parameters; those that only tell a shape have one value."""
    parameters = [each for each in model.parameters() if not each.is_meta]
    return sum(each.untyped_storage().nbytes() for each in parameters)


def test_weights_are_let_go(streamed, batch):
    outputs(streamed, batch)
    routers = 4 * routing_of(streamed).spec.parameters.router
    assert in_memory(streamed) < routers + 10_000  # norms
    assert all(each.is_meta for each in streamed.get_encoder().layers[0].parameters())


def test_the_embedding_has_no_values(streamed):
    """Whoever takes them for real is told by what comes out."""
    assert streamed.get_input_embeddings().weight.isnan().all()


def test_the_module_itself_is_refused(streamed, batch):
    with pytest.raises(UsageError, match="`model` must be in memory to be called, but is streamed"):
        streamed(input_ids=batch.source, decoder_input_ids=batch.decoder_input)
    with pytest.raises(UsageError, match="but is streamed"):
        streamed.get_encoder()(input_ids=batch.source)


def test_blocks_are_carried(model, streamed):
    assert blocks_of(streamed) is streamed_blocks(streamed) is carried_blocks(streamed)
    assert carried_blocks(model) is streamed_blocks(model) is None


# what is read


class Chosen:
    """Notes the experts that tokens are routed to, by stack and layer."""

    wants_outputs = False

    def __init__(self):
        self.experts = {}

    def observe(self, stack, layer, routed):
        self.experts.setdefault((stack, layer), set()).update(routed.chosen.flatten().tolist())

    @property
    def count(self):
        return sum(map(len, self.experts.values()))


@pytest.mark.parametrize("masked", [False, True])
@torch.inference_mode()
def test_only_routed_experts_are_read(streamed, batch, masked):
    chosen, weights = Chosen(), streamed_blocks(streamed).weights
    before = weights.bytes_read, sum(bank.experts_read for bank in banks(streamed))
    masks = rows_of(mask_set(streamed, experts=3), streamed) if masked else None
    with routing(streamed, masks=masks, observer=chosen):
        encoder_states(streamed, batch)
    assert chosen.count <= (9 if masked else 3 * 64)
    read = sum(bank.experts_read for bank in banks(streamed)) - before[1]
    assert read == chosen.count
    expert = 2 * (2 * 160 * 128 + 160 + 128)  # float16
    dense = sum(
        weights.stored_bytes(layer.tensors) for layer in streamed_blocks(streamed).layers["encoder"]
    )  # each layer once
    embedded = 2 * 160 * len(batch.source.unique())
    assert weights.bytes_read - before[0] == read * expert + dense + embedded


@torch.inference_mode()
def test_a_layer_that_is_held_is_read_once(streamed, batch):
    blocks = streamed_blocks(streamed)
    layer, memory = blocks.layers["decoder"][0], encoder_states(streamed, batch)
    before = blocks.weights.bytes_read
    with layer.held():
        for _ in range(3):
            blocks.decoder[0].source(memory)
        assert not any(each.is_meta for each in streamed.get_decoder().layers[0].self_attn.parameters())
    assert blocks.weights.bytes_read - before == blocks.weights.stored_bytes(layer.tensors)
    assert all(each.is_meta for each in streamed.get_decoder().layers[0].self_attn.parameters())


@torch.inference_mode()
def test_calls_that_wait_are_run_together(streamed):
    """The sums are those of each call alone, and each expert is read once for all."""
    bank, generator = banks(streamed)[0], torch.Generator().manual_seed(8)
    calls, told = [], [[], []]
    for count in (50, 0, 7):
        tokens = torch.randn(count, 160, generator=generator)
        chosen = torch.rand(count, 64, generator=generator).argsort(-1)[:, :2]
        calls.append((tokens, chosen, torch.rand(count, 2, generator=generator)))

    def tap(notes, number):
        def told(outputs, order):
            notes.append((number, order.tolist(), outputs.clone()))
            return outputs

        return told

    alone = [bank(*call, scale=0.6, tap=tap(told[0], number)) for number, call in enumerate(calls)]
    before = bank.experts_read
    with bank.deferred() as waiting:
        zeros = [bank(*call, scale=0.6, tap=tap(told[1], number)) for number, call in enumerate(calls)]
    assert not any(each.any() for each in zeros)
    together = bank.run(waiting)
    assert bank.experts_read - before == len(set(calls[0][1].flatten().tolist()) | set(calls[2][1].flatten().tolist()))
    for ours, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    places = [sorted((number, place) for number, order, _ in notes for place in order) for notes in told]
    assert places[0] == places[1] == [(n, place) for n in (0, 2) for place in range(2 * len(calls[n][0]))]


@torch.inference_mode()
def test_what_memory_there_is_keeps_weights():
    sizes, model = [], load_model(TINY)
    batch = forced_batch(model, [[94, *range(4, 40), 2], [94, 2]], [[95, *range(40, 80), 2], [95, 2]])
    exact = outputs(model, batch)
    for memory in (0, 100_000, 10**9):
        streamed = load_streamed(TINY, memory=memory)
        weights = streamed_blocks(streamed).weights
        assert_near(outputs(streamed, batch), exact)
        first = weights.bytes_read
        assert_near(outputs(streamed, batch), exact)
        kept = weights._kept._tensors
        assert sum(tensor.nbytes for tensor in kept.values()) == weights._kept._used <= memory
        sizes.append((weights.bytes_read - first) / first)
    assert sizes[0] > 0.8  # all but what is read once, when it is loaded
    assert sizes[0] > sizes[1] > sizes[2]
    assert sizes[2] < 0.02  # rows of the embedding alone


def test_loading_reads_next_to_nothing(streamed):
    weights = streamed_blocks(load_streamed("mini")).weights
    assert weights.bytes_read < 4 * (routing_of(streamed).spec.parameters.router + 2 * 1024 + 1000)


# what is wrong


def changed(folder, change):
    """Copy the tiny model with other tensors."""
    shutil.copytree(TINY, folder / "model")
    path = folder / "model" / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return folder / "model"


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


EXPERT = "model.decoder.layers.3.ffn.experts.expert_5.fc2.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(EXPERT), f"must hold `{EXPERT}`, but does not; it is incomplete or of another model"),
        (lambda t: t.update({EXPERT: t[EXPERT].T.contiguous()}), f"`{EXPERT}` must have the shape "),
        (lambda t: t.update({"model.other": t[EXPERT].clone()}), "but holds 1 others, first `model.other`"),
        (lambda t: t.pop("model.encoder.layer_norm.bias"), r"must hold `model\.encoder\.layer_norm\.bias`"),
    ],
)
def test_wrong_tensors_are_refused_before_anything_runs(tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        load_streamed(changed(tmp_path, change))


def test_a_file_that_is_cut_off_while_it_runs(tmp_path):
    folder = changed(tmp_path, lambda tensors: None)
    streamed = load_streamed(folder)
    path = folder / "model.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    batch = forced_batch(streamed, [[94, 7, 8, 2]], [[95, 8, 9, 2]])
    with pytest.raises(UsageError, match=r"must hold `model\..*` up to byte .* but ends at byte .*; fetch it again"):
        outputs(streamed, batch)


# pruned checkpoints


@pytest.fixture(scope="module")
def pruned(model, tmp_path_factory):
    """What is left of the model within masks of one direction."""
    folder = tmp_path_factory.mktemp("pruned") / "model"
    export("mini", folder, masks=mask_set(model, experts=8), directions=[DIRECTION])
    return folder


def test_a_pruned_checkpoint(model, pruned, batch):
    ours, theirs = load_streamed(pruned), load_model(pruned)
    assert routing_of(ours).resident == routing_of(theirs).resident is not None
    assert routing_of(ours).identity == routing_of(theirs).identity
    assert_near(outputs(ours, batch), outputs(theirs, batch))
    with routing(model, masks=rows_of(mask_set(model, experts=8), model)):
        assert_near(outputs(ours, batch), outputs(model, batch))


def test_quantised_experts_are_refused(model, tmp_path):
    masks = mask_set(model, experts=8)
    export("mini", tmp_path / "model", masks=masks, directions=[DIRECTION], settings=ExportSettings(experts="int8"))
    with pytest.raises(UsageError, match="`model` must have experts stored as floats to be streamed, but has them in "):
        load_streamed(tmp_path / "model")
