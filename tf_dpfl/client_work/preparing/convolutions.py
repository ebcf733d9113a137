"""Grouped convolutions, one convolution a group.

Keras compiles them with XLA on a CPU; TFLite has no training form of the op.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_dpfl.client_work.preparing.activations import portable
from tf_dpfl.client_work.preparing.randomness import RandomSource
from tf_dpfl.client_work.preparing.replacements import changed_copy, replacement_of


@replacement_of(tf.keras.layers.Conv1D, tf.keras.layers.Conv2D)
def _group_by_group(layer: Any, _source: RandomSource) -> Any:
    activation = portable(layer.activation)
    if layer.groups == 1:
        same = activation is layer.activation
        return layer if same else changed_copy(layer, activation=activation)

    def convolution(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        pieces = zip(
            tf.split(inputs, layer.groups, axis=-1), tf.split(kernel, layer.groups, axis=-1)
        )
        return tf.concat([layer.convolution_op(x, k) for x, k in pieces], axis=-1)

    return changed_copy(layer, activation=activation, groups=1, convolution_op=convolution)
