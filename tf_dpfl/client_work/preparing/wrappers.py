"""Layers whose inner layers are replaced."""

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
