"""Gradients of elementwise functions and of choices between entries."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_dpfl.export.gradients.rules import gradient_of
from tf_dpfl.export.gradients.shapes import as_float, refuse, static_shape, sum_to


@gradient_of("Log")
def _log(op: Any, grad: Any) -> Any:
    return grad / op.inputs[0]


@gradient_of("Log1p")
def _log1p(op: Any, grad: Any) -> Any:
    return grad / (1.0 + op.inputs[0])


@gradient_of("Reciprocal")
def _reciprocal(op: Any, grad: Any) -> Any:
    return -grad * op.outputs[0] * op.outputs[0]


@gradient_of("Sin")
def _sin(op: Any, grad: Any) -> Any:
    return grad * tf.cos(op.inputs[0])


@gradient_of("Cos")
def _cos(op: Any, grad: Any) -> Any:
    return -grad * tf.sin(op.inputs[0])


@gradient_of("Pow")
def _pow(op: Any, grad: Any) -> Any:
    base, exponent = op.inputs
    for_base = sum_to(grad * exponent * tf.pow(base, exponent - 1.0), base)
    if tf.get_static_value(exponent) is not None:
        return for_base, None
    positive = base > 0.0  # elsewhere the power is constant, or no number
    logarithm = tf.math.log(tf.where(positive, base, tf.ones_like(base)))
    return for_base, sum_to(grad * op.outputs[0] * logarithm * as_float(positive), exponent)


@gradient_of("Ceil", "Floor", "OnesLike", "Round", "ZerosLike")
def _flat(_op: Any, _grad: Any) -> Any:
    return None


@gradient_of("FloorMod")
def _floor_mod(op: Any, grad: Any) -> Any:
    left, right = op.inputs
    return sum_to(grad, left), sum_to(-grad * tf.floor(left / right), right)


@gradient_of("AddN")
def _add_n(op: Any, grad: Any) -> Any:
    return [grad] * len(op.inputs)


@gradient_of("Select")
def _select(op: Any, grad: Any) -> Any:
    condition, left, _ = op.inputs
    if static_shape(condition) != static_shape(left):
        refuse(op, "a choice between whole rows has no gradient rule; use tf.where of one shape")
    chosen = as_float(condition)
    return None, grad * chosen, grad * (1.0 - chosen)


@gradient_of("TopKV2")
def _top_k(op: Any, grad: Any, _grad_of_indices: Any) -> Any:
    size = static_shape(op.inputs[0])[-1]
    places = tf.one_hot(op.outputs[1], size, dtype=grad.dtype)
    return tf.reduce_sum(places * tf.expand_dims(grad, -1), axis=-2), None
