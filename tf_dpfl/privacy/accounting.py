"""Central epsilon of a list of mechanisms, by two accountants.

`docs/privacy.md` states the semantics; in short:
  * Poisson rounds: the privacy loss distribution (PLD) of the Poisson-sampled
    Gaussian mechanism. Adding or removing one user and zeroing one user out
    have the same PLD (dp_accounting, `from_gaussian_mechanism`).
  * Fixed-size rounds: no amplification theorem for add-or-remove-one exists, so
    they count as unsampled Gaussian rounds under zero-out; when every round is
    of fixed size, the Renyi bound of sampling without replacement under
    replace-one (Wang et al. 1808.00087, theorem 27) is tried too. It implies
    zero-out, so the smaller of the two holds under zero-out.
  * Rounds of DP-SGD inside the clients have the unit "example": see
    `accounting_examples`. They do not mix with rounds of the unit "user".
  * Rounds with correlated noise are one Gaussian release of a sensitivity of its own
    (`factorisation`, `tree`), under zero-out: a separation is enforced by who was
    there, and then somebody else takes the place of who is not.
  * Lists compose, whatever is mixed; every step rounds upwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import metadata
from typing import Any

import numpy as np

from tf_dpfl.privacy.accounting_examples import example_epsilon, log_of_mixture
from tf_dpfl.privacy.accounting_renyi import (
    RenyiCurve,
    curves_of_examples,
    curves_of_users,
    is_amplified,
)
from tf_dpfl.privacy.factorisation import banded_sensitivity
from tf_dpfl.privacy.mechanism import (
    FIXED,
    POISSON,
    BandedRounds,
    CorrelatedRounds,
    ExampleGaussianEpochs,
    GaussianRounds,
    Mechanism,
    merge_consecutive,
    require_one_unit,
)
from tf_dpfl.privacy.tree import tree_sensitivity
from tf_dpfl.protocol.gaussian import gaussian_epsilon

PLD = "pld"
RDP = "rdp"

ADD_OR_REMOVE = "add-or-remove-one"
ZERO_OUT = "zero-out"

# Noise outside of these is counted as none, and as the larger one: the bound
# stays above the true epsilon, and no square of it overflows.
_SMALLEST_NOISE = 1e-6
_LARGEST_NOISE = 1e6
# Below this noise one release costs an epsilon beyond 1000, amplification by
# sampling is worth next to nothing, and the PLD's grid would grow like 1/z^2.
_SMALLEST_AMPLIFIED_NOISE = 0.02
# The PLD's Fourier transforms round by about 1e-16 a round; they are used while
# that stays a thousandth of delta. The Renyi bound works in logarithms.
_PLD_ROUNDING = 1e-13
# The PLD's grid is refined until one refinement by _REFINEMENT changes epsilon
# by less than this; the error falls faster than the step, so less is left.
_GRID_TOLERANCE = 0.01
_REFINEMENT = 4
# Grid points of one round (5 microseconds each) and, roughly, of the whole
# composition: bounds the time to a few seconds and memory to about 100 MB.
_FIRST_GRID_POINTS = 500
_LARGEST_ROUND_GRID = 250_000
_LARGEST_TOTAL_GRID = 4_000_000
_COARSEST_GRID_STEP = 1.0
# dp_accounting's probabilities are differences of deltas over the step, each
# rounded by about 1e-16: a finer step would drown them.
_FINEST_GRID_STEP = 1e-6


@dataclass(frozen=True)
class CentralEpsilon:
    """An epsilon and what it rests on.

    `relation` is the neighbouring relation under which it holds: "zero-out"
    (one user's updates, or one example's gradients, are replaced by zero, wherever
    they take part) or "add-or-remove-one". `method` names the bound that gave the number.
    """

    epsilon: float
    relation: str
    method: str


def central_epsilon(spending: Sequence[Mechanism], *, delta: float, accountant: str = PLD) -> float:
    """Epsilon of everything in `spending` together; see `account`."""
    return account(spending, delta=delta, accountant=accountant).epsilon


def account(
    spending: Sequence[Mechanism], *, delta: float, accountant: str = PLD
) -> CentralEpsilon:
    """The smallest epsilon this module can prove for all of `spending`.

    Args:
      spending: mechanisms run one after another on the same users, in any order.
      delta: in (0, 1).
      accountant: "pld", the tight one, or "rdp" to cross-check it.

    Returns:
      epsilon >= 0; 0 without rounds, infinity when any round has no noise.

    Raises ValueError on another delta or accountant, PlanError when `spending`
    mixes units.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta!r} must be in (0, 1)")
    if accountant not in (PLD, RDP):
        raise ValueError(f'accountant={accountant!r} must be "pld" or "rdp"')
    correlated = any(isinstance(m, CorrelatedRounds) and m.rounds for m in spending)
    merged, examples, users = _by_unit(spending)
    add_or_remove = not (examples or correlated) and all(m.sampling != FIXED for m in users)
    relation = ADD_OR_REMOVE if add_or_remove else ZERO_OUT
    if not merged:
        return CentralEpsilon(0.0, relation, "nothing released")
    if any(m.noise_multiplier < _SMALLEST_NOISE for m in merged):
        return CentralEpsilon(math.inf, relation, "no noise")
    if examples:
        candidates = [_example_candidate(examples, delta, accountant)]
    else:
        candidates = _candidates(users, delta, accountant)
    epsilon, method = min(candidates, key=lambda candidate: candidate[0])
    if correlated:
        method += ", correlated rounds as one release"
    return CentralEpsilon(epsilon, relation, method)


