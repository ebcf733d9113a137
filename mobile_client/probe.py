"""A trial of `train_dp` on this device: does the file clip each example and add the noise?

The author's export verified it; a device looks again, whatever it was given. The
first step of sgd and momentum after `set_weights` is linear in what was noised, so
what the step did beside adding the noise can be measured. Adam's is not, and is
not looked at. A file that tells this trial from training is not caught.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tf_dpfl.protocol.errors import TaskError
from tf_dpfl.protocol.manifest import CLIENT_FILE
from tf_dpfl.protocol.plan import LocalTraining
from tf_dpfl.protocol.step_scale import rate_before_noise
from tf_dpfl.protocol.tensors import Float32

# Of the bound: what float32 sums of the steps below may be off by.
_ROUNDING = 1e-4
# Gradients that happen to be short would not show a file that never clips: after
# the plan's clip norm, one this much below the length of what was found is tried.
_PART = 1e-3
_SMALLEST_CLIP_NORM = 1e-12
# The bound is the sensitivity's, whatever the learning rate: a file that makes another
# one from the rate shows at rates that do not fit.
_OTHER_RATES = (1 / 64, 64)

Step = Callable[..., Float32]


def measurable(training: LocalTraining) -> bool:
    """Whether the first step of this local optimizer is linear in what was noised."""
    return training.optimizer in ("sgd", "momentum")


def check_step(
    step: Step,
    batch: Mapping[str, Any],
    *,
    training: LocalTraining,
    weights: Float32,
    clip_norm: float,
    noise: Float32,
) -> None:
    """Tries steps from `weights` and measures what they add to the given noise.

    Args:
      step: (weights, batch, learning_rate, sensitivity, noise) -> the weights, float32
        [d], after one step of `train_dp` from `weights` with a fresh optimizer.
      batch: one batch of B examples, with `weight` float32 [B].
      training: the plan's.
      weights: float32 [d].
      clip_norm: the plan's.
      noise: float32 [d], of any scale; used for nothing else.

    Raises TaskError when the step is longer than one sensitivity for each real example,
    or is anything without real examples.
    """
    direction = noise / np.float32(max(_norm(noise), 1e-30))
    trial = _Trial(step, training, weights, direction)
    trial.check(batch, trial.short_of(batch, clip_norm))
    trial.check({**batch, "weight": np.zeros_like(batch["weight"])}, clip_norm)
    # From zero, where no step is too small to be seen.
    trial = _Trial(step, training, np.zeros_like(weights), direction)
    short = trial.short_of(batch, clip_norm)
    for factor in _OTHER_RATES:
        trial.check(batch, short, rate_off_by=factor)


class _Trial:
    """Steps from the same weights, with noise in one direction (float32 [d], of length 1)."""

    def __init__(self, step: Step, training: LocalTraining, weights: Float32, direction: Float32):
        self._step, self._weights, self._direction = step, weights, direction
        self._rate_first = rate_before_noise(training)

    def short_of(self, batch: Mapping[str, Any], clip_norm: float) -> float:
        """A clip norm that is short of the gradients; checks a step with `clip_norm`."""
        found = self.check(batch, clip_norm)
        return max(_PART * min(clip_norm, found or clip_norm), _SMALLEST_CLIP_NORM)

    def check(
        self, batch: Mapping[str, Any], clip_norm: float, *, rate_off_by: float = 1.0
    ) -> float:
        """The length of the gradients' clipped sum in one step; TaskError when it is too long.

        `rate_off_by` multiplies the learning rate that the sensitivity is made for.
        """
        size, real = len(batch["weight"]), int(np.count_nonzero(batch["weight"]))
        # So large a rate that the step is no smaller than the weights it is taken from:
        # their own rounding would hide it otherwise.
        scale = max(1.0, _norm(self._weights) / clip_norm)
        rate = size * scale * rate_off_by
        sensitivity = clip_norm * (scale if self._rate_first else 1.0 / size)
        noise = (self._direction * np.float32(sensitivity)).astype(np.float32)
        after = self._step(self._weights, batch, np.float32(rate), np.float32(sensitivity), noise)
        moved = self._weights.astype(np.float64) - after.astype(np.float64)
        rest = _norm(moved / (1.0 if self._rate_first else rate) - noise)
        bound = real * sensitivity
        if not rest <= bound + _ROUNDING * (real + 1) * sensitivity:
            raise TaskError(
                f"{CLIENT_FILE}: a step on {real} examples adds {rest:g} to its noise, more than "
                f"{bound:g}, one sensitivity for each: the file does not clip, or does not add the "
                "noise; nothing is sent"
            )
        return rest * clip_norm / sensitivity


def _norm(values: Any) -> float:
    return float(np.linalg.norm(values.astype(np.float64)))
