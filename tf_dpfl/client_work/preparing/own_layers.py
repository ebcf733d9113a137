"""Layers without a rule of their own: those of a user, and what they are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tf_dpfl.client_work.preparing.activations import portable
from tf_dpfl.client_work.preparing.randomness import RandomSource
from tf_dpfl.client_work.preparing.replacements import changed_copy, replaced, replacement_of

# Keras keeps books in attributes that begin so; they hold the same layers again.
_BOOKS = ("_self_", "_obj_", "_inbound", "_outbound", "_flatten")


@replacement_of(tf.keras.layers.Layer)
def _replace_parts(layer: Any, source: RandomSource) -> Any:
    """A copy whose attributes (layers, lists of layers, activations) are replaced."""
    of_keras = type(layer).__module__.startswith("keras.")
    names = ["activation"] if of_keras else list(vars(layer))
    changed = {}
    for name in names:
        value = vars(layer).get(name)
        if name.startswith(_BOOKS):
            continue
        new = _replaced_value(value, source)
        if new is not value:
            changed[name] = new
    return changed_copy(layer, **changed) if changed else layer


def _replaced_value(value: Any, source: RandomSource) -> Any:
    if isinstance(value, tf.keras.layers.Layer):
        return replaced(value, source)
    if isinstance(value, (list, tuple)) and value:
        parts = [_replaced_value(part, source) for part in value]
        return value if _same(parts, value) else type(value)(parts) if _plain(value) else parts
    if isinstance(value, Mapping) and value:
        items = {key: _replaced_value(part, source) for key, part in value.items()}
        return value if _same(items.values(), value.values()) else items
    return _portable_or_same(value)


def _portable_or_same(value: Any) -> Any:
    try:
        return portable(value)
    except TypeError:  # not hashable, so no activation
        return value


def _plain(value: Any) -> bool:
    return type(value) in (list, tuple)


def _same(parts: Any, others: Any) -> bool:
    return all(part is other for part, other in zip(parts, others))
