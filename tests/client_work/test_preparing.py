"""Prepared models: fed randomness, untouched originals, and what is refused.

That every replaced layer computes what Keras does, forward and in training, is held
by tests/export/test_layers_trained.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tf_dpfl.client_work.preparing import prepare_model
from tf_dpfl.client_work.preparing.activations import erf, gelu
from tf_dpfl.protocol.errors import ModelError

L = tf.keras.layers
SHAPE = (6, 5)
ROWS = 2000


def of(*layers: Any, shape: tuple[int, ...] = SHAPE) -> tf.keras.Model:
    return tf.keras.Sequential([L.InputLayer(shape), *layers])


def run(model: tf.keras.Model, x: Any, random: Any = None, *, training: bool = True) -> np.ndarray:
    prepared = prepare_model(model)

    @tf.function(autograph=False)
    def call(x: Any, random: Any) -> Any:
        return prepared([x], training=training, random=random)

    return call(tf.constant(x), None if random is None else tf.constant(random)).numpy()


def draws(model: tf.keras.Model, rows: int) -> np.ndarray:
    shape = (rows, prepare_model(model).random_values)
    return np.random.default_rng(1).random(shape, dtype=np.float32)


def test_dropout_is_the_mask_of_the_uniforms() -> None:
    model = of(L.Dropout(0.3))
    x = np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float32)
    uniforms = draws(model, 4)
    assert uniforms.shape == (4, 30)
    expected = np.where(uniforms.reshape(x.shape) >= 0.3, x / np.float32(0.7), 0.0)
    np.testing.assert_allclose(run(model, x, uniforms), expected, rtol=1e-6)
    np.testing.assert_array_equal(run(model, x, training=False), x)


@pytest.mark.parametrize(
    ("layer", "shape", "values"),
    [
        (L.SpatialDropout1D(0.4), (6, 5), 5),
        (L.SpatialDropout2D(0.4), (3, 4, 5), 5),
        (L.Dropout(0.4, noise_shape=(None, 6, 1)), (6, 5), 6),
    ],
)
def test_masks_are_shared_as_keras_shares_them(layer: Any, shape: Any, values: int) -> None:
    model = of(layer, shape=shape)
    x = np.ones((50, *shape), np.float32)
    result = run(model, x, draws(model, 50))
    assert prepare_model(model).random_values == values
    kept = result != 0
    axis = tuple(range(1, len(shape))) if values == 5 else (2,)
    assert (kept.all(axis=axis) | ~kept.any(axis=axis)).all()
    assert 0.5 < kept.mean() < 0.7


@pytest.mark.parametrize(
    "layer", [L.AlphaDropout(0.2), L.GaussianDropout(0.2), L.GaussianNoise(0.7), L.Dropout(0.2)]
)
def test_moments_are_those_of_keras_own_draws(layer: Any) -> None:
    model = of(layer)
    x = np.tile(np.random.default_rng(2).normal(size=(1, *SHAPE)), (ROWS, 1, 1)).astype(np.float32)
    ours = run(model, x, draws(model, ROWS))
    theirs = np.asarray(model(x, training=True))
    for moment in (np.mean, np.std):
        np.testing.assert_allclose(moment(ours, axis=0), moment(theirs, axis=0), atol=0.2)
        np.testing.assert_allclose(moment(ours), moment(theirs), atol=0.02)
    assert len(np.unique(ours[:, 0, 0])) > 1


def test_layers_and_calls_never_share_uniforms() -> None:
    shared = L.GaussianNoise(1.0)
    x = tf.keras.Input(SHAPE)
    model = tf.keras.Model(x, shared(x) + shared(x) + L.GaussianNoise(1.0)(x))
    assert prepare_model(model).random_values == 3 * 2 * 30
    zeros = np.zeros((ROWS, *SHAPE), np.float32)
    assert run(model, zeros, draws(model, ROWS)).var() == pytest.approx(3.0, rel=0.05)


def test_dropout_inside_attention_and_nested_models_is_fed() -> None:
    x = tf.keras.Input(SHAPE)
    inner = tf.keras.Sequential([L.InputLayer(SHAPE), L.Dropout(0.5)])
    model = tf.keras.Model(x, inner(L.MultiHeadAttention(2, 3, dropout=0.5)(x, x)))
    assert prepare_model(model).random_values == 2 * 6 * 6 + 30


def test_training_without_the_uniforms_is_an_error() -> None:
    prepared = prepare_model(of(L.Dropout(0.3)))
    with pytest.raises(ValueError, match="need `random`"):
        prepared([tf.zeros([2, *SHAPE])], training=True)


def test_the_keras_model_stays_as_it_was() -> None:
    model = of(L.LSTM(3, return_sequences=True), L.Dense(4, "gelu"), L.Dropout(0.2), L.Flatten())
    x = np.random.default_rng(3).normal(size=(2, *SHAPE)).astype(np.float32)
    layers = {layer.name: dict(vars(layer)) for layer in model.layers}
    before = model(x, training=False).numpy()
    run(model, x, draws(model, 2))
    for layer in model.layers:
        for name in ("activation", "unroll", "_could_use_gpu_kernel", "cell", "_inbound_nodes"):
            assert layers[layer.name].get(name) is vars(layer).get(name)
    np.testing.assert_array_equal(model(x, training=False).numpy(), before)
    assert model.layers[0].output is not None  # one inbound node still


@tf.keras.utils.register_keras_serializable("tests")
class HiddenDropout(L.Layer):
    """Dropout where only Python code leads to it."""

    def __init__(self, **keywords: Any):
        super().__init__(**keywords)
        self.inner = L.Dropout(0.5)

    def call(self, x: Any, training: bool = False) -> Any:
        """x with some entries dropped."""
        return self.inner(x, training=training)


def test_randomness_that_can_not_be_reached_is_refused() -> None:
    with pytest.raises(ModelError, match="inside of a layer that is not Keras' own"):
        prepare_model(of(HiddenDropout()))


def test_one_mask_for_the_whole_batch_is_refused() -> None:
    with pytest.raises(ModelError, match="one mask for the whole batch"):
        run(of(L.Dropout(0.4, name="d", noise_shape=(1, 6, 5))), np.ones((3, *SHAPE), np.float32))


def test_gelu_is_within_its_stated_error() -> None:
    x = np.linspace(-8, 8, 100_001).astype(np.float32)
    exact = tf.math.erf(tf.constant(x, tf.float64)).numpy()
    assert np.abs(erf(tf.constant(x)).numpy() - exact).max() < 5e-7
    keras = tf.keras.activations.gelu(tf.constant(x, tf.float64)).numpy()
    assert np.abs(gelu(tf.constant(x)).numpy() - keras).max() < 1e-6
