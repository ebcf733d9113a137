"""Losses held to Keras' own, in value and in gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tf_dpfl.client_work.losses import NAMED, example_losses, require_fitting_loss
from tf_dpfl.protocol.errors import ModelError
from tf_dpfl.protocol.interface import ExampleInterface, ExampleTensor
from tf_dpfl.protocol.losses import LOSSES

K = tf.keras.losses
KERAS = {
    "sparse_categorical_crossentropy": K.SparseCategoricalCrossentropy(True, reduction="none"),
    "categorical_crossentropy": K.CategoricalCrossentropy(True, reduction="none"),
    "binary_crossentropy": K.BinaryCrossentropy(True, reduction="none"),
    "mean_squared_error": K.MeanSquaredError(reduction="none"),
    "mean_absolute_error": K.MeanAbsoluteError(reduction="none"),
    "huber": K.Huber(reduction="none"),
}


def target(loss: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if loss == "sparse_categorical_crossentropy":
        return rng.integers(0, shape[-1], shape[:-1]).astype(np.int32)
    if loss == "categorical_crossentropy":
        return rng.dirichlet(np.ones(shape[-1]), shape[:-1]).astype(np.float32)
    if loss == "binary_crossentropy":
        return rng.integers(0, 2, shape).astype(np.float32)
    return rng.normal(size=shape).astype(np.float32)


def value_and_gradient(function: Any, y: np.ndarray, prediction: np.ndarray) -> tuple[Any, Any]:
    @tf.function(autograph=False)
    def run(prediction: Any) -> tuple[Any, Any]:
        values = function(y, prediction)
        # Per example: where an example has several losses, their mean.
        means = tf.reduce_mean(tf.reshape(values, [len(y), -1]), axis=1)
        return means, tf.gradients(means, prediction)[0]

    return tuple(a.numpy() for a in run(tf.constant(prediction)))


def test_every_loss_of_a_plan_is_here() -> None:
    assert set(LOSSES) == set(NAMED) == set(KERAS)


@pytest.mark.parametrize("shape", [(5, 3), (4, 6, 3)], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradient_are_keras(loss: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    prediction = (3 * rng.normal(size=shape)).astype(np.float32)
    y = target(loss, shape, rng)
    ours = value_and_gradient(example_losses(loss), y, prediction)
    theirs = value_and_gradient(KERAS[loss], y, prediction)
    assert ours[0].shape == shape[:1]
    for mine, keras in zip(ours, theirs):
        np.testing.assert_allclose(mine, keras, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_extreme_predictions_have_finite_losses_and_gradients(loss: str) -> None:
    rng = np.random.default_rng(4)
    prediction = np.float32([[1e4, -1e4, 0], [-1e4, -1e4, 1e4], [0, 0, 0]])
    for found in value_and_gradient(example_losses(loss), target(loss, (3, 3), rng), prediction):
        assert np.isfinite(found).all()


@pytest.mark.parametrize(
    ("loss", "activation"),
    [
        ("sparse_categorical_crossentropy", "softmax"),
        ("categorical_crossentropy", "softmax"),
        ("binary_crossentropy", "sigmoid"),
    ],
)
def test_probabilities_are_traced_back_to_their_logits(loss: str, activation: str) -> None:
    rng = np.random.default_rng(5)
    logits = np.float32([[200.0, 0.0, -3.0], [1.0, 2.0, 3.0]])  # exact only from logits
    y = target(loss, (2, 3), rng)
    activate = getattr(tf.nn, activation)
    ours = value_and_gradient(
        lambda y, x: example_losses(loss)(y, tf.identity(activate(x))), y, logits
    )
    expected = value_and_gradient(example_losses(loss), y, logits)
    for mine, theirs in zip(ours, expected):
        np.testing.assert_array_equal(mine, theirs)


def test_probabilities_of_every_step_are_traced_back_to_their_logits() -> None:
    rng = np.random.default_rng(5)
    logits = np.float32(rng.normal(scale=90.0, size=(2, 4, 3)))  # exact only from logits
    y = target("sparse_categorical_crossentropy", (2, 4, 3), rng)
    loss = example_losses("sparse_categorical_crossentropy")

    def step_by_step(y: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        rows = tf.reshape(tf.nn.softmax(tf.reshape(x, [-1, 3])), [-1, 2, 2, 3])
        return loss(y, tf.identity(tf.reshape(tf.identity(rows), [-1, 4, 3])))

    ours, expected = (
        value_and_gradient(step_by_step, y, logits),
        value_and_gradient(loss, y, logits),
    )
    for mine, theirs in zip(ours, expected):
        np.testing.assert_array_equal(mine, theirs)


def cubed(y: tf.Tensor, prediction: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.abs(y - prediction) ** 3.0, axis=-1)


def test_a_logit_of_exactly_zero_has_the_gradient_of_the_binary_loss() -> None:
    """As in a last layer that starts at zero: sigmoid(0) - y, not the -y of a relu's kink."""
    y = np.array([[1.0], [0.0], [0.3]], np.float32)
    _, gradient = value_and_gradient(
        example_losses("binary_crossentropy"), y, np.zeros((3, 1), np.float32)
    )
    np.testing.assert_allclose(gradient, 0.5 - y, atol=1e-7)