def renyi_curves(spending: Sequence[Mechanism]) -> tuple[RenyiCurve, ...]:
    """Every Renyi bound that holds for all of `spending`, under the relation of `account`.

    None (an empty tuple) without any noise; PlanError when `spending` mixes units.
    """
    merged, examples, users = _by_unit(spending)
    if any(m.noise_multiplier < _SMALLEST_NOISE for m in merged):
        return ()
    return curves_of_examples(examples) if examples else curves_of_users(users)


def accountant_versions() -> str:
    """The library behind the numbers, e.g. "dp_accounting 0.6.0"."""
    return f"dp_accounting {metadata.version('dp-accounting')}"


def _as_one_release(mechanism: Mechanism) -> Mechanism:
    """Rounds of correlated noise as the one Gaussian release they are; others as they are."""
    if not isinstance(mechanism, CorrelatedRounds):
        return mechanism
    until, separation = mechanism.last_round, mechanism.separation
    if isinstance(mechanism, BandedRounds):
        sensitivity = banded_sensitivity(bands=mechanism.bands, separation=separation, rounds=until)
    else:
        sensitivity = tree_sensitivity(separation=separation, rounds=until)
    return GaussianRounds(mechanism.noise_multiplier / sensitivity, POISSON, 1.0, 1)


def _by_unit(
    spending: Sequence[Mechanism],
) -> tuple[tuple[Mechanism, ...], tuple[ExampleGaussianEpochs, ...], tuple[GaussianRounds, ...]]:
    """All releases, those of the unit "example", those of the unit "user"; one is empty."""
    require_one_unit(spending)
    merged = _merge([_as_one_release(m) for m in merge_consecutive(spending)])
    examples = tuple(m for m in merged if isinstance(m, ExampleGaussianEpochs))
    users = tuple(m for m in merged if isinstance(m, GaussianRounds))
    return merged, examples, users


def _merge(spending: Sequence[Mechanism]) -> tuple[Mechanism, ...]:
    """Equal mechanisms as one: the order of composition does not matter."""
    rounds: dict[Mechanism, int] = {}
    for mechanism in spending:
        noise = min(mechanism.noise_multiplier, _LARGEST_NOISE)
        one = replace(mechanism, noise_multiplier=noise, rounds=1)
        rounds[one] = rounds.get(one, 0) + mechanism.rounds
    return tuple(one.with_rounds(n) for one, n in rounds.items() if n)


def _example_candidate(
    merged: tuple[ExampleGaussianEpochs, ...], delta: float, accountant: str
) -> tuple[float, str]:
    if accountant == RDP:
        (curve,) = curves_of_examples(merged)
        return curve.epsilon(delta), curve.method
    return example_epsilon(merged, delta=delta), "Gaussian closed form, mixed over participation"


