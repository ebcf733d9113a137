"""Attention, with Dropout that is fed and softmax over several axes."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_dpfl.client_work.preparing.noise_layers import FedGenerator
from tf_dpfl.client_work.preparing.randomness import RandomSource
from tf_dpfl.client_work.preparing.replacements import changed_copy, replaced, replacement_of

_LAYERS = tf.keras.layers

# What Keras adds to a score that a mask hides.
_HIDDEN = -1e9


@replacement_of(_LAYERS.MultiHeadAttention)
def _many_heads(layer: Any, source: RandomSource) -> Any:
    # Keras makes the layers inside when this one is built.
    return changed_copy(
        layer,
        _dropout_layer=replaced(layer._dropout_layer, source),
        _softmax=replaced(layer._softmax, source),
    )


@replacement_of(_LAYERS.Attention, _LAYERS.AdditiveAttention)
def _one_head(layer: Any, source: RandomSource) -> Any:
    if not layer.dropout:
        return layer
    return changed_copy(layer, _random_generator=FedGenerator(source))


@replacement_of(_LAYERS.Softmax)
def _softmax(layer: Any, _source: RandomSource) -> Any:
    return layer if layer.axis == -1 else _Softmax(layer)


class _Softmax(tf.keras.layers.Layer):
    """The softmax over any axes; Keras takes it from ops that have no builtin."""

    def __init__(self, original: Any):
        super().__init__(name=original.name)
        self.supports_masking = True
        self._original = original

    def call(self, inputs: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
        """The softmax of `inputs`; entries that `mask` (bool) hides get none of it."""
        if mask is not None:
            inputs += (1.0 - tf.cast(mask, inputs.dtype)) * _HIDDEN
        rank = inputs.shape.rank
        axes = sorted(axis % rank for axis in tf.nest.flatten(self._original.axis))
        if axes == [rank - 1]:
            return tf.nn.softmax(inputs)
        # A shift that is the same for all entries of one sum changes nothing.
        largest = tf.stop_gradient(tf.reduce_max(inputs, axis=axes, keepdims=True))
        powers = tf.exp(inputs - largest)
        return powers / tf.reduce_sum(powers, axis=axes, keepdims=True)
