"""The server's optimizer in NumPy: the next model from the averaged update."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from server.blobs import Float64
from tf_dpfl.protocol.errors import StateError
from tf_dpfl.protocol.plan import Server
from tf_dpfl.protocol.tensors import Float32

# Vectors of shape [d] each optimizer keeps from round to round.
SLOTS = {"sgd": 0, "momentum": 1, "adam": 2}


@dataclass(frozen=True)
class OptimizerState:
    """`steps` done so far and the slot vectors, float64 of shape [slots, d]."""

    steps: int
    slots: Float64


def initial_state(settings: Server, *, size: int) -> OptimizerState:
    """The state before the first round: zeros."""
    return OptimizerState(0, np.zeros((SLOTS[settings.optimizer], size)))


def state_from_vector(
    settings: Server, vector: Float64, *, size: int, steps: int
) -> OptimizerState:
    """The state whose slots are laid out one after another in `vector`."""
    count = SLOTS[settings.optimizer]
    if vector.shape != (count * size,):
        raise StateError(
            f"the optimizer's state has {vector.size} values, {settings.optimizer} over {size} "
            f"weights needs {count * size}; restore the state from a backup"
        )
    return OptimizerState(steps, vector.reshape(count, size))


def apply(
    settings: Server, state: OptimizerState, *, weights: Float32, average: Float64
) -> tuple[OptimizerState, Float32]:
    """One server step: (state, average update) -> (new state, new weights).

    Args:
      weights: float32 [d], the model the round started from.
      average: float64 [d], the sum of reports / clients_per_round. The
        pseudo-gradient is -average.

    Returns:
      weights float32 [d], rounded once from float64. The formulas are those of
      tff.learning.optimizers: build_sgdm, and build_adam (Kingma & Ba
      1412.6980, section 2, epsilon outside the bias correction).
    """
    steps, rate = state.steps + 1, settings.learning_rate
    if settings.optimizer == "sgd":
        return OptimizerState(steps, state.slots), _moved(weights, rate * average)
    if settings.optimizer == "momentum":
        velocity = settings.momentum * state.slots[0] + average
        return OptimizerState(steps, velocity[np.newaxis]), _moved(weights, rate * velocity)
    gradient = -average
    first, second = state.slots
    first = first + (gradient - first) * (1.0 - settings.beta_1)
    second = second + (np.square(gradient) - second) * (1.0 - settings.beta_2)
    corrected = rate * np.sqrt(1.0 - settings.beta_2**steps) / (1.0 - settings.beta_1**steps)
    step = -corrected * first / (np.sqrt(second) + settings.epsilon)
    return OptimizerState(steps, np.stack([first, second])), _moved(weights, step)


def _moved(weights: Float32, step: Float64) -> Float32:
    return (weights.astype(np.float64) + step).astype(np.float32)
