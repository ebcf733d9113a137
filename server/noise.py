"""The server's noise, round after round: independent, banded, or of a tree.

What correlated noise remembers is as secret as the noise: whoever has it can take
noise off. It is named in the same transaction as the model it is in, so that a
round computed again after a crash draws from what belongs to released models alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from server.blobs import Float64
from tf_dpfl.privacy.factorisation import banded_coefficients
from tf_dpfl.protocol.noise import gaussian_noise, noise_stddev_of_sum
from tf_dpfl.protocol.plan import Plan


@dataclass(frozen=True)
class Drawn:
    """A round's noise on the sum, float64 [d], and what to remember, float64 [k, d].

    `memory` is None for independent noise.
    """

    noise: Float64
    memory: Float64 | None = None


def draw_noise(
    plan: Plan,
    *,
    size: int,
    round_index: int,
    memory: Float64 | None,
    clip_norm: float | None = None,
) -> Drawn:
    """Fresh noise from the operating system's entropy.

    Args:
      plan: with `noise = "server"`.
      size: number of weights d.
      round_index: of the mechanism, 1 for the first released round.
      memory: what the round before this remembered; None in the first.
      clip_norm: the round's, where it adapts; by default the plan's.
    """
    stddev = noise_stddev_of_sum(
        clip_norm=plan.privacy.clip_norm if clip_norm is None else clip_norm,
        noise_multiplier=plan.noise_multiplier_of_updates,
    )

    def fresh() -> Float64:
        return gaussian_noise(size, stddev=stddev).astype(np.float64)

    if not plan.privacy.is_correlated:
        return Drawn(fresh())
    past = np.zeros((0, size)) if memory is None else memory
    rows = memory_rows(plan, round_index=round_index - 1)
    if past.shape != (rows, size):
        raise ValueError(
            f"memory of shape {past.shape} before round {round_index}, not {rows} rows"
        )
    if plan.privacy.mechanism == "tree":
        return _tree(past, round_index=round_index, fresh=fresh)
    later = banded_coefficients(plan.bands)[1 : rows + 1]
    noise = fresh() - later @ past
    kept = np.concatenate([noise[np.newaxis], past])[: plan.bands - 1]
    return Drawn(noise, kept)


def memory_rows(plan: Plan, *, round_index: int) -> int:
    """How many vectors are remembered after that many rounds."""
    if round_index == 0 or not plan.privacy.is_correlated:
        return 0
    if plan.privacy.mechanism == "tree":
        return bin(round_index).count("1") + 1
    return min(round_index, plan.bands - 1)


def _tree(past: Float64, *, round_index: int, fresh: Callable[[], Float64]) -> Drawn:
    """The difference of two prefixes' noise; a prefix is a sum of complete trees.

    Remembered are the trees of the rounds so far, smallest first, one for each binary
    digit of their number, and the noise of their prefix. A tree is the mean of its
    halves plus its own node's noise: with the weight 1 / (2 - 2^-level) the estimate of
    least variance from all its nodes (Honaker 2015), as in the simulation.
    """
    trees, of_prefix = (past[:-1], past[-1]) if len(past) else (past, 0.0)
    tree, merged = fresh(), 0
    while round_index >> merged & 1 == 0:  # the digits that carry
        tree = 0.5 * (trees[merged] + tree) + fresh()
        merged += 1
    trees = np.concatenate([tree[np.newaxis], trees[merged:]])
    levels = np.array([n for n in range(round_index.bit_length()) if round_index >> n & 1])
    now = (1 / (2 - 0.5**levels)) @ trees
    return Drawn(now - of_prefix, np.concatenate([trees, now[np.newaxis]]))
