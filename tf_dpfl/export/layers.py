"""Finding the Keras layer behind an op, a tensor or a variable."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

# Keras appends this when one layer is called more than once.
_REPEATED = re.compile(r"_\d+$")


def layers_of(model: tf.keras.Model) -> dict[str, Any]:
    """All layers inside `model` by path ("encoder/block/conv"); a shared one comes once."""
    return dict(_walk(model, (), set()))


def _walk(parent: Any, path: tuple[str, ...], seen: set[int]) -> Iterator[tuple[str, Any]]:
    for layer in parent._flatten_layers(recursive=False, include_self=False):
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        here = (*path, layer.name)
        yield "/".join(here), layer
        yield from _walk(layer, here, seen)


def describe(path: str, layer: Any) -> str:
    """How errors name a layer: `layer 'encoder/conv' (Conv2D)`."""
    return f"layer {path!r} ({type(layer).__name__})"


def find_layer(model: tf.keras.Model, op_name: str) -> tuple[str, Any] | None:
    """Path and layer of the innermost layer in whose scope the op or tensor `op_name` is."""
    scopes = re.split(r"[/;:@]", op_name)
    found = None
    for path, layer in layers_of(model).items():
        depth = _depth(path.split("/"), scopes)
        # The layer whose name stands furthest inside, and of those the longest path.
        if depth is not None and (found is None or depth >= found[0]):
            found = (depth, path, layer)
    return None if found is None else found[1:]


def _depth(path: list[str], scopes: list[str]) -> tuple[int, int] | None:
    """Where the last name of `path` is in `scopes`, and how many of its names are there."""
    places = [i for i, scope in enumerate(scopes) if _is_scope_of(path[-1], scope)]
    if not places:
        return None
    named, last = 0, places[-1]
    for scope in scopes[: last + 1]:
        named += named < len(path) and _is_scope_of(path[named], scope)
    return last, named


def _is_scope_of(name: str, scope: str) -> bool:
    return name in (scope, _REPEATED.sub("", scope))


def layer_of_op(model: tf.keras.Model, op_name: str) -> str:
    """How errors name the layer of `op_name`."""
    found = find_layer(model, op_name)
    if found is None:
        return "no Keras layer (the loss, the optimizer or the clipping)"
    return describe(*found)


def layer_of_variable(model: tf.keras.Model, index: int) -> str:
    """The innermost layer that owns `model.trainable_variables[index]`."""
    variable = model.trainable_variables[index]
    owners = [
        (path, layer)
        for path, layer in layers_of(model).items()
        if any(owned is variable for owned in layer.trainable_variables)
    ]
    if not owners:
        return f"the model's own variable {variable.name!r}"
    return describe(*min(owners, key=lambda owner: len(owner[1].trainable_variables)))
