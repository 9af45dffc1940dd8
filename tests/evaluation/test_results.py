"""Files of results: what goes in comes out, equal results are equal bytes, and damage is seen in the header's pass."""

import gzip
import io
import json
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import CHRF

from nllb_prune.evaluation.results import RESULT_FILES, DirectionResult
from nllb_prune.result_files import header_of

HEADER = header_of("full/eng_Latn-deu_Latn", {"beams": 1})
VALUES = {"script": [0.25, float("nan"), 1.0], "oscillation": [-1.0, 0.0, 3.0]}


@pytest.fixture(scope="module")
def result(make_result):
    lines = ["Spiel Musik.", "ein\nzwei\r\u2028drei", ""]
    return make_result(
        lines, ["Spiel Musik!", "eins", "halt"], detections=VALUES, on_references={"off-target": [0.5] * 3}
    )


def equal(left, right):
    return left.to_json() == right.to_json()


def test_a_file_gives_back_result_and_header(result):
    found, header = RESULT_FILES.unpack(RESULT_FILES.pack(result, HEADER))
    assert header == HEADER
    assert equal(found, result)
    assert [f.name for f in fields(found) if type(getattr(found, f.name)) is not type(getattr(result, f.name))] == []
    assert found.hypotheses == result.hypotheses
    np.testing.assert_array_equal(found.detections["script"], VALUES["script"])
    np.testing.assert_array_equal(found.on_references["off-target"], [0.5] * 3)
    np.testing.assert_array_equal(found.scores["chrf"].statistics, result.scores["chrf"].statistics)
    assert (found.direction, found.sentences, found.ended.dtype) == ("eng_Latn-deu_Latn", 3, np.bool_)


def test_results_of_a_run_come_back_with_their_fidelity(evaluation, directions):
    result = evaluation.result("half", directions[0])
    found, _ = RESULT_FILES.unpack(RESULT_FILES.pack(result, HEADER))
    assert equal(found, result)
    assert found.fidelity.values() == result.fidelity.values()
    assert evaluation.result("full", directions[0]).fidelity is None


def test_no_detections_are_none(make_result):
    found, _ = RESULT_FILES.unpack(RESULT_FILES.pack(make_result(["a"], ["b"]), HEADER))
    assert (found.detections, found.on_references) == ({}, {})


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4))
def test_any_text_survives(make_result, lines):
    result = make_result(lines, ["ein Satz"] * len(lines))
    found, _ = RESULT_FILES.unpack(RESULT_FILES.pack(result, HEADER))
    assert found.hypotheses == tuple(lines)
    expected = CHRF(word_order=2).corpus_score(lines, [["ein Satz"] * len(lines)]).score
    assert found.scores["chrf"].value == pytest.approx(expected, abs=1e-9)


def test_equal_results_are_equal_bytes(result, make_result):
    content = RESULT_FILES.pack(result, HEADER)
    again, _ = RESULT_FILES.unpack(content)
    turned = replace(again, detections=dict(reversed(again.detections.items())))
    assert RESULT_FILES.pack(turned, dict(reversed(HEADER.items()))) == content
    assert RESULT_FILES.pack(replace(again, kept=0.5), HEADER) != content


def test_a_file_is_two_lines_of_json_that_other_programs_read(result):
    header, content = gzip.decompress(RESULT_FILES.pack(result, HEADER)).splitlines()
    assert json.loads(header) == HEADER
    assert json.loads(content)["hypotheses"] == list(result.hypotheses)


def test_numbers_that_json_lacks_are_refused(result):
    with pytest.raises(ValueError, match="not JSON compliant"):
        RESULT_FILES.pack(replace(result, kept=float("nan")), HEADER)


def test_the_header_is_read_alone(result, monkeypatch):
    content = RESULT_FILES.pack(result, HEADER)
    monkeypatch.setattr(DirectionResult, "from_json", None)
    assert RESULT_FILES.read_header(io.BytesIO(content)) == HEADER


def test_a_cut_file_is_seen_wherever_it_is_cut(result):
    content = RESULT_FILES.pack(result, HEADER)
    for size in range(0, len(content), 7):
        with pytest.raises((ValueError, OSError)):
            RESULT_FILES.unpack(content[:size])
        with pytest.raises((ValueError, OSError)):
            RESULT_FILES.read_header(io.BytesIO(content[:size]))


def test_a_flipped_bit_is_seen_wherever_it_is(result):
    content = RESULT_FILES.pack(result, HEADER)
    for position in range(10, len(content), 5):  # the first ten bytes are gzip's own, some of them without meaning
        damaged = bytearray(content)
        damaged[position] ^= 4
        with pytest.raises((ValueError, OSError)):
            RESULT_FILES.read_header(io.BytesIO(bytes(damaged)))


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", gzip.compress(b"{}\n"), gzip.compress(b"{}\n{}\n"), gzip.compress(b"1")],
    ids=["nothing", "no gzip", "one object", "two objects", "a number"],  # gzip has the time in its bytes
)
def test_something_else_is_no_result(content):
    with pytest.raises((ValueError, KeyError, TypeError, OSError)):
        RESULT_FILES.unpack(content)
