"""The report made in TensorFlow: clipping, non-finite updates, noise."""

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tf_dpfl.client_work import update as client_update
from tf_dpfl.protocol.clipping import CLIP_MARGIN, clip_by_global_norm, clip_update
from tf_dpfl.protocol.tensors import TensorLayout

ANY_FLOAT32 = st.floats(width=32, allow_nan=True, allow_infinity=True)


def clip(values, clip_norm):
    update = tf.constant(np.asarray(values, np.float32))
    return client_update.clip_by_global_norm(update, tf.constant(clip_norm, tf.float32)).numpy()


@settings(max_examples=100)
@given(
    hnp.arrays(np.float32, st.sampled_from([1, 63, 64, 65, 300]), elements=ANY_FLOAT32),
    st.sampled_from([1e-3, 0.3, 1.0, 50.0]),
)
def test_clipped_norm_never_exceeds_bound(values, clip_norm):
    norm = np.linalg.norm(clip(values, clip_norm).astype(np.float64))
    assert norm <= clip_norm


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 64, 5), (3, 65, 70), (2, 3, 200, 1), (1, 7, 64)])
def test_squares_of_matrices_are_added_up_whole(shape):
    values = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    found = client_update.sum_of_squares_of_matrices(tf.constant(values)).numpy()
    np.testing.assert_allclose(found, np.square(values, dtype=np.float64).sum((-2, -1)), rtol=1e-6)


@settings(max_examples=100)
@given(hnp.arrays(np.float32, 200, elements=st.floats(-1e6, 1e6, width=32)))
def test_tensorflow_clips_as_the_numpy_reference(values):
    np.testing.assert_allclose(
        clip(values, 0.5), clip_by_global_norm(values, clip_norm=0.5), rtol=2e-5, atol=1e-12
    )


SIZES = [63, 1, 128, 8]
LAYOUT = TensorLayout(("a", "b", "c", "d"), ((63,), (1,), (16, 8), (2, 2, 2)))


def clip_in_parts(values, clip_norm, clipping):
    update, norm = tf.constant(values, tf.float32), tf.constant(clip_norm, tf.float32)
    return client_update.clip_update(update, norm, clipping=clipping, sizes=SIZES).numpy()


@pytest.mark.parametrize("clipping", ["global", "per_layer", "value"])
@settings(max_examples=60)
@given(values=hnp.arrays(np.float32, 200, elements=ANY_FLOAT32))
def test_whichever_way_the_whole_norm_never_exceeds_the_bound(clipping, values):
    for clip_norm in (1e-3, 50.0):
        norm = np.linalg.norm(clip_in_parts(values, clip_norm, clipping).astype(np.float64))
        assert norm <= clip_norm


@pytest.mark.parametrize("clipping", ["global", "per_layer", "value"])
@settings(max_examples=60)
@given(values=hnp.arrays(np.float32, 200, elements=st.floats(-1e6, 1e6, width=32)))
def test_whichever_way_tensorflow_clips_as_the_numpy_reference(clipping, values):
    ours = clip_in_parts(values, 0.5, clipping)
    expected = clip_update(values, clip_norm=0.5, clipping=clipping, layout=LAYOUT)
    np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=1e-12)


@pytest.mark.parametrize("clipping", ["global", "per_layer", "value"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_whichever_way_a_broken_part_takes_the_whole_update_away(clipping, bad):
    values = np.ones(200, np.float32)
    values[70] = bad
    assert not clip_in_parts(values, 1.0, clipping).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_update_with_a_nonfinite_norm_becomes_zero(bad):
    assert not clip([1.0, bad, 2.0], 1.0).any()


def test_zero_update_stays_zero():
    assert not clip(np.zeros(5), 1.0).any()


def test_small_update_is_unchanged():
    values = np.array([0.3, -0.4], np.float32)
    np.testing.assert_array_equal(clip(values, 0.6), values)


def test_large_update_gets_the_target_norm():
    norm = np.linalg.norm(clip(np.full(1000, 7.0), 2.0).astype(np.float64))
    assert norm == pytest.approx(2.0 * (1 - CLIP_MARGIN), rel=1e-6)


def test_norm_of_a_million_equal_entries_keeps_the_bound():
    """One running float32 sum would be off by a percent and break the bound."""
    values = np.full(1_000_003, 0.1, np.float32)
    assert np.linalg.norm(clip(values, 1.0).astype(np.float64)) <= 1.0


def test_report_is_clipped_update_plus_exactly_the_given_noise():
    update, noise = np.array([3.0, 4.0], np.float32), np.array([10.0, -20.0], np.float32)
    report = client_update.privatize(
        tf.constant(update),
        clip_norm=tf.constant(1.0),
        noise=tf.constant(noise),
        clipping="global",
        sizes=[2],
    ).numpy()
    np.testing.assert_allclose(report, [10.6, -19.2], rtol=2e-5)


@pytest.mark.parametrize("size", [0, 1, 63, 1000, 10**6 + 1, 10**7])
def test_a_simulated_users_norm_is_right_to_a_tenth_of_the_clipping_margin(size):
    values = np.random.default_rng(0).normal(size=size).astype(np.float32)
    true = float(np.sum(values.astype(np.float64) ** 2))
    norm = math.sqrt(float(client_update.squared_norm(tf.constant(values))))
    assert norm == pytest.approx(math.sqrt(true), rel=CLIP_MARGIN / 10)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_a_simulated_users_norm_is_not_finite_where_its_update_is_not(bad):
    values = np.zeros(1000, np.float32)
    values[500] = bad
    assert not float(client_update.squared_norm(tf.constant(values))) < np.finfo(np.float32).max
