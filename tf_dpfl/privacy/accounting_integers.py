"""Epsilon of sums with integer noise, by Renyi divergences; no amplification is counted.

Neighbours differ by one client's integers, of L2 and L1 norms at most those that
`protocol.integer_sums.IntegerSum` enforces, replaced by zeros ("zero-out"): the
client's noise is there either way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

# Integer orders: the Skellam bound is proven for them.
_ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 512, 1024)


def skellam_renyi(order: int, *, variance: float, l2: float, l1: float) -> float:
    """Renyi divergence of one sum with Skellam noise (Agarwal et al. 2110.04995, corollary 4.1).

    Args:
      order: >= 2.
      variance: of the noise of one entry of the sum, in integers, > 0; Skellam shares
        add up to Skellam noise of the sum of their variances, whoever drops out.
      l2, l1: sensitivities in integers, >= 0.
    """
    gaussian = order * l2**2 / (2 * variance)
    return gaussian + min(
        ((2 * order - 1) * l2**2 + 6 * l1) / (4 * variance**2), 3 * l1 / (2 * variance)
    )


def discrete_gaussian_renyi(
    order: int, *, share_variance: float, clients: int, size: int, l2: float, l1: float
) -> float:
    """Renyi divergence of one sum with discrete Gaussian shares (Kairouz et al. 2102.06387).

    A sum of discrete Gaussians is none, but close to one: proposition 14, with tau for
    the distance.

    Args:
      order: >= 2.
      share_variance: the parameter sigma^2 of each share, at least 1/4.
      clients: who have added a share, >= 1: the fewest that a sum is released with.
      size: entries of the sum.
      l2, l1: sensitivities in integers, >= 0.
    """
    if not share_variance >= 0.25:
        raise ValueError(f"share_variance={share_variance!r} must be >= 0.25 for this theorem")
    tau = 10 * sum(
        math.exp(-2 * math.pi**2 * share_variance * k / (k + 1)) for k in range(1, clients)
    )
    total = clients * share_variance
    epsilon = min(
        math.sqrt(l2**2 / total + tau * size / 2),
        math.sqrt(l2**2 / total + 2 * l1 / math.sqrt(total) * tau + tau**2 * size),
        l2 / math.sqrt(total) + tau * math.sqrt(size),
    )
    return order * epsilon**2 / 2


def skellam_epsilon(*, rounds: int, delta: float, variance: float, l2: float, l1: float) -> float:
    """Epsilon of `rounds` sums with Skellam noise; infinity without noise, 0 without rounds.

    Raises ValueError unless delta is in (0, 1).
    """
    if rounds == 0:
        return 0.0
    if variance == 0:
        return math.inf
    values = [rounds * skellam_renyi(a, variance=variance, l2=l2, l1=l1) for a in _ORDERS]
    return _epsilon(values, delta)


def discrete_gaussian_epsilon(
    *,
    rounds: int,
    delta: float,
    share_variance: float,
    clients: int,
    size: int,
    l2: float,
    l1: float,
) -> float:
    """Epsilon of `rounds` sums with discrete Gaussian shares; as `skellam_epsilon`."""
    if rounds == 0:
        return 0.0
    if share_variance == 0:
        return math.inf
    values = [
        rounds
        * discrete_gaussian_renyi(
            a, share_variance=share_variance, clients=clients, size=size, l2=l2, l1=l1
        )
        for a in _ORDERS
    ]
    return _epsilon(values, delta)


def _epsilon(values: Sequence[float], delta: float) -> float:
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta!r} must be in (0, 1)")
    from dp_accounting.rdp import compute_epsilon

    return float(compute_epsilon(_ORDERS, values, delta)[0])
