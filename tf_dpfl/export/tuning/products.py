"""Products of matrices whose second factor is turned.

Interpreters run x W^T, and every FULLY_CONNECTED whose weights are no constant, with
narrow vectors (tflite-runtime 2.14), x W with wide ones: 512 x 32 by 32 x 64 takes 88
and 19 microseconds. Turning W costs less than that, and is done once for all uses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tensorflow.lite.python.schema_py_generated import ActivationFunctionType

from tf_dpfl.export.tuning.file import Graph
from tf_dpfl.export.tuning.rewrites import rewrite_of


@rewrite_of("FULLY_CONNECTED")
def _fully_connected(graph: Graph, op: Any) -> bool:
    x, weights = int(op.inputs[0]), int(op.inputs[1])
    plain = op.builtinOptions.fusedActivationFunction == ActivationFunctionType.NONE
    biased = len(op.inputs) > 2 and op.inputs[2] >= 0
    shapes = [graph.shape(tensor) for tensor in (x, weights, op.outputs[0])]
    if not plain or biased or any(len(shape) != 2 for shape in shapes):
        return False
    return _times_turned(graph, x, weights, into=op.outputs[0])


@rewrite_of("BATCH_MATMUL")
def _batch_matmul(graph: Graph, op: Any) -> bool:
    x, weights = int(op.inputs[0]), int(op.inputs[1])
    options = op.builtinOptions
    if options.adjX or not options.adjY or len(graph.shape(weights)) != 2:
        return False
    return _times_turned(graph, x, weights, into=op.outputs[0])


def _times_turned(graph: Graph, x: int, weights: int, *, into: int) -> bool:
    if graph.value(weights) is not None or not graph.is_float(weights):
        return False
    made_by = graph.producer(weights)
    if made_by is not None and graph.name(made_by) == "TRANSPOSE":
        turned = int(made_by.inputs[0])
    else:
        order = graph.constant(np.array([1, 0], np.int32))
        turned = graph.add(
            "TRANSPOSE",
            [weights, order],
            graph.shape(weights)[::-1],
            options="TransposeOptions",
        )
    graph.add(
        "BATCH_MATMUL",
        [x, turned],
        (),
        into=into,
        options="BatchMatMulOptions",
        adjX=False,
        adjY=False,
    )
    return True
