"""Files of statistics: what is merged in any order or grouping has the same bytes; what does not fit is refused."""

import json
import tracemalloc
from contextlib import contextmanager
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import numpy as safetensors_numpy

from nllb_prune.calibration.fields import GROUPS, collected, fields_of
from nllb_prune.calibration.statistics import CLASSES, ExpertStatistics, empty_table, position_classes, split_direction
from nllb_prune.calibration.tables import SAMPLES, join_tables
from nllb_prune.errors import UsageError
from nllb_prune.model.spec import Fingerprint, ModelSpec, ParameterCounts, Stack

STACKS = (Stack("encoder", "source", (1, 3), 4), Stack("decoder", "target", (0, 2), 4))
SIGNATURE = {"mode": "references", "sentences": 10, "share": 0.5}
CORE, ALL = ("core",), tuple(GROUPS)
DIMENSIONS, VOCABULARY = 6, 20


def spec_of(norm=1.0):
    fingerprint = Fingerprint.of(STACKS, [norm] * 16)
    parameters = ParameterCounts(dense=100, router=10, expert={"encoder": 7, "decoder": 9})
    return ModelSpec(
        family="nllb-moe",
        stacks=STACKS,
        top_k=2,
        output_scale=0.8,
        fingerprint=fingerprint,
        parameters=parameters,
    )


def shape_of(field, stack, samples):
    sizes = {"class": len(CLASSES[stack.name]), "layer": 2, "expert": 4, "other": 4}
    sizes |= {"dimension": DIMENSIONS, "byte": -(-VOCABULARY // 8), "sample": samples}
    return [sizes[axis] for axis in field.axes]


def random_values(field, shape, random):
    if field.name == "sample_priority":
        return np.sort(random.integers(0, 2**62, shape))
    if field.dtype == "uint8":
        return random.integers(0, 256, shape, np.uint8)
    if field.dtype == "int64":
        return random.integers(0, 4 if field.name == "sample_class" else 1000, shape)
    values = random.random(shape) * 100 * random.choice([1e-3, 1, 50])
    return (values * random.choice([-1, 1], shape) if field.signed else values).astype(field.dtype)


def random_table(stack, seed, collect=CORE, samples=5):
    random = np.random.default_rng(seed)
    fields = fields_of(group for group in collect if group != "weights").values()
    return {field.name: random_values(field, shape_of(field, stack, samples), random) for field in fields}


WEIGHTS = {
    stack.name: {
        field.name: random_values(field, shape_of(field, stack, 0), np.random.default_rng(1))
        for field in GROUPS["weights"].fields
    }
    for stack in STACKS
}


def item(direction, *, seed=0, granularity="language", spec=None, signature=SIGNATURE, collect=CORE, samples=5):
    source, target = direction.split("-")
    keys = {stack.name: direction if granularity == "pair" else stack.key(source, target) for stack in STACKS}
    tables = {(stack.name, keys[stack.name]): random_table(stack, seed, collect, samples) for stack in STACKS}
    return ExpertStatistics(
        spec or spec_of(),
        granularity,
        tables,
        items=(direction,),
        signature=signature,
        collect=collect,
        weights=WEIGHTS if "weights" in collect else {},
    )


LANGUAGES = ("aaa", "bbb", "ccc", "ddd")
DIRECTIONS = [f"{a}-{b}" for a, b in permutations(LANGUAGES, 2)]  # three parts of each language: enough to regroup
MANY = SAMPLES // 2 + 3
"""Samples of a part: those of two are more than are kept."""
PARTS = [
    item(direction, seed=n, granularity="pair", collect=ALL, samples=MANY * (n != 2))
    for n, direction in enumerate(DIRECTIONS)
]
BY_LANGUAGE = [part.as_language() for part in PARTS]
ONE_RUN = {kind: ExpertStatistics.merge_all(parts) for kind, parts in [("pair", PARTS), ("language", BY_LANGUAGE)]}
WHOLE = ONE_RUN["pair"].to_bytes()


def merged_in_groups(parts, data):
    """Merge neighbours again and again until one is left."""
    parts = list(parts)
    while len(parts) > 1:
        first = data.draw(st.integers(0, len(parts) - 2))
        last = data.draw(st.integers(first + 2, len(parts)))
        parts[first:last] = [ExpertStatistics.merge_all(parts[first:last])]
    return parts[0]


@pytest.mark.parametrize("kind", ["pair", "language"])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_merging_in_any_grouping_and_order_gives_the_same_bytes(kind, data):
    parts = data.draw(st.permutations({"pair": PARTS, "language": BY_LANGUAGE}[kind]))
    assert merged_in_groups(parts, data).to_bytes() == ONE_RUN[kind].to_bytes()


@settings(max_examples=15, deadline=None)
@given(st.permutations(PARTS))
def test_adding_over_directions_and_over_parts_commute(parts):
    one_pass = ExpertStatistics.merge_all(parts).as_language()
    assert one_pass.to_bytes() == ONE_RUN["language"].to_bytes()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 11), st.data())
