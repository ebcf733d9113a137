"""Losses per example, made of ops that TensorFlow and TFLite both have.

Each takes `y` and the model's prediction and returns the loss of each example,
float32 [n]: where an example has several (a sequence, several outputs), their
mean, as Keras does. Cross-entropies take logits. Tests hold them to Keras.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import tensorflow as tf

from tf_dpfl.client_work.loss_checks import logits_of, require_a_loss_each
from tf_dpfl.protocol.imports import import_function
from tf_dpfl.protocol.interface import ExampleInterface

Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

# Where Huber's loss turns from quadratic to linear; Keras' default.
_HUBER_DELTA = 1.0


def sparse_softmax_cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Cross-entropy of class ids, float32 [n].

    Args:
      labels: int32 [n, ...], class ids in [0, classes).
      logits: float32 [n, ..., classes].

    TensorFlow's fused op has no TFLite builtin; a one-hot product has.
    """
    one_hot = tf.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return softmax_cross_entropy(one_hot, logits)


def softmax_cross_entropy(probabilities: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Cross-entropy of class probabilities and logits, both float32 [n, ..., classes]."""
    products = probabilities * tf.nn.log_softmax(logits)
    return _mean_of_example(-tf.reduce_sum(products, axis=-1))


def sigmoid_cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Binary cross-entropy of labels in [0, 1] and logits, both float32 [n, ...]."""
    # max(z, 0) - z y + log(1 + exp(-|z|)): exact for large |z| too. The maximum is
    # written so that its slope at 0 is 1/2: with the 0 of a relu the gradient of a
    # logit of exactly 0 (a last layer that starts at zero) would be -y, not 1/2 - y.
    magnitude = tf.abs(logits)
    tails = tf.math.log(1.0 + tf.exp(-magnitude))
    return _mean_of_example(0.5 * (logits + magnitude) - logits * labels + tails)


def squared_error(values: tf.Tensor, predictions: tf.Tensor) -> tf.Tensor:
    """Mean squared error of each example; both float32 [n, ...]."""
    return _mean_of_example(tf.square(predictions - values))


def absolute_error(values: tf.Tensor, predictions: tf.Tensor) -> tf.Tensor:
    """Mean absolute error of each example; both float32 [n, ...]."""
    return _mean_of_example(tf.abs(predictions - values))


def huber(values: tf.Tensor, predictions: tf.Tensor) -> tf.Tensor:
    """Huber's loss with delta 1, mean of each example; both float32 [n, ...]."""
    error = tf.abs(predictions - values)
    quadratic = tf.minimum(error, _HUBER_DELTA)
    return _mean_of_example(0.5 * quadratic * quadratic + _HUBER_DELTA * (error - quadratic))


def _mean_of_example(losses: tf.Tensor) -> tf.Tensor:
    axes = list(range(1, losses.shape.rank))
    return tf.reduce_mean(losses, axis=axes) if axes else losses


NAMED = MappingProxyType(
    {
        "sparse_categorical_crossentropy": sparse_softmax_cross_entropy,
        "categorical_crossentropy": softmax_cross_entropy,
        "binary_crossentropy": sigmoid_cross_entropy,
        "mean_squared_error": squared_error,
        "mean_absolute_error": absolute_error,
        "huber": huber,
    }
)
"""The losses a plan can name: `protocol.plan.LOSSES`."""

_CROSS_ENTROPIES = {
    "sparse_categorical_crossentropy": "Softmax",
    "categorical_crossentropy": "Softmax",
    "binary_crossentropy": "Sigmoid",
}


def example_losses(loss: str) -> Loss:
    """The function (y, prediction) -> float32 [n] of a plan's `loss`.

    Cross-entropies are computed from logits: of a model that ends in softmax
    (sigmoid for the binary one), from what comes in front of it, as Keras does.

    Raises:
      ModelError: a function of the user's own can not be imported. The returned
        function raises it where a model ends in probabilities made otherwise, which
        would be taken for logits.
    """
    if loss not in NAMED:
        return import_function(loss, name=f"local_training.loss={loss!r}")
    named, activation = NAMED[loss], _CROSS_ENTROPIES.get(loss)
    if activation is None:
        return named
    return lambda y, prediction: named(y, logits_of(prediction, activation, loss=loss))


def require_fitting_loss(loss: str, interface: ExampleInterface) -> None:
    """Raises ModelError unless `loss`, where it is a user's own, gives each example its own."""
    if loss not in NAMED:
        require_a_loss_each(example_losses(loss), interface, name=f"local_training.loss={loss!r}")
