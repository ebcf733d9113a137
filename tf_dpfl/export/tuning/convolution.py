"""Convolutions whose kernel is no constant, as one product of matrices.

Interpreters run such a convolution with narrow vectors (Eigen's SSE kernels on
x86-64), a BATCH_MATMUL with wide ones: of 32 images of 28 x 28 pixels with 16
kernels of 8 x 8 the convolution takes 770 microseconds (tflite-runtime 2.14),
patches and product 520; and the gradient of the kernel needs the same patches.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tensorflow.lite.python.schema_py_generated import ActivationFunctionType, Padding

from tf_dpfl.client_work.wide_windows import wide_kernel_steps, windows_at_once
from tf_dpfl.client_work.windows import Axis, patch_steps, rows_at_once
from tf_dpfl.export.tuning.file import Graph
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
    outputs = graph.shape(kernel)[3]
    times = windows_at_once(columns, outputs)
    met, matrix = image, kernel
    for step in patch_steps(graph.shape(image), rows, columns.together(times)):
        met = _run(graph, step.kind, met, step.argument)
    for step in wide_kernel_steps(graph.shape(kernel), columns, times):
        matrix = _run(graph, step.kind, matrix, step.argument)
    batch, places, size = graph.shape(met)
    met = reshaped(graph, met, [*rows_at_once(batch, places), size])
    product = graph.add(
        "BATCH_MATMUL",
        [met, matrix],
        [*graph.shape(met)[:-1], times * outputs],
        options="BatchMatMulOptions",
        adjX=False,
        adjY=False,
    )
    bias = graph.value(op.inputs[2]) if len(op.inputs) > 2 else np.zeros(1)
    if bias is not None and not bias.any():
        reshaped(graph, product, graph.shape(output), into=output)
        return True
    product = reshaped(graph, product, graph.shape(output))
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


def _run(graph: Graph, kind: str, tensor: int, argument: Any) -> int:
    shape = graph.shape(tensor)
    if kind == "pad":
        zero = graph.constant(np.zeros((), np.float32))
        sizes = [size + sum(pair) for size, pair in zip(shape, argument.tolist())]
        inputs = [tensor, graph.constant(argument), zero]
        return graph.add("PADV2", inputs, sizes, options="PadV2Options")
    if kind == "reshape":
        return reshaped(graph, tensor, argument.tolist())
    if kind == "slices":
        return _joined(graph, [_slice(graph, tensor, *piece) for piece in argument.tolist()])
    return graph.add(
        "GATHER",
        [tensor, graph.constant(argument)],
        [shape[0], len(argument), *shape[2:]],
        options="GatherOptions",
        axis=1,
        batchDims=0,
    )


def _slice(graph: Graph, matrix: int, start: int, size: int) -> int:
    """Columns `start` to `start` + `size`."""
    bounds = [[0, start], [graph.shape(matrix)[0], size]]
    inputs = [matrix, *(graph.constant(np.array(bound, np.int32)) for bound in bounds)]
    return graph.add("SLICE", inputs, bounds[1], options="SliceOptions")


def _joined(graph: Graph, matrices: list[int]) -> int:
    """The columns of all, in their order."""
    sizes = [graph.shape(matrix)[1] for matrix in matrices]
    shape = [graph.shape(matrices[0])[0], sum(sizes)]
    return graph.add("CONCATENATION", matrices, shape, options="ConcatenationOptions", axis=1)


def reshaped(graph: Graph, tensor: int, shape: Any, *, into: int | None = None) -> int:
    """`tensor` in another shape; itself where it has that one."""
    if into is None and graph.shape(tensor) == tuple(shape):
        return tensor
    if math.prod(graph.shape(tensor)) != math.prod(shape):
        raise ValueError(f"{graph.shape(tensor)} can not be reshaped to {tuple(shape)}")
    target = graph.constant(np.array(shape, np.int32))
    return graph.add("RESHAPE", [tensor, target], shape, into=into, options="ReshapeOptions")