def test_parts_through_files_are_merged_as_they_are(cut, data):
    parts = data.draw(st.permutations(PARTS))
    files = [ExpertStatistics.merge_all(group).to_bytes() for group in (parts[:cut], parts[cut:])]
    assert ExpertStatistics.merge_all(map(ExpertStatistics.from_bytes, files)).to_bytes() == WHOLE


@pytest.mark.parametrize("group", [group for group in GROUPS if group not in ("core", "weights")])
def test_what_merging_does_to_each_field(group):
    """Counts and sums add up, maxima stay the largest, bits of either count, samples of lowest priority stay."""
    parts = [item(f"aaa-{target}", seed=n, collect=("core", group), samples=MANY) for n, target in enumerate("bcd")]
    merged = ExpertStatistics.merge_all(parts).table("encoder", "aaa")
    arrays = {name: [part.table("encoder", "aaa")[name] for part in parts] for name in merged}
    lowest = np.argsort(np.concatenate(arrays["sample_priority"]))[:SAMPLES] if group == "reservoir" else None
    for name, field in fields_of(["core", group]).items():
        expected = {
            "sum": lambda each: sum(each),
            "largest": lambda each: np.max(each, axis=0),
            "any": lambda each: np.bitwise_or.reduce(each),
            "sample": lambda each: np.concatenate(each)[lowest],
        }[field.join](arrays[name])
        np.testing.assert_array_equal(merged[name], expected, err_msg=name)
        assert merged[name].dtype == field.dtype


def test_weights_are_the_same_once_merged():
    for stack, table in ONE_RUN["pair"].weights.items():
        for name, values in table.items():
            np.testing.assert_array_equal(values, PARTS[0].weights[stack][name])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["language", "pair"]), st.sets(st.sampled_from(ALL)), st.integers(0, 9))
def test_bytes_round_trip(seed, granularity, groups, samples):
    collect = collected(groups)
    statistics = item("eng_Latn-deu_Latn", seed=seed, granularity=granularity, collect=collect, samples=samples)
    again = ExpertStatistics.from_bytes(statistics.to_bytes())
    assert again.to_bytes() == statistics.to_bytes()
    assert (again.spec, again.collect) == (statistics.spec, collect)
    assert again.digest() == statistics.digest()
    for stack in STACKS:
        for key in again.keys(stack.name):
            theirs = again.table(stack.name, key)
            assert set(theirs) == set(fields_of(group for group in collect if group != "weights"))
            for field, values in statistics.table(stack.name, key).items():
                np.testing.assert_array_equal(theirs[field], values)
                assert theirs[field].dtype == values.dtype


def test_file_round_trip(tmp_path):
    statistics = ExpertStatistics.merge_all(PARTS)
    statistics.save(tmp_path / "new" / "statistics.safetensors")
    again = ExpertStatistics.load(tmp_path / "new" / "statistics.safetensors")
    assert again.to_bytes() == WHOLE
    assert (again.items, again.signature, again.granularity) == (tuple(DIRECTIONS), SIGNATURE, "pair")


