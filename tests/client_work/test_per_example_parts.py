"""One pass over a batch in parts: the same sum, in less memory."""

from __future__ import annotations

import numpy as np
import per_example_models as cases
import pytest
import tensorflow as tf

from tf_dpfl.client_work.computation import ClientComputation
from tf_dpfl.client_work.per_example import parts
from tf_dpfl.protocol.plan import LocalTraining

WEIGHT = np.array([1, 1, 0, 1, 1, 1], np.float32)


@pytest.mark.parametrize("at_once", [2, 3, 6])
@pytest.mark.parametrize("name", ["cnn", "embedding"])
def test_parts_add_up_to_the_sum_of_clipped_tape_gradients(name, at_once):
    model = cases.built(cases.ONE_PASS[name])
    batch = cases.batch_for(model)
    gradients = cases.gradient_of_each(model, batch)
    clip_norm = float(np.median(np.linalg.norm(gradients, axis=1)))
    got = cases.clipped_sum(model, batch, WEIGHT, clip_norm, "one_pass", at_once=at_once)
    expected = cases.expected_sum(gradients, WEIGHT, clip_norm)
    assert np.abs(got - expected).max() / np.abs(expected).max() < 3e-5


def graph_with(*shapes: tuple[int, ...]) -> tf.Graph:
    graph = tf.Graph()
    with graph.as_default():
        for shape in shapes:
            tf.zeros(shape)
    return graph


@pytest.mark.parametrize(
    ("shapes", "examples", "expected"),
    [
        ([(32, 1000)], 32, 32),
        ([(16, 512, 192)], 16, 4),  # 6.3 MB of float32
        ([(16, 512, 192), (8, 10**6)], 16, 4),  # no row for each example
        ([(12, 10**6)], 12, 2),  # not even two fit
        ([(15, 10**6)], 15, 3),
        ([(13, 10**6)], 13, 13),  # nothing divides it
    ],
)
def test_as_many_examples_are_taken_at_once_as_fit(shapes, examples, expected):
    assert parts.examples_at_once(graph_with(*shapes), examples) == expected


def image_model() -> tf.keras.Model:
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [
            tf.keras.Input((48, 48, 2)),
            layers.Conv2D(16, 5, activation="tanh"),
            layers.SpatialDropout2D(0.3),
            layers.Conv2D(8, 3),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )


def test_a_step_in_parts_is_the_step_of_the_loop():
    """With random layers, whose values follow their example."""
    settings = LocalTraining(1, 8, 0.5)
    draw = np.random.default_rng(1)
    batch = {
        "x": tf.constant(draw.random((8, 48, 48, 2), np.float32)),
        "y": tf.constant(draw.integers(0, 3, 8), tf.int32),
    }
    weight = tf.constant([1, 1, 0, 1, 1, 1, 1, 0], tf.float32)
    found = {}
    model = image_model()
    start = ClientComputation(model, settings).get_weights()
    for method in (None, "loop"):
        computation = ClientComputation(model, settings, dp_method=method)
        uniforms = draw_uniforms(computation.interface.random_values)
        shares = computation.split(tf.zeros([computation.layout.size]))
        computation.set_weights(start)
        step = tf.function(computation.train_dp_batch, autograph=False)
        step(batch, weight, tf.constant(0.5), tf.constant(0.01), shares, uniforms)
        found[method] = computation.get_weights() - start
    chosen = ClientComputation(model, settings).choose_dp_method()
    assert (chosen.name, chosen.at_once) == ("one_pass", 2)
    assert chosen.reason.endswith("2 examples at a time, for memory")
    scale = np.abs(found["loop"]).max()
    assert scale > 0
    np.testing.assert_allclose(found[None], found["loop"], atol=3e-5 * scale)


def draw_uniforms(values: int) -> tf.Tensor:
    return tf.constant(np.random.default_rng(2).random((8, values), np.float32))
