"""Slots hold what they are said to hold whatever moves, and a model that was swapped is the one loaded for it."""

import hashlib
import itertools
import os
import random
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nllb_prune.errors import UsageError
from nllb_prune.expert_mask import union
from nllb_prune.exporting.export import export
from nllb_prune.exporting.settings import ExportSettings
from nllb_prune.generation.loop import DecodingLoop, Sentence
from nllb_prune.generation.search import SearchSettings
from nllb_prune.generation.translate import translations
from nllb_prune.masks import MaskSet
from nllb_prune.model.blocks import blocks_of
from nllb_prune.model.families import family_of
from nllb_prune.model.loading import load_model, load_spec
from nllb_prune.model.move import Move
from nllb_prune.model.paged import banks_of, load_paged
from nllb_prune.model.routing import mask_rows, routing_of
from nllb_prune.model.source import load_tokenizer
from nllb_prune.serving.residency import Arrival, Residency
from nllb_prune.weights.checkpoint import Checkpoint
from tests.model.test_loading import TINY, write

LANGUAGES = ("arb_Arab", "deu_Latn", "eng_Latn", "hin_Deva")
SIDES = [(stack, code) for stack in ("encoder", "decoder") for code in LANGUAGES]
DIRECTIONS = tuple(itertools.permutations(LANGUAGES, 2))
BEAM = SearchSettings(beams=3, alternatives=3)
SENTENCES = {
    "arb_Arab": ["أيقظني في التاسعة", "هل ستمطر غدا"],
    "deu_Latn": ["weck mich um neun uhr auf", "spiel etwas jazz"],
    "eng_Latn": ["wake me up at nine", "is it going to rain tomorrow"],
    "hin_Deva": ["मुझे नौ बजे जगाओ", "बत्तियाँ बंद करो"],
}


def masks_of(model, kept, *, seed=0):
    """Random masks of each language, of 2 to `kept` experts a layer."""
    spec, drawn = load_spec(model), random.Random(seed)

    def mask(stack):
        return [sorted(drawn.sample(range(stack.experts), drawn.randint(2, kept))) for _ in stack.layers]

    return MaskSet(
        model_name=str(model),
        fingerprint=spec.fingerprint,
        stacks=spec.stacks,
        top_k=spec.top_k,
        granularity="language",
        masks={stack.name: {code: mask(stack) for code in LANGUAGES} for stack in spec.stacks},
    )


class Swapped:
    """A paged model with so many slots a layer, and what decides who is in them."""

    def __init__(self, model, masks, slots, **named):
        self.masks = masks
        counts = {stack.name: [slots] * len(stack.layers) for stack in masks.stacks}
        kept = {stack: union(by_key.values()) for stack, by_key in masks.masks.items()}
        self.paged = load_paged(model, kept=kept, slots=counts, **named)
        self.model, self.pager = self.paged.model, self.paged.pager
        self.forget(masks, slots)

    def forget(self, masks, slots):
        """Begin anew with other masks, in the first slots."""
        sides = {(stack, key): mask for stack, by_key in masks.masks.items() for key, mask in by_key.items()}
        self.residency = Residency(sides, {stack.name: [slots] * len(stack.layers) for stack in masks.stacks})
        for bank in self.pager.banks.values():
            bank.slot_of.fill_(-1)

    def bring(self, *sides):
        """Bring in sides; returns the error if there is one."""
        swap = self.residency.swap(sides)
        copying, error = self.pager.begin(swap.moves), None
        try:
            self.pager.finish(copying)
        except UsageError as raised:
            error = raised
        self.residency.arrived(swap, Arrival(tuple(copying.copied), error))
        self.residency.touch(side for side in sides if self.residency.resident(side))
        return error

    def check(self, full):
        """Require what the slots are said to hold, and nothing else, given the banks of the whole model."""
        for (stack, layer), bank in self.pager.banks.items():
            there = self.residency.experts(stack, layer)
            assert {expert: slot for expert, slot in enumerate(bank.slot_of.tolist()) if slot >= 0} == there
            for name, parameter in bank.named_parameters():
                expected = full[stack, layer]
                for expert, slot in there.items():
                    wanted = expected.get_parameter(name)[int(expected.slot_of[expert])]
                    assert torch.equal(parameter[slot], wanted), (stack, layer, expert, name)


def banks(model):
    return banks_of(model, family_of(model.config), routing_of(model))


