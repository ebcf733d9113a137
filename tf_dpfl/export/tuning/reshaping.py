"""RESHAPE without copies."""

from __future__ import annotations

import math

import numpy as np

from tf_dpfl.export.tuning.file import Graph
from tf_dpfl.export.tuning.graph_ops import reshaped

# XNNPACK takes tensors of at most six axes.
_AXES_OF_PLAIN_KERNELS = 7

# With fewer values a copy costs less than leaving XNNPACK and coming back.
_LEAST_VALUES = 16_384


def spare_copies(graph: Graph) -> None:
    """Large RESHAPEs by the interpreter's own kernel, which hands memory on.

    XNNPACK takes every RESHAPE that it can and copies: of 32 x 1568 x 8 values in 80
    microseconds (LiteRT 2.3). So they go over a shape that it cannot take. To be called
    after `share`, which leaves such detours out.
    """
    operators = []
    for op in graph.subgraph.operators:
        copies = graph.name(op) == "RESHAPE" and graph.is_fixed(op.outputs[0])
        if copies and is_large(graph, op.inputs[0]):
            size = math.prod(graph.shape(op.outputs[0]))
            detour = reshaped(graph, op.inputs[0], [*[1] * (_AXES_OF_PLAIN_KERNELS - 1), size])
            op.inputs = np.array([detour, *op.inputs[1:]], np.int32)
            operators += graph.made()
        operators.append(op)
    graph.subgraph.operators = operators


def is_large(graph: Graph, tensor: int) -> bool:
    """Whether `tensor` is one that changes its shape without a copy."""
    fixed = graph.is_fixed(tensor) and graph.is_float(tensor)
    return fixed and math.prod(graph.shape(tensor)) >= _LEAST_VALUES
