"""The banded matrix factorisation: its coefficients, its sensitivity, its error.

Prefix sums A = B C, with C lower triangular, Toeplitz and of few bands. What is
released of all rounds' sums X is X + C^-1 Z, Z independent Gaussian draws: it is made
from C X + Z alone, so the privacy is that of one Gaussian release of C X, also when
rounds depend on what was released before (Denisov et al. 2202.08312). C is the
square root of A with all but its first diagonals left out (Kalinin & Lampert
2405.13763): what a user adds in rounds that are far enough apart then meets no
common row (Choquette-Choo et al. 2306.08153).
"""

from __future__ import annotations

import math
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def banded_coefficients(bands: int) -> Float64:
    """First column of C, float64 [bands]: the series of (1 - x)^(-1/2), truncated.

    The square root of the matrix of prefix sums has these on its diagonals:
    c[0] = 1, c[i] = c[i - 1] (2 i - 1) / (2 i).
    """
    if not bands >= 1:
        raise ValueError(f"bands={bands!r} must be >= 1")
    steps = np.arange(1, bands, dtype=np.float64)
    return np.concatenate([[1.0], np.cumprod((2 * steps - 1) / (2 * steps))])


def banded_sensitivity(*, bands: int, separation: int, rounds: int) -> float:
    """L2 norm of what one user adds to C X over `rounds` rounds, for updates of norm <= 1.

    With its rounds at least `separation` >= `bands` apart the columns of C they meet share
    no row, so their squares add up, and there are at most ceil(rounds / separation)
    of them (2306.08153). A `separation` of 1 stands for users that may be in every
    round: all columns overlap then, and are worst when the updates are equal.

    Raises ValueError for a separation in between, which no closed form here covers.
    """
    coefficients = banded_coefficients(bands)
    if separation >= bands:
        participations = -(-rounds // separation)
        return math.sqrt(participations) * float(np.linalg.norm(coefficients))
    if separation != 1:
        raise ValueError(f"separation={separation!r} must be 1 or at least bands={bands}")
    of_row = np.cumsum(coefficients)[: min(bands, rounds)]
    later_rows = max(rounds - bands, 0)
    return math.sqrt(float(of_row @ of_row) + later_rows * float(of_row[-1]) ** 2)


def banded_prefix_error(*, bands: int, rounds: int, momentum: float = 0.0) -> float:
    """Root mean square, over rounds, of the deviation of the released prefix sums.

    In deviations of the independent draws: the rows of A C^-1, whose entries are the
    prefix sums of the series of 1 / c. With `momentum` b in [0, 1), of what a server with
    momentum makes of them: its model is, up to its rate, their running mean, in which the
    sum s rounds ago weighs (1 - b) b^s (the workload of 2202.08312, section 5).
    """
    variances = _prefix_variances(bands=bands, rounds=rounds, momentum=momentum)
    return math.sqrt(float(variances.mean()))


def banded_last_error(*, bands: int, rounds: int) -> float:
    """The deviation of the sum of all rounds, in those of the independent draws."""
    return math.sqrt(float(_prefix_variances(bands=bands, rounds=rounds)[-1]))


def _prefix_variances(*, bands: int, rounds: int, momentum: float = 0.0) -> Float64:
    of_prefix = np.cumsum(inverse_series(banded_coefficients(bands), length=rounds))
    if momentum > 0:
        means = accumulate(of_prefix, lambda mean, new: momentum * mean + new, initial=0.0)
        of_prefix = (1 - momentum) * np.array(list(means)[1:])
    # Row t of a lower Toeplitz matrix holds the first t + 1 of them.
    variances: Float64 = np.cumsum(of_prefix**2)
    return variances


def inverse_series(coefficients: Float64, *, length: int) -> Float64:
    """First column of C^-1, float64 [length]."""
    inverse = np.zeros(length)
    inverse[0] = 1.0
    backwards = coefficients[:0:-1]
    for t in range(1, length):
        reach = min(t, len(backwards))
        if reach:
            inverse[t] = -(inverse[t - reach : t] @ backwards[len(backwards) - reach :])
    return inverse
