"""The count of updates that were not clipped: one number at the end of a report, noised.

Only reports of plans whose clip norm adapts have it (Andrew et al. 1905.03871). Each device
tells +1/2 when its update was not clipped and -1/2 when it was, so that its presence moves the
sum by 1/2, plus its share of the count's noise. The bare bit never leaves a device that adds
noise.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import numpy as np

from tf_dpfl.protocol.checks import require_finite_nonnegative
from tf_dpfl.protocol.noise import fill_with_noise, noise_stddev_of_share
from tf_dpfl.protocol.plan import Plan

# The grid below is 2^10 to 2^11 times finer than the noise, so that rounding costs nothing.
_BITS_BELOW_STDDEV = 10
# And no finer than this: float32 holds every reported number exactly.
_FINEST_GRID = 2.0**-24
# No draw of `protocol.noise` is further out than 17.2 deviations: four times that of one
# uniform of 53 bits, sqrt(2 * 53 * ln 2), over 2.
_MOST_DEVIATIONS = 18.0


def report_size(plan: Plan, *, weights: int) -> int:
    """How many float32 numbers a report has: the update's, and the count's where there is one."""
    return weights + 1 if plan.privacy.adaptive_clipping else weights


def clipped_indicator(norm: float, *, clip_norm: float) -> float:
    """+1/2 for an update of that L2 norm that is not clipped, else -1/2.

    A broken update, whose norm is infinite or NaN, counts as clipped.
    """
    return 0.5 if norm <= clip_norm else -0.5


def count_stddev_of_share(plan: Plan) -> float:
    """Deviation of the noise that one device adds; 0 where the server adds all of it."""
    privacy = plan.privacy
    if privacy.noise != "device":
        return 0.0
    return noise_stddev_of_share(
        clip_norm=1.0,
        noise_multiplier=plan.clip_count_stddev,
        smallest_cohort=privacy.smallest_cohort,
    )


def noised_count(
    count: float, *, stddev: float, random_bytes: Callable[[int], bytes] = os.urandom
) -> float:
    """`count` plus Gaussian noise, on a grid that is the same for every count.

    With +-1/2 and noise of any floating-point grid, some sums come from one of the two alone
    and give it away (Mironov 2012). So the sum, in float64, is rounded to a power of two,
    coarse against its own precision and fine against the noise. float32 holds the result of a
    device.

    Args:
      count: a sum of halves.
      stddev: >= 0; 0 leaves `count` as it is.
      random_bytes: as for `noise.gaussian_noise`.

    Raises as `noise.gaussian_noise` does.
    """
    require_finite_nonnegative("stddev", stddev)
    if stddev == 0:
        return count
    noise = np.empty(1)
    fill_with_noise([noise], stddev=stddev, random_bytes=random_bytes)
    exponent = math.frexp(stddev)[1] - 1  # 2^exponent <= stddev < 2^(exponent + 1)
    grid = max(2.0 ** (exponent - _BITS_BELOW_STDDEV), _FINEST_GRID)
    return round((count + float(noise[0])) / grid) * grid


def fault_of_count(plan: Plan, count: float) -> str | None:
    """Why no device of `plan` reports this number, or None."""
    share = count_stddev_of_share(plan)
    if share == 0:
        if abs(count) == 0.5:
            return None
        return f"the count {count:.7g} must be 0.5 or -0.5"
    largest = 0.5 + _MOST_DEVIATIONS * share
    if abs(count) <= largest:
        return None
    return f"the count {count:.7g} must be within +-{largest:.7g}"