@pytest.fixture(scope="module")
def tiny():
    return banks(load_model(TINY))


@pytest.fixture(scope="module")
def masks():
    return masks_of(TINY, 5)


@pytest.fixture
def swapped(masks, tmp_path):
    """Of a copy of `tiny` that may be damaged."""
    made = Swapped(write(tmp_path / "model"), masks, 5)
    yield made
    made.pager.close()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model" / "model.safetensors"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("mini")


# what is in the slots


class Watching:
    """A store that requires that nobody finds the slot which it writes to."""

    def __init__(self, store, banks):
        self.store, self.banks = store, banks

    def copy(self, expert, slot):
        bank = self.banks[expert[:2]]
        mapped = [bank.fc1_bias[number].data_ptr() for number in bank.slot_of.tolist() if number >= 0]
        assert slot["fc1_bias"].tensor.data_ptr() not in mapped
        assert bank.slot_of[expert[2]] == -1
        return self.store.copy(expert, slot)

    def close(self):
        self.store.close()


@pytest.fixture(scope="module")
def reused():
    """A model into which any expert may come."""
    every = [list(range(8))] * 2
    masks = replace(
        masks_of(TINY, 8), masks={stack: dict.fromkeys(LANGUAGES, every) for stack in ("encoder", "decoder")}
    )
    made = Swapped(TINY, masks, 8)
    made.pager.store = Watching(made.pager.store, made.pager.banks)
    yield made
    made.pager.close()


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    slots=st.integers(4, 6),
    sequence=st.lists(st.lists(st.sampled_from(SIDES), min_size=1, max_size=3), min_size=1, max_size=12),
)
def test_slots_hold_what_they_are_said_to_hold(reused, tiny, seed, slots, sequence):
    reused.forget(masks_of(TINY, 4, seed=seed), slots)
    for sides in sequence:
        if reused.residency.fits(sides):
            assert reused.bring(*sides) is None
            assert all(reused.residency.resident(side) for side in sides)
            reused.check(tiny)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("form", "shards"), [("safetensors", 3), ("bin", 2)])
def test_slots_of_other_layouts_and_dtypes(tmp_path, masks, form, shards, dtype):
    folder = write(tmp_path, form=form, shards=shards)
    made, full, drawn = Swapped(folder, masks, 5, dtype=dtype), banks(load_model(TINY, dtype=dtype)), random.Random(3)
    for _ in range(20):
        assert made.bring(drawn.choice(SIDES[:4]), drawn.choice(SIDES[4:])) is None
        made.check(full)
    made.pager.close()


class Held:
    """A store that copies one expert whenever it may."""

    def __init__(self, store):
        self.store, self.may, self.copied = store, threading.Semaphore(0), threading.Semaphore(0)

    def copy(self, expert, slot):
        assert self.may.acquire(timeout=20)
        size = self.store.copy(expert, slot)
        self.copied.release()
        return size

    def close(self):
        self.store.close()


def test_an_expert_is_found_only_while_it_is_whole(swapped, masks, tiny):
    swapped.bring(("encoder", "eng_Latn"), ("decoder", "eng_Latn"))
    store = swapped.pager.store = Held(swapped.pager.store)
    swap = swapped.residency.swap([("encoder", "deu_Latn"), ("decoder", "deu_Latn")])
    stay = {layer: bank.slot_of.clone() for layer, bank in swapped.pager.banks.items()}
    for move in swap.moves:
        stay[move.stack, move.layer][[move.expert] + [move.leaves] * (move.leaves is not None)] = -1

    def nothing_else_is_found():
        return all(torch.equal(bank.slot_of, stay[layer]) for layer, bank in swapped.pager.banks.items())

    copying = swapped.pager.begin(swap.moves)
    assert any(move.leaves is not None for move in swap.moves)
    for number in range(len(swap.moves)):  # from the first moment, and while one after the other comes
        assert nothing_else_is_found()
        assert not swapped.pager.done(copying)
        assert len(copying.copied) <= number
        store.may.release()
        assert store.copied.acquire(timeout=20)
    copying.future.result(timeout=20)
    assert swapped.pager.done(copying)
    assert nothing_else_is_found()
    swapped.pager.finish(copying)
    swapped.residency.arrived(swap, Arrival(swap.moves))
    swapped.check(tiny)


