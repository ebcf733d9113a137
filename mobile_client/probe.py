"""A trial of `train_dp` on this device: does the file clip each example and add the noise?

The author's export verified it; a device looks again, whatever it was given. The
first step of sgd and momentum after `set_weights` is linear in the gradient, so
what the step did beside adding the noise can be measured. Adam's is not, and is
not looked at. A file that tells this trial from training is not caught.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tf_dpfl.protocol.errors import TaskError
from tf_dpfl.protocol.manifest import CLIENT_FILE
from tf_dpfl.protocol.tensors import Float32

# Of the bound: what float32 sums of the steps below may be off by.
_ROUNDING = 1e-4
# Gradients that happen to be short would not show a file that never clips: after
# the plan's clip norm, one this much below the length of what was found is tried.
_PART = 1e-3
_SMALLEST_CLIP_NORM = 1e-12

Step = Callable[..., Float32]


def measurable(optimizer: str) -> bool:
    """Whether the first step of this local optimizer is linear in the gradient."""
    return optimizer in ("sgd", "momentum")


def check_step(
    step: Step, batch: Mapping[str, Any], *, weights: Float32, clip_norm: float, noise: Float32
) -> None:
    """Tries steps from `weights` and measures what they add to the given noise.

    Args:
      step: (batch, learning_rate, clip_norm, noise) -> the weights, float32 [d],
        after one step of `train_dp` from `weights` with a fresh optimizer.
      batch: one batch of B examples, with `weight` float32 [B].
      weights: float32 [d].
      clip_norm: the plan's.
      noise: float32 [d], of any scale; used for nothing else.

    Raises TaskError when the sum of the gradients is longer than one clip norm for
    each real example, or is anything without real examples.
    """
    empty = {**batch, "weight": np.zeros_like(batch["weight"])}
    direction = noise / np.float32(max(_norm(noise), 1e-30))
    found = _check_one(step, batch, weights, clip_norm, direction)
    short = max(_PART * min(clip_norm, found or clip_norm), _SMALLEST_CLIP_NORM)
    _check_one(step, batch, weights, short, direction)
    _check_one(step, empty, weights, clip_norm, direction)


def _check_one(
    step: Step, batch: Mapping[str, Any], weights: Float32, clip_norm: float, direction: Float32
) -> float:
    """The length of what one step adds to its noise; TaskError when it is too long."""
    size, real = len(batch["weight"]), int(np.count_nonzero(batch["weight"]))
    noise = (direction * np.float32(clip_norm)).astype(np.float32)
    # So large a rate that the step is no smaller than the weights it is taken from:
    # their own rounding would hide it otherwise.
    scale = max(1.0, _norm(weights) / clip_norm)
    after = step(batch, np.float32(size * scale), np.float32(clip_norm), noise)
    moved = (weights.astype(np.float64) - after.astype(np.float64)) / scale
    rest = _norm(moved - noise)
    bound = real * clip_norm
    if not rest <= bound + _ROUNDING * (real + 1) * clip_norm:
        raise TaskError(
            f"{CLIENT_FILE}: a step on {real} examples adds {rest:g} to its noise, more than "
            f"{bound:g}, one clip norm for each: the file does not clip, or does not add the "
            "noise; nothing is sent"
        )
    return rest


def _norm(values: Any) -> float:
    return float(np.linalg.norm(values.astype(np.float64)))
