"""The norm after clipping never exceeds the bound, whatever a client sends.

Norms here are exact: sums of squares as fractions, not the code under test.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tf_dpfl.protocol.clipping import (
    CLIP_MARGIN,
    bound_of_a_part,
    clip_by_global_norm,
    clip_update,
)
from tf_dpfl.protocol.tensors import TensorLayout

LARGEST = float(np.finfo(np.float32).max)
SMALLEST = float(np.finfo(np.float32).smallest_subnormal)

ANYTHING = hnp.arrays(
    np.float32,
    st.integers(0, 40),
    elements=st.floats(width=32, allow_nan=True, allow_infinity=True)
    | st.sampled_from([0.0, -0.0, SMALLEST, LARGEST, -LARGEST, math.inf, -math.inf, math.nan]),
)
CLIP_NORMS = st.floats(1e-9, 1e12)


WAYS = ["global", "per_layer", "value"]


def layout_of(*sizes):
    """Vectors of these sizes."""
    return TensorLayout(tuple(map(str, range(len(sizes)))), tuple((n,) for n in sizes))


def exact_square(vector):
    return sum((Fraction(float(value)) ** 2 for value in vector), Fraction(0))


@given(update=ANYTHING, clip_norm=CLIP_NORMS)
@example(update=np.full(40, LARGEST, np.float32), clip_norm=1e-9)
@example(update=np.full(40, SMALLEST, np.float32), clip_norm=1e-9)
@example(update=np.array([1.0], np.float32), clip_norm=1.0)
@example(update=np.array([1.0 - 5e-6], np.float32), clip_norm=1.0)
def test_clipped_norm_never_exceeds_the_bound(update, clip_norm):
    before = update.copy()
    clipped = clip_by_global_norm(update, clip_norm=clip_norm)
    assert clipped.shape == update.shape and clipped.dtype == np.float32
    assert np.isfinite(clipped).all()
    assert exact_square(clipped) <= Fraction(clip_norm) ** 2
    assert float(np.linalg.norm(clipped.astype(np.float64))) <= clip_norm
    np.testing.assert_array_equal(update, before)  # the input is left alone


def test_without_clipping_the_bound_would_be_broken():
    """The property above is about the mechanism: the same inputs break it unclipped."""
    update = np.full(40, 10.0, np.float32)
    assert exact_square(update) > 1
    assert exact_square(clip_by_global_norm(update, clip_norm=1.0)) <= 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_broken_update_has_no_influence(bad):
    update = np.array([1.0, bad, -1.0], np.float32)
    assert not clip_by_global_norm(update, clip_norm=1.0).any()


def test_an_update_whose_square_overflows_float32_has_no_influence():
    assert not clip_by_global_norm(np.array([1e20], np.float32), clip_norm=1.0).any()
    assert clip_by_global_norm(np.array([1e18], np.float32), clip_norm=1.0).any()


@pytest.mark.parametrize("size", [0, 1, 5])
def test_a_zero_or_empty_update_stays_as_it_is(size):
    zero = np.zeros(size, np.float32)
    np.testing.assert_array_equal(clip_by_global_norm(zero, clip_norm=1.0), zero)


@given(
    hnp.arrays(np.float32, 8, elements=st.floats(-1, 1, width=32)),
    st.floats(3.0, 1e6),
)
def test_a_small_update_is_unchanged_bit_for_bit(update, clip_norm):
    np.testing.assert_array_equal(clip_by_global_norm(update, clip_norm=clip_norm), update)


@given(hnp.arrays(np.float32, 8, elements=st.floats(1, 1e6, width=32)), st.floats(1e-6, 0.5))
def test_a_large_update_keeps_its_direction_and_nearly_the_whole_bound(update, clip_norm):
    clipped = clip_by_global_norm(update, clip_norm=clip_norm).astype(np.float64)
    norm = np.linalg.norm(clipped)
    assert (1 - 2 * CLIP_MARGIN) * clip_norm <= norm <= clip_norm
    direction = update / np.linalg.norm(update.astype(np.float64))
    np.testing.assert_allclose(clipped / norm, direction, rtol=1e-5)


def test_the_bound_holds_for_a_large_model():
    update = np.random.default_rng(1).standard_normal(3_000_000).astype(np.float32)
    clipped = clip_by_global_norm(update, clip_norm=0.3)
    assert math.fsum(clipped.astype(np.float64) ** 2) <= 0.3**2


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan, math.inf])
def test_a_bound_that_bounds_nothing_is_refused(clip_norm):
    with pytest.raises(ValueError, match="clip_norm"):
        clip_by_global_norm(np.ones(2, np.float32), clip_norm=clip_norm)


@pytest.mark.parametrize("clipping", WAYS)
@given(update=ANYTHING, clip_norm=CLIP_NORMS, parts=st.integers(1, 5))
@example(update=np.full(40, LARGEST, np.float32), clip_norm=1e-9, parts=3)
@example(update=np.full(40, 1e18, np.float32), clip_norm=1e-9, parts=5)
@example(update=np.full(40, SMALLEST, np.float32), clip_norm=1e-9, parts=3)
@example(update=np.zeros(0, np.float32), clip_norm=1.0, parts=1)
def test_whichever_way_the_whole_norm_never_exceeds_the_bound(clipping, update, clip_norm, parts):
    before, sizes = update.copy(), [len(p) for p in np.array_split(update, parts)]
    clipped = clip_update(update, clip_norm=clip_norm, clipping=clipping, layout=layout_of(*sizes))
    assert clipped.shape == update.shape and clipped.dtype == np.float32
    assert exact_square(clipped) <= Fraction(clip_norm) ** 2
    assert float(np.linalg.norm(clipped.astype(np.float64))) <= clip_norm
    np.testing.assert_array_equal(update, before)


@pytest.mark.parametrize("clipping", WAYS)
def test_the_bound_is_nearly_reached_where_every_part_is_too_large(clipping):
    update, layout = np.full(12, 10.0, np.float32), layout_of(3, 4, 5)
    clipped = clip_update(update, clip_norm=2.0, clipping=clipping, layout=layout)
    norm = float(np.linalg.norm(clipped.astype(np.float64)))
    assert 2.0 * (1 - 2 * CLIP_MARGIN) <= norm <= 2.0


def test_each_variable_is_clipped_by_itself_and_a_short_one_is_untouched():
    update, layout = np.array([3, 4, 0.1, 0.2, 0, 0, 30], np.float32), layout_of(2, 3, 2)
    clipped = clip_update(update, clip_norm=math.sqrt(3), clipping="per_layer", layout=layout)
    assert bound_of_a_part(clip_norm=math.sqrt(3), clipping="per_layer", layout=layout) == 1.0
    np.testing.assert_allclose(clipped, [0.6, 0.8, 0.1, 0.2, 0, 0, 1], rtol=2 * CLIP_MARGIN)
    np.testing.assert_array_equal(clipped[2:5], update[2:5])


def test_each_entry_is_cut_by_itself_and_a_small_one_is_untouched():
    update, layout = np.array([5, -5, 0.25, -0.5], np.float32), layout_of(4)
    clipped = clip_update(update, clip_norm=2.0, clipping="value", layout=layout)
    np.testing.assert_allclose(clipped, [1, -1, 0.25, -0.5], rtol=2 * CLIP_MARGIN)
    np.testing.assert_array_equal(clipped[2:], update[2:])


@pytest.mark.parametrize("clipping", WAYS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e20])
def test_whichever_way_a_broken_part_takes_the_whole_update_away(clipping, bad):
    update = np.array([1.0, 2.0, bad, 3.0], np.float32)
    layout = layout_of(2, 2)
    assert not clip_update(update, clip_norm=1.0, clipping=clipping, layout=layout).any()


@pytest.mark.parametrize("clipping", ["per_layer", "value"])
def test_the_bound_holds_for_a_large_model_in_parts(clipping):
    update = np.random.default_rng(1).standard_normal(3_000_000).astype(np.float32)
    layout = layout_of(*[1000] * 3000)
    clipped = clip_update(update, clip_norm=0.3, clipping=clipping, layout=layout)
    assert 0.299 < math.sqrt(math.fsum(clipped.astype(np.float64) ** 2)) <= 0.3


@pytest.mark.parametrize("clipping", WAYS)
@pytest.mark.parametrize("clip_norm", [0.0, math.nan, math.inf])
def test_whichever_way_a_bound_that_bounds_nothing_is_refused(clipping, clip_norm):
    with pytest.raises(ValueError, match="clip_norm"):
        clip_update(
            np.ones(2, np.float32), clip_norm=clip_norm, clipping=clipping, layout=layout_of(2)
        )


def test_another_layout_or_another_way_is_refused():
    with pytest.raises(ValueError, match="layout"):
        clip_update(
            np.ones(3, np.float32), clip_norm=1.0, clipping="per_layer", layout=layout_of(2)
        )
    with pytest.raises(KeyError):
        clip_update(np.ones(2, np.float32), clip_norm=1.0, clipping="by_hand", layout=layout_of(2))
