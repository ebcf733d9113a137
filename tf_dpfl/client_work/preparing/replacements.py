"""The registry of layers that are replaced, and how a layer is copied."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from tf_dpfl.client_work.preparing.randomness import RandomSource

Replacement = Callable[[Any, RandomSource], Any]

_replacements: dict[type[Any], Replacement] = {}


def replacement_of(*layer_classes: type[Any]) -> Callable[[Replacement], Replacement]:
    """Registers a function (layer, source) -> layer to call instead, or the layer itself."""

    def register(function: Replacement) -> Replacement:
        for layer_class in layer_classes:
            _replacements[layer_class] = function
        return function

    return register


def replaced(layer: Any, source: RandomSource) -> Any:
    """What to call instead of `layer`: itself where nothing must change."""
    for base in type(layer).__mro__:
        if base in _replacements:
            return _replacements[base](layer, source)
    return layer


def changed_copy(original: Any, **attributes: Any) -> Any:
    """A copy of a layer over the same variables with some attributes replaced.

    Set past Keras' tracking, whose lists the copy shares with the original.
    """
    twin = copy.copy(original)
    twin.__dict__.update(attributes)
    return twin