def test_nothing_to_move(swapped, tiny):
    swapped.pager.finish(swapped.pager.begin(()))
    swapped.check(tiny)
    assert swapped.pager.bytes_copied == 0


def test_bytes_are_counted(swapped):
    swapped.bring(("encoder", "eng_Latn"))
    experts = sum(map(len, swapped.masks.masks["encoder"]["eng_Latn"]))
    assert swapped.pager.bytes_copied == experts * 4 * (2 * 32 * 48 + 32 + 48)


def test_closing_waits_for_what_is_under_way(swapped):
    copying = swapped.pager.begin(swapped.residency.swap([("encoder", "eng_Latn")]).moves)
    swapped.pager.close()
    assert swapped.pager.done(copying)
    assert len(copying.copied) == len(copying.moves)


def test_closing_at_once_breaks_off_what_is_under_way(swapped):
    store = swapped.pager.store = Held(swapped.pager.store)
    copying = swapped.pager.begin(swapped.residency.swap([("encoder", "eng_Latn")]).moves)
    closing = threading.Thread(target=swapped.pager.close, kwargs={"finish": False})
    closing.start()
    while not swapped.pager._broken_off:
        closing.join(0.01)
    store.may.release()
    closing.join(20)
    assert not closing.is_alive()
    assert len(copying.copied) == 1 < len(copying.moves)


# what comes out


