"""The observer's sums against a slow count, token by token, of what the routers were given."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from nllb_prune.calibration import teacher_forced
from nllb_prune.calibration.observer import StatisticsObserver
from nllb_prune.calibration.statistics import CLASSES, FIELDS
from nllb_prune.calibration.teacher_forced import IGNORED, decoder_classes, encoder_classes, observe_direction
from nllb_prune.model.routing import routing_of
from nllb_prune.model.sparse_ffn import SparseFfn
from nllb_prune.tokenization import encode

DIRECTION = ("eng_Latn", "deu_Latn")
END = 2


@contextmanager
def router_inputs(model):
    """Collect what reaches each sparse layer, in the order of the calls, as (path, (rows, length, d_model))."""
    seen, hooks = [], []
    for path, module in model.named_modules():
        if isinstance(module, SparseFfn):

            def note(layer, arguments, path=path):
                seen.append((path.split(".")[1], layer, arguments[0].double().numpy()))

            hooks.append(module.register_forward_pre_hook(note))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def slow_classes(stack, source, target):
    """Name the classes of each position of one sentence by the definitions; every position is in `all`."""
    if stack == "encoder":
        return [("all", "language"), *[("all", "text")] * (len(source) - 2), ("all", "end")]
    reads = [END, *target[:-1]]
    classes = [["all", "start"]]
    for position in range(1, len(reads)):
        ends = target[position] == END
        # without a word, the position that reads the code is the end: parts do not overlap
        inside = ["language"] if position == 1 and not ends else ["text"]
        classes.append(["all", *inside, *(["end"] if ends else [])])
    return classes


def slow_tables(model, tokenizer, lines, direction):
    """Count sentence by sentence, without batches or padding, with numpy alone after the router's input."""
    spec = routing_of(model).spec
    tables = {}
    for stack in spec.stacks:
        shape = (len(CLASSES[stack.name]), len(stack.layers), stack.experts)
        tables[stack.name] = {field: np.zeros(shape) for field in FIELDS}
        tables[stack.name]["tokens"] = np.zeros(shape[0])
    sources, targets = (encode(tokenizer, side, code) for side, code in zip(lines, direction, strict=True))
    for source, target in zip(sources, targets, strict=True):
        with router_inputs(model) as seen, torch.inference_mode():
            model(
                input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([[END, *target[:-1]]]), use_cache=False
            )
        for name, layer, hidden in seen:
            classes = slow_classes(name, source, target)
            assert hidden.shape[:2] == (1, len(classes))
            for vector, names in zip(hidden[0], classes, strict=True):
                count_token(tables[name], layer, vector, [CLASSES[name].index(each) for each in names])
    return tables


def count_token(table, layer, vector, classes):
    logits = layer.router_weight.double().numpy() @ vector
    p = np.exp(logits - logits.max())
    p /= p.sum()
    first, second = np.argsort(-p, kind="stable")[:2]
    for c in classes:
        table["tokens"][c] += layer.layer == 0
        table["first"][c, layer.layer, first] += 1
        table["second"][c, layer.layer, second] += 1
        table["p_first"][c, layer.layer, first] += p[first]
        table["p_second"][c, layer.layer, second] += p[second]
        table["p_all"][c, layer.layer] += p
        for expert in (first, second):
            table["gate"][c, layer.layer, expert] += p[expert] / (p[first] + p[second])


@pytest.fixture(scope="module")
def observed(tiny, tokenizer, text):
    observer = StatisticsObserver(routing_of(tiny).spec)
    observe_direction(tiny, tokenizer, tuple(map(text.lines, DIRECTION)), DIRECTION, observer)
    return observer.tables()


