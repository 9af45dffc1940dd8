"""The observer's sums against a slow count, token by token, of what the routers were given, with numpy alone."""

from collections import defaultdict
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from nllb_prune.calibration import collectors, teacher_forced
from nllb_prune.calibration.collectors import Call, Core, CoSelection, Sizes, ascending
from nllb_prune.calibration.fields import GROUPS, fields_of
from nllb_prune.calibration.observer import StatisticsObserver
from nllb_prune.calibration.tables import CLASSES
from nllb_prune.calibration.teacher_forced import observe_pairs
from nllb_prune.model.routing import RoutedTokens, routing_of
from nllb_prune.model.sparse_ffn import SparseFfn
from nllb_prune.model.spec import Stack
from nllb_prune.tokenization import encode

DIRECTION = ("eng_Latn", "deu_Latn")
END, PADDING = 2, 1
SIZES = Sizes(vocabulary=96, d_model=32, seed=7)
FORWARD = tuple(group for group in GROUPS if group not in ("gradients", "weights"))
"""What one pass forward collects."""
CORE = fields_of(["core"])
EXACT = ("tokens", "first", "second", "rank", "token_ids", "together")
LARGEST = ("norm_max", "activation_max")


@contextmanager
def router_inputs(model):
    """Collect what reaches each sparse layer, in the order of the calls, as (path, (length, d_model))."""
    seen, hooks = [], []
    for path, module in model.named_modules():
        if isinstance(module, SparseFfn):

            def note(_, arguments, path=path):
                assert len(arguments[0]) == 1
                seen.append((path, arguments[0][0].double().numpy()))

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


