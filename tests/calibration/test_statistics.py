import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import numpy as safetensors_numpy

from nllb_prune.calibration.statistics import (
    CLASSES,
    FIELDS,
    SUMS,
    ExpertStatistics,
    add_tables,
    empty_table,
    position_classes,
    split_direction,
)
from nllb_prune.errors import UsageError
from nllb_prune.model.spec import Fingerprint, ModelSpec, Stack

STACKS = (Stack("encoder", "source", (1, 3), 4), Stack("decoder", "target", (0, 2), 4))
SIGNATURE = {"mode": "references", "sentences": 10, "share": 0.5}


def spec_of(norm=1.0):
    fingerprint = Fingerprint.of(STACKS, [norm] * 16)
    return ModelSpec(family="nllb-moe", stacks=STACKS, top_k=2, output_scale=0.8, fingerprint=fingerprint)


def random_table(stack, seed):
    random = np.random.default_rng(seed)
    table = empty_table(stack)
    table["tokens"] += random.integers(1, 1000, table["tokens"].shape)
    for field in FIELDS[1:]:
        values = random.random(table[field].shape) * 100
        table[field] = values if field in SUMS else values.astype(np.int64)
    return table


def item(direction, *, seed=0, granularity="language", spec=None, signature=SIGNATURE):
    source, target = direction.split("-")
    keys = {stack.name: direction if granularity == "pair" else stack.key(source, target) for stack in STACKS}
    tables = {(stack.name, keys[stack.name]): random_table(stack, seed) for stack in STACKS}
    return ExpertStatistics(spec or spec_of(), granularity, tables, items=(direction,), signature=signature)


DIRECTIONS = [f"{a}-{b}" for a in ("aaa", "bbb", "ccc") for b in ("aaa", "bbb", "ccc") if a != b]
PARTS = [item(direction, seed=n, granularity="pair") for n, direction in enumerate(DIRECTIONS)]
WHOLE = ExpertStatistics.merge_all(PARTS).to_bytes()


@settings(max_examples=40, deadline=None)
@given(st.permutations(PARTS), st.integers(1, 5), st.integers(1, 5))
def test_merging_in_any_grouping_gives_the_same_bytes(parts, a, b):
    low, high = sorted((a, b))
    groups = [group for group in (parts[:low], parts[low:high], parts[high:]) if group]
    merged = ExpertStatistics.merge_all([ExpertStatistics.merge_all(group) for group in groups])
    assert merged.to_bytes() == WHOLE


@settings(max_examples=20, deadline=None)
@given(st.permutations(PARTS))
def test_adding_over_directions_and_over_parts_commute(parts):
    one_pass = ExpertStatistics.merge_all(parts).as_language()
    by_part = ExpertStatistics.merge_all([part.as_language() for part in parts])
    assert by_part.to_bytes() == one_pass.to_bytes()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["language", "pair"]))
def test_bytes_round_trip(seed, granularity):
    statistics = item("eng_Latn-deu_Latn", seed=seed, granularity=granularity)
    again = ExpertStatistics.from_bytes(statistics.to_bytes())
    assert again.to_bytes() == statistics.to_bytes()
    assert again.spec == statistics.spec
    assert again.digest() == statistics.digest()
    for stack in STACKS:
        for key in again.keys(stack.name):
            for field in FIELDS:
                np.testing.assert_array_equal(
                    again.table(stack.name, key)[field], statistics.table(stack.name, key)[field]
                )


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
    table = random_table(STACKS[0], 5)
    statistics = ExpertStatistics(spec_of(), "language", {("encoder", "aaa"): table}, items=("x",), signature={})
    held = statistics.table("encoder", "aaa")
    np.testing.assert_allclose(held["p_all"], table["p_all"], rtol=0, atol=2.0**-29)
    table["first"] += 1
    assert (held["first"] == table["first"] - 1).all()
    with pytest.raises(ValueError, match="read-only"):
        held["first"][0] = 0


