"""Tree aggregation without restarts: its sensitivity and its error.

Rounds are the leaves of binary trees; a node of level l is the noised sum of 2^l
rounds in a row, and is complete with the last of them. Released prefix sums are
made from complete nodes alone (Kairouz et al. 2103.00039; Honaker 2015), so the
privacy is that of one Gaussian release of all their sums.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np


def tree_sensitivity(*, separation: int, rounds: int) -> float:
    """L2 norm of what one user adds to all nodes complete after `rounds` rounds.

    For updates of norm <= 1 and rounds of one user at least `separation` apart: the
    root of the largest sum, over nodes, of the square of the user's rounds in the node.
    The worst pattern is found exactly.
    """
    # To a power of two: the rounds of one run ask for every length up to the last.
    longest = 1 << max(rounds - 1, 0).bit_length()
    return math.sqrt(_squared_sensitivities(separation, longest)[rounds])


@lru_cache(maxsize=8)
def tree_prefix_error(*, rounds: int, momentum: float = 0.0) -> float:
    """Root mean square, over rounds, of the deviation of the released prefix sums.

    In deviations of a node's noise. A prefix is a sum of one complete tree for each binary
    digit of its length; a tree is estimated from all its nodes (Honaker 2015). With
    `momentum`, of the sums' running mean (`factorisation.banded_prefix_error`).
    """
    levels = rounds.bit_length()
    own, below = [1.0], [0.0]  # of a tree's estimate: its own node's share, its halves'
    variance = 1.0
    for _ in range(1, levels):
        halves = 2 * variance
        variance = halves / (1 + halves)
        own.append(variance)
        below.append(1 - variance)
    # By level: the weight of each node's noise in the running mean.
    nodes = [np.zeros(rounds >> level) for level in range(levels)]
    total = 0.0
    for prefix in range(1, rounds + 1):
        for of_level in nodes:
            of_level *= momentum
        start = 0
        for level in reversed(range(levels)):
            if not prefix >> level & 1:
                continue
            end, share = start + (1 << level), 1 - momentum
            for lower in range(level, -1, -1):
                nodes[lower][start >> lower : end >> lower] += share * own[lower]
                share *= below[lower]
            start = end
        total += sum(float(of_level @ of_level) for of_level in nodes)
    return math.sqrt(total / rounds)


def tree_last_error(*, rounds: int) -> float:
    """The deviation of the sum of all rounds, in those of a node's noise."""
    levels = (level for level in range(rounds.bit_length()) if rounds >> level & 1)
    return math.sqrt(sum(1 / (2 - 2.0**-level) for level in levels))


# What can still come of a pattern: rounds to wait until the next is allowed, and
# the rounds taken so far in each open node, smallest node first.
_State = tuple[int, tuple[int, ...]]


@lru_cache(maxsize=8)
def _squared_sensitivities(separation: int, rounds: int) -> tuple[int, ...]:
    """The largest sum of squares over complete nodes after 0 to `rounds` rounds.

    Walks through the rounds with every pattern that is not outdone: another one
    that may go on as early, with as many rounds in every open node, and as
    large a sum, does at least as well whatever follows.
    """
    levels = rounds.bit_length()
    best: dict[_State, int] = {(0, (0,) * levels): 0}
    largest = [0]
    for number in range(1, rounds + 1):
        complete = (number & -number).bit_length()
        after: dict[_State, int] = {}
        for (wait, counts), squares in best.items():
            choices = [(max(wait - 1, 0), counts)]
            if wait == 0:
                choices.append((separation - 1, tuple(count + 1 for count in counts)))
            for wait_after, taken in choices:
                done = squares + sum(count**2 for count in taken[:complete])
                state = (wait_after, (0,) * min(complete, levels) + taken[complete:])
                if after.get(state, -1) < done:
                    after[state] = done
        best = _not_outdone(after)
        largest.append(max(best.values()))
    return tuple(largest)


def _not_outdone(patterns: dict[_State, int]) -> dict[_State, int]:
    kept: list[tuple[_State, int]] = []
    # By waiting time, then by sum: an entry can only be outdone by an earlier one.
    for state, squares in sorted(patterns.items(), key=lambda entry: (entry[0][0], -entry[1])):
        if not any(
            other_squares >= squares and all(a >= b for a, b in zip(other[1], state[1]))
            for other, other_squares in kept
        ):
            kept.append((state, squares))
    return dict(kept)