def shares(powers: tf.Tensor) -> tf.Tensor:
    """How a softmax over other axes than the last one ends."""
    return powers / tf.reduce_sum(powers, axis=1, keepdims=True)


PROBABILITIES: dict[str, Any] = {
    "of another loss": lambda x: tf.sigmoid(x),
    "in longer rows": lambda x: tf.reshape(tf.nn.softmax(tf.stack([x, -x], 1)), [-1, 6]),
    "shares of a sum": lambda x: shares(tf.exp(x)),
    "averaged": lambda x: (tf.nn.softmax(x) + tf.nn.softmax(-x)) / 2.0,
    "pooled": lambda x: tf.reduce_mean(tf.nn.softmax(tf.stack([x, -x], 1)), axis=1),
    "clipped": lambda x: tf.minimum(tf.maximum(tf.nn.softmax(x), 1e-7), 1.0),
}
LOGITS: dict[str, Any] = {
    "log of probabilities": lambda x: tf.math.log(tf.nn.softmax(x)),
    "a gate": lambda x: x * tf.sigmoid(x),
    "attention": lambda x: tf.matmul(tf.nn.softmax(x), tf.ones([3, 3])),
    "a sum with logits": lambda x: x + tf.nn.softmax(x),
}


@pytest.mark.parametrize("made", PROBABILITIES)
def test_probabilities_made_otherwise_are_not_taken_for_logits(made: str) -> None:
    loss = example_losses("sparse_categorical_crossentropy")
    traced = tf.function(lambda y, x: loss(y, PROBABILITIES[made](x)), autograph=False)
    with pytest.raises(ModelError, match="ends in probabilities .* takes logits: .* in softmax"):
        traced(tf.zeros([2], tf.int32), tf.ones([2, 3]))


@pytest.mark.parametrize("made", LOGITS)
def test_logits_made_with_probabilities_are_logits(made: str) -> None:
    loss = example_losses("sparse_categorical_crossentropy")
    traced = tf.function(lambda y, x: loss(y, LOGITS[made](x)), autograph=False)
    assert traced(tf.zeros([2], tf.int32), tf.ones([2, 3])).shape == [2]


def test_a_function_of_the_users_own() -> None:
    assert example_losses("test_losses:cubed") is not None
    losses = example_losses("test_losses:cubed")(tf.zeros([2, 3]), tf.ones([2, 3]))
    np.testing.assert_array_equal(losses, [3.0, 3.0])
    with pytest.raises(ModelError, match=r"local_training.loss='test_losses:none'.*nothing"):
        example_losses("test_losses:none")


def scalar(y: Any, prediction: Any) -> Any:
    return tf.reduce_mean(tf.square(y - prediction))


def centred(y: Any, prediction: Any) -> Any:
    return tf.reduce_mean(tf.square(y - prediction), -1) + tf.reduce_mean(prediction)


def of_every_output(y: Any, prediction: Any) -> Any:
    return tf.square(y - prediction)


def double(y: Any, prediction: Any) -> Any:
    return tf.cast(cubed(y, prediction), tf.float64)


def failing(y: Any, prediction: Any) -> Any:
    raise KeyError("no such thing")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scalar", r"gives float32 of shape \(\) .* float32 of shape \(n,\)"),
        ("centred", "one example changes another one's loss"),
        ("of_every_output", r"gives float32 of shape \(2, 3\)"),
        ("double", "gives float64"),
        ("failing", "fails on two examples: KeyError"),
    ],
)
def test_a_loss_must_give_each_example_its_own(name: str, message: str) -> None:
    """Else padding would count, and one example's gradient hold another's."""
    target = ExampleTensor("y", "float32", (3,))
    interface = ExampleInterface((ExampleTensor("x", "float32", (4,)),), target, (3,))
    require_fitting_loss("test_losses:cubed", interface)
    require_fitting_loss("huber", interface)
    with pytest.raises(ModelError, match=f"local_training.loss='test_losses:{name}'.*{message}"):
        require_fitting_loss(f"test_losses:{name}", interface)
