"""Activations that have no TFLite builtin, written in ops that have one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tf_dpfl.client_work.preparing.randomness import RandomSource
from tf_dpfl.client_work.preparing.replacements import changed_copy, replacement_of

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


_PORTABLE: dict[Activation, Activation] = {
    tf.keras.activations.gelu: gelu,
    tf.keras.activations.softsign: softsign,
    tf.nn.gelu: gelu,
    tf.nn.softsign: softsign,
}


def portable(activation: Any) -> Any:
    """`activation`, or its equal made of ops with a TFLite builtin."""
    return _PORTABLE.get(activation, activation)


@replacement_of(tf.keras.layers.Layer)
def _replace_activation(layer: Any, _source: RandomSource) -> Any:
    activation = getattr(layer, "activation", None)
    if portable(activation) is activation:
        return layer
    return changed_copy(layer, activation=portable(activation))
