"""How layers are traced, so that a converter takes them right."""

from __future__ import annotations

import contextlib
import string
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.core.framework.attr_value_pb2 import AttrValue
from tensorflow.python.framework.func_graph import FuncGraph

# What the converter can make part of FULLY_CONNECTED: relu, relu6, and clipping to
# [-1, 1], which it also finds in a maximum and a minimum.
_FUSED = frozenset({"Maximum", "Minimum", "Relu", "Relu6"})
_PRODUCTS = frozenset({"BatchMatMulV2", "Einsum", "MatMul"})
# It moves activations in front of these.
_MOVES = frozenset({"ExpandDims", "Identity", "Reshape", "Squeeze", "Transpose"})
_ELLIPSIS = "..."


@contextlib.contextmanager
def ops_as_converted() -> Iterator[None]:
    """Inside, the graph that is traced gets ops that converter and rules take right.

    TensorFlow 2.14's converter makes a product and the relu behind it one
    FULLY_CONNECTED, and, where the matrix is a variable, that one a BATCH_MATMUL,
    which has no activation: the relu of `Dense(n, "relu", use_bias=False)` is gone.
    So the op is made one that it does not fuse, or gets an input that it can not
    see through. The ellipsis of an einsum is spelled out in letters. The results are
    the same in every bit.
    """
    graph = tf.compat.v1.get_default_graph()
    if not isinstance(graph, FuncGraph):
        yield  # eager: nothing is converted
        return
    create = graph._create_op_internal

    def create_as_converted(op_type: str, inputs: Any, *rest: Any, **keywords: Any) -> Any:
        if op_type in _FUSED:
            inputs = [_hidden(tensor) if _is_product(tensor) else tensor for tensor in inputs]
        if op_type == "Einsum":
            attributes = keywords["attrs"]
            equation = spelled_out(attributes["equation"].s.decode(), [t.shape for t in inputs])
            keywords["attrs"] = {**attributes, "equation": AttrValue(s=equation.encode())}
        return create(op_type, inputs, *rest, **keywords)

    graph._create_op_internal = create_as_converted
    try:
        yield
    finally:
        del graph._create_op_internal


def spelled_out(equation: str, shapes: Sequence[tf.TensorShape]) -> str:
    """The einsum `equation` with letters for its ellipsis; as it is where axes broadcast."""
    if _ELLIPSIS not in equation or any(shape.rank is None for shape in shapes):
        return equation
    terms, result = equation.split("->")
    letters = [letter for letter in string.ascii_letters if letter not in equation]
    hidden: list[list[int | None]] = []
    for term, shape in zip(terms.split(","), shapes):
        before, dots, behind = term.partition(_ELLIPSIS)
        hidden.append(shape.as_list()[len(before) : len(shape) - len(behind)] if dots else [])
    longest = max(hidden, key=len)
    if any(sizes != longest[len(longest) - len(sizes) :] for sizes in hidden):
        return equation

    def spelled(term: str, axes: int) -> str:
        named = letters[len(longest) - axes : len(longest)]
        return term.replace(_ELLIPSIS, "".join(named))

    left = [spelled(term, len(sizes)) for term, sizes in zip(terms.split(","), hidden)]
    return f"{','.join(left)}->{spelled(result, len(longest))}"


@contextlib.contextmanager
def functions_inlined() -> Iterator[None]:
    """Inside, what a layer's author has made a tf.function becomes part of the graph.

    As an op of its own it would have neither a gradient rule nor a per-example one.
    """
    kept = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(kept)


def _is_product(tensor: Any) -> bool:
    op = tensor.op
    while op.type in _MOVES:
        op = op.inputs[0].op
    return op.type in _PRODUCTS


def _hidden(tensor: Any) -> Any:
    """`tensor`: its negative entries are doubled and halved, which loses nothing."""
    return tf.nn.leaky_relu(tf.nn.leaky_relu(tensor, alpha=2.0), alpha=0.5)
