"""A comparison as plans: the variants of one plan, and why a variant is none of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tf_dpfl.privacy.accounting import central_epsilon
from tf_dpfl.privacy.calibration import calibrate_plan
from tf_dpfl.privacy.choice import candidates, with_least_error
from tf_dpfl.privacy.mechanism import FIXED, MIN_SEPARATION, POISSON, mechanism_of_plan
from tf_dpfl.protocol.errors import PlanError
from tf_dpfl.protocol.plan import Plan, plan_from_dict, plan_to_dict
from tf_dpfl.simulation.tuning_plans import KINDS_OF_DATA, PRIVATE, fault_of_judging

CENTRAL = "central"
FEDERATED = "federated"
WITHOUT_PRIVACY = (CENTRAL, FEDERATED)

# Scaling an update to a norm that it never has leaves it as it is.
NO_CLIPPING = 1e11

# As many accuracies of a variant as make a curve, at least.
_POINTS_OF_A_CURVE = 20

# A Poisson cohort is so many standard deviations below its mean once in 700 rounds.
_DEVIATIONS = 3


@dataclass(frozen=True)
class Variant:
    """One way to train the task.

    Attributes:
      name: as `--only` takes it.
      title: in words.
      plan: what is simulated, calibrated; of the central variant what it is measured by.
        None where the task cannot be trained so.
      why_not: why there is no plan, or why it is not run; "" for one that is.
    """

    name: str
    title: str
    plan: Plan | None
    why_not: str = ""

    @property
    def is_run(self) -> bool:
        """Whether this comparison trains it."""
        return not self.why_not

    @property
    def is_private(self) -> bool:
        """Whether it gives anybody a guarantee."""
        return self.name not in WITHOUT_PRIVACY


@dataclass(frozen=True)
class Comparison:
    """What is compared, and on whose data; `comparison_of` makes it.

    `target_epsilon` is what every variant with privacy is calibrated to; infinite where the
    plan has no noise.
    """

    plan: Plan
    data_is: str
    target_epsilon: float
    variants: tuple[Variant, ...]

    @property
    def is_private(self) -> bool:
        """Whether the data are of people who are to be protected."""
        return self.data_is == PRIVATE


def comparison_of(plan: Plan, *, data_is: str, only: Sequence[str] = ()) -> Comparison:
    """The variants of a plan, all with the plan's own epsilon where they have one.

    Args:
      plan: as `load_plan` gives it.
      data_is: "public", "synthetic" or "private"; with private data the variants without
        privacy are run only where `only` names them.
      only: names of the variants to run; empty: all that the plan can be.

    Raises PlanError with all faults: an unknown kind of data or name, a named variant that
    the plan cannot be, a loss without an accuracy.
    """
    faults = []
    if data_is not in KINDS_OF_DATA:
        faults.append(f"--data {data_is!r} must be {' or '.join(KINDS_OF_DATA)}")
    unknown = sorted(set(only) - set(NAMES))
    if unknown:
        faults.append(f"--only {' '.join(unknown)}: the variants are {', '.join(NAMES)}")
    judging = fault_of_judging(plan.local_training)
    if judging:
        faults.append(judging)
    if faults:
        raise PlanError(faults)
    target, found = all_variants(plan)
    chosen = tuple(_chosen(variant, data_is, only) for variant in found)
    faults = [f"--only {v.name}: {v.why_not}" for v in chosen if v.name in only and v.plan is None]
    if not faults and not any(variant.is_run for variant in chosen):
        faults = [f"{v.name}: {v.why_not}" for v in chosen]
    if faults:
        raise PlanError(faults)
    return Comparison(plan, data_is, target, chosen)


def _chosen(variant: Variant, data_is: str, only: Sequence[str]) -> Variant:
    """The same, not to be run where it was not asked for."""
    if variant.why_not:
        return variant
    if only and variant.name not in only:
        return replace(variant, why_not="not named by --only")
    if data_is == PRIVATE and not variant.is_private and not only:
        reason = (
            "left out on private data, because it guarantees nothing to anybody; "
            f"to run it all the same name it: --only {variant.name} ..."
        )
        return replace(variant, why_not=reason)
    return variant


def all_variants(plan: Plan) -> tuple[float, list[Variant]]:
    """The epsilon that they have in common, and every variant.

    The epsilon is the plan's `target_epsilon`, else what its noise gives for all rounds; so
    too where the plan asks for a local epsilon, which may need more noise than the target.
    Accuracies are taken often enough for a curve.
    """
    own = calibrate_plan(plan)
    epsilon = plan.privacy.target_epsilon
    if epsilon is None or plan.privacy.target_local_epsilon is not None:
        release = mechanism_of_plan(own, rounds=own.server.rounds)
        epsilon = central_epsilon([release], delta=own.privacy.delta)
    # Of "auto" the noise is taken, not the sampling that goes with its choice.
    often = min(own.simulation.evaluate_every, -(-own.server.rounds // _POINTS_OF_A_CURVE))
    base = replace(
        own,
        simulation=replace(own.simulation, evaluate_every=often),
        clients=replace(own.clients, sampling=plan.clients.sampling),
        privacy=replace(own.privacy, chosen_because="", target_local_epsilon=None),
    )
    ways, variants = _Ways(base, own, epsilon), []
    for name, (title, build) in _VARIANTS.items():
        try:
            variants.append(Variant(name, title, build(ways)))
        except PlanError as error:
            reason = "; ".join(fault.removeprefix("plan: ") for fault in error.faults)
            variants.append(Variant(name, title, None, reason))
    return epsilon, variants


@dataclass(frozen=True)
class _Ways:
    """The plans that a plan can become.

    `base` is what every one begins from, `own` the calibrated plan, `epsilon` that of all
    variants with privacy.
    """

    base: Plan
    own: Plan
    epsilon: float

    def without_privacy(self) -> Plan:
        """Nothing clipped and no noise, users drawn as in the plan."""
        apart = self.base.clients.sampling == MIN_SEPARATION
        return _checked(
            self.base,
            sampling=self.base.clients.sampling,
            unit="user",
            noise="server",
            # Independent noise, of which there is none, in the words that go with the sampling.
            mechanism="banded" if apart else "gaussian",
            bands=1 if apart else None,
            noise_multiplier=0.0,
            clip_norm=NO_CLIPPING,
            clipping="global",
            adaptive_clipping=False,
        )

    def gaussian(self, noise: str) -> Plan:
        """Independent noise of the devices or the server."""
        sampling = _independent_sampling(self.base)
        found = self._at_epsilon(
            _checked(self.base, sampling=sampling, noise=noise, mechanism="gaussian", bands=None)
        )
        asked = self.own.privacy.target_local_epsilon if noise == "device" else None
        return replace(found, privacy=replace(found.privacy, target_local_epsilon=asked))

    def tree(self) -> Plan:
        """Tree aggregation on the server."""
        return self._at_epsilon(self._correlated("tree", None))

    def banded(self) -> Plan:
        """A banded factorisation, with the plan's own bands or those of the least error."""
        privacy = self.base.privacy
        if privacy.mechanism == "banded" and privacy.bands is not None:
            return self._at_epsilon(self._correlated("banded", privacy.bands))
        possible = candidates(self._correlated("banded", None))
        solved = [self._at_epsilon(c) for c in possible if c.privacy.mechanism == "banded"]
        if not solved:
            raise PlanError(
                [
                    f"server.rounds={self.base.server.rounds} are too many to find the best number "
                    'of bands; set privacy.mechanism = "banded" and privacy.bands'
                ]
            )
        return with_least_error(solved, target_epsilon=self.epsilon)

    def _correlated(self, mechanism: str, bands: int | None) -> Plan:
        return _checked(
            self.base, sampling=MIN_SEPARATION, noise="server", mechanism=mechanism, bands=bands
        )

    def _at_epsilon(self, plan: Plan) -> Plan:
        """`plan` with the noise for the epsilon; the plan's own where they release the same."""
        if not math.isfinite(self.epsilon):
            raise PlanError(
                [
                    "the plan has no noise (privacy.noise_multiplier=0), so there is no epsilon to "
                    "compare at; set privacy.target_epsilon"
                ]
            )
        rounds = plan.server.rounds
        if mechanism_of_plan(plan, rounds=rounds) == mechanism_of_plan(self.own, rounds=rounds):
            return plan
        privacy = replace(plan.privacy, noise_multiplier=None, target_epsilon=self.epsilon)
        return calibrate_plan(replace(plan, privacy=privacy))


