"""Normalisation example by example, in sums over whole rows and few axes.

Keras' own forms reshape to five axes, or to a batch normalisation whose channels
are the examples: interpreters run both many times slower, and a signature with an
open batch has not the shapes that the first broadcasts to.
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from tf_dpfl.client_work.preparing.randomness import RandomSource
from tf_dpfl.client_work.preparing.replacements import replacement_of

_LAYERS = tf.keras.layers


@replacement_of(_LAYERS.GroupNormalization)
def _groups(layer: Any, _source: RandomSource) -> Any:
    return _GroupNormalization(layer)


class _GroupNormalization(tf.keras.layers.Layer):
    """Wu & He 1803.08494 over the original's gamma and beta.

    Means are taken over the pixels of each channel first, which leaves little to
    do for the channels of a group.
    """

    def __init__(self, original: Any):
        super().__init__(name=original.name)
        self._original = original

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """`inputs` with each group of channels normalised, example by example."""
        layer, rank = self._original, inputs.shape.rank
        axis = layer.axis % rank
        last = [a for a in range(rank) if a != axis] + [axis]
        turned = tf.transpose(inputs, last) if axis != rank - 1 else inputs
        sizes = turned.shape.as_list()[1:]
        channels = sizes[-1]
        groups = channels if layer.groups == -1 else layer.groups
        pixels = tf.reshape(turned, [-1, math.prod(sizes[:-1]), channels])
        centred = pixels - _group_means(pixels, groups)
        scale = tf.math.rsqrt(_group_means(tf.square(centred), groups) + layer.epsilon)
        if layer.scale:
            scale *= layer.gamma  # before it meets the pixels: fewer products
        result = centred * scale
        if layer.center:
            result += layer.beta
        result = tf.reshape(result, [-1, *sizes])
        if axis == rank - 1:
            return result
        return tf.transpose(result, [last.index(a) for a in range(rank)])


def _group_means(pixels: tf.Tensor, groups: int) -> tf.Tensor:
    """[B, 1, C]: for each channel the mean of its group over `pixels` [B, T, C]."""
    channels = pixels.shape[2]
    means = tf.reduce_mean(pixels, axis=1)
    if groups < channels:
        of_group = tf.reshape(means, [-1, groups, channels // groups])
        of_group = tf.reduce_mean(of_group, axis=2, keepdims=True)
        means = tf.tile(of_group, [1, 1, channels // groups])
    return tf.reshape(means, [-1, 1, channels])


@replacement_of(_LAYERS.LayerNormalization)
def _layers(layer: Any, _source: RandomSource) -> Any:
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    return _LayerNormalization(layer) if axes in ([-1], [len(layer.input_shape) - 1]) else layer


class _LayerNormalization(tf.keras.layers.Layer):
    """Ba et al. 1607.06450 over the last axis, with the original's gamma and beta."""

    def __init__(self, original: Any):
        super().__init__(name=original.name)
        self.supports_masking = True
        self._original = original

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """`inputs` with each row normalised."""
        layer = self._original
        centred = inputs - tf.reduce_mean(inputs, axis=-1, keepdims=True)
        variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
        result = centred * tf.math.rsqrt(variance + layer.epsilon)
        if layer.scale:
            result *= layer.gamma
        if layer.center:
            result += layer.beta
        return result
