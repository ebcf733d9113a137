"""Layers whose inner layers are replaced, and normalisation over groups."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_dpfl.client_work.preparing.randomness import RandomSource
from tf_dpfl.client_work.preparing.replacements import changed_copy, replaced, replacement_of

_LAYERS = tf.keras.layers


@replacement_of(_LAYERS.TimeDistributed)
def _each_step(layer: Any, source: RandomSource) -> Any:
    """All steps as one batch, which Keras does for its own layers alone.

    For others it loops over the steps where the batch's size is known.
    """
    if getattr(layer.layer, "stateful", False):
        return layer
    inner = replaced(layer.layer, source)
    return changed_copy(layer, layer=inner, _always_use_reshape=True)


@replacement_of(_LAYERS.GroupNormalization)
def _groups(layer: Any, _source: RandomSource) -> Any:
    return _GroupNormalization(layer)


class _GroupNormalization(tf.keras.layers.Layer):
    """Wu & He 1803.08494 over the original's gamma and beta.

    Keras' own form broadcasts a mask of ones to shapes that a TFLite signature
    with an open batch has not.
    """

    def __init__(self, original: Any):
        super().__init__(name=original.name)
        self._original = original

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """`inputs` with each group of channels normalised, example by example."""
        layer = self._original
        axis = layer.axis % inputs.shape.rank
        sizes = inputs.shape.as_list()[1:]
        channels = sizes[axis - 1]
        groups = channels if layer.groups == -1 else layer.groups
        split = sizes[: axis - 1] + [groups, channels // groups] + sizes[axis:]
        grouped = tf.reshape(inputs, [-1, *split])
        axes = [a for a in range(1, len(split) + 1) if a != axis]
        mean = tf.reduce_mean(grouped, axes, keepdims=True)
        centred = grouped - mean
        variance = tf.reduce_mean(tf.square(centred), axes, keepdims=True)
        normal = centred * tf.math.rsqrt(variance + layer.epsilon)
        result = tf.reshape(normal, [-1, *sizes])
        broadcast = [1] * inputs.shape.rank
        broadcast[axis] = channels
        if layer.scale:
            result *= tf.reshape(layer.gamma, broadcast)
        if layer.center:
            result += tf.reshape(layer.beta, broadcast)
        return result
