"""The TFLite signatures of `client.tflite`: names, inputs and outputs.

d is the size of the flat weight vector, B the batch size of the manifest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from tf_dpfl.protocol.plan import Plan

T = TypeVar("T")

TRAIN = "train"
"""One local step on one batch.

Inputs: the tensors of the manifest's interface, [B, ...] each (for most models `x`
float32 [B, ...] and `y` int32 [B]), `weight` float32 [B] (1 for an example, 0 for
padding), `learning_rate` float32 [] and, where the interface has random_values r > 0,
`random` float32 [B, r], uniform in [0, 1). Output: `loss` float32 [], the weighted
mean loss of the batch, which is private and stays on the device.
"""

TRAIN_DP = "train_dp"
"""One local step of DP-SGD: each example's gradient is clipped, the sum noised.

Inputs: those of `train`, `sensitivity` float32 [], the most one example may change the
step (`private_step.sensitivity_of_step`), and the noise of each variable of the
layout in its own shape, `noise_0`, `noise_1`, ... float32 (see `noise_inputs`), already
scaled to the standard deviation of a step (`private_step.noise_stddev_of_step`). The
divisor is B, whatever the weights. Output: `done` int32 [], a constant; norms and losses of
single examples never leave the graph. Only in files of plans with unit "example".
"""

PRIVATIZE_UPDATE = "privatize_update"
"""The report: clip(current weights - `initial`) + `noise`.

Inputs: `initial` float32 [d], `clip_norm` float32 [], `noise` float32 [d]
(already scaled to the share's standard deviation). Output: `update` float32 [d].
"""

INFER = "infer"
"""Inputs: those of the interface, [n, ...] each. Output: `logits` float32 [n, ...], the
model's prediction.
"""

GET_WEIGHTS = "get_weights"
"""Output: `weights` float32 [d]."""

SET_WEIGHTS = "set_weights"
"""Input: `weights` float32 [d]; also resets the local optimizer's state.

Output: `size` int32 [], the number of weights. Must be called first: what a
file holds before is not specified.
"""

GET_OPTIMIZER_STATE = "get_optimizer_state"
"""Output: `state` float32 [s], what the local optimizer goes on from in a next round.

As private as the examples. Only in files of plans with optimizer_state "keep", as
`set_optimizer_state`; s is the plan's `local_training.kept_values`.
"""

SET_OPTIMIZER_STATE = "set_optimizer_state"
"""Input: `state` float32 [s], after `set_weights`. Output: `size` int32 [], s."""

ALL = (TRAIN, PRIVATIZE_UPDATE, INFER, GET_WEIGHTS, SET_WEIGHTS)
"""What every file has."""


def noise_inputs(of_variables: Iterable[T]) -> dict[str, T]:
    """What belongs to each variable of the layout, under its noise's name in `train_dp`.

    One input a variable, because cutting one long vector up copies all of it.
    """
    return {f"noise_{index}": part for index, part in enumerate(of_variables)}


def step_of_unit(unit: str) -> str:
    """The signature that trains under plans with this unit: the file's primary subgraph."""
    return TRAIN_DP if unit == "example" else TRAIN


def of_plan(plan: Plan) -> tuple[str, ...]:
    """The signatures of a file for this plan."""
    private = (TRAIN_DP,) if plan.privacy.unit == "example" else ()
    keeps = plan.local_training.keeps_state
    kept = (GET_OPTIMIZER_STATE, SET_OPTIMIZER_STATE) if keeps else ()
    return (*ALL, *private, *kept)