def _candidates(
    merged: tuple[GaussianRounds, ...], delta: float, accountant: str
) -> list[tuple[float, str]]:
    """Upper bounds of the same epsilon, with their names."""
    amplified = [m for m in merged if is_amplified(m)]
    plain = [m for m in merged if m not in amplified]
    candidates = []
    if accountant == PLD:
        unamplified = gaussian_epsilon(noise_multiplier=_composed_noise(merged), delta=delta)
        candidates.append((unamplified, "Gaussian closed form, no amplification"))
        if amplified and delta >= _PLD_ROUNDING * sum(m.rounds for m in merged):
            candidates.append((_pld_epsilon(amplified, plain, delta), "PLD"))
    if accountant == RDP or amplified or any(m.sampling_probability < 1 for m in merged):
        candidates += [(c.epsilon(delta), c.method) for c in curves_of_users(merged)]
    return candidates


def _composed_noise(mechanisms: Sequence[GaussianRounds]) -> float:
    """The noise multiplier of one Gaussian release as revealing as all of these."""
    # Scaled by the smallest: 1/z^2 of very small z would overflow.
    smallest = min(m.noise_multiplier for m in mechanisms)
    total = sum(m.rounds * (smallest / m.noise_multiplier) ** 2 for m in mechanisms)
    return smallest / math.sqrt(total)


# --- PLD ---------------------------------------------------------------------


def _pld_epsilon(
    amplified: Sequence[GaussianRounds], plain: Sequence[GaussianRounds], delta: float
) -> float:
    """Epsilon on ever finer grids; every grid gives an upper bound.

    Infinity when the noise is too small for a grid of reasonable size.
    """
    # One composed Gaussian stands for all unsampled rounds.
    rounds = list(amplified)
    if plain:
        rounds.append(GaussianRounds(_composed_noise(plain), POISSON, 1.0, 1))
    if min(m.noise_multiplier for m in rounds) < _SMALLEST_AMPLIFIED_NOISE:
        return math.inf
    scales = [_Scale.of(m) for m in rounds]
    largest = max(scale.largest_loss for scale in scales)
    width = sum(scale.composed_width for scale in scales)
    finest = max(largest / _LARGEST_ROUND_GRID, width / _LARGEST_TOTAL_GRID, _FINEST_GRID_STEP)
    if finest > _COARSEST_GRID_STEP:
        return math.inf
    # A step beyond the deviation of one round's loss would hide that loss, and
    # refining it once would change nothing: convergence would be mistaken.
    step = min(
        largest / _FIRST_GRID_POINTS,
        _COARSEST_GRID_STEP,
        *(scale.loss_deviation / 2 for scale in scales),
    )
    best = math.inf
    while True:
        step = max(step, finest)
        previous, best = best, min(best, _pld_epsilon_on_grid(rounds, delta, step))
        if previous - best <= _GRID_TOLERANCE * best or step == finest:
            return best
        step /= _REFINEMENT


@dataclass(frozen=True)
class _Scale:
    """How far privacy losses of one mechanism reach; steers the grid only."""

    largest_loss: float
    loss_deviation: float
    composed_width: float

    @classmethod
    def of(cls, mechanism: GaussianRounds) -> _Scale:
        z, q = mechanism.noise_multiplier, mechanism.sampling_probability
        # dp_accounting keeps losses within 10 standard deviations of the noise.
        unsampled = 10 / z + 0.5 / z**2
        largest = log_of_mixture(unsampled, q)
        # Under the smaller distribution: the root of the chi-square divergence.
        deviation = min(largest, q * math.sqrt(math.expm1(min(1 / z**2, 500.0))))
        typical = max(deviation, math.sqrt(q) * min(largest, 1 / z + 0.5 / z**2))
        # dp_accounting's Chernoff bounds on the composition, mass 1e-15 beyond.
        n = mechanism.rounds
        width = 4 * largest + 17 * math.sqrt(n) * typical + n * typical**2 / largest
        return cls(largest, deviation, width)


def _pld_epsilon_on_grid(rounds: Sequence[GaussianRounds], delta: float, step: float) -> float:
    total = None
    for m in rounds:
        one = _pld_of_round(m.noise_multiplier, m.sampling_probability, step)
        composed = one.self_compose(m.rounds)
        total = composed if total is None else total.compose(composed)
    if total is None:
        return 0.0
    # With little noise a quotient in there is beyond every float: infinite, an upper bound.
    with np.errstate(over="ignore"):
        return float(total.get_epsilon_for_delta(delta))


@lru_cache(maxsize=16)
def _pld_of_round(noise_multiplier: float, sampling_probability: float, step: float) -> Any:
    """One Poisson-sampled Gaussian release; slow to import and to build."""
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier,
        value_discretization_interval=step,
        sampling_prob=sampling_probability,
    )
