import base64
import json
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nllb_prune.evaluation.scores.packing import pack, unpack

SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=6)
COUNTS = arrays.arrays(np.int64, SHAPES, elements=st.integers(-(2**31), 2**31 - 1))
FLOATS = arrays.arrays(np.float64, SHAPES)


@given(COUNTS | FLOATS)
def test_round_trip_through_json(table):
    again = unpack(json.loads(json.dumps(pack(table), allow_nan=False)))
    assert again.dtype == table.dtype
    assert np.array_equal(again, table, equal_nan=table.dtype == np.float64)


def test_content_by_hand():
    # Little-endian int32, column by column: 1, 3, 2, 4.
    content = pack(np.array([[1, 2], [3, 4]]))
    assert (content["shape"], content["dtype"]) == ([2, 2], "int32")
    assert zlib.decompress(base64.b64decode(content["packed"])).hex() == "01000000030000000200000004000000"


def test_a_count_too_large_is_refused():
    with pytest.raises(OverflowError, match="32 bits"):
        pack(np.array([[2**31]]))


@pytest.mark.parametrize(
    "content",
    [None, [], {}, {"shape": [1, 1], "dtype": "int8", "packed": ""}, pack(np.ones((2, 2))) | {"shape": [3, 2]}],
)
def test_something_else_is_refused(content):
    with pytest.raises(ValueError, match=r"packed table|reshape"):
        unpack(content)
