"""The ops of convolutions, added to the graph of a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tf_dpfl.export.tuning.file import Graph


class GraphOps:
    """`ImageOps` over float32 tensors of `graph`, which are known by their index."""

    def __init__(self, graph: Graph):
        self._graph = graph

    def shape(self, values: int) -> tuple[int, ...]:
        """As all below: see `ImageOps`."""
        return self._graph.shape(values)

    def pad(self, values: int, paddings: Sequence[Sequence[int]]) -> int:
        """PADV2, as `tuning.arrays` says."""
        sizes = [size + sum(pair) for size, pair in zip(self.shape(values), paddings)]
        zero = self._graph.constant(np.zeros((), np.float32))
        inputs = [values, self._integers(paddings), zero]
        return self._graph.add("PADV2", inputs, sizes, options="PadV2Options")

    def reshape(self, values: int, shape: Sequence[int]) -> int:
        """RESHAPE."""
        return reshaped(self._graph, values, shape)

    def gather(self, values: int, indices: NDArray[np.int32]) -> int:
        """GATHER."""
        first, _, *others = self.shape(values)
        return self._graph.add(
            "GATHER",
            [values, self._integers(indices)],
            [first, len(indices), *others],
            options="GatherOptions",
            axis=1,
            batchDims=0,
        )

    def cut(self, values: int, begin: Sequence[int], size: Sequence[int]) -> int:
        """SLICE."""
        inputs = [values, self._integers(begin), self._integers(size)]
        return self._graph.add("SLICE", inputs, size, options="SliceOptions")

    def join(self, parts: Sequence[int], axis: int) -> int:
        """CONCATENATION."""
        shape = list(self.shape(parts[0]))
        shape[axis] = sum(self.shape(part)[axis] for part in parts)
        options = "ConcatenationOptions"
        return self._graph.add("CONCATENATION", parts, shape, options=options, axis=axis)

    def add(self, left: int, right: int) -> int:
        """ADD."""
        return self._graph.add("ADD", [left, right], self.shape(left), options="AddOptions")

    def subtract(self, left: int, right: int) -> int:
        """SUB."""
        return self._graph.add("SUB", [left, right], self.shape(left), options="SubOptions")

    def scale(self, values: int, factor: float) -> int:
        """MUL by a constant."""
        inputs = [values, self._graph.constant(np.array(factor, np.float32))]
        return self._graph.add("MUL", inputs, self.shape(values), options="MulOptions")

    def matmul(self, left: int, right: int) -> int:
        """BATCH_MATMUL."""
        return self._graph.add(
            "BATCH_MATMUL",
            [left, right],
            [*self.shape(left)[:-1], self.shape(right)[-1]],
            options="BatchMatMulOptions",
            adjX=False,
            adjY=False,
        )

    def _integers(self, values: Any) -> int:
        return self._graph.constant(np.asarray(values, np.int32))


def reshaped(graph: Graph, tensor: int, shape: Any, *, into: int | None = None) -> int:
    """`tensor` in another shape; itself where it has that one."""
    if into is None and graph.shape(tensor) == tuple(shape):
        return tensor
    if math.prod(graph.shape(tensor)) != math.prod(shape):
        raise ValueError(f"{graph.shape(tensor)} can not be reshaped to {tuple(shape)}")
    target = graph.constant(np.array(shape, np.int32))
    return graph.add("RESHAPE", [tensor, target], shape, into=into, options="ReshapeOptions")
