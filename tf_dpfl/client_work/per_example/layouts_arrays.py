"""Which elementwise ops, reductions and products keep examples apart."""

from __future__ import annotations

from typing import Any

import numpy as np

from tf_dpfl.client_work.per_example.layouts import Layout, Layouts, keeps_examples_apart
from tf_dpfl.client_work.per_example.refusals import refuse, static_shape
from tf_dpfl.client_work.static_values import static_value

_MIXES = "it reduces over the batch, which mixes examples"


@keeps_examples_apart(
    *"Abs Add AddN AddV2 Cast Ceil Cos Elu Equal Erf Exp Expm1 Floor FloorDiv".split(),
    *"FloorMod Greater".split(),
    *"GreaterEqual LeakyRelu Less LessEqual Log Log1p LogicalAnd LogicalNot LogicalOr".split(),
    *"Maximum Minimum Mul Neg NotEqual OnesLike Pow RealDiv Reciprocal Relu Relu6".split(),
    *"Round Rsqrt Select SelectV2".split(),
    *"Selu Sigmoid Sign Sin Softplus Softsign Sqrt Square SquaredDifference Sub Tanh".split(),
    *"BiasAdd IsFinite DivNoNan MulNoNan Xdivy ClipByValue".split(),
)
def _elementwise(op: Any, layouts: Layouts) -> Layout:
    """Every output entry is made of the entries at the same place of the inputs."""
    rank = len(static_shape(op.outputs[0]))
    found = {
        layout.at(rank - len(static_shape(tensor)) + layout.axis)
        for tensor, layout in zip(op.inputs, layouts)
        if layout is not None
    }
    if len(found) != 1:
        refuse(op, "its inputs hold the examples on different axes, which mixes them")
    return found.pop()


@keeps_examples_apart("Sum", "Mean", "Max", "Min", "Prod", "All", "Any")
def _reduction(op: Any, layouts: Layouts) -> Layout:
    layout = layouts[0]
    axes = static_value(op.inputs[1])
    if layout is None or axes is None:
        refuse(op, "its axes are not constant")
    rank = len(static_shape(op.inputs[0]))
    reduced = {int(axis) % rank for axis in np.atleast_1d(axes)}
    if layout.axis in reduced:
        refuse(op, _MIXES)
    if op.get_attr("keep_dims"):
        return layout
    return layout.at(layout.axis - sum(axis < layout.axis for axis in reduced))


@keeps_examples_apart("Softmax", "LogSoftmax", "L2Loss", "TopKV2")
def _over_last_axis(op: Any, layouts: Layouts) -> Layout:
    layout = layouts[0]
    if layout is None or op.type == "L2Loss" or layout.axis == len(static_shape(op.inputs[0])) - 1:
        refuse(op, _MIXES)
    return layout


@keeps_examples_apart("ArgMax", "ArgMin", "Cumsum")
def _along_one_axis(op: Any, layouts: Layouts) -> Layout:
    layout, found = layouts[0], static_value(op.inputs[1])
    if layout is None or found is None:
        refuse(op, "its axis is not constant")
    axis = int(found) % len(static_shape(op.inputs[0]))
    if axis == layout.axis:
        refuse(op, _MIXES)
    removed = op.type != "Cumsum" and axis < layout.axis
    return layout.at(layout.axis - removed)


@keeps_examples_apart("OneHot")
def _one_hot(op: Any, layouts: Layouts) -> Layout:
    layout, axis = layouts[0], op.get_attr("axis")
    if layout is None:
        refuse(op, "its depth or values depend on the batch")
    return layout.at(layout.axis + (0 <= axis <= layout.axis))


@keeps_examples_apart("ResourceGather", "GatherV2")
def _gather(op: Any, layouts: Layouts) -> Layout:
    """Rows of a table by the batch's ids."""
    layout = layouts[1]
    axis = 0 if op.type == "ResourceGather" else static_value(op.inputs[2])
    if layout is None or layouts[0] is not None or axis is None or op.get_attr("batch_dims"):
        refuse(op, "only a gather from a table by the batch's ids has a rule")
    return layout.at(layout.axis + int(axis))


@keeps_examples_apart("MatMul")
def _matmul(op: Any, layouts: Layouts) -> Layout:
    contracted = (0 if op.get_attr("transpose_a") else 1, 1 if op.get_attr("transpose_b") else 0)
    return _product(op, layouts, contracted)


@keeps_examples_apart("BatchMatMulV2")
def _batch_matmul(op: Any, layouts: Layouts) -> Layout:
    ranks = [len(static_shape(tensor)) for tensor in op.inputs]
    contracted = (
        ranks[0] - (2 if op.get_attr("adj_x") else 1),
        ranks[1] - (1 if op.get_attr("adj_y") else 2),
    )
    return _product(op, layouts, contracted)


def _product(op: Any, layouts: Layouts, contracted: tuple[int, int]) -> Layout:
    rank = len(static_shape(op.outputs[0]))
    found = []
    for side, (tensor, layout) in enumerate(zip(op.inputs, layouts)):
        if layout is None:
            continue
        if layout.axis == contracted[side]:
            refuse(op, "it adds up over the batch, which mixes examples")
        shift = rank - len(static_shape(tensor))
        in_matrix = layout.axis + shift >= rank - 2
        if in_matrix and len([known for known in layouts if known is not None]) == 2:
            refuse(op, "it multiplies examples with one another")
        found.append(layout.at(rank - 2 + side if in_matrix else layout.axis + shift))
    if len(set(found)) != 1:
        refuse(op, "its inputs hold the examples on different axes, which mixes them")
    return found[0]


@keeps_examples_apart("Einsum")
def _einsum(op: Any, layouts: Layouts) -> Layout:
    terms, result = einsum_labels(op)
    held = {
        (term[layout.axis], layout.outer, layout.inner)
        for term, layout in zip(terms, layouts)
        if layout is not None
    }
    if len(held) != 1:
        refuse(op, "its inputs hold the examples on different axes, which mixes them")
    letter, outer, inner = held.pop()
    if letter not in result:
        refuse(op, "it adds up over the batch, which mixes examples")
    if len([layout for layout in layouts if layout is not None]) == 1 and any(
        letter in term for term, layout in zip(terms, layouts) if layout is None
    ):
        refuse(op, "a weight has the axis of the batch")
    return Layout(result.index(letter), outer, inner)


def einsum_labels(op: Any) -> tuple[list[str], str]:
    """The letters of each input and of the output; ellipses and repeats are refused."""
    equation = op.get_attr("equation").decode().replace(" ", "")
    left, _, result = equation.partition("->")
    terms = left.split(",")
    if "." in equation or any(len(set(term)) != len(term) for term in [*terms, result]):
        refuse(op, f"the equation {equation} has no rule")
    return terms, result
