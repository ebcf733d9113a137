"""Mechanisms as plain immutable data: what was released about the users, and how.

Accountants interpret these (`accounting`); nothing here computes an epsilon.
What a `kind` of version 1 means never changes; a new mechanism is a new class.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tf_dpfl.protocol.errors import TaskError
from tf_dpfl.protocol.plan import Plan

POISSON = "poisson"
FIXED = "fixed"

_KIND = "gaussian_rounds"
_VERSION = 1
_KEYS = {"kind", "version", "noise_multiplier", "sampling", "sampling_probability", "rounds"}
# More rounds than any training has; keeps every product of the accounting finite.
_LARGEST_ROUNDS = 10**9


@dataclass(frozen=True)
class GaussianRounds:
    """`rounds` releases of a sum of clipped updates plus Gaussian noise.

    Attributes:
      noise_multiplier: standard deviation of the noise on the sum divided by
        the clip norm, finite and >= 0. With noise on devices this is the least
        the sum can carry (see `docs/privacy.md`).
      sampling: "poisson", each user joins each round by an independent coin, or
        "fixed", a uniformly drawn cohort of fixed size without replacement.
      sampling_probability: chance that one user is in one round, in (0, 1].
      rounds: number of releases, >= 0.

    Raises ValueError on a value out of range; NaN is out of every range.
    """

    noise_multiplier: float
    sampling: str
    sampling_probability: float
    rounds: int

    def __post_init__(self) -> None:
        """Refuses values no accountant could interpret."""
        if not _is_real(self.noise_multiplier) or not 0 <= self.noise_multiplier < math.inf:
            raise ValueError(f"noise_multiplier={self.noise_multiplier!r} must be finite and >= 0")
        if self.sampling not in (POISSON, FIXED):
            raise ValueError(f'sampling={self.sampling!r} must be "poisson" or "fixed"')
        if not _is_real(self.sampling_probability) or not 0 < self.sampling_probability <= 1:
            raise ValueError(
                f"sampling_probability={self.sampling_probability!r} must be in (0, 1]"
            )
        if not _is_integer(self.rounds) or not 0 <= self.rounds <= _LARGEST_ROUNDS:
            raise ValueError(
                f"rounds={self.rounds!r} must be an integer from 0 to {_LARGEST_ROUNDS}"
            )

    def with_rounds(self, rounds: int) -> GaussianRounds:
        """The same release, another number of times."""
        return replace(self, rounds=rounds)

    def unamplified(self) -> GaussianRounds:
        """The same releases, counted as if every user were in every round."""
        return replace(self, sampling_probability=1.0)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `mechanism_from_json` reads them back."""
        return {
            "kind": _KIND,
            "version": _VERSION,
            "noise_multiplier": self.noise_multiplier,
            "sampling": self.sampling,
            "sampling_probability": self.sampling_probability,
            "rounds": self.rounds,
        }


def mechanism_from_json(tree: Any) -> GaussianRounds:
    """The mechanism `to_json` wrote.

    Raises TaskError on an unknown kind, version or key, a missing or malformed
    value, NaN, or a value out of range.
    """
    if not isinstance(tree, Mapping):
        raise TaskError(f"mechanism {tree!r:.80} must be a JSON object")
    kind, version = tree.get("kind"), tree.get("version")
    if kind != _KIND or not _is_integer(version) or version != _VERSION:
        raise TaskError(
            f"mechanism kind={kind!r:.80} version={version!r:.80} is not known here; this release "
            f'reads kind="{_KIND}" version={_VERSION}: update this program'
        )
    if set(tree) != _KEYS:
        raise TaskError(f"mechanism keys {sorted(map(str, tree))!r:.200} must be {sorted(_KEYS)}")
    try:
        return GaussianRounds(
            noise_multiplier=tree["noise_multiplier"],
            sampling=tree["sampling"],
            sampling_probability=tree["sampling_probability"],
            rounds=tree["rounds"],
        )
    except (ValueError, OverflowError) as error:
        raise TaskError(f"mechanism: {error}") from None


def mechanism_of_plan(plan: Plan, *, rounds: int) -> GaussianRounds:
    """What `rounds` rounds of the plan release.

    Raises PlanError while the plan's noise is not calibrated.
    """
    return GaussianRounds(
        noise_multiplier=float(plan.privacy.calibrated_noise_multiplier),
        sampling=plan.clients.sampling,
        sampling_probability=plan.clients.sampling_probability,
        rounds=rounds,
    )


def merge_consecutive(spending: Iterable[GaussianRounds]) -> tuple[GaussianRounds, ...]:
    """The same spending with neighbouring equal releases as one; empty ones dropped."""
    merged: list[GaussianRounds] = []
    for mechanism in spending:
        if mechanism.rounds == 0:
            continue
        if merged and merged[-1].with_rounds(mechanism.rounds) == mechanism:
            merged[-1] = mechanism.with_rounds(merged[-1].rounds + mechanism.rounds)
        else:
            merged.append(mechanism)
    return tuple(merged)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    # A huge integer has no float: JSON allows it, arithmetic would overflow.
    return isinstance(value, float) or (_is_integer(value) and abs(value) <= 2**53)
