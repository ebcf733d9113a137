"""The registry of layers that are replaced, and how a layer is copied."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import tensorflow as tf

from tf_dpfl.client_work.preparing.randomness import RandomSource

Replacement = Callable[[Any, RandomSource], Any]

_replacements: dict[type[Any], Replacement] = {}

# Layers being replaced: one that holds its own parent would never end.
_in_work: ContextVar[frozenset[int]] = ContextVar("_in_work", default=frozenset())


def replacement_of(*layer_classes: type[Any]) -> Callable[[Replacement], Replacement]:
    """Registers a function (layer, source) -> layer to call instead, or the layer itself."""

    def register(function: Replacement) -> Replacement:
        for layer_class in layer_classes:
            _replacements[layer_class] = function
        return function

    return register


def replaced(layer: Any, source: RandomSource) -> Any:
    """What to call instead of `layer`: itself where nothing must change."""
    outer = _in_work.get()
    if id(layer) in outer:
        return layer
    token = _in_work.set(outer | {id(layer)})
    try:
        for base in type(layer).__mro__:
            if base in _replacements:
                return _replacements[base](layer, source)
    finally:
        _in_work.reset(token)
    return layer


def changed_copy(original: Any, **attributes: Any) -> Any:
    """A copy of a layer over the same variables with some attributes replaced.

    Set past Keras' tracking, whose lists the copy shares with the original.
    """
    # Keras copies a model by way of a file.
    is_model = isinstance(original, tf.keras.Model)
    twin = object.__new__(type(original)) if is_model else copy.copy(original)
    twin.__dict__.update(vars(original) if is_model else {}, **attributes)
    return twin
