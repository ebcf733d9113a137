"""Which entries of which variables a tensor made of weights holds.

The entries of all variables are numbered from 1, in the order of the flat
weights. A tensor that is only moved about (split, reshaped, transposed) or
negated has for each of its entries such a number; a negative one says that the
entry is minus the weight, 0 that it is a constant. Sites are keyed by these
numbers: two reads of one variable, or two pieces of it, cannot be mistaken for
two variables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tf_dpfl.client_work.per_example.execution import MOVES, run_on_labels
from tf_dpfl.client_work.static_values import static_value

Positions = NDArray[np.int64]


def number_entries(variables: Sequence[tf.Variable]) -> list[Positions]:
    """The numbers of the entries of each variable, in its shape."""
    numbered, first = [], 1
    for variable in variables:
        size = math.prod(variable.shape)
        numbered.append(np.arange(first, first + size).reshape(variable.shape))
        first += size
    return numbered


def move_positions(op: Any, positions: Sequence[Positions | None]) -> list[Positions] | None:
    """The positions of the outputs of `op`; None where it computes with the weights.

    Args:
      op: an op that no example goes into.
      positions: of each input, or None for one that is no weight.
    """
    if op.type == "ReadVariableOp":
        return [p for p in positions if p is not None]
    if op.type == "ResourceGather" and positions[0] is not None:
        ids = static_value(op.inputs[1])
        if ids is None or op.get_attr("batch_dims"):
            return None
        return [positions[0][ids]]
    if op.type in MOVES or op.type == "Neg":
        return run_on_labels(op, positions)
    return None


def in_weight_order(values: tf.Tensor, positions: Positions, wanted: Positions) -> tf.Tensor:
    """`values` (shaped as `positions`) in the order, signs and shape of `wanted`.

    Both hold the same entries, each once.
    """
    have, want = positions.reshape(-1), wanted.reshape(-1)
    if positions.ndim == 2 and np.array_equal(positions.T.reshape(-1), want):
        return tf.reshape(tf.transpose(values), wanted.shape)
    flat = tf.reshape(values, [-1])
    if not np.array_equal(have, want):
        order = np.argsort(np.abs(have))[np.argsort(np.argsort(np.abs(want)))]
        run = _common_run(order)  # copied whole
        runs = tf.gather(tf.reshape(values, [-1, run]), order[::run] // run)
        flat = signed(tf.reshape(runs, [-1]), have[order], want)
    return tf.reshape(flat, wanted.shape)


def signed(values: tf.Tensor, have: Positions, want: Positions) -> tf.Tensor:
    """`values` of the entries `have` with the signs that they have in `want`."""
    signs = np.sign(have) * np.sign(want)
    return values if (signs > 0).all() else values * signs.astype(np.float32)


def _common_run(order: NDArray[np.int64]) -> int:
    """The longest n for which `order` is made of runs k n, k n + 1, ..., k n + n - 1."""
    starts = np.flatnonzero(np.diff(order, prepend=-2) != 1)
    return math.gcd(*starts.tolist(), *order[starts].tolist(), len(order))