def test_file_is_plain_safetensors():
    tensors = safetensors_numpy.load(item("eng_Latn-deu_Latn").to_bytes())
    assert tensors["encoder/eng_Latn/first"].shape == (4, 2, 4)
    assert tensors["decoder/deu_Latn/p_all"].shape == (5, 2, 4)
    assert tensors["decoder/deu_Latn/tokens"].dtype == np.int64


def test_an_empty_result_round_trips():
    empty = ExpertStatistics(spec_of(), "language", {}, items=(), signature={})
    assert ExpertStatistics.from_bytes(empty.to_bytes()).keys("encoder") == ()


def test_sums_keep_nine_digits_and_arrays_are_copies():
    table = random_table(STACKS[0], 6)
    statistics = ExpertStatistics(spec_of(), "language", {("encoder", "aaa"): table}, items=("x",), signature={})
    held = statistics.table("encoder", "aaa")
    np.testing.assert_allclose(held["p_all"], table["p_all"], rtol=0, atol=2.0**-29)
    assert (held["p_all"] * 2.0**28 % 1 == 0).all()
    table["first"] += 1
    assert (held["first"] == table["first"] - 1).all()
    with pytest.raises(ValueError, match="read-only"):
        held["first"][0] = 0


def test_pooled_and_as_language_add_tables():
    pairs = ExpertStatistics.merge_all(PARTS)
    expected = join_tables([pairs.table("decoder", key) for key in ("aaa-ccc", "bbb-ccc", "ddd-ccc")])
    language = pairs.as_language()
    for field in expected:
        np.testing.assert_array_equal(language.table("decoder", "ccc")[field], expected[field])
        np.testing.assert_array_equal(
            pairs.pooled("decoder", ["aaa-ccc", "bbb-ccc", "ddd-ccc"])[field], expected[field]
        )
    assert language.keys("encoder") == LANGUAGES
    assert language.as_language() is language
    assert pairs.directions("decoder")["ccc"] == ("aaa-ccc", "bbb-ccc", "ddd-ccc")
    nothing = pairs.pooled("encoder", [])
    assert set(nothing) == set(empty_table(STACKS[0]))
    assert not any(values.any() for values in nothing.values())


def test_merge_of_two_is_the_sum():
    a, b = item("aaa-bbb", seed=1), item("aaa-ccc", seed=2)
    merged = ExpertStatistics.merge(a, b)
    assert merged.items == ("aaa-bbb", "aaa-ccc")
    assert merged.keys("decoder") == ("bbb", "ccc")
    np.testing.assert_array_equal(
        merged.table("encoder", "aaa")["gate"], a.table("encoder", "aaa")["gate"] + b.table("encoder", "aaa")["gate"]
    )


