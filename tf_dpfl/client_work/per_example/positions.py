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
