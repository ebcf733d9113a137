"""Where the examples of a batch are in a tensor, and which ops keep them apart.

Per-example gradients in one pass rest on this: no op may let one example touch
another. An op without a rule is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dpfl.client_work.per_example.execution import MOVES, Labels, run_on_labels
from tf_dpfl.client_work.per_example.refusals import refuse, static_shape


@dataclass(frozen=True)
class Layout:
    """One axis of a tensor holds the B examples.

    The axis has size outer * B * inner, and entry (o * B + b) * inner + i of it
    belongs to example b.
    """

    axis: int
    outer: int = 1
    inner: int = 1

    def at(self, axis: int) -> Layout:
        """The same order of examples on another axis."""
        return Layout(axis, self.outer, self.inner)


Layouts = Sequence["Layout | None"]
Rule = Callable[[Any, Layouts], "Layout | None"]

_rules: dict[str, Rule] = {}


def keeps_examples_apart(*op_types: str) -> Callable[[Rule], Rule]:
    """Registers a rule: (op, layout of each input or None) -> layout of each output.

    A rule calls `refuse` where the op mixes examples.
    """

    def register(rule: Rule) -> Rule:
        for op_type in op_types:
            if op_type in _rules:
                raise KeyError(f"{op_type} has a layout rule already")
            _rules[op_type] = rule
        return rule

    return register


def layouts_of_outputs(op: Any, layouts: Layouts, *, examples: int) -> list[Layout | None]:
    """Where the `examples` are in each output of `op`; at least one input holds some.

    Raises NoSoundRuleError where the op mixes them or is not known to keep them apart.
    """
    by_ids = op.type == "GatherV2" and layouts[1] is not None
    if op.type in MOVES and not by_ids:
        labels = [
            None if layout is None else _labels(static_shape(tensor), layout, examples)
            for tensor, layout in zip(op.inputs, layouts)
        ]
        return [_layout(op, moved, examples) for moved in run_on_labels(op, labels)]
    if op.type not in _rules:
        refuse(op, "it is not known to keep the examples of a batch apart")
    return [_rules[op.type](op, layouts)] * len(op.outputs)


def by_example(tensor: Any, layout: Layout, *, examples: int, kept: int = 1) -> Any:
    """`tensor` as [B, T, its last `kept` axes]: what each example has, in order.

    The axis of the examples must not be among the kept ones.
    """
    shape = static_shape(tensor)
    before, last = shape[: layout.axis], shape[len(shape) - kept :]
    outer = math.prod(before) * layout.outer
    if outer > 1:
        tensor = tf.reshape(tensor, [outer, examples, -1])
        tensor = tf.transpose(tensor, [1, 0, 2])
    return tf.reshape(tensor, [examples, math.prod(shape) // math.prod([examples, *last]), *last])


def _labels(shape: tuple[int, ...], layout: Layout, examples: int) -> Labels:
    """For every entry the number of its example, from 1."""
    return np.broadcast_to(_along_axis(len(shape), layout, examples), shape)


def _along_axis(rank: int, layout: Layout, examples: int) -> Labels:
    numbers = np.tile(np.repeat(np.arange(1, examples + 1), layout.inner), layout.outer)
    return numbers.reshape([-1 if axis == layout.axis else 1 for axis in range(rank)])


def _layout(op: Any, labels: Labels, examples: int) -> Layout | None:
    """The layout that explains `labels`; entries labelled 0 belong to nobody."""
    if not labels.any():
        return None
    for axis, size in enumerate(labels.shape):
        repeats = size // examples
        if not repeats or size % examples:
            continue
        for inner in (n for n in range(1, repeats + 1) if repeats % n == 0):
            layout = Layout(axis, repeats // inner, inner)
            expected = _along_axis(labels.ndim, layout, examples)
            if np.all((labels == 0) | (labels == expected)):
                return layout
    return refuse(op, "it moves examples about in a way that mixes them")