@pytest.mark.parametrize("positions", [4096, 40, 1])
@pytest.mark.parametrize("direction", [DIRECTION, ("deu_Latn", "fra_Latn")])
def test_sums_equal_the_slow_count(tiny, tokenizer, text, monkeypatch, direction, positions):
    monkeypatch.setattr(teacher_forced, "BATCH_POSITIONS", positions)
    lines = tuple(map(text.lines, direction))
    observer = StatisticsObserver(routing_of(tiny).spec)
    observe_direction(tiny, tokenizer, lines, direction, observer)
    expected = slow_tables(tiny, tokenizer, lines, direction)
    for stack, table in observer.tables().items():
        assert set(table) == set(FIELDS)
        for field in FIELDS:
            assert table[field].shape == expected[stack][field].shape
            if field in ("tokens", "first", "second"):
                assert table[field].dtype == np.int64
                np.testing.assert_array_equal(table[field], expected[stack][field])
            else:
                assert table[field].dtype == np.float64
                np.testing.assert_allclose(table[field], expected[stack][field], rtol=1e-5, atol=1e-5)


def test_tokens_by_class(observed, tokenizer, text):
    words = {code: sum(len(line.split()) for line in text.lines(code)) for code in DIRECTION}
    sentences = 12
    encoder, decoder = (observed[stack]["tokens"].tolist() for stack in ("encoder", "decoder"))
    # all, language, text, end
    assert encoder == [words["eng_Latn"] + 2 * sentences, sentences, words["eng_Latn"], sentences]
    # all, start, language, text, end; the sentence without a word has its end where it reads the code
    worded = sentences - 1
    assert decoder == [words["deu_Latn"] + 2 * sentences, sentences, worded, words["deu_Latn"] + 1, sentences]


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_every_valid_token_counts_once(observed, stack):
    table = observed[stack]
    tokens = table["tokens"][:, None]
    for field in ("first", "second"):
        np.testing.assert_array_equal(table[field].sum(-1), np.broadcast_to(tokens, table[field].shape[:2]))
    for field in ("p_all", "gate"):
        np.testing.assert_allclose(table[field].sum(-1), np.broadcast_to(tokens, table[field].shape[:2]), rtol=1e-5)
    parts = [CLASSES[stack].index(name) for name in CLASSES[stack] if name not in ("all",)]
    if stack == "decoder":
        parts.remove(CLASSES[stack].index("end"))  # it is counted in `text`
    for field in FIELDS:
        np.testing.assert_allclose(table[field][0], sum(table[field][part] for part in parts))
    assert (table["p_first"] <= table["first"]).all()
    assert (table["p_first"] + table["p_second"] <= table["p_all"] * (1 + 1e-9)).all()


def test_end_is_part_of_the_text_of_the_decoder(observed):
    table = observed["decoder"]
    text, end = (CLASSES["decoder"].index(name) for name in ("text", "end"))
    for field in FIELDS:
        assert (table[field][end] <= table[field][text] + 1e-12).all()


def test_tables_are_snapshots_that_grow(tiny, tokenizer, text):
    observer = StatisticsObserver(routing_of(tiny).spec)
    assert all((table[field] == 0).all() for table in observer.tables().values() for field in FIELDS)
    lines = tuple(map(text.lines, DIRECTION))
    observe_direction(tiny, tokenizer, lines, DIRECTION, observer)
    once = observer.tables()
    kept = {stack: table["first"].copy() for stack, table in once.items()}
    observe_direction(tiny, tokenizer, lines, DIRECTION, observer)
    for stack, table in observer.tables().items():
        np.testing.assert_array_equal(once[stack]["first"], kept[stack])
        np.testing.assert_array_equal(table["first"], 2 * kept[stack])
        np.testing.assert_allclose(table["p_all"], 2 * once[stack]["p_all"])


def test_classes_of_padded_rows():
    source = torch.tensor([[94, 7, 8, 2], [94, 2, 1, 1]])
    parts = encoder_classes(source, END)
    assert parts[0].tolist() == [0, 1, 1, 2]
    assert parts[1, :2].tolist() == [0, 2]
    labels = torch.tensor([[95, 7, 8, 2], [95, 2, IGNORED, IGNORED]])
    parts = decoder_classes(labels, END)
    assert parts[0].tolist() == [0, 1, 2, 3]
    assert parts[1, :2].tolist() == [0, 3]
    assert decoder_classes(labels[:, :1], END).tolist() == [[0], [0]]
