"""A traced graph run again with other tensors in the place of some of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.framework.func_graph import FuncGraph


class TracedGraph:
    """The graph of a function, to be run again inside other graphs.

    Args:
      graph: as `tf.function(...).get_concrete_function(...)` traced it; its ops
        must have no effects that matter.
    """

    def __init__(self, graph: FuncGraph):
        self.graph = graph
        self._nodes = {node.name: node for node in graph.as_graph_def().node}
        self._captured = {inner.ref(): outer for outer, inner in graph.captures}

    def run(
        self, outputs: Sequence[tf.Tensor], given: Sequence[tuple[tf.Tensor, tf.Tensor]]
    ) -> list[tf.Tensor]:
        """`outputs` in the current graph, computed from what is given.

        Args:
          outputs: tensors of the traced graph.
          given: pairs (tensor of the traced graph, tensor to take in its place).
        """
        inputs = {tensor.name: value for tensor, value in given}
        kept: dict[str, Any] = {}
        todo = [tensor.op for tensor in outputs if tensor.name not in inputs]
        while todo:
            op = todo.pop()
            if op.name in kept:
                continue
            kept[op.name] = None
            for tensor in op.inputs:
                if tensor.name in inputs:
                    continue
                if tensor.ref() in self._captured:
                    inputs[tensor.name] = _here(self._captured[tensor.ref()])
                else:
                    todo.append(tensor.op)
        definition = tf.compat.v1.GraphDef()
        for name in kept:
            node = definition.node.add()
            node.CopyFrom(self._nodes[name])
            # Control inputs hold reads apart from writes; nothing is written here.
            data = [source for source in node.input if not source.startswith("^")]
            del node.input[:]
            node.input.extend(data)
        names = [tensor.name for tensor in outputs]
        used = {source for node in definition.node for source in map(_tensor_name, node.input)}
        imported = tf.graph_util.import_graph_def(
            definition,
            input_map={name: value for name, value in inputs.items() if name in used},
            return_elements=[name for name in names if name not in inputs],
            name="replay",
        )
        results = iter(imported)
        return [inputs[name] if name in inputs else next(results) for name in names]


def uses_of(graph: FuncGraph, tensors: Sequence[tf.Tensor]) -> set[Any]:
    """References to every tensor of `graph` that is computed from one of `tensors`."""
    reached = {tensor.ref() for tensor in tensors}
    for op in graph.get_operations():
        if any(tensor.ref() in reached for tensor in op.inputs):
            reached.update(tensor.ref() for tensor in op.outputs)
    return reached


def _tensor_name(source: str) -> str:
    return source if ":" in source else f"{source}:0"


def _here(tensor: Any) -> Any:
    """A tensor of an outer graph, as the current graph sees it."""
    graph = tf.compat.v1.get_default_graph()
    return graph.capture(tensor) if isinstance(graph, FuncGraph) else tensor
