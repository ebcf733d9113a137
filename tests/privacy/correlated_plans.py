"""Plans, mechanisms and matrices of correlated noise, for the tests of the privacy room."""

import math

import numpy as np
from privacy_plans import small_plan

from tf_dpfl.privacy.mechanism import BandedRounds, TreeRounds

DELTA = 1e-5
BANDED = BandedRounds(3.0, "min_separation", 0.1, 100, 10, 1, 10)
TREE = TreeRounds(3.0, "min_separation", 0.1, 100, 10, 1)


def correlated_plan(mechanism, *, rounds=100, **privacy):
    """1000 users, 50 a round: 20 rounds of separation."""
    return small_plan(
        clients={"sampling": "min_separation"},
        privacy={"noise": "server", "mechanism": mechanism, **privacy},
        server={"rounds": rounds},
    )


def toeplitz(bands, rounds):
    matrix = np.zeros((rounds, rounds))
    for offset in range(min(bands, rounds)):
        value = math.comb(2 * offset, offset) / 4**offset
        matrix += np.diag(np.full(rounds - offset, value), -offset)
    return matrix
