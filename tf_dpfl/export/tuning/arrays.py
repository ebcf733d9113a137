"""Ops that move values."""

from __future__ import annotations

from typing import Any

import numpy as np

from tf_dpfl.export.tuning.file import Graph
from tf_dpfl.export.tuning.graph_ops import reshaped
from tf_dpfl.export.tuning.rewrites import rewrite_of


@rewrite_of("PAD")
def _padding(graph: Graph, op: Any) -> bool:
    """PADV2 with zeros: XNNPACK takes PAD, and five times as long as the plain kernel."""
    if not graph.is_float(op.outputs[0]):
        return False
    zero = graph.constant(np.zeros((), np.float32))
    inputs = [*op.inputs, zero]
    graph.add("PADV2", inputs, (), into=op.outputs[0], options="PadV2Options")
    return True


@rewrite_of("STRIDED_SLICE")
def _slice(graph: Graph, op: Any) -> bool:
    """Steps of 1 as SLICE and RESHAPE: LiteRT's plain kernel is twenty times slower."""
    (values, *bounds), (output,) = op.inputs, op.outputs
    limits = [graph.value(tensor) for tensor in bounds]
    options = op.builtinOptions
    shape = graph.shape(values)
    known = [limit for limit in limits if limit is not None and len(limit) == len(shape)]
    if len(known) != 3 or options.ellipsisMask or options.newAxisMask:
        return False
    if not (graph.is_float(output) or graph.is_int(output)) or (known[2] != 1).any():
        return False
    starts, sizes = [], []
    for axis, size in enumerate(shape):
        bit = 1 << axis
        begin = 0 if options.beginMask & bit else int(known[0][axis])
        end = size if options.endMask & bit else int(known[1][axis])
        start, stop, _ = slice(begin, end).indices(size)
        if options.shrinkAxisMask & bit:
            start = int(known[0][axis]) % size
            stop = start + 1
        starts.append(start)
        sizes.append(stop - start)
    piece = values
    if tuple(sizes) != shape:
        inputs = [values, *(graph.constant(np.array(n, np.int32)) for n in (starts, sizes))]
        if tuple(sizes) == graph.shape(output):
            graph.add("SLICE", inputs, (), into=output, options="SliceOptions")
            return True
        if not graph.is_float(output):
            return False
        piece = graph.add("SLICE", inputs, sizes, options="SliceOptions")
    reshaped(graph, piece, graph.shape(output), into=output)
    return True
