"""Renyi bounds of mechanisms: one value for each order, to be composed and converted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from tf_dpfl.privacy.accounting_examples import example_renyi
from tf_dpfl.privacy.mechanism import FIXED, ExampleGaussianEpochs, GaussianRounds, Mechanism

# Integer orders only: fractional ones do not converge for every q and noise.
_ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 512, 1024)
# Sampling without replacement costs time of the order squared up to 256.
_FIXED_ORDERS = (*range(2, 33), 40, 48, 64, 96, 128, 320, 512, 1024)


@dataclass(frozen=True)
class RenyiCurve:
    """Upper bounds of the Renyi divergence of some spending, one for each whole order.

    An infinite value says nothing of its order. `method` names the bound.
    """

    orders: tuple[int, ...]
    values: tuple[float, ...]
    method: str

    def epsilon(self, delta: float) -> float:
        """The epsilon that follows; infinite if no order has a finite value."""
        from dp_accounting.rdp import compute_epsilon

        finite = [(order, v) for order, v in zip(self.orders, self.values) if v < math.inf]
        if not finite:
            return math.inf
        orders, values = zip(*finite)
        return float(compute_epsilon(orders, values, delta)[0])


def is_amplified(mechanism: GaussianRounds) -> bool:
    """Whether sampling makes its rounds reveal less."""
    return mechanism.sampling != FIXED and mechanism.sampling_probability < 1


def curves_of_examples(merged: Sequence[ExampleGaussianEpochs]) -> tuple[RenyiCurve, ...]:
    """The only bound of rounds of DP-SGD in clients; their noise is not 0."""
    vectors = [example_renyi(m, _ORDERS) for m in merged]
    return (_composed_curve(_ORDERS, vectors, merged, "RDP"),)


def curves_of_users(merged: Sequence[GaussianRounds]) -> tuple[RenyiCurve, ...]:
    """Every bound of rounds of the unit "user"; their noise is not 0."""
    vectors = [_renyi(m, amplify=is_amplified(m)) for m in merged]
    curves = [_composed_curve(_ORDERS, vectors, merged, "RDP")]
    if all(m.sampling == FIXED for m in merged) and any(m.sampling_probability < 1 for m in merged):
        vectors = [_renyi_without_replacement(m) for m in merged]
        name = "RDP of sampling without replacement, replace-one"
        curves.append(_composed_curve(_FIXED_ORDERS, vectors, merged, name))
    return tuple(curves)


def _composed_curve(
    orders: tuple[int, ...],
    vectors: Sequence[Sequence[float]],
    merged: Sequence[Mechanism],
    method: str,
) -> RenyiCurve:
    total = (
        sum(m.rounds * vector[i] for m, vector in zip(merged, vectors)) for i in range(len(orders))
    )
    return RenyiCurve(orders, tuple(total), method)


def _renyi(mechanism: GaussianRounds, *, amplify: bool) -> tuple[float, ...]:
    probability = mechanism.sampling_probability if amplify else 1.0
    return _renyi_of_round(mechanism.noise_multiplier, probability)


@lru_cache(maxsize=64)
def _renyi_of_round(noise_multiplier: float, sampling_probability: float) -> tuple[float, ...]:
    """Renyi divergences of one Poisson-sampled Gaussian release at `_ORDERS`."""
    from dp_accounting import dp_event

    event = dp_event.GaussianDpEvent(noise_multiplier)
    return _renyi_of_event(
        dp_event.PoissonSampledDpEvent(sampling_probability, event), replace_one=False
    )


def _renyi_without_replacement(mechanism: GaussianRounds) -> tuple[float, ...]:
    return _renyi_of_fixed_round(mechanism.noise_multiplier, mechanism.sampling_probability)


@lru_cache(maxsize=64)
def _renyi_of_fixed_round(
    noise_multiplier: float, sampling_probability: float
) -> tuple[float, ...]:
    """Renyi divergences of one fixed-size round under replace-one.

    dp_accounting's noise multiplier there is the noise's standard deviation
    over the L2 sensitivity under replace-one. Two updates clipped to C differ
    by up to 2 C, hence half of ours (which is over C).
    """
    from dp_accounting import dp_event

    event = dp_event.GaussianDpEvent(noise_multiplier / 2)
    share = Fraction(sampling_probability)  # exact; the accountant divides the two again
    return _renyi_of_event(
        dp_event.SampledWithoutReplacementDpEvent(share.denominator, share.numerator, event),
        replace_one=True,
    )


def _renyi_of_event(event: Any, *, replace_one: bool) -> tuple[float, ...]:
    import numpy as np
    from dp_accounting import NeighboringRelation, rdp

    relation = NeighboringRelation.REPLACE_ONE
    if not replace_one:
        relation = NeighboringRelation.ADD_OR_REMOVE_ONE
    accountant = rdp.RdpAccountant(_FIXED_ORDERS if replace_one else _ORDERS, relation)
    with np.errstate(all="ignore"):  # overflow to infinity drops an order, safely
        accountant.compose(event)
    values = accountant._rdp  # dp_accounting 0.6.0 has no public reader of the vector
    return tuple(
        float(value) if value >= 0 else math.inf  # NaN and rounding below 0: order dropped
        for value in values
    )
