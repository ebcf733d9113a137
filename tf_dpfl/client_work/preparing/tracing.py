"""How layers are traced, so that a converter takes them right."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.framework.func_graph import FuncGraph

# What the converter can make part of FULLY_CONNECTED: relu, relu6, and clipping to
# [-1, 1], which it also finds in a maximum and a minimum.
_FUSED = frozenset({"Maximum", "Minimum", "Relu", "Relu6"})
_PRODUCTS = frozenset({"BatchMatMulV2", "Einsum", "MatMul"})
# It moves activations in front of these.
_MOVES = frozenset({"ExpandDims", "Identity", "Reshape", "Squeeze", "Transpose"})


@contextlib.contextmanager
def activations_apart() -> Iterator[None]:
    """Inside, the graph that is traced keeps activations apart from matrix products.

    TensorFlow 2.14's converter makes a product and the relu behind it one
    FULLY_CONNECTED, and, where the matrix is a variable, that one a BATCH_MATMUL,
    which has no activation: the relu of `Dense(n, "relu", use_bias=False)` is gone.
    So the op is made one that it does not fuse, or gets an input that it can not
    see through; the results are the same in every bit.
    """
    graph = tf.compat.v1.get_default_graph()
    if not isinstance(graph, FuncGraph):
        yield  # eager: nothing is converted
        return
    create = graph._create_op_internal

    def create_apart(op_type: str, inputs: Any, *rest: Any, **keywords: Any) -> Any:
        if op_type in _FUSED:
            inputs = [_hidden(tensor) if _is_product(tensor) else tensor for tensor in inputs]
        return create(op_type, inputs, *rest, **keywords)

    graph._create_op_internal = create_apart
    try:
        yield
    finally:
        del graph._create_op_internal


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
