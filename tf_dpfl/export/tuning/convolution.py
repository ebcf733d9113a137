"""Convolutions whose kernel is no constant, as one product of matrices.

Interpreters run such a convolution with narrow vectors (Eigen's SSE kernels on
x86-64), a BATCH_MATMUL with wide ones: of 32 images of 28 x 28 pixels with 16
kernels of 8 x 8 the convolution takes 770 microseconds (tflite-runtime 2.14),
patches and product 520; and the gradient of the kernel needs the same patches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tensorflow.lite.python.schema_py_generated import ActivationFunctionType, Padding

from tf_dpfl.client_work.convolutions import Axis, convolved
from tf_dpfl.export.tuning.file import Graph
from tf_dpfl.export.tuning.graph_ops import GraphOps, reshaped
from tf_dpfl.export.tuning.rewrites import rewrite_of

# How the converter turns a kernel [kh, kw, C, q] into a CONV_2D's [q, kh, kw, C].
_TO_FILTER = [3, 0, 1, 2]


@rewrite_of("CONV_2D")
def _convolution(graph: Graph, op: Any) -> bool:
    image, filters = int(op.inputs[0]), int(op.inputs[1])
    (output,) = op.outputs
    kernel = _kernel_of(graph, filters)
    options = op.builtinOptions
    plain = options.fusedActivationFunction == ActivationFunctionType.NONE
    if kernel is None or not plain or graph.shape(image)[3] != graph.shape(kernel)[2]:
        return False
    rows, columns = _axes(options, graph.shape(image), graph.shape(kernel), graph.shape(output))
    product = convolved(image, kernel, rows, columns, ops=GraphOps(graph))
    bias = graph.value(op.inputs[2]) if len(op.inputs) > 2 else np.zeros(1)
    if bias is not None and not bias.any():
        reshaped(graph, product, graph.shape(output), into=output)
        return True
    graph.add("ADD", [product, op.inputs[2]], (), into=output, options="AddOptions")
    return True


def _kernel_of(graph: Graph, filters: int) -> int | None:
    """The kernel [kh, kw, C, q] that `filters` was made of."""
    made_by = graph.producer(filters)
    if made_by is None or graph.name(made_by) != "TRANSPOSE":
        return None
    order = graph.value(made_by.inputs[1])
    if order is None or order.tolist() != _TO_FILTER:
        return None
    return int(made_by.inputs[0])


def _axes(
    options: Any, image: tuple[int, ...], kernel: tuple[int, ...], output: tuple[int, ...]
) -> tuple[Axis, Axis]:
    strides = (options.strideH, options.strideW)
    dilations = (options.dilationHFactor, options.dilationWFactor)
    axes = []
    for axis, (stride, dilation) in enumerate(zip(strides, dilations)):
        size, outputs, taps = image[axis + 1], output[axis + 1], kernel[axis]
        total = max((outputs - 1) * stride + (taps - 1) * dilation + 1 - size, 0)
        before = total // 2 if options.padding == Padding.SAME else 0
        axes.append(Axis(size, outputs, taps, stride, dilation, before))
    return axes[0], axes[1]