class Slow:
    """Counts sentence by sentence, without batches or padding, in float64, from the tensors of the checkpoint."""

    def __init__(self, model, checkpoint, *, masks=None):
        self.model, self.checkpoint = model, checkpoint
        self.layers = {stack.name: stack.layers for stack in routing_of(model).spec.stacks}
        self.masks = masks or {}
        shapes = {"class": 0, "layer": 2, "expert": 8, "other": 8, "byte": 12, "dimension": 32, "sample": 0}
        self.tables, self.positions = {}, {stack: defaultdict(list) for stack in self.layers}
        for stack in self.layers:
            shapes["class"] = len(CLASSES[stack])
            fields = fields_of(FORWARD).items()
            self.tables[stack] = {name: np.zeros([shapes[axis] for axis in field.axes]) for name, field in fields}

    def count(self, sources, targets):
        for source, target in zip(sources, targets, strict=True):
            reads = [END, *target[:-1]]
            with router_inputs(self.model) as seen, torch.inference_mode():
                self.model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([reads]), use_cache=False)
            for path, hidden in seen:
                _, stack, _, layer, _ = path.split(".")
                classes, ids = slow_classes(stack, source, target), source if stack == "encoder" else reads
                for vector, names, read in zip(hidden, classes, ids, strict=True):
                    self._count_token(stack, path, self.layers[stack].index(int(layer)), vector, names, read)
        return self.tables

    def _count_token(self, stack, path, layer, x, names, read):
        table, classes = self.tables[stack], [CLASSES[stack].index(name) for name in names]
        logits = self.checkpoint[f"{path}.router.classifier.weight"].astype(float) @ x
        if stack in self.masks:
            logits[[expert for expert in range(8) if expert not in self.masks[stack][layer]]] = -np.inf
        p = np.exp(logits - logits.max())
        p /= p.sum()
        ranked = np.argsort(-p, kind="stable")
        first, second = ranked[:2]
        f = {expert: self._expert(path, expert, x) for expert in (first, second)}
        g = {expert: p[expert] / (p[first] + p[second]) for expert in f}
        for c in classes:
            table["tokens"][c] += layer == 0
            table["first"][c, layer, first] += 1
            table["second"][c, layer, second] += 1
            table["rank"][c, layer, ranked] += np.arange(1, 9)
            table["p_first"][c, layer, first] += p[first]
            table["p_second"][c, layer, second] += p[second]
            table["p_all"][c, layer] += p
            for expert in f:
                cell, norm = (c, layer, expert), np.sqrt((f[expert] ** 2).sum())
                table["gate"][cell] += g[expert]
                table["norm"][cell] += norm
                table["gate_norm"][cell] += g[expert] * norm
                table["gate_norm_squared"][cell] += (g[expert] * norm) ** 2
                table["norm_max"][cell] = max(norm, table["norm_max"][cell])
                table["activation_max"][cell] = max(abs(f[expert]).max(), table["activation_max"][cell])
        table["together"][layer, first, second] += 1
        for expert in f:
            seen = int(table["token_ids"][layer, expert, read // 8])
            table["token_ids"][layer, expert, read // 8] = seen | 1 << read % 8
            table["output_sum"][layer, expert] += f[expert]
            table["output_squared"][layer, expert] += f[expert] ** 2
        narrowest = max(classes) if "end" not in names else CLASSES[stack].index("end")
        self.positions[stack][layer].append((narrowest, x))

    def _expert(self, path, expert, x):
        """Compute one expert for one token: two matrices, a ReLU between them."""
        weights = {name: self.checkpoint[f"{path}.experts.expert_{expert}.{name}"].astype(float) for name in PARTS}
        hidden = np.maximum(weights["fc1.weight"] @ x + weights["fc1.bias"], 0)
        return weights["fc2.weight"] @ hidden + weights["fc2.bias"]


PARTS = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")


def assert_tables_equal(ours, expected):
    assert set(ours) == set(expected)
    for stack, table in ours.items():
        for name in table:
            if name.startswith("sample_"):
                continue
            assert table[name].shape == expected[stack][name].shape, name
            if name in EXACT:
                np.testing.assert_array_equal(table[name], expected[stack][name], err_msg=f"{stack} {name}")
            else:
                assert table[name].dtype == np.float64
                near = {"rtol": 1e-5, "atol": 1e-5 + 1e-6 * abs(expected[stack][name]).max()}  # of sums that cancel
                np.testing.assert_allclose(table[name], expected[stack][name], **near, err_msg=f"{stack} {name}")


@pytest.fixture(scope="module")
def encoded(tokenizer, text):
    """Tokens of both sides of a direction."""
    return lambda direction: [encode(tokenizer, text.lines(code), code) for code in direction]


@pytest.fixture
def observe(tiny, encoded):
    """Collect groups of a direction."""

    def run(direction=DIRECTION, *, collect=FORWARD, sizes=SIZES, observer=None, times=1):
        observer = observer or StatisticsObserver(routing_of(tiny).spec, collect=collect, sizes=sizes)
        for _ in range(times):
            observe_pairs(tiny, *encoded(direction), observer)
        return observer.tables()

    return run


@pytest.fixture(scope="module")
def slow(tiny, checkpoint, encoded):
    """The slow count of a direction, made once."""
    made = {}

    def count(direction):
        if direction not in made:
            counter = Slow(tiny, checkpoint)
            counter.count(*encoded(direction))
            made[direction] = counter
        return made[direction]

    return count


@pytest.fixture
def observed(observe):
    return observe()


@pytest.mark.parametrize("positions", [4096, 40, 1])
@pytest.mark.parametrize("direction", [DIRECTION, ("deu_Latn", "fra_Latn")])
def test_sums_equal_the_slow_count(observe, slow, monkeypatch, direction, positions):
    monkeypatch.setattr(teacher_forced, "BATCH_POSITIONS", positions)
    tables = observe(direction)
    assert all(set(table) == set(fields_of(FORWARD)) for table in tables.values())
    assert_tables_equal(tables, slow(direction).tables)


def test_types(observed):
    for table in observed.values():
        for name, field in fields_of(FORWARD).items():
            assert table[name].dtype == field.dtype, name


@pytest.mark.parametrize("group", FORWARD)
def test_a_group_alone_is_what_it_is_among_others(observe, observed, group):
    for stack, table in observe(collect=[group]).items():
        assert set(table) == set(fields_of(["core", group]))
        for name in table:
            np.testing.assert_array_equal(table[name], observed[stack][name])


def test_tokens_by_class(observed, text):
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
    np.testing.assert_array_equal(table["rank"].sum(-1), np.broadcast_to(36 * tokens, table["rank"].shape[:2]))
    np.testing.assert_array_equal(table["together"].sum(2), table["first"][0])
    np.testing.assert_array_equal(table["together"].sum(1), table["second"][0])
    parts = [CLASSES[stack].index(name) for name in CLASSES[stack] if name not in ("all",)]
    if stack == "decoder":
        parts.remove(CLASSES[stack].index("end"))  # it is counted in `text`
    for field in fields_of(["core", "norms"]):
        total = (
            np.maximum.reduce(table[field][parts]) if field in LARGEST else sum(table[field][part] for part in parts)
        )
        np.testing.assert_allclose(table[field][0], total)
    assert (table["p_first"] <= table["first"]).all()
    assert (table["p_first"] + table["p_second"] <= table["p_all"] * (1 + 1e-9)).all()
    chosen = table["first"] + table["second"]
    assert (table["rank"] >= chosen).all()
    assert (table["norm"] <= table["norm_max"] * chosen * (1 + 1e-9)).all()


def test_end_is_part_of_the_text_of_the_decoder(observed):
    table = observed["decoder"]
    text, end = (CLASSES["decoder"].index(name) for name in ("text", "end"))
    for field in fields_of(["core", "norms"]):
        assert (table[field][end] <= table[field][text] + 1e-12).all()


def test_vocabulary_holds_what_each_position_reads(observed, encoded):
    sources, targets = encoded(DIRECTION)
    read = {
        "encoder": {token for source in sources for token in source},
        "decoder": {END, *(token for target in targets for token in target[:-1])},
    }
    for stack, table in observed.items():
        bits = np.unpackbits(table["token_ids"], axis=-1, bitorder="little")  # (layers, experts, ids)
        for layer in bits:
            assert set(np.flatnonzero(layer.any(0))) == read[stack]
            assert (layer.sum(0)[sorted(read[stack])] >= 2).all()  # every token went to two experts
        assert PADDING not in read[stack]


def test_tables_are_snapshots_that_grow(tiny, observe):
    observer = StatisticsObserver(routing_of(tiny).spec)
    assert all((table[field] == 0).all() for table in observer.tables().values() for field in CORE)
    once = observe(observer=observer)
    kept = {stack: table["first"].copy() for stack, table in once.items()}
    for stack, table in observe(observer=observer).items():
        np.testing.assert_array_equal(once[stack]["first"], kept[stack])
        np.testing.assert_array_equal(table["first"], 2 * kept[stack])
        np.testing.assert_allclose(table["p_all"], 2 * once[stack]["p_all"])


# the sample of inputs


def rows(values):
    return sorted(map(tuple, np.asarray(values).tolist()))


@pytest.mark.parametrize("positions", [4096, 40])
def test_a_sample_of_everything_is_everything(observe, slow, monkeypatch, positions):
    """Fewer tokens than places: every position is there, with its class and its inputs of all layers."""
    monkeypatch.setattr(teacher_forced, "BATCH_POSITIONS", positions)
    for stack, table in observe().items():
        expected = slow(DIRECTION).positions[stack]
        joined = [(c, *np.concatenate([expected[0][n][1], expected[1][n][1]])) for n, (c, _) in enumerate(expected[0])]
        ours = [(c, *inputs.flatten()) for c, inputs in zip(table["sample_class"], table["sample_inputs"], strict=True)]
        assert len(ours) == table["tokens"][0]
        np.testing.assert_allclose(rows(ours), rows(joined), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", [4096, 40, 1])
def test_a_sample_is_bounded_and_of_lowest_priority(observe, monkeypatch, positions):
    monkeypatch.setattr(teacher_forced, "BATCH_POSITIONS", positions)
    whole = observe()
    monkeypatch.setattr(collectors, "SAMPLES", 9)
    for stack, table in observe().items():
        assert table["sample_inputs"].shape == (9, 2, 32)
        assert table["sample_inputs"].dtype == np.float32
        for name in ("sample_priority", "sample_class", "sample_inputs"):
            np.testing.assert_array_equal(table[name], whole[stack][name][:9])
        assert (np.diff(table["sample_priority"]) > 0).all()


def test_a_sample_can_be_drawn_again(observe):
    again, other = observe(), observe(sizes=Sizes(vocabulary=96, d_model=32, seed=8))
    for stack, table in observe().items():
        for name in ("sample_priority", "sample_class", "sample_inputs"):
            np.testing.assert_array_equal(table[name], again[stack][name])
        assert not np.isin(table["sample_priority"], other[stack]["sample_priority"]).any()


def test_a_sample_is_of_all_positions_alike(tiny, encoded, monkeypatch):
    """Each position should be kept about equally often: 40 draws of 20 among 94 or so positions."""
    monkeypatch.setattr(collectors, "SAMPLES", 20)
    monkeypatch.setattr(teacher_forced, "BATCH_POSITIONS", 40)
    kept = np.zeros(len(CLASSES["encoder"]))
    for seed in range(40):
        observer = StatisticsObserver(
            routing_of(tiny).spec, collect=["reservoir"], sizes=Sizes(vocabulary=96, d_model=32, seed=seed)
        )
        observe_pairs(tiny, *encoded(DIRECTION), observer)
        table = observer.tables()["encoder"]
        kept += np.bincount(table["sample_class"], minlength=len(kept))
    expected = table["tokens"] / table["tokens"][0] * 20 * 40
    assert kept[0] == 0  # `all` is nobody's own class
    np.testing.assert_allclose(kept[1:], expected[1:], atol=4 * np.sqrt(expected[1:].max()))


# ranks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("experts", [2, 8, 129])
def test_ranks_are_those_of_a_stable_sort(dtype, experts):
    """Half precision has many ties, masked experts a probability of 0: ties go to the lower id."""
    logits = 3 * torch.randn(300, experts, generator=torch.Generator().manual_seed(experts))
    logits[::3, 1::2] = float("-inf")
    probabilities = logits.softmax(-1).to(dtype)
    expected = probabilities.float().argsort(dim=1, descending=True, stable=True).flip(1)
    assert torch.equal(ascending(probabilities), expected)


def test_equal_probabilities_rank_by_id():
    assert ascending(torch.full((1, 4), 0.25)).tolist() == [[3, 2, 1, 0]]
    assert ascending(torch.zeros(0, 4)).shape == (0, 4)


def test_a_model_that_routes_to_one_expert():
    stack = Stack("encoder", "source", (0,), 3)
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.5, 0.25]])
    chosen = probabilities.argmax(1, keepdim=True)
    routed = RoutedTokens(probabilities, chosen, torch.ones(3, 1), torch.zeros(3, 4), None, 1)
    call = Call(0, routed, torch.tensor([0, 1, 2]), torch.tensor([7, 8, 9]))
    core, together = Core(stack, "cpu"), CoSelection(stack, "cpu")
    core.observe(call)
    together.observe(call)
    table = core.table()
    assert table["first"].sum(0).tolist() == [[1, 2, 0]]
    assert not table["second"].any()
    assert table["gate"].sum(0).tolist() == [[1.0, 2.0, 0.0]]
    assert not together.table()["together"].any()
