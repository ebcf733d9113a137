"""Epsilon of the unsampled Gaussian mechanism, in closed form.

A device computes its own local epsilon with this before it sends anything, so
it needs nothing but the standard library. Source: Balle & Wang 2018
(1805.06530), theorem 8; k reports with the noise multiplier s compose to one
with s / sqrt(k) (Dong et al. 1905.02383, corollary 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tf_dpfl.protocol.checks import require_finite_nonnegative
from tf_dpfl.protocol.noise import noise_stddev_of_share
from tf_dpfl.protocol.plan import Plan

# Below this argument erfc underflows; the asymptotic series takes over.
_ERFC_SMALLEST = -26.0


def gaussian_epsilon(*, noise_multiplier: float, delta: float, reports: int = 1) -> float:
    """Smallest epsilon of `reports` Gaussian mechanisms at `delta`.

    Args:
      noise_multiplier: noise standard deviation / L2 sensitivity, >= 0.
      delta: in (0, 1).
      reports: number of composed releases, >= 0.

    Returns:
      epsilon >= 0; infinity without noise, 0 without reports.
    """
    require_finite_nonnegative("noise_multiplier", noise_multiplier)
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta!r} must be in (0, 1)")
    if not reports >= 0:
        raise ValueError(f"reports={reports!r} must be >= 0")
    if reports == 0:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    mu = math.sqrt(reports) / noise_multiplier
    return smallest_epsilon(lambda epsilon: gaussian_delta(mu, epsilon), delta=delta)


def smallest_epsilon(delta_of: Callable[[float], float], *, delta: float) -> float:
    """Where `delta_of(epsilon)`, falling towards 0, comes down to `delta`.

    The upper end of the last interval of the bisection: never below the true value.
    """
    if delta_of(0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while delta_of(high) > delta:
        low, high = high, high * 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if delta_of(middle) > delta else (low, middle)
    return high


def gaussian_delta(mu: float, epsilon: float) -> float:
    """delta(epsilon) of a Gaussian mechanism of L2 sensitivity / noise deviation `mu` > 0."""
    first = _log_normal_cdf(mu / 2 - epsilon / mu)
    second = epsilon + _log_normal_cdf(-mu / 2 - epsilon / mu)
    return math.exp(first) - math.exp(second) if first > second else 0.0


def _log_normal_cdf(x: float) -> float:
    """log Phi(x), accurate in the far lower tail."""
    if x > _ERFC_SMALLEST:
        return math.log(0.5 * math.erfc(-x / math.sqrt(2)))
    inverse_square = 1.0 / (x * x)
    series = 1.0 - inverse_square * (1.0 - 3.0 * inverse_square * (1.0 - 5.0 * inverse_square))
    return -0.5 * x * x - math.log(-x) - 0.5 * math.log(2 * math.pi) + math.log(series)


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
