"""Saying that no sound rule for per-example gradients exists at an op."""

from __future__ import annotations

from typing import Any, NoReturn


class NoSoundRuleError(Exception):
    """The one-pass method cannot treat an op soundly; the loop over examples can.

    `op_name` is the op's name in the graph (it starts with its layer's name),
    `reason` what stands in the way.
    """

    def __init__(self, op_name: str, reason: str):
        super().__init__(f"{op_name}: {reason}")
        self.op_name = op_name
        self.reason = reason


def refuse(op: Any, reason: str) -> NoReturn:
    """Raises NoSoundRuleError for `op`."""
    raise NoSoundRuleError(op.name, f"op {op.type}: {reason}")


def static_shape(tensor: Any) -> tuple[int, ...]:
    """The shape of `tensor`, which must be known while tracing."""
    if not tensor.shape.is_fully_defined():
        refuse(tensor.op, f"its shape {tensor.shape} is not fixed")
    return tuple(int(size) for size in tensor.shape)