def _independent_sampling(plan: Plan) -> str:
    """The plan's own; in place of a separation, coins, or as many users in every round.

    Independent noise profits from coins. Where the smallest cohort leaves them no room,
    rounds would fail, and the cohort stays what it is.
    """
    clients = plan.clients
    if clients.sampling != MIN_SEPARATION:
        return clients.sampling
    spread = math.sqrt(clients.clients_per_round * (1 - clients.sampling_probability))
    lowest = clients.clients_per_round - _DEVIATIONS * spread
    return POISSON if plan.privacy.smallest_cohort <= lowest else FIXED


def _checked(plan: Plan, *, sampling: str, **privacy: Any) -> Plan:
    """`plan` with other values of [privacy]; PlanError where they contradict others."""
    changed = replace(
        plan,
        clients=replace(plan.clients, sampling=sampling),
        privacy=replace(plan.privacy, **privacy),
    )
    return plan_from_dict(plan_to_dict(changed))


_VARIANTS: dict[str, tuple[str, Callable[[_Ways], Plan]]] = {
    CENTRAL: ("all records in one place, no privacy", _Ways.without_privacy),
    FEDERATED: ("no clipping and no noise", _Ways.without_privacy),
    "device-gaussian": ("noise on the devices", lambda w: w.gaussian("device")),
    "server-gaussian": (
        "independent noise on the server",
        lambda w: w.gaussian("server"),
    ),
    "server-tree": ("tree aggregation on the server", _Ways.tree),
    "server-banded": ("banded factorisation on the server", _Ways.banded),
}
NAMES = tuple(_VARIANTS)