@contextmanager
def at_most(size):
    """Allow so many bytes at a time, beside what is there already."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


BROAD = tuple(Stack(stack.name, stack.keyed_by, tuple(range(64)), 64) for stack in STACKS)


def broad_item(target, name="aaa-bbb"):
    """Return statistics of two megabytes."""
    tables = {("encoder", "aaa"): empty_table(BROAD[0]), ("decoder", target): empty_table(BROAD[1])}
    for table in tables.values():
        table["first"] += 1
        table["gate"] += 0.5
    spec = replace(spec_of(), stacks=BROAD, fingerprint=Fingerprint.of(BROAD, [1.0] * 2 * 64 * 64))
    return ExpertStatistics(spec, "language", tables, items=(name,), signature=SIGNATURE)


def test_parts_are_added_one_at_a_time():
    """Held are the totals of three languages, one part and what it is made from; never fourteen."""
    size = len(broad_item("bbb").to_bytes())
    with at_most(6 * size):
        merged = ExpertStatistics.merge_all(broad_item(f"t{n % 2}", f"aaa-t{n}") for n in range(14))
    assert merged.items == tuple(sorted(f"aaa-t{n}" for n in range(14)))
    assert (merged.table("encoder", "aaa")["first"] == 14).all()
    assert (merged.table("decoder", "t1")["gate"] == 3.5).all()


def test_parts_stay_what_they_are():
    before = [part.to_bytes() for part in BY_LANGUAGE]
    assert ExpertStatistics.merge_all(BY_LANGUAGE).as_language().to_bytes() == ONE_RUN["language"].to_bytes()
    assert [part.to_bytes() for part in BY_LANGUAGE] == before


def test_arrays_of_a_file_are_not_copied():
    content = broad_item("bbb").to_bytes()
    with at_most(1.7 * len(content)):  # the arrays, and what one of them is checked with
        statistics = ExpertStatistics.from_bytes(content)
    assert statistics.to_bytes() == content
    for table in statistics.tables.values():
        assert not any(array.flags.writeable for array in table.values())


def test_arrays_that_are_not_copied_are_on_their_grids_and_read_only():
    table = random_table(STACKS[0], 6)
    given = {("encoder", "aaa"): table}
    kept = ExpertStatistics(spec_of(), "language", given, items=("x",), signature={}, copy=False)
    assert kept.table("encoder", "aaa")["first"] is table["first"]
    assert not table["first"].flags.writeable
    copied = ExpertStatistics(spec_of(), "language", given, items=("x",), signature={})
    assert kept.to_bytes() == copied.to_bytes()
    assert copied.table("encoder", "aaa")["first"] is not table["first"]


def test_the_digest_is_made_once(monkeypatch):
    statistics, made = item("aaa-bbb"), []
    to_bytes = ExpertStatistics._to_bytes
    monkeypatch.setattr(ExpertStatistics, "_to_bytes", lambda self, extra: (made.append(1), to_bytes(self, extra))[1])
    digests = {statistics.digest() for _ in range(3)}
    assert len(made) == len(digests) == 1
    other = replace(statistics, signature={**SIGNATURE, "sentences": 9})
    assert other.digest() not in digests
    assert ExpertStatistics.from_bytes(statistics.to_bytes()).digest() in digests


def test_position_classes():
    assert [position_classes(stack) for stack in STACKS] == [CLASSES["encoder"], CLASSES["decoder"]]


def changed(**signature):
    return item("aaa-ccc", signature={name: value for name, value in (SIGNATURE | signature).items() if value})


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (item("aaa-bbb", seed=2), "aaa-bbb is there twice"),
        (item("aaa-ccc", spec=spec_of(2.0)), "must be statistics of one model"),
        (item("aaa-ccc", granularity="pair"), "language and pair"),
        (
            item("aaa-ccc", collect=("core", "norms")),
            "`collect` of the parts must be equal, but is core and core, norms",
        ),
        (changed(sentences=11), "sentences 10 and 11"),
        (item("aaa-ccc", signature={"mode": "references"}), "sentences 10 and None"),
        (changed(mode="outputs, beam 4"), "mode references and outputs, beam 4"),
        (changed(masks="0123456789ab"), "masks None and 0123456789ab"),
        (changed(pairs_per_target=96), "pairs_per_target None and 96"),
        (changed(dtype="bfloat16"), "dtype None and bfloat16"),
    ],
)
def test_merge_refuses(other, message):
    for parts in ([item("aaa-bbb"), other], [other, item("aaa-bbb")]):
        with pytest.raises(UsageError, match=message) as caught:
            ExpertStatistics.merge_all(parts)
        assert "\n" not in str(caught.value)


def test_one_item_in_two_larger_parts_is_found():
    halves = [ExpertStatistics.merge_all(part) for part in (PARTS[:3], PARTS[2:])]
    with pytest.raises(UsageError, match=f"but {DIRECTIONS[2]} is there twice"):
        ExpertStatistics.merge_all(halves)


def test_text_of_a_language_must_be_the_same_wherever_it_is_used():
    texts = [{"text/aaa": "1", "text/bbb": "2"}, {"text/aaa": "1", "text/ccc": "3"}, {"text/ccc": "4", "text/bbb": "2"}]
    parts = [
        item(f"{d}", signature=SIGNATURE | text)
        for d, text in zip(("aaa-bbb", "aaa-ccc", "ccc-bbb"), texts, strict=True)
    ]
    assert parts[0].merge(parts[1]).signature == SIGNATURE | texts[0] | texts[1]
    for order in (parts, parts[::-1], [parts[1].merge(parts[0]), parts[2]]):
        with pytest.raises(UsageError, match="text/ccc 3 and 4"):
            ExpertStatistics.merge_all(order)


def test_other_weights_and_shapes_are_refused():
    """A model of the same routers may still have another vocabulary, width or weights."""
    one, other = (item(f"aaa-{target}", collect=ALL) for target in ("bbb", "ccc"))
    heavier = {stack: table | {"weight_norm": table["weight_norm"] * 1.01} for stack, table in other.weights.items()}
    with pytest.raises(UsageError, match="`weight_norm` of the parts must be of the same weights, but differs"):
        one.merge(replace(other, weights=heavier))
    wider = {
        place: table | {"token_ids": np.pad(table["token_ids"], ((0, 0), (0, 0), (0, 1)))}
        for place, table in other.tables.items()
    }
    with pytest.raises(UsageError, match=r"`token_ids` of the parts must have one shape, but has \(2, 4, 3\) and"):
        one.merge(replace(other, tables=wider))
    deeper = {
        place: table
        | {
            name: np.pad(table[name], ((0, 0), (0, 0), (0, 1)))
            for name, field in fields_of(ALL).items()
            if field.axes[-1] == "dimension"
        }
        for place, table in other.tables.items()
    }
    with pytest.raises(UsageError, match=r"`output_sum` of the parts must have one shape"):
        one.merge(replace(other, tables=deeper))


def test_weights_that_machines_round_differently_can_be_merged():
    one, other = (item(f"aaa-{target}", collect=ALL) for target in ("bbb", "ccc"))
    near = {stack: {name: values * 1.00001 for name, values in table.items()} for stack, table in other.weights.items()}
    merged = replace(other, weights=near).merge(one)
    assert merged.to_bytes() == one.merge(replace(other, weights=near)).to_bytes()
    np.testing.assert_array_equal(merged.weights["encoder"]["weight_norm"], one.weights["encoder"]["weight_norm"])


def test_merge_of_nothing_is_refused():
    with pytest.raises(UsageError, match="one or more"):
        ExpertStatistics.merge_all([])


def test_a_rounded_copy_of_the_model_can_be_merged():
    merged = item("aaa-bbb").merge(item("aaa-ccc", spec=spec_of(1.004)))
    assert merged.fingerprint == spec_of().fingerprint


def test_unknown_key_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"\(aaa, bbb, ccc, ddd\), but is eee"):
        ExpertStatistics.merge_all(PARTS).as_language().table("encoder", "eee")


FIT = {"encoder/aaa": random_table(STACKS[0], 0, ALL)}


def broken(**changes):
    table = {**FIT["encoder/aaa"], **changes}
    return {("encoder", "aaa"): {name: values for name, values in table.items() if values is not None}}


def bad(name, value):
    """Return a field with one element that it cannot have."""
    values = FIT["encoder/aaa"][name].copy()
    values.flat[-1] = value
    return broken(**{name: values})


WRONG_TABLES = [
    (broken(gate=None), "must have the fields"),
    (broken(together=None), "must have the fields"),
    (broken(more=np.zeros(3)), "must have the fields"),
    (broken(gate=np.zeros((4, 2, 5))), r"must have shape \(4, 2, 4\)"),
    (broken(gate=np.zeros((5, 2, 4))), r"must have shape \(4, 2, 4\)"),
    (broken(together=np.zeros((2, 4, 5), np.int64)), r"must have shape \(2, 4, 4\)"),
    (broken(tokens=np.zeros((), np.int64)), r"must have shape \(4,\)"),
    (broken(output_sum=np.zeros((2, 4))), "must have shape"),
    (broken(output_sum=np.zeros((2, 4, 7))), "must have shape"),  # other fields are 6 wide
    (broken(sample_class=np.zeros(4, np.int64)), "must have shape"),
    (bad("gate", np.nan), "finite"),
    (bad("norm_max", np.inf), "finite"),
    (bad("output_sum", np.nan), "finite"),
    (bad("gradient_sum", -np.inf), "finite"),
    (bad("sample_inputs", np.nan), "finite"),
    (bad("first", -1), "not negative"),
    (bad("rank", -1), "not negative"),
    (bad("p_all", -1e-3), "not negative"),
    (bad("norm", -0.5), "not negative"),
    (bad("output_squared", -1), "not negative"),
    (broken(first=np.full((4, 2, 4), 1.5)), "must be of the type int64, but is of float64"),
    (broken(token_ids=np.zeros((2, 4, 3), np.int64)), "must be of the type uint8, but is of int64"),
    (bad("gate", 2.0**25 + 1), "must be below 3e\\+07 to add up exactly, but is larger; use less text"),
    (bad("norm", 2.0**33 + 1), "must be below 9e\\+09 to add up"),
    (bad("output_sum", -(2.0**33) - 1), "must be below 9e\\+09 to add up"),
    (bad("gradient_squared", 2.0**17 + 1), "must be below 1e\\+05 to add up"),
]


@pytest.mark.parametrize(
    ("tables", "message"), [*WRONG_TABLES, ({("both", "aaa"): random_table(STACKS[0], 0)}, "encoder, decoder")]
)
def test_wrong_tables_are_refused(tables, message):
    with pytest.raises(UsageError, match=message) as caught:
        ExpertStatistics(spec_of(), "language", tables, items=(), signature={}, collect=ALL, weights=WEIGHTS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("tables", "message"), WRONG_TABLES)
def test_files_of_wrong_tables_are_refused(tables, message):
    """What no constructor would let pass may still be in a file."""
    good = item("aaa-bbb", collect=ALL).to_bytes()
    tensors = {
        name: array for name, array in safetensors_numpy.load(good).items() if not name.startswith("encoder/aaa/")
    }
    tensors |= {f"encoder/aaa/{name}": array for name, array in tables["encoder", "aaa"].items()}
    content = safetensors_numpy.save(tensors, metadata={"nllb-prune": json.dumps(metadata_of(good))})
    with pytest.raises(UsageError, match=message) as caught:
        ExpertStatistics.from_bytes(content, name="here")
    assert str(caught.value).startswith("`here` must be a statistics file, but its content is wrong: ")


def test_sums_up_to_the_end_of_their_grid_are_exact():
    most = 2.0**25
    tables = bad("gate", most - 2.0**-28)
    statistics = ExpertStatistics(spec_of(), "language", tables, items=(), signature={}, collect=ALL, weights=WEIGHTS)
    assert statistics.table("encoder", "aaa")["gate"].flat[-1] == most - 2.0**-28


def test_a_sum_that_leaves_its_grid_is_refused_when_parts_are_merged():
    table = random_table(STACKS[0], 0)
    table["p_all"][0] = 2.0**24 + 1
    parts = [
        ExpertStatistics(spec_of(), "language", {("encoder", "aaa"): table}, items=(name,), signature={})
        for name in ("aaa-bbb", "aaa-ccc")
    ]
    with pytest.raises(UsageError, match=r"`encoder/aaa/p_all` must be below 3e\+07 to add up exactly"):
        ExpertStatistics.merge_all(parts)


@pytest.mark.parametrize(
    ("weights", "collect", "message"),
    [
        ({}, ALL, "`weights` must be of the stacks decoder, encoder, but are of none"),
        (WEIGHTS, CORE, r"`weights` must be of the stacks \(none\), but are of decoder, encoder"),
        ({"encoder": WEIGHTS["encoder"]}, ALL, "but are of encoder instead"),
        (WEIGHTS | {"encoder": {}}, ALL, "must have the fields weight_norm"),
    ],
)
def test_wrong_weights_are_refused(weights, collect, message):
    with pytest.raises(UsageError, match=message):
        ExpertStatistics(spec_of(), "language", {}, items=(), signature={}, collect=collect, weights=weights)


def test_unknown_groups_and_granularities_are_refused():
    with pytest.raises(UsageError, match=r"`collect` must be of core, norms, .*, weights, but names more, norm"):
        ExpertStatistics(spec_of(), "language", {}, items=(), signature={}, collect=("norm", "core", "more"))
    with pytest.raises(UsageError, match="`granularity` must be language or pair, but is global"):
        ExpertStatistics(spec_of(), "global", {}, items=(), signature={})


def test_pair_keys_must_be_directions():
    with pytest.raises(UsageError, match="eng_Latn-deu_Latn"):
        ExpertStatistics(spec_of(), "pair", broken(), items=(), signature={})


@pytest.mark.parametrize("text", ["aaa", "-aaa", "aaa-", "a-b-c"])
def test_split_direction_refuses(text):
    with pytest.raises(UsageError, match="direction"):
        split_direction(text)


def test_a_model_without_fingerprint_is_refused():
    with pytest.raises(UsageError, match="fingerprint"):
        ExpertStatistics(replace(spec_of(), fingerprint=None), "language", {}, items=(), signature={})


def metadata_of(content):
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return json.loads(header["__metadata__"]["nllb-prune"])


GOOD = item("aaa-bbb", collect=ALL).to_bytes()


def with_metadata(*, without=None, tensors=None, **changes):
    """Return a good file with other metadata."""
    metadata = {name: value for name, value in (metadata_of(GOOD) | changes).items() if name != without}
    tensors = safetensors_numpy.load(GOOD) if tensors is None else tensors
    return safetensors_numpy.save(tensors, metadata={"nllb-prune": json.dumps(metadata)})


def test_a_file_made_over_is_what_it_was():
    assert ExpertStatistics.from_bytes(with_metadata()).to_bytes() == GOOD


KEPT = ("format", "version", "tool")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "something else"),
        (b"not safetensors at all", "something else"),
        (b'{"format": "nllb-prune/masks", "version": 1}', "something else"),
        (json.dumps({"eng_Latn": [1, 2]}).encode(), "something else"),
        (safetensors_numpy.save({"a": np.zeros(1)}), "something else"),
        (safetensors_numpy.save({"a": np.zeros(1)}, metadata={"nllb-prune": "[]"}), "something else"),
        (safetensors_numpy.save({"a": np.zeros(1)}, metadata={"nllb-prune": "{"}), "something else"),
        (with_metadata(format="nllb-prune/masks"), "something else"),
        (GOOD[:4], "something else"),
        (GOOD[:500], "something else"),
        (GOOD[:-9], "content is wrong"),
        (GOOD + b"more", "content is wrong"),
        (with_metadata(version=1), "must have format version 2, but has 1 instead"),
        (with_metadata(version=3), "must have format version 2, but has 3 instead"),
        (with_metadata(version=None), "must have format version 2, but has None"),
        *((with_metadata(without=name), "content is wrong") for name in sorted(set(metadata_of(GOOD)) - set(KEPT))),
        *((with_metadata(**{name: 5}), "content is wrong") for name in sorted(set(metadata_of(GOOD)) - set(KEPT))),
        (with_metadata(granularity="global"), "content is wrong: `granularity`"),
        (with_metadata(granularity="pair"), "content is wrong: `direction`"),
        (with_metadata(collect=["core"]), "content is wrong"),
        (with_metadata(collect=["core", "more"]), "content is wrong: `collect`"),
        (with_metadata(items=["aaa-bbb", "aaa-bbb"]), "aaa-bbb is there twice"),
        (with_metadata(signature=["mode"]), "content is wrong"),
        (with_metadata(tensors={"encoder/aaa": np.zeros(1)}), "content is wrong"),
        (with_metadata(tensors={"other/aaa/first": np.zeros(1)}), "content is wrong"),
        (with_metadata(tensors={}), "content is wrong: `weights`"),
    ],
)
def test_wrong_files_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        ExpertStatistics.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(GOOD) - 1))
def test_a_file_cut_anywhere_is_refused(left):
    with pytest.raises(UsageError):
        ExpertStatistics.from_bytes(GOOD[:left])


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_flipped_byte_is_refused_or_changes_the_content(place, flip):
    """Nothing but the one error may come of a damaged file; a sum that is only another number cannot be noticed."""
    damaged = bytearray(GOOD)
    damaged[place] ^= flip
    try:
        again = ExpertStatistics.from_bytes(bytes(damaged))
    except UsageError:
        return
    assert again.to_bytes() is not None


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        ExpertStatistics.load(tmp_path / "nothing")
