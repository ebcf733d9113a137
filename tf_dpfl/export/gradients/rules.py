"""The registry of gradient rules."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

import tensorflow as tf

from tf_dpfl.protocol.errors import ExportError

Rule = Callable[..., Any]

_PREFIX = "DpflBuiltin"
_names: dict[str, str] = {}
_refused: ContextVar[list[UnsupportedOpError] | None] = ContextVar("_refused", default=None)

NATIVE = frozenset(
    {
        "Abs",
        "BatchToSpaceND",
        "Cast",
        "Exp",
        "Identity",
        "IdentityN",  # tf.custom_gradient: its author wrote the gradient
        "MatMul",
        "Neg",
        "ReadVariableOp",
        "SpaceToBatchND",
        "Square",
        "StopGradient",
    }
)
"""Ops whose gradient in TensorFlow is made of builtin ops already."""


class UnsupportedOpError(ExportError):
    """An op, or a setting of it, that no rule covers.

    `op_name` is the op's name in the graph, from which its layer is found.
    """

    op_name: str = ""


def gradient_of(*op_types: str) -> Callable[[Rule], Rule]:
    """Registers the decorated rule for ops of the given types.

    TensorFlow keeps its own gradients: a rule is registered under a private
    name and takes effect only inside `graph.gradient_override_map`.
    """

    def register(rule: Rule) -> Rule:
        @functools.wraps(rule)
        def apply(op: Any, *grads: Any) -> Any:
            try:
                return rule(op, *grads)
            except UnsupportedOpError as error:
                refused = _refused.get()
                if refused is None:
                    raise
                refused.append(error)
                return [tf.zeros_like(t) if t.dtype.is_floating else None for t in op.inputs]

        for op_type in op_types:
            name = _PREFIX + op_type
            tf.RegisterGradient(name)(apply)  # KeyError when registered twice
            _names[op_type] = name
        return rule

    return register


@contextlib.contextmanager
def collected_refusals() -> Iterator[list[UnsupportedOpError]]:
    """Inside, what rules refuse is put into the list, and zeros are their gradients."""
    refused: list[UnsupportedOpError] = []
    token = _refused.set(refused)
    try:
        yield refused
    finally:
        _refused.reset(token)


def op_gradients() -> Mapping[str, str]:
    """Op type -> registered gradient name, as `gradient_override_map` takes it."""
    return MappingProxyType(dict(_names))