def test_pooled_and_as_language_add_tables():
    pairs = ExpertStatistics.merge_all(PARTS)
    expected = add_tables([pairs.table("decoder", key) for key in ("aaa-ccc", "bbb-ccc")])
    language = pairs.as_language()
    for field in FIELDS:
        np.testing.assert_array_equal(language.table("decoder", "ccc")[field], expected[field])
        np.testing.assert_array_equal(pairs.pooled("decoder", ["aaa-ccc", "bbb-ccc"])[field], expected[field])
    assert language.keys("encoder") == ("aaa", "bbb", "ccc")
    assert language.as_language() is language
    assert pairs.directions("decoder")["ccc"] == ("aaa-ccc", "bbb-ccc")
    assert not any(pairs.pooled("encoder", [])[field].any() for field in FIELDS)


def test_merge_of_two_is_the_sum():
    a, b = item("aaa-bbb", seed=1), item("aaa-ccc", seed=2)
    merged = ExpertStatistics.merge(a, b)
    assert merged.items == ("aaa-bbb", "aaa-ccc")
    assert merged.keys("decoder") == ("bbb", "ccc")
    np.testing.assert_array_equal(
        merged.table("encoder", "aaa")["gate"], a.table("encoder", "aaa")["gate"] + b.table("encoder", "aaa")["gate"]
    )


def test_position_classes():
    assert [position_classes(stack) for stack in STACKS] == [CLASSES["encoder"], CLASSES["decoder"]]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (item("aaa-bbb", seed=2), "aaa-bbb is there twice"),
        (item("aaa-ccc", spec=spec_of(2.0)), "must be statistics of one model"),
        (item("aaa-ccc", granularity="pair"), "language and pair"),
        (item("aaa-ccc", signature={**SIGNATURE, "sentences": 11}), "sentences 10 and 11"),
        (item("aaa-ccc", signature={"mode": "references"}), "sentences 10 and None"),
    ],
)
def test_merge_refuses(other, message):
    with pytest.raises(UsageError, match=message):
        ExpertStatistics.merge(item("aaa-bbb"), other)


def test_merge_of_nothing_is_refused():
    with pytest.raises(UsageError, match="one or more"):
        ExpertStatistics.merge_all([])


def test_a_rounded_copy_of_the_model_can_be_merged():
    merged = item("aaa-bbb").merge(item("aaa-ccc", spec=spec_of(1.004)))
    assert merged.fingerprint == spec_of().fingerprint


def test_unknown_key_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"\(aaa, bbb, ccc\), but is ddd"):
        ExpertStatistics.merge_all(PARTS).as_language().table("encoder", "ddd")


def broken(**changes):
    table = {**random_table(STACKS[0], 0), **changes}
    return {("encoder", "aaa"): {name: values for name, values in table.items() if values is not None}}


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (broken(gate=None), "must have the fields"),
        (broken(gate=np.zeros((4, 2, 5))), r"must have shape \(4, 2, 4\)"),
        (broken(gate=np.full((4, 2, 4), np.nan)), "finite"),
        (broken(first=np.full((4, 2, 4), -1)), "not negative"),
        ({("both", "aaa"): random_table(STACKS[0], 0)}, "encoder, decoder"),
    ],
)
def test_wrong_tables_are_refused(tables, message):
    with pytest.raises(UsageError, match=message):
        ExpertStatistics(spec_of(), "language", tables, items=(), signature={})


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


def with_metadata(**changes):
    header = {"nllb-prune": json.dumps({"format": "nllb-prune/statistics", "version": 1, **changes})}
    return safetensors_numpy.save({}, metadata=header)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "something else"),
        (b"not safetensors at all", "something else"),
        (safetensors_numpy.save({"a": np.zeros(1)}), "something else"),
        (WHOLE[:-9], "content is wrong"),
        (with_metadata(version=2), "format version 1, but has 2"),
        (with_metadata(), "content is wrong"),
    ],
)
def test_wrong_files_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        ExpertStatistics.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        ExpertStatistics.load(tmp_path / "nothing")
