"""The clip norm of a round where it adapts (Andrew et al. 1905.03871): its start, its way.

It is a released value like the model: from one round to the next it sees nothing but the
noised count of updates that were not clipped (`clip_count`). The simulation does the same in
TensorFlow; tests hold the two together.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tf_dpfl.protocol.errors import WireError
from tf_dpfl.protocol.plan import CLIP_NORMS_BELOW, SMALLEST_CLIP_NORM, Plan

# The float32 numbers that a plan's clip_norm may be.
SMALLEST = float(np.nextafter(np.float32(SMALLEST_CLIP_NORM), np.float32(np.inf)))
LARGEST = float(np.nextafter(np.float32(CLIP_NORMS_BELOW), np.float32(0)))

# exp of this and of more finds every clip norm beyond its range.
_LARGEST_EXPONENT = 200.0


def first_clip_norm(plan: Plan) -> float:
    """That of the first round: the plan's, as a float32 number."""
    return min(max(float(np.float32(plan.privacy.clip_norm)), SMALLEST), LARGEST)


def exponent(plan: Plan, unclipped: Any) -> Any:
    """What the logarithm of the clip norm moves by after a round: a float, or a tensor.

    Args:
      plan: with adaptive clipping.
      unclipped: the noised sum over users of +1/2 for one that was not clipped and -1/2
        for one that was.
    """
    privacy = plan.privacy
    # By the public cohort, not by the count of reports: that is private.
    fraction = unclipped / float(plan.clients.clients_per_round) + 0.5
    return -privacy.clip_learning_rate * (fraction - privacy.target_quantile)


def next_clip_norm(plan: Plan, clip_norm: float, *, unclipped: float) -> float:
    """That of the round after a released one: a float32 number that a plan may name.

    Args:
      plan: with adaptive clipping.
      clip_norm: the released round's, in [SMALLEST, LARGEST].
      unclipped: as for `exponent`, finite.
    """
    step = min(max(exponent(plan, unclipped), -_LARGEST_EXPONENT), _LARGEST_EXPONENT)
    moved = min(max(clip_norm * math.exp(step), SMALLEST), LARGEST)
    return float(np.float32(moved))


def clip_norm_of_round(plan: Plan, told: float | None) -> float:
    """What a device clips to in a round, and scales its noise by.

    Args:
      plan: the task's, as its author signed it.
      told: the clip norm in the server's check-in answer; None when it names none.

    Raises WireError where the server names one and the plan fixes another, names none
    although it adapts, or one that no round can have.
    """
    privacy = plan.privacy
    if not privacy.adaptive_clipping:
        if told is not None:
            raise WireError(
                f"check-in: clip_norm={told!r} although this task's plan fixes "
                f"clip_norm={privacy.clip_norm:g}; nothing is trained"
            )
        return privacy.clip_norm
    if told is None:
        raise WireError(
            "check-in: clip_norm is missing although this task's clip norm adapts; update the "
            "server"
        )
    if not SMALLEST <= told <= LARGEST:
        raise WireError(
            f"check-in: clip_norm={told!r} must be a number from {SMALLEST:g} to {LARGEST:g}; "
            "nothing is trained"
        )
    return float(np.float32(told))
