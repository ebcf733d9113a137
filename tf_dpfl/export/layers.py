"""Finding the Keras layer behind an op, a tensor or a variable."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tf_dpfl.client_work.preparing import prepare_model
from tf_dpfl.export.gradients import NATIVE
from tf_dpfl.protocol.errors import ExportError

# Keras appends this when one layer is called more than once.
_REPEATED = re.compile(r"_\d+$")


def layers_of(model: tf.keras.Model) -> list[tf.keras.layers.Layer]:
    """All layers inside `model`, nested ones too, the model itself left out."""
    return [
        module
        for module in model.submodules
        if isinstance(module, tf.keras.layers.Layer) and module is not model
    ]


def describe(layer: tf.keras.layers.Layer) -> str:
    """How errors name a layer: `layer 'conv' (Conv2D)`."""
    return f"layer {layer.name!r} ({type(layer).__name__})"


def layer_of_op(model: tf.keras.Model, op_name: str) -> str:
    """The innermost layer in whose scope the op or tensor `op_name` is."""
    by_name = {layer.name: layer for layer in layers_of(model)}
    for scope in reversed(re.split(r"[/;:@]", op_name)):
        layer = by_name.get(scope) or by_name.get(_REPEATED.sub("", scope))
        if layer is not None:
            return describe(layer)
    return "no Keras layer (the loss, the optimizer or the clipping)"


def layer_of_variable(model: tf.keras.Model, index: int) -> str:
    """The innermost layer that owns `model.trainable_variables[index]`."""
    variable = model.trainable_variables[index]
    owners = [
        layer
        for layer in layers_of(model)
        if any(owned is variable for owned in layer.trainable_variables)
    ]
    if not owners:
        return f"the model's own variable {variable.name!r}"
    return describe(min(owners, key=lambda layer: len(layer.trainable_variables)))


def refuse_ops_without_gradient(model: tf.keras.Model, op_gradients: Mapping[str, str]) -> None:
    """Raises ExportError naming every layer and op the rules do not cover.

    Looked at are the ops between the trainable variables and the logits: those
    that a gradient goes through.
    """
    specs = [tf.TensorSpec([1, *tensor.shape[1:]], tensor.dtype) for tensor in model.inputs]
    prepared = prepare_model(model)
    values = prepared.random_values
    forward = tf.function(
        lambda *inputs: prepared(
            inputs, training=True, random=tf.zeros([1, values]) if values else None
        ),
        autograph=False,
    )
    traced = forward.get_concrete_function(*specs)
    handles = {id(variable.handle) for variable in model.trainable_variables}
    sources = [inner for outer, inner in traced.graph.captures if id(outer) in handles]
    faults = []
    for op in _between(sources, traced.graph.outputs):
        if op.type not in op_gradients and op.type not in NATIVE:
            faults.append(f"{layer_of_op(model, op.name)}: op {op.type} ({op.name})")
    if faults:
        listed = "; ".join(dict.fromkeys(faults))
        raise ExportError(
            f"these have no gradient made of TFLite builtin ops: {listed}; replace the layers, "
            "or add a rule to tf_dpfl/export/gradients"
        )


def _between(sources: list[Any], results: list[Any]) -> list[Any]:
    """Ops on a path of floating-point tensors from `sources` to `results`."""
    wanted: set[str] = set()
    pending = [tensor.op for tensor in results]
    while pending:
        op = pending.pop()
        if op.name in wanted:
            continue
        wanted.add(op.name)
        pending += [tensor.op for tensor in op.inputs]
    reached = {tensor.ref() for tensor in sources}
    path = []
    for op in results[0].graph.get_operations():  # in the order they were made
        if op.name not in wanted or not any(t.ref() in reached for t in op.inputs):
            continue
        # Integers and truth values (shapes, comparisons) carry no gradient.
        floating = {t.ref() for t in op.outputs if t.dtype.is_floating}
        if floating:
            path.append(op)
        if op.type != "StopGradient":
            reached |= floating
    return path
