"""Mechanisms as plain immutable data: what was released about the clients, and how.

Accountants interpret these (`accounting`); nothing here computes an epsilon.
What a `kind` of version 1 means never changes; a new mechanism is a new class.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

from tf_dpfl.protocol.contradictions import MOST_ROUNDS_OF_A_TREE
from tf_dpfl.protocol.errors import PlanError, TaskError
from tf_dpfl.protocol.plan import Plan

POISSON = "poisson"
FIXED = "fixed"
MIN_SEPARATION = "min_separation"

_VERSION = 1
# More rounds than any training has; keeps every product of the accounting finite.
_LARGEST_ROUNDS = 10**9
_LARGEST_EPOCHS = 10**4
# Coefficients are held in memory, and as many vectors of noise with them.
_LARGEST_BANDS = 10**6

_M = TypeVar("_M", bound="Mechanism")
_C = TypeVar("_C", bound="CorrelatedRounds")


@dataclass(frozen=True)
class Mechanism:
    """`rounds` releases with Gaussian noise; a kind of its own in each subclass.

    Attributes:
      unit: what one of its epsilons protects, as in `Privacy.unit`.
      noise_multiplier: standard deviation of the noise divided by the clip norm,
        finite and >= 0.
      sampling: "poisson", each client joins each round by an independent coin;
        "fixed", a uniformly drawn cohort of fixed size without replacement;
        "min_separation" for `CorrelatedRounds` alone.
      sampling_probability: chance that one client is in one round, in (0, 1].
      rounds: number of releases, >= 0.

    Raises ValueError on a value out of range; NaN is out of every range.
    """

    kind: ClassVar[str]
    unit: ClassVar[str]
    samplings: ClassVar[tuple[str, ...]] = (POISSON, FIXED)

    noise_multiplier: float
    sampling: str
    sampling_probability: float
    rounds: int

    def __post_init__(self) -> None:
        """Refuses values no accountant could interpret."""
        if not _is_real(self.noise_multiplier) or not 0 <= self.noise_multiplier < math.inf:
            raise ValueError(f"noise_multiplier={self.noise_multiplier!r} must be finite and >= 0")
        if self.sampling not in self.samplings:
            allowed = " or ".join(f'"{name}"' for name in self.samplings)
            raise ValueError(f"sampling={self.sampling!r} must be {allowed}")
        if not _is_real(self.sampling_probability) or not 0 < self.sampling_probability <= 1:
            raise ValueError(
                f"sampling_probability={self.sampling_probability!r} must be in (0, 1]"
            )
        if not _is_integer(self.rounds) or not 0 <= self.rounds <= _LARGEST_ROUNDS:
            raise ValueError(
                f"rounds={self.rounds!r} must be an integer from 0 to {_LARGEST_ROUNDS}"
            )

    def with_rounds(self: _M, rounds: int) -> _M:
        """The same release, another number of times."""
        return replace(self, rounds=rounds)

    def unamplified(self: _M) -> _M:
        """The same releases, counted for somebody who knows every cohort."""
        return replace(self, sampling_probability=1.0)

    def unenforced(self: _M) -> _M:
        """The same releases, counted as if every client were in every round."""
        return self.unamplified()

    def joined(self: _M, later: Mechanism) -> _M | None:
        """This and `later`, released next on the same clients, as one; None if they are two."""
        if later.with_rounds(self.rounds) != self:
            return None
        return self.with_rounds(self.rounds + later.rounds)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `mechanism_from_json` reads them back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"kind": self.kind, "version": _VERSION, **values}


@dataclass(frozen=True)
class GaussianRounds(Mechanism):
    """Releases of a sum of clipped updates plus Gaussian noise.

    The noise multiplier is that of the sum. With noise on devices it is the least
    the sum can carry (see `docs/privacy.md`).
    """

    kind: ClassVar[str] = "gaussian_rounds"
    unit: ClassVar[str] = "user"


@dataclass(frozen=True)
class ExampleGaussianEpochs(Mechanism):
    """Rounds in which each client of the cohort trains `epochs` epochs of DP-SGD.

    Every step adds noise of the noise multiplier to the sum of its clipped
    gradients; in one epoch an example is in exactly one step.

    Attributes:
      epochs: of one client in one round, 1 to 10,000.
    """

    kind: ClassVar[str] = "example_gaussian_epochs"
    unit: ClassVar[str] = "example"

    epochs: int

    def __post_init__(self) -> None:
        """Refuses values no accountant could interpret."""
        super().__post_init__()
        if not _is_integer(self.epochs) or not 1 <= self.epochs <= _LARGEST_EPOCHS:
            raise ValueError(
                f"epochs={self.epochs!r} must be an integer from 1 to {_LARGEST_EPOCHS}"
            )


@dataclass(frozen=True)
class CorrelatedRounds(Mechanism):
    """Consecutive rounds of one run whose noise is correlated; none of it is sampled.

    They cannot be priced one by one: round n is released together with all rounds
    before it. A part of a run that does not begin with its first round
    therefore counts as all of them up to its last. The noise multiplier
    is that of the independent draws the noise is made of.

    Attributes:
      separation: rounds from one participation of a client to its next, at least, >= 1;
        with 1 a client may be in every round.
      first_round: number of the first of these `rounds` in its run, >= 1.
    """

    samplings: ClassVar[tuple[str, ...]] = (MIN_SEPARATION,)
    unit: ClassVar[str] = "user"

    separation: int
    first_round: int

    def __post_init__(self) -> None:
        """Refuses values no accountant could interpret."""
        super().__post_init__()
        for name in ("separation", "first_round"):
            value = getattr(self, name)
            if not _is_integer(value) or not 1 <= value <= _LARGEST_ROUNDS:
                raise ValueError(f"{name}={value!r} must be an integer from 1 to {_LARGEST_ROUNDS}")

    @property
    def last_round(self) -> int:
        """Number of the last of these rounds in its run."""
        return self.first_round + self.rounds - 1

    def unamplified(self: _C) -> _C:
        """As it is: no cohort was assumed to be secret."""
        return self

    def unenforced(self: _C) -> _C:
        """The same releases, counted as if every client were in every round."""
        return replace(self, separation=1)

    def joined(self: _C, later: Mechanism) -> _C | None:
        """This and the rounds of the same run that follow; None for any others."""
        follows = replace(self, first_round=self.last_round + 1, rounds=later.rounds)
        return self.with_rounds(self.rounds + later.rounds) if later == follows else None


@dataclass(frozen=True)
class BandedRounds(CorrelatedRounds):
    """Rounds with the noise of a banded matrix factorisation (`factorisation`).

    Attributes:
      bands: of the factor C, 1 to `separation`, or any number with a separation of 1.
    """

    kind: ClassVar[str] = "banded_rounds"

    bands: int

    def __post_init__(self) -> None:
        """Refuses values no accountant could interpret."""
        super().__post_init__()
        if not _is_integer(self.bands) or not 1 <= self.bands <= _LARGEST_BANDS:
            raise ValueError(f"bands={self.bands!r} must be an integer from 1 to {_LARGEST_BANDS}")
        if 1 < self.separation < self.bands:
            raise ValueError(f"bands={self.bands!r} must be at most separation={self.separation!r}")


@dataclass(frozen=True)
class TreeRounds(CorrelatedRounds):
    """Rounds with the noise of tree aggregation without restarts (`tree`)."""

    kind: ClassVar[str] = "tree_rounds"

    def __post_init__(self) -> None:
        """Refuses values no accountant could interpret."""
        super().__post_init__()
        if self.last_round > MOST_ROUNDS_OF_A_TREE:
            raise ValueError(
                f"rounds={self.rounds!r} from first_round={self.first_round!r} must end with "
                f"round {MOST_ROUNDS_OF_A_TREE}"
            )


_KINDS: dict[str, type[Mechanism]] = {
    cls.kind: cls for cls in (GaussianRounds, ExampleGaussianEpochs, BandedRounds, TreeRounds)
}


def mechanism_from_json(tree: Any) -> Mechanism:
    """The mechanism `to_json` wrote.

    Raises TaskError on an unknown kind, version or key, a missing or malformed
    value, NaN, or a value out of range.
    """
    if not isinstance(tree, Mapping):
        raise TaskError(f"mechanism {tree!r:.80} must be a JSON object")
    kind, version = tree.get("kind"), tree.get("version")
    cls = _KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None or not _is_integer(version) or version != _VERSION:
        raise TaskError(
            f"mechanism kind={kind!r:.80} version={version!r:.80} is not known here; this release "
            f"reads version {_VERSION} of {', '.join(_KINDS)}: update this program"
        )
    names = [field.name for field in fields(cls)]
    if set(tree) != {"kind", "version", *names}:
        raise TaskError(
            f"mechanism keys {sorted(map(str, tree))!r:.200} must be kind, version, "
            f"{', '.join(names)}"
        )
    try:
        return cls(**{name: tree[name] for name in names})
    except (ValueError, OverflowError) as error:
        raise TaskError(f"mechanism: {error}") from None


def mechanism_of_plan(plan: Plan, *, rounds: int, first_round: int = 1) -> Mechanism:
    """What `rounds` rounds of the plan release, from `first_round` on.

    The number of the first one matters for correlated noise alone.

    Users who keep optimizer states under fixed-size sampling are counted as if in every
    round: another user's state tells whether it was drawn, and with that something about
    who else was, so a later round can give away an earlier round's secret cohort. Poisson
    coins are independent of one another (docs/privacy.md, "An optimizer that goes on").

    Raises PlanError while the plan's noise is not calibrated.
    """
    noise_multiplier = float(plan.privacy.calibrated_noise_multiplier)
    sampling, probability = plan.clients.sampling, plan.clients.sampling_probability
    if plan.privacy.unit == ExampleGaussianEpochs.unit:
        epochs = plan.local_training.epochs
        return ExampleGaussianEpochs(noise_multiplier, sampling, probability, rounds, epochs)
    if plan.privacy.is_correlated:
        shared = (noise_multiplier, sampling, probability, rounds)
        separation = plan.clients.separation
        if plan.privacy.mechanism == "tree":
            return TreeRounds(*shared, separation, first_round)
        return BandedRounds(*shared, separation, first_round, plan.bands)
    if plan.local_training.keeps_state and sampling == FIXED:
        probability = 1.0
    return GaussianRounds(noise_multiplier, sampling, probability, rounds)


def require_one_unit(spending: Sequence[Mechanism]) -> None:
    """Raises PlanError when `spending` protects users in a part and examples in another.

    No epsilon of either unit follows for both parts together.
    """
    units = sorted({mechanism.unit for mechanism in spending if mechanism.rounds})
    if len(units) > 1:
        raise PlanError(
            [
                f"what was spent on these clients was counted for the units {' and '.join(units)}; "
                "no epsilon holds for both together: keep privacy.unit as it was before"
            ]
        )


def merge_consecutive(spending: Iterable[Mechanism]) -> tuple[Mechanism, ...]:
    """The same spending with neighbouring releases of one kind as one; empty ones dropped."""
    merged: list[Mechanism] = []
    for mechanism in spending:
        if mechanism.rounds == 0:
            continue
        joined = merged[-1].joined(mechanism) if merged else None
        if joined is None:
            merged.append(mechanism)
        else:
            merged[-1] = joined
    return tuple(merged)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    # A huge integer has no float: JSON allows it, arithmetic would overflow.
    return isinstance(value, float) or (_is_integer(value) and abs(value) <= 2**53)
