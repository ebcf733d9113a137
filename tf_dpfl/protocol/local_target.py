"""The noise that a plan needs for the local epsilon it asks for.

A report of a device is one Gaussian mechanism: its update, of which any two are at most two
clip norms apart, and its share of the noise. Under the unit "example" it is one for each
epoch: any two gradients are two clip norms apart, and a step's noise is all there is.
"""

from __future__ import annotations

import math
from typing import Any

from tf_dpfl.protocol.gaussian import gaussian_noise_multiplier

# Solved noise is above the least by a rounding; what somebody wrote is not that close to it.
_LEAST_WITHIN = 1e-6


def least_noise_multiplier(plan: Any) -> float:
    """Least `privacy.noise_multiplier` that gives the plan's `target_local_epsilon`.

    Args:
      plan: a Plan, or whatever holds as much of one as is read here; with a target.
    """
    privacy, by_example = plan.privacy, plan.privacy.unit == "example"
    noise_of_report = gaussian_noise_multiplier(
        epsilon=privacy.target_local_epsilon,
        delta=privacy.delta,
        reports=plan.local_training.epochs if by_example else 1,
    )
    of_clip_norm = 2 * noise_of_report
    return of_clip_norm if by_example else of_clip_norm * math.sqrt(privacy.smallest_cohort)


def is_least_noise(plan: Any) -> bool:
    """Whether the plan's noise is the least for its local target, to a rounding.

    Then no central target, and nobody who wrote a noise multiplier, asks for more.
    """
    least = least_noise_multiplier(plan)
    return bool(plan.privacy.noise_multiplier <= least * (1 + _LEAST_WITHIN))


def faults_of_local_target(plan: Any) -> list[str]:
    """Why the plan's noise does not give the local epsilon it asks for; nothing without one."""
    privacy, target = plan.privacy, plan.privacy.target_local_epsilon
    if target is None:
        return []
    name = f"privacy.target_local_epsilon={target:g}"
    if privacy.noise == "server":
        return [
            f'{name} does not go with noise="server", nor with the correlated mechanisms that it '
            "is for: the server then sees every update without noise, and no local epsilon holds; "
            'set noise = "device", or leave it out'
        ]
    noise = privacy.noise_multiplier
    if noise is None:
        return []
    least = least_noise_multiplier(plan)
    if noise >= least:
        return []
    share = (
        "each step carries it"
        if privacy.unit == "example"
        else f"a report carries one of smallest_cohort={privacy.smallest_cohort} shares"
    )
    return [
        f"privacy.noise_multiplier={noise:g} is too small for {name} at delta "
        f"{privacy.delta:g}, {share}: set it to {least * (1 + 1e-5):.6g} or more, or leave it out"
    ]
