"""Activations that have no TFLite builtin, written in ops that have one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from keras.src.layers.core.tf_op_layer import TFOpLambda

from tf_dpfl.client_work.preparing.randomness import RandomSource
from tf_dpfl.client_work.preparing.replacements import replacement_of

Activation = Callable[..., Any]

# Abramowitz & Stegun 7.1.26: |error of erf| <= 1.5e-7.
_ERF_SLOPE = 0.3275911
_ERF_COEFFICIENTS = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def erf(values: tf.Tensor) -> tf.Tensor:
    """The error function, off by at most 1.5e-7 (Abramowitz & Stegun 7.1.26), in
    float32 by at most 5e-7.
    """
    magnitude = tf.abs(values)
    t = 1.0 / (1.0 + _ERF_SLOPE * magnitude)
    polynomial = t * _ERF_COEFFICIENTS[-1]
    for coefficient in reversed(_ERF_COEFFICIENTS[:-1]):
        polynomial = (polynomial + coefficient) * t
    tail = polynomial * tf.exp(-values * values)
    return tf.sign(values) * (1.0 - tail)


def gelu(x: tf.Tensor, approximate: bool = False) -> tf.Tensor:
    """Keras' gelu; the exact form with `erf` above, off by at most 1e-6 for |x| <= 8."""
    if approximate:
        return tf.nn.gelu(x, approximate=True)
    return 0.5 * x * (1.0 + erf(x * 0.7071067811865476))


def softsign(x: tf.Tensor) -> tf.Tensor:
    """x / (1 + |x|)."""
    return x / (1.0 + tf.abs(x))


def swish(x: tf.Tensor, beta: float = 1.0) -> tf.Tensor:
    """x * sigmoid(beta * x), without TensorFlow's gradient of its own, through which no
    per-example rule could look.
    """
    return x * tf.sigmoid(x if beta == 1.0 else beta * x)


_PORTABLE: dict[Activation, Activation] = {
    tf.keras.activations.gelu: gelu,
    tf.keras.activations.softsign: softsign,
    tf.keras.activations.swish: swish,
    tf.nn.gelu: gelu,
    tf.nn.softsign: softsign,
    tf.nn.silu: swish,
}


def portable(activation: Any) -> Any:
    """`activation`, or its equal made of ops with a TFLite builtin."""
    return _PORTABLE.get(activation, activation) if callable(activation) else activation


class _PortableOp(tf.keras.layers.Layer):
    """An activation called in a functional model: `tf.nn.gelu(x)`."""

    def __init__(self, original: Any):
        super().__init__(name=original.name)
        self._function = portable(original.function)

    def call(self, *values: Any, **settings: Any) -> Any:
        """What the original computes."""
        of_keras = ("name", "training")
        return self._function(*values, **{k: v for k, v in settings.items() if k not in of_keras})


@replacement_of(TFOpLambda)
def _replace_function(layer: Any, _source: RandomSource) -> Any:
    return layer if portable(layer.function) is layer.function else _PortableOp(layer)