def decoded(model, masks, direction):
    """Hypotheses of some sentences of tokens, within the experts of a direction."""
    keep = {stack: rows[0] for stack, rows in mask_rows(masks, [direction]).items()}
    loop = DecodingLoop(blocks_of(model), BEAM)
    sources = ([94, 7, 9, 30, 11, 2], [94, 8, 20, 2], [95, 40, 41, 42, 43, 44, 45, 2])
    found = loop.add([Sentence(key=n, source=s, language=95, limit=12, keep=keep) for n, s in enumerate(sources)])
    while len(loop):
        found |= loop.step()
    return [found[n] for n in range(len(sources))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_hundred_swaps_give_the_outputs_of_a_model_that_was_loaded_for_it(masks, dtype):
    made, drawn, expected = Swapped(TINY, masks, 5, dtype=dtype), random.Random(1), {}
    for number in range(100):
        source, target = direction = drawn.choice(DIRECTIONS)
        assert made.bring(("encoder", source), ("decoder", target)) is None
        if number % 20 < 19:
            continue
        if direction not in expected:
            fresh = load_model(TINY, masks=masks, direction=direction, dtype=dtype)
            expected[direction] = decoded(fresh, masks, direction)
        assert decoded(made.model, masks, direction) == expected[direction]
    made.pager.close()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(experts) -> `mini`, or an export of it with experts of few bits, with the same masks, each made once."""
    folder, masks, made = tmp_path_factory.mktemp("exported"), masks_of("mini", 12), {None: "mini"}

    def make(experts):
        if experts not in made:
            made[experts] = folder / experts
            settings = ExportSettings(experts=experts)
            export("mini", made[experts], masks=masks, directions=list(DIRECTIONS), settings=settings)
        return made[experts], masks

    return make


@pytest.mark.parametrize("experts", [None, "int8", "int4"])
def test_translations_after_a_hundred_swaps(exported, tokenizer, experts):
    model, masks = exported(experts)
    made, full, drawn = Swapped(model, masks, 14), banks(load_model(model)), random.Random(2)
    for number in range(100):
        source, target = drawn.choice(DIRECTIONS)
        assert made.bring(("encoder", source), ("decoder", target)) is None
        if number in (49, 99):
            made.check(full)
            fresh = load_model(model, masks=masks, direction=(source, target))
            named = {"source": source, "target": target, "masks": masks, "search": BEAM}
            ours = translations(made.model, tokenizer, SENTENCES[source], **named)
            assert ours == translations(fresh, tokenizer, SENTENCES[source], **named)
    made.pager.close()


# what goes wrong


def place_of(file, move):
    """First and last byte of an expert of `tiny`."""
    path = f"model.{move.stack}.layers.{2 * move.layer + 1}.ffn.experts.expert_{move.expert}"
    with Checkpoint(file.parent) as checkpoint:
        stored = [checkpoint.stored(f"{path}.{name}") for name in ("fc1.bias", "fc1.weight", "fc2.bias", "fc2.weight")]
    return min(each.offset for each in stored), max(each.offset + each.nbytes for each in stored)


def break_off(monkeypatch, file, move, how):
    """Let the first read of an expert fail in one of the ways there are."""
    first, last = place_of(file, move)
    whole = os.preadv

    def read(descriptor, memories, offset):
        if not first <= offset < last:
            return whole(descriptor, memories, offset)
        if how == "error":
            raise OSError(5, "Input/output error")
        if how == "written":
            os.utime(file, ns=(1, 1))
        return 0 if how == "short" else whole(descriptor, memories, offset)

    monkeypatch.setattr(os, "preadv", read)


@pytest.mark.parametrize("how", ["error", "short", "written"])
@pytest.mark.parametrize("number", [0, 3])
def test_a_read_that_fails_half_way(swapped, tiny, file, monkeypatch, number, how):
    swapped.bring(("encoder", "eng_Latn"), ("decoder", "eng_Latn"))
    sides, state = (("encoder", "deu_Latn"), ("decoder", "deu_Latn")), file.stat()
    swap = swapped.residency.swap(sides)
    assert len(swap.moves) > 4
    with monkeypatch.context() as patch:
        break_off(patch, file, swap.moves[number], how)
        copying = swapped.pager.begin(swap.moves)
        with pytest.raises(UsageError, match=r"model\.safetensors` must|must be read from") as raised:
            swapped.pager.finish(copying)
    assert "\n" not in str(raised.value)
    assert tuple(copying.copied) == swap.moves[:number]
    swapped.residency.arrived(swap, Arrival(tuple(copying.copied), raised.value))
    swapped.check(tiny)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert swapped.bring(*sides) is None
    assert all(swapped.residency.resident(side) for side in sides)
    swapped.check(tiny)


@pytest.mark.parametrize("left", [0, 0.3, 0.7])
def test_a_file_that_is_truncated_and_whole_again(swapped, masks, tiny, file, left):
    swapped.bring(("encoder", "eng_Latn"), ("decoder", "eng_Latn"))
    content, state = file.read_bytes(), file.stat()
    os.truncate(file, int(left * len(content)))
    for code in ("deu_Latn", "hin_Deva"):
        error = swapped.bring(("encoder", code), ("decoder", code))
        assert isinstance(error, UsageError)
        assert "model.safetensors` must" in str(error)
        swapped.check(tiny)
    file.write_bytes(content)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert swapped.bring(("encoder", "deu_Latn"), ("decoder", "hin_Deva")) is None
    swapped.check(tiny)
    fresh = load_model(TINY, masks=masks, direction=("deu_Latn", "hin_Deva"))
    direction = ("deu_Latn", "hin_Deva")
    assert decoded(swapped.model, masks, direction) == decoded(fresh, masks, direction)


def test_an_error_of_another_kind_is_not_swallowed(swapped, tiny, monkeypatch):
    def fail(expert, slot):
        raise RuntimeError("no memory")

    monkeypatch.setattr(swapped.pager.store, "copy", fail)
    copying = swapped.pager.begin([Move("encoder", 0, 2, 5)])
    with pytest.raises(RuntimeError, match="no memory"):
        swapped.pager.finish(copying)
    assert copying.copied == []
    swapped.check(tiny)


CHILDREN = """
import os, random, signal, sys, time
import torch
from tests.model.test_pager import SIDES, Swapped, masks_of

torch.set_num_threads(1)
folder, seed = sys.argv[1], int(sys.argv[2])
made, chance = Swapped(folder, masks_of(folder, 5), 5), random.Random(seed)
for _ in range(20):
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        while True:
            made.bring(chance.choice(SIDES[:4]), chance.choice(SIDES[4:]))
            os.write(theirs, b".")
    os.close(theirs)
    swaps = os.read(ours, 1)
    time.sleep(chance.random() / 50)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert swaps == b"."
    os.close(ours)
print("killed")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_being_killed_while_swapping_leaves_the_checkpoint_as_it_was(masks, tiny, tmp_path):
    folder = write(tmp_path / "model")
    before = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", CHILDREN, str(folder), "4"], cwd=root, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "killed"
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()} == before
    made, direction = Swapped(folder, masks, 5), ("hin_Deva", "deu_Latn")
    made.bring(("encoder", direction[0]), ("decoder", direction[1]))
    made.check(tiny)
    fresh = load_model(TINY, masks=masks, direction=direction)
    assert decoded(made.model, masks, direction) == decoded(fresh, masks, direction)
    made.pager.close()
