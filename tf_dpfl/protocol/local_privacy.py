"""What a device's reports tell whoever sees them singly, and what a plan asks of that."""

from __future__ import annotations

import math

from tf_dpfl.protocol.errors import TaskError
from tf_dpfl.protocol.gaussian import gaussian_epsilon
from tf_dpfl.protocol.noise import noise_stddev_of_share
from tf_dpfl.protocol.plan import Plan


def local_epsilon(plan: Plan, *, reports: int) -> float:
    """Epsilon of `reports` reports of one device against whoever sees them singly.

    Unit "user": any two data sets of the device (replace-one), so two clipped
    updates differ by up to 2 * clip_norm; the noise is one share. Infinite when
    the plan leaves the noise to the server. Where the clip norm adapts, a report
    has a noised count too, and the noise multiplier is that of both, whatever clip
    norm a round has. Unit "example": one example is replaced by another in its
    place, so two clipped gradients differ by up to 2 * clip_norm. Within an epoch
    it is in one step, and what follows only sees that step's result, so that an
    epoch is one Gaussian mechanism.
    """
    privacy = plan.privacy
    if privacy.unit == "example":
        return gaussian_epsilon(
            noise_multiplier=privacy.calibrated_noise_multiplier / 2,
            delta=privacy.delta,
            reports=reports * plan.local_training.epochs,
        )
    if privacy.noise != "device":
        return math.inf if reports else 0.0
    share = noise_stddev_of_share(
        clip_norm=privacy.clip_norm,
        noise_multiplier=privacy.calibrated_noise_multiplier,
        smallest_cohort=privacy.smallest_cohort,
    )
    return gaussian_epsilon(
        noise_multiplier=share / (2 * privacy.clip_norm), delta=privacy.delta, reports=reports
    )


def require_asked_local_epsilon(plan: Plan) -> None:
    """Raises TaskError where a report gives away more than the plan's `target_local_epsilon`.

    Of the noise that a device draws, not of the one that the plan was solved for.
    """
    asked = plan.privacy.target_local_epsilon
    if asked is None:
        return
    given = local_epsilon(plan, reports=1)
    if not given <= asked:
        raise TaskError(
            f"the task asks for a local epsilon of {asked:g} for a report, and the noise of a "
            f"device gives {given:.6g} (delta {plan.privacy.delta:g}, unit {plan.privacy.unit}): "
            "it does not keep what it says; nothing is sent"
        )
