"""What a trace tells of integers that are computed from shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tf_dpfl.client_work.static_values import static_value

CASES: dict[str, Any] = {
    "positions": (lambda x: tf.range(0, tf.shape(x)[1], 1), np.arange(5)),
    "permutation": (lambda x: tf.concat([tf.range(1), [tf.rank(x) - 1], [1]], 0), [0, 2, 1]),
    "all axes backwards": (lambda x: tf.rank(x) - 1 - tf.range(tf.rank(x)), [2, 1, 0]),
    "multiples": (lambda x: tf.stack([1, 2 * tf.shape(x)[2] // 4, 1]), [1, 3, 1]),
    "a product": (lambda x: tf.reduce_prod(tf.shape(x)[1:]), 30),
    "picked": (lambda x: tf.gather(tf.shape(x), [2, 1]), [6, 5]),
}


def traced(function: Any, *shape: int | None) -> Any:
    """The value of `function` of a float32 tensor of `shape` while it is traced."""
    found = []

    @tf.function(autograph=False)
    def run(x: tf.Tensor) -> tf.Tensor:
        found.append(static_value(function(x)))
        return x

    run.get_concrete_function(tf.TensorSpec(shape))
    return found[0]


@pytest.mark.parametrize("name", CASES)
def test_integers_of_shapes_are_known_while_tracing(name: str) -> None:
    function, expected = CASES[name]
    np.testing.assert_array_equal(traced(function, 4, 5, 6), expected)
    np.testing.assert_array_equal(function(tf.zeros([4, 5, 6])), expected)  # TensorFlow's own


def test_what_depends_on_an_open_size_or_on_values_is_not_known() -> None:
    assert traced(lambda x: tf.range(0, tf.shape(x)[1], 1), 4, None, 6) is None
    assert traced(lambda x: tf.cast(x, tf.int32)[0, 0] + 1, 4, 5, 6) is None
    assert traced(lambda x: x + 1.0, 4, 5, 6) is None
