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
from tf_dpfl.client_work.preparing.tracing import spelled_out
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


class HiddenDropout(L.Layer):
    """Dropout in lists and models where only Python code leads to it."""

    def __init__(self, **keywords: Any):
        super().__init__(**keywords)
        self.parts = [L.Dropout(0.5), tf.keras.Sequential([L.InputLayer(SHAPE), L.Dropout(0.5)])]
        self.named = {"last": L.Dense(5, "gelu", use_bias=False, kernel_initializer="identity")}

    def call(self, x: Any, training: bool = False) -> Any:
        """x with some entries dropped, twice."""
        for part in self.parts:
            x = part(x, training=training)
        return self.named["last"](x)


def test_what_a_layer_of_ones_own_is_made_of_is_prepared() -> None:
    layer = HiddenDropout()
    layer.parent = layer  # what goes round in circles ends
    model = of(layer)
    assert prepare_model(model).random_values == 2 * 30
    x, uniforms = np.ones((4, *SHAPE), np.float32), draws(model, 4)
    kept = (uniforms.reshape(4, 2, *SHAPE) >= 0.5).all(axis=1)
    expected = tf.keras.activations.gelu(tf.constant(4.0)).numpy() * kept
    np.testing.assert_allclose(run(model, x, uniforms), expected, atol=2e-6)
    assert isinstance(layer.parts[0], L.Dropout)  # the original stays


def test_every_step_of_a_series_has_its_own_mask() -> None:
    model = of(L.TimeDistributed(L.Dropout(0.3)))
    uniforms = draws(model, 4)
    expected = (uniforms.reshape(4, *SHAPE) >= 0.3) / np.float32(0.7)
    ones = np.ones((4, *SHAPE), np.float32)
    np.testing.assert_allclose(run(model, ones, uniforms), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("layer", "values"),
    [
        (L.SimpleRNN(3, dropout=0.5), 5),
        (L.LSTM(3, recurrent_dropout=0.5), 4 * 3),
        (L.Bidirectional(L.GRU(3, dropout=0.5)), 2 * 3 * 5),
        (L.RNN([L.GRUCell(3, dropout=0.5), L.LSTMCell(2, recurrent_dropout=0.5)]), 3 * 5 + 4 * 2),
        (L.Attention(dropout=0.5), 6 * 6),
        (L.AdditiveAttention(dropout=0.5), 6 * 6),
    ],
)
def test_dropout_inside_recurrent_layers_and_attention_is_fed(layer: Any, values: int) -> None:
    """One mask for all steps, as Keras has it; other uniforms give another result."""
    x = tf.keras.Input(SHAPE)
    attention = isinstance(layer, (L.Attention, L.AdditiveAttention))
    model = tf.keras.Model(x, layer([x, x] if attention else x))
    assert prepare_model(model).random_values == values
    data = np.random.default_rng(0).normal(size=(3, *SHAPE)).astype(np.float32)
    uniforms = draws(model, 3)
    result = run(model, data, uniforms)
    assert not np.allclose(result[2], run(model, data[::-1], uniforms)[0])
    swapped = run(model, data, uniforms[[0, 2, 1]])
    np.testing.assert_array_equal(swapped[0], result[0])
    assert not np.allclose(swapped[1:], result[1:])
    expected = model(data, training=False)
    np.testing.assert_allclose(run(model, data, training=False), expected, atol=1e-6)


class Draws(L.Layer):
    """Randomness that nothing can feed."""

    def call(self, x: Any) -> Any:
        """x with noise."""
        return x + tf.random.normal(tf.shape(x))


class Decides(L.Layer):
    """Python's if on a tensor."""

    def call(self, x: Any) -> Any:
        """x or -x."""
        return x if tf.reduce_sum(x) > 0 else -x


def test_what_can_not_be_prepared_is_refused() -> None:
    with pytest.raises(ModelError, match="draws random numbers in a way that can not be fed"):
        prepare_model(of(Draws()))
    with pytest.raises(ModelError, match="can not be traced as a graph.*tf.where"):
        prepare_model(of(Decides()))


def test_one_mask_for_the_whole_batch_is_refused() -> None:
    with pytest.raises(ModelError, match="one mask for the whole batch"):
        run(of(L.Dropout(0.4, name="d", noise_shape=(1, 6, 5))), np.ones((3, *SHAPE), np.float32))


def test_gelu_is_within_its_stated_error() -> None:
    x = np.linspace(-8, 8, 100_001).astype(np.float32)
    exact = tf.math.erf(tf.constant(x, tf.float64)).numpy()
    assert np.abs(erf(tf.constant(x)).numpy() - exact).max() < 5e-7
    keras = tf.keras.activations.gelu(tf.constant(x, tf.float64)).numpy()
    assert np.abs(gelu(tf.constant(x)).numpy() - keras).max() < 1e-6


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("kind", [L.LSTM, L.GRU, L.SimpleRNN])
def test_sequences_that_go_backwards_are_those_of_keras(kind: Any, *, masked: bool) -> None:
    model = tf.keras.Sequential(
        [
            tf.keras.Input((6,), dtype="int32"),
            L.Embedding(9, 4, mask_zero=masked),
            L.Bidirectional(kind(3, return_sequences=True)),
            kind(2, go_backwards=True, return_sequences=True, zero_output_for_mask=True),
        ]
    )
    ids = np.array([[1, 2, 3, 0, 0, 0], [0, 0, 4, 5, 6, 7], [8, 0, 1, 0, 2, 0]], np.int32)
    prepared = tf.function(lambda x: prepare_model(model)([x], training=False), autograph=False)
    np.testing.assert_allclose(prepared(ids), model(ids), atol=1e-6)


@pytest.mark.parametrize(
    ("equation", "left", "right", "letters"),
    [
        ("...x,xy->...y", (2, 3, 4), (4, 5), "abx,xy->aby"),
        ("a...c,...cd->ad...", (2, 3, 4, 5), (4, 5, 6), "abec,ecd->adbe"),
        ("...,...->...", (3, 4), (4,), "ab,b->ab"),
        ("...x,xy->...y", (4,), (4, 5), "x,xy->y"),
        ("ab,bc->ac", (2, 3), (3, 4), "ab,bc->ac"),
        ("...a,...a->...", (1, 3), (2, 3), "...a,...a->..."),
    ],
)
def test_an_ellipsis_spelled_out_means_the_same(
    equation: str, left: Any, right: Any, letters: str
) -> None:
    spelled = spelled_out(equation, [tf.TensorShape(left), tf.TensorShape(right)])
    assert spelled == letters
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=left), rng.normal(size=right)
    np.testing.assert_allclose(tf.einsum(spelled, x, y), np.einsum(equation, x, y))
