"""The registry of gradient rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import tensorflow as tf

from tf_dpfl.protocol.errors import ExportError

Rule = Callable[..., Any]

_PREFIX = "DpflBuiltin"
_names: dict[str, str] = {}

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
        for op_type in op_types:
            name = _PREFIX + op_type
            tf.RegisterGradient(name)(rule)  # KeyError when registered twice
            _names[op_type] = name
        return rule

    return register


def op_gradients() -> Mapping[str, str]:
    """Op type -> registered gradient name, as `gradient_override_map` takes it."""
    return MappingProxyType(dict(_names))
