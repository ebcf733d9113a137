"""Epsilon of rounds in which clients train with DP-SGD; what is protected is one example.

In one epoch an example is in exactly one step, whose sum it moves by at most the
clip norm; everything later sees that sum noised, and examples of its own. So an
epoch is one Gaussian mechanism, and k rounds of a client are k * epochs of them
(adaptive composition: one with mu = sqrt(k * epochs) / noise multiplier, Dong et
al. 1905.02383, corollary 3.3). Who takes part depends on no example. So what is
released is a mixture over the number K of rounds a client takes part in, the
same mixture with the example and without, and by the joint convexity of the
hockey-stick divergence

    delta(epsilon) <= sum over k of P[K = k] * delta_Gauss(epsilon; mu(k)).

K is binomial under Poisson sampling, and with cohorts of fixed size too: rounds
are drawn independently of each other. The bound needs no secret cohort: it is
the same for somebody who sees every cohort, counted before they are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tf_dpfl.privacy.mechanism import ExampleGaussianEpochs
from tf_dpfl.protocol.gaussian import gaussian_delta, smallest_epsilon

Float64 = NDArray[np.float64]

# Of delta: what is given away to leave out numbers of rounds that hardly occur.
_TAIL_SHARE = 1e-6
# A smaller delta leaves no room for that share; then every client counts as if in every round.
_SMALLEST_DELTA = 1e-290
# Neighbouring losses are counted as the largest of them beyond so many: in the worst
# case (equal widths over the whole distribution) that adds a fraction of a percent.
_MOST_ATOMS = 1000
# More than the relative rounding of a sum of so many probabilities.
_ROUNDING = 1e-7


@dataclass(frozen=True)
class _Losses:
    """A distribution of mu^2 (float64 [n], each with its probability, rounded upwards).

    `beyond` is the probability of something larger than any of them.
    """

    squared: Float64
    probability: Float64
    beyond: float


def example_epsilon(spending: Sequence[ExampleGaussianEpochs], *, delta: float) -> float:
    """Epsilon of all of `spending` together under zero-out of one example.

    Args:
      spending: noise multipliers from 1e-6; infinite epsilons do not come here.
      delta: in (0, 1).

    Returns:
      an upper bound, >= 0.
    """
    total = _Losses(np.zeros(1), np.ones(1), 0.0)
    for mechanism in spending:
        total = _compose(total, _losses(mechanism, tail=delta * _TAIL_SHARE / len(spending)))
    atoms = [
        (math.sqrt(squared), probability)
        for squared, probability in zip(total.squared.tolist(), total.probability.tolist())
        if squared > 0 and probability > 0
    ]

    def delta_of(epsilon: float) -> float:
        known = math.fsum(p * gaussian_delta(mu, epsilon) for mu, p in atoms)
        return total.beyond + known * (1 + _ROUNDING)

    return smallest_epsilon(delta_of, delta=delta)


def example_renyi(mechanism: ExampleGaussianEpochs, orders: Sequence[int]) -> tuple[float, ...]:
    """Renyi divergence of one round at each order, by the same argument.

    exp((order - 1) * divergence) is jointly convex, so a round in which the client
    is with probability q has at most the logarithm of the mixture.
    """
    squared = mechanism.epochs / mechanism.noise_multiplier**2
    return tuple(
        log_of_mixture((a - 1) * a * squared / 2, mechanism.sampling_probability) / (a - 1)
        for a in orders
    )


def log_of_mixture(loss: float, probability: float) -> float:
    """log(1 - probability + probability * e^loss) for a loss >= 0."""
    if loss < 500:
        return math.log1p(probability * math.expm1(loss))
    return loss + math.log(probability)


def _losses(mechanism: ExampleGaussianEpochs, *, tail: float) -> _Losses:
    """mu^2 of all rounds of one mechanism together."""
    squared_of_round = mechanism.epochs / mechanism.noise_multiplier**2
    if mechanism.sampling_probability == 1 or tail < _SMALLEST_DELTA * _TAIL_SHARE:
        return _Losses(np.array([mechanism.rounds * squared_of_round]), np.ones(1), 0.0)
    counts, probability, beyond = _participations(
        mechanism.rounds, mechanism.sampling_probability, tail
    )
    return _Losses(counts * squared_of_round, probability, beyond)


@lru_cache(maxsize=16)
def _participations(rounds: int, probability: float, tail: float) -> tuple[Float64, Float64, float]:
    """The binomial distribution, counts rounded upwards, and a bound of what is left out.

    Left out are at most `tail`, by Bernstein's inequality on either side. The
    rest is made to add up to 1, which overstates each probability.
    """
    mean = rounds * probability
    log_share = math.log(2 / tail)
    variance = mean * (1 - probability)
    reach = log_share / 3 + math.sqrt(log_share**2 / 9 + 2 * log_share * variance)
    low, high = max(0, math.floor(mean - reach)), min(rounds, math.ceil(mean + reach))
    beyond = 0.0 if (low, high) == (0, rounds) else tail
    counts = np.arange(low, high + 1, dtype=np.float64)
    # By ratios of neighbours: logarithms of factorials of 10^9 have no digits to spare.
    ratios = np.log((rounds - counts[:-1]) / (counts[:-1] + 1))
    logs = np.concatenate([[0.0], np.cumsum(ratios + _log_odds(probability))])
    weights = np.exp(logs - logs.max())
    return *_coarser(counts, weights / weights.sum()), beyond


def _log_odds(probability: float) -> float:
    return math.log(probability) - math.log1p(-probability)


def _compose(one: _Losses, other: _Losses) -> _Losses:
    """The sum of two independent losses."""
    squared = np.add.outer(one.squared, other.squared).ravel()
    probability = np.multiply.outer(one.probability, other.probability).ravel()
    return _Losses(*_coarser(squared, probability), one.beyond + other.beyond)


def _coarser(values: Float64, probability: Float64) -> tuple[Float64, Float64]:
    """At most `_MOST_ATOMS` values, none of them below what it stands for."""
    if len(values) <= _MOST_ATOMS:
        return values, probability
    low, high = float(values.min()), float(values.max())
    edges = np.linspace(low, high, _MOST_ATOMS)
    place = np.minimum(np.searchsorted(edges, values), _MOST_ATOMS - 1)
    weights = np.bincount(place, weights=probability, minlength=_MOST_ATOMS).astype(np.float64)
    return edges, weights
