"""Tracing losses and gradients in the current graph under the given gradient rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import tensorflow as tf
from tensorflow.python.framework.func_graph import FuncGraph


def overriding(op_gradients: Mapping[str, str]) -> AbstractContextManager[Any]:
    """Ops traced inside get the gradients registered under the given names."""
    graph: Any = tf.compat.v1.get_default_graph()
    return graph.gradient_override_map(dict(op_gradients))


def handles_of(variables: Sequence[tf.Variable]) -> list[tf.Tensor]:
    """The handle of each variable as the current graph sees it.

    `tf.gradients` needs these; a GradientTape does not look at overridden gradients.
    """
    graph = tf.compat.v1.get_default_graph()
    if isinstance(graph, FuncGraph):
        return [graph.capture(v.handle) for v in variables]
    return [v.handle for v in variables]
