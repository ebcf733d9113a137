"""Layers whose inner layers are replaced."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_dpfl.client_work.preparing.randomness import RandomSource
from tf_dpfl.client_work.preparing.replacements import changed_copy, replaced, replacement_of

_LAYERS = tf.keras.layers


@replacement_of(_LAYERS.TimeDistributed)
def _each_step(layer: Any, source: RandomSource) -> Any:
    inner = replaced(layer.layer, source)
    return layer if inner is layer.layer else changed_copy(layer, layer=inner)


@replacement_of(_LAYERS.MultiHeadAttention)
def _attention(layer: Any, source: RandomSource) -> Any:
    # Keras makes the inner Dropout when the layer is built.
    return changed_copy(layer, _dropout_layer=replaced(layer._dropout_layer, source))
