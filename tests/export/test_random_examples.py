"""Random examples hold ids where a model looks something up, and numbers elsewhere."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from export_bench import plan_of

from tf_dpfl.export.ids import ids_of_inputs
from tf_dpfl.export.random_examples import RandomExamples

L = tf.keras.layers


def model_of_many_inputs() -> tf.keras.Model:
    """Ids as floats and in a nested model, two tables, one-hot flags, counts and numbers."""
    inner = tf.keras.Sequential([L.Embedding(9, 3, input_length=4), L.Flatten()])
    words, flags = tf.keras.Input((4,)), tf.keras.Input((2,), dtype="int32")
    ids, counts = tf.keras.Input((2,), dtype="int32"), tf.keras.Input((2,), dtype="int32")
    numbers = tf.keras.Input((3,))
    parts = [
        inner(words),
        L.Flatten()(tf.one_hot(flags, 4)),
        L.Flatten()(L.Embedding(7, 2)(ids)),
        L.Flatten()(L.Embedding(5, 2)(ids[:, ::-1])),
        tf.cast(counts, tf.float32),
        numbers,
    ]
    return tf.keras.Model([words, flags, ids, counts, numbers], L.Dense(2)(L.Concatenate()(parts)))


def test_ids_are_found_where_they_are_looked_up() -> None:
    assert ids_of_inputs(model_of_many_inputs()) == [9, 4, 5, None, None]


def test_examples_hold_every_id_and_no_other() -> None:
    model = model_of_many_inputs()
    examples = RandomExamples(model, plan_of().local_training)
    drawn = examples.inputs(np.random.default_rng(0), 200)
    words, flags, ids, counts, numbers = drawn.values()
    assert words.dtype == np.float32 and set(np.unique(words)) == set(range(9))
    assert ids.dtype == np.int32 and set(np.unique(ids)) == set(range(5))
    assert set(np.unique(flags)) == set(range(4)) and set(np.unique(counts)) == {0, 1}
    assert examples.numbers == [list(drawn)[4]] and len(np.unique(numbers)) > 500
    assert model([*drawn.values()]).shape == (200, 2)
