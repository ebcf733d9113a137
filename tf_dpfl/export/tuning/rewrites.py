"""The registry of rewrites, and running them over a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tf_dpfl.export.tuning.file import Graph

Rewrite = Callable[[Graph, Any], bool]

_rewrites: dict[str, Rewrite] = {}


def rewrite_of(*names: str) -> Callable[[Rewrite], Rewrite]:
    """Registers a rewrite (graph, op) -> whether it has made ops that replace `op`.

    It makes them with `graph.add`, the last one `into` the output of `op`. All
    tensors of `op` have fixed sizes.
    """

    def register(rewrite: Rewrite) -> Rewrite:
        for name in names:
            if name in _rewrites:
                raise KeyError(f"{name} has a rewrite already")
            _rewrites[name] = rewrite
        return rewrite

    return register


def rewrite(graph: Graph) -> None:
    """Replaces every op of `graph` that a rewrite takes."""
    graph.subgraph.operators = [new for op in graph.subgraph.operators for new in _new(graph, op)]


def _new(graph: Graph, op: Any) -> list[Any]:
    rule = _rewrites.get(graph.name(op))
    tensors = [*op.inputs, *op.outputs]
    if rule is None or not all(t < 0 or graph.is_fixed(t) for t in tensors):
        return [op]
    return graph.made() if rule(graph, op) else [op]
