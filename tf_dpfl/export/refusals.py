"""Everything in a model that a device could not train, found at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from tf_dpfl.client_work.preparing import PreparedModel
from tf_dpfl.export.alternatives import fault_of_settings, instead_of
from tf_dpfl.export.gradients import NATIVE
from tf_dpfl.export.gradients.rules import collected_refusals
from tf_dpfl.export.layers import describe, find_layer, layer_of_op, layers_of
from tf_dpfl.protocol.errors import DpflError
from tf_dpfl.protocol.imports import first_line


def faults_of_layers(model: tf.keras.Model, op_gradients: Mapping[str, str]) -> list[str]:
    """One fault for each layer whose settings or ops no rule covers.

    Looked at are the ops between the trainable variables and the prediction: those
    that a gradient goes through.
    """
    layers = layers_of(model)
    settings = {path: fault_of_settings(layer) for path, layer in layers.items()}
    faults = {
        describe(path, layers[path]): fault for path, fault in settings.items() if fault is not None
    }
    if faults:
        return [f"{place}: {fault}" for place, fault in faults.items()]  # tracing may fail on them
    try:
        ops = _differentiated_ops(model)
    except DpflError:
        raise
    except Exception as error:  # a layer's own code may raise anything in a graph
        return [f"{model.name}: can not be traced as a graph: {first_line(error)}"]
    missing: dict[str, dict[str, str]] = {}
    for op in ops:
        if op.type not in op_gradients and op.type not in NATIVE:
            missing.setdefault(layer_of_op(model, op.name), {}).setdefault(op.type, op.name)
    return [f"{place}: {_without_gradient(model, kinds)}" for place, kinds in missing.items()]


def _without_gradient(model: tf.keras.Model, ops: Mapping[str, str]) -> str:
    listed = ", ".join(f"op {op_type} ({name})" for op_type, name in ops.items())
    found = find_layer(model, next(iter(ops.values())))
    instead = {instead_of(found and found[1], op_type): None for op_type in ops}
    return f"{listed} has no gradient made of TFLite builtin ops; {'; '.join(instead)}"


def faults_of_rules(model: tf.keras.Model, trace: Callable[[], Any]) -> list[str]:
    """What the gradient rules refuse while `trace` traces a training step."""
    # What fails is an op without any gradient, which `faults_of_layers` names.
    with collected_refusals() as refused, contextlib.suppress(Exception):
        trace()
    return list(dict.fromkeys(f"{layer_of_op(model, error.op_name)}: {error}" for error in refused))


def _differentiated_ops(model: tf.keras.Model) -> list[Any]:
    specs = [tf.TensorSpec([1, *tensor.shape[1:]], tensor.dtype) for tensor in model.inputs]
    prepared = PreparedModel(model)  # `models.validate` names layers that draw for themselves
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
    return _between(sources, traced.graph.outputs)


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
