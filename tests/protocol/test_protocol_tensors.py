"""One flat vector and the tensors inside it are the same values, in the same order."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_dpfl.protocol.errors import TaskError
from tf_dpfl.protocol.tensors import TensorLayout, vector_from_bytes, vector_to_bytes

LAYOUT = TensorLayout(("a", "b", "c"), ((2, 3), (), (4,)))
SHAPES = st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=5)


def test_size_counts_entries_and_bytes():
    assert LAYOUT.size == 11 and LAYOUT.nbytes == 44


@given(shapes=SHAPES)
def test_split_and_join_are_inverse(shapes):
    layout = TensorLayout(tuple(map(str, range(len(shapes)))), tuple(shapes))
    flat = np.arange(layout.size, dtype=np.float32)
    tensors = layout.split(flat)
    assert [tensor.shape for tensor in tensors] == list(shapes)
    np.testing.assert_array_equal(layout.join(tensors), flat)
    assert layout.join(tensors).dtype == np.float32


def test_split_returns_views_in_row_major_order():
    flat = np.arange(11, dtype=np.float32)
    first, scalar, last = LAYOUT.split(flat)
    assert first[1, 0] == 3 and scalar == 6 and last[0] == 7
    flat[3] = -1
    assert first[1, 0] == -1


def test_a_wrong_size_or_shape_is_refused():
    with pytest.raises(ValueError, match="the layout needs"):
        LAYOUT.split(np.zeros(10, np.float32))
    with pytest.raises(ValueError, match="the layout needs"):
        LAYOUT.split(np.zeros((11, 1), np.float32))
    with pytest.raises(ValueError, match="the layout needs"):
        LAYOUT.join([np.zeros((3, 2)), np.zeros(()), np.zeros(4)])
    with pytest.raises(ValueError, match="the layout needs"):
        LAYOUT.join([np.zeros((2, 3))])


def test_a_layout_survives_a_trip_through_json():
    assert TensorLayout.from_json(json.loads(json.dumps(LAYOUT.to_json()))) == LAYOUT


@pytest.mark.parametrize(
    "entries",
    [
        None,
        [],
        {},
        "ab",
        [1],
        [{}],
        [{"name": "a"}],
        [{"name": 1, "shape": [1]}],
        [{"name": "a", "shape": 3}],
        [{"name": "a", "shape": [0]}],
        [{"name": "a", "shape": [-1]}],
        [{"name": "a", "shape": [1.0]}],
        [{"name": "a", "shape": [True]}],
        [{"name": "a", "shape": [None]}],
        [{"name": "a", "shape": [10**400]}],
    ],
)
def test_a_malformed_layout_is_a_task_error(entries):
    with pytest.raises(TaskError, match="layout"):
        TensorLayout.from_json(entries)


def test_the_wire_is_little_endian_float32():
    values = [0.0, -1.5, 3.25e10]
    assert vector_to_bytes(np.array(values)) == struct.pack("<3f", *values)
    big_endian = np.array(values, ">f4")
    assert vector_to_bytes(big_endian) == struct.pack("<3f", *values)


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=20))
def test_a_vector_survives_the_wire(values):
    vector = np.array(values, np.float32)
    back = vector_from_bytes(vector_to_bytes(vector), size=len(values))
    np.testing.assert_array_equal(back, vector)
    assert back.dtype == np.float32


@pytest.mark.parametrize("length", [0, 3, 15, 17, 20])
def test_a_wrong_length_is_refused(length):
    with pytest.raises(ValueError, match="not 4 float32 values"):
        vector_from_bytes(bytes(length), size=4)


@pytest.mark.parametrize("kind", [bytes, bytearray, lambda raw: memoryview(bytearray(raw))])
def test_what_was_received_cannot_be_changed_through_the_vector(kind):
    vector = vector_from_bytes(kind(bytes(8)), size=2)
    with pytest.raises(ValueError, match="read-only"):
        vector[0] = 1
