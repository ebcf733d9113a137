"""Integer noise: Poisson differences (Skellam) and discrete Gaussians, by exact tables.

A value is found by its place in a table of the cumulative distribution, computed in
integers of 200 bits and kept to 128, with 128 random bits of ChaCha20 under a fresh
key from the operating system (`noise.fresh_key_stream`). No floating-point number
takes part after the parameter itself, so that nothing of the kind of Mironov's and
Jin et al.'s (2112.05307) attacks applies; the distance from the true distribution is
below 2^-100 a value. Time still depends on what is drawn.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from tf_dpfl.protocol.checks import require_finite_nonnegative
from tf_dpfl.protocol.noise import fresh_key_stream

Integers = NDArray[np.int64]

LARGEST_VARIANCE = 1e9
"""Of one draw; its table has 28 standard deviations of entries."""

_WORK_BITS = 200
_LEAST = 1 << 40  # 2^-160 of the largest probability: 14.9 standard deviations away
_KEPT_BITS = 128
_WORD = (1 << 64) - 1


@dataclass(frozen=True)
class _Table:
    """Boundaries of the cumulative distribution, upper and lower 64 bits, uint64 [n - 1].

    The value is `first` plus the number of boundaries that a uniform number reaches.
    """

    first: int
    upper: NDArray[np.uint64]
    lower: NDArray[np.uint64]


def skellam_noise(
    size: int, *, variance: float, random_bytes: Callable[[int], bytes] = os.urandom
) -> Integers:
    """Independent Skellam values of mean 0, int64 [size]; sums of them are Skellam too.

    Each is the difference of two Poisson values of mean variance / 2.

    Args:
      size: number of values, >= 0.
      variance: of one value, from 0 (exact zeros) to `LARGEST_VARIANCE`.
      random_bytes: gives the bytes of the key; only tests replace it.

    Raises:
      ValueError: another variance.
      OSError, StateError: as `noise.gaussian_noise`.
    """
    if _checked(variance) == 0:
        return np.zeros(size, np.int64)
    drawn = _draw(_poisson_table(variance / 2), 2 * size, random_bytes)
    return drawn[:size] - drawn[size:]


def discrete_gaussian_noise(
    size: int, *, stddev: float, random_bytes: Callable[[int], bytes] = os.urandom
) -> Integers:
    """Independent discrete Gaussian values, int64 [size] (Canonne et al. 2004.00010).

    The probability of k is proportional to exp(-k^2 / (2 stddev^2)).

    Args:
      size: number of values, >= 0.
      stddev: 0 (exact zeros), or from 1/8 with its square at most `LARGEST_VARIANCE`.
      random_bytes: gives the bytes of the key; only tests replace it.

    Raises:
      ValueError: another stddev.
      OSError, StateError: as `noise.gaussian_noise`.
    """
    _checked(stddev * stddev)
    if stddev == 0:
        return np.zeros(size, np.int64)
    if not stddev >= 1 / 8:
        raise ValueError(
            f"stddev={stddev!r} must be 0 or >= 0.125: below it nothing is drawn but 0"
        )
    return _draw(_gaussian_table(stddev), size, random_bytes)


def _checked(variance: float) -> float:
    require_finite_nonnegative("variance", variance)
    if not variance <= LARGEST_VARIANCE:
        raise ValueError(f"variance={variance!r} must be at most {LARGEST_VARIANCE:g}")
    return variance


def _draw(table: _Table, size: int, random_bytes: Callable[[int], bytes]) -> Integers:
    stream = fresh_key_stream(random_bytes)
    words = np.frombuffer(stream(2 * size * 8), np.uint64).reshape(2, size)
    reached = np.searchsorted(table.upper, words[0], side="left")
    last = len(table.upper)
    if not last:  # all other values have a probability below 2^-160
        return np.full(size, table.first, np.int64)
    # A tie of the upper words is met once in 2^64 draws a boundary.
    for i in np.flatnonzero(table.upper[np.minimum(reached, last - 1)] == words[0]):
        at = int(reached[i])
        while at < last and table.upper[at] == words[0, i] and table.lower[at] <= words[1, i]:
            at += 1
        reached[i] = at
    values: Integers = reached.astype(np.int64) + table.first
    return values


@lru_cache(maxsize=8)
def _poisson_table(mean: float) -> _Table:
    exact = Fraction(mean)
    mode = int(exact)

    def upwards() -> Iterator[int]:
        weight, k = 1 << _WORK_BITS, mode
        while weight >= _LEAST:
            yield weight
            k += 1
            weight = weight * exact.numerator // (k * exact.denominator)

    def downwards() -> Iterator[int]:
        weight, k = 1 << _WORK_BITS, mode
        while k > 0:
            weight = weight * k * exact.denominator // exact.numerator
            if weight < _LEAST:
                return
            k -= 1
            yield weight

    below = list(downwards())
    return _table(mode - len(below), [*reversed(below), *upwards()])


@lru_cache(maxsize=8)
def _gaussian_table(stddev: float) -> _Table:
    exact = Fraction(stddev) ** 2
    with localcontext() as context:
        context.prec = 90
        # From k to k + 1 the probability falls by exp(-(2 k + 1) / (2 stddev^2)).
        half = (Decimal(-exact.denominator) / Decimal(2 * exact.numerator)).exp()
        scale = Decimal(1 << (2 * _WORK_BITS))
        ratio, step = int(half * scale), int(half * half * scale)
    above = []
    weight = 1 << _WORK_BITS
    while (weight := weight * ratio >> 2 * _WORK_BITS) >= _LEAST:
        above.append(weight)
        ratio = ratio * step >> 2 * _WORK_BITS
    return _table(-len(above), [*reversed(above), 1 << _WORK_BITS, *above])


def _table(first: int, weights: list[int]) -> _Table:
    total = sum(weights)
    bounds = [(reached << _KEPT_BITS) // total for reached in accumulate(weights[:-1])]
    return _Table(
        first,
        np.array([bound >> 64 for bound in bounds], np.uint64),
        np.array([bound & _WORD for bound in bounds], np.uint64),
    )
