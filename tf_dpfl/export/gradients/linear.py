"""Gradients of products of many matrices (one matrix: `MatMul`, which is native)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_dpfl.export.gradients.rules import gradient_of
from tf_dpfl.export.gradients.shapes import refuse, static_shape, sum_to


@gradient_of("BatchMatMulV2")
def _batch_matmul(op: Any, grad: Any) -> Any:
    left, right = op.inputs
    turned_left, turned_right = op.get_attr("adj_x"), op.get_attr("adj_y")
    # With A = left (turned or not), B likewise: dA = G B', dB = A' G.
    for_left = tf.matmul(grad, right, transpose_b=not turned_right)
    for_right = tf.matmul(left, grad, transpose_a=not turned_left)
    if turned_left:
        for_left = tf.matmul(right, grad, transpose_a=turned_right, transpose_b=True)
    if turned_right:
        for_right = tf.matmul(grad, left, transpose_a=True, transpose_b=turned_left)
    return sum_to(for_left, left), sum_to(for_right, right)


@gradient_of("Einsum")
def _einsum(op: Any, grad: Any) -> Any:
    equation = op.get_attr("equation").decode()
    terms, result = equation.split("->")
    operands = terms.split(",")
    if len(operands) != 2 or "." in equation or any(len(set(t)) < len(t) for t in operands):
        refuse(op, f"an einsum like {equation!r} has no gradient rule; write it as matmul")
    (first, second), (left, right) = operands, op.inputs
    for own, other in ((first, second), (second, first)):
        if not set(own) <= set(other) | set(result):
            refuse(op, f"an einsum that sums one operand alone ({equation!r}) has no gradient rule")
    return (
        tf.reshape(tf.einsum(f"{result},{second}->{first}", grad, right), static_shape(left)),
        tf.reshape(tf.einsum(f"{first},{result}->{second}", left, grad), static_shape(right)),
    )
