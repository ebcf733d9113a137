"""Solving target epsilons into the noise that gives them, or into rounds or a cohort."""

from __future__ import annotations

from dataclasses import replace

from tf_dpfl.privacy.accounting import central_epsilon
from tf_dpfl.privacy.choice import candidates, with_least_error
from tf_dpfl.privacy.mechanism import Mechanism, mechanism_of_plan
from tf_dpfl.protocol.errors import PlanError
from tf_dpfl.protocol.local_privacy import local_epsilon
from tf_dpfl.protocol.local_target import least_noise_multiplier
from tf_dpfl.protocol.plan import NOISE_MULTIPLIERS_BELOW, Plan, plan_from_dict, plan_to_dict

# The result's epsilon lies in [_CLOSENESS * target, target].
_CLOSENESS = 0.99
# Outside of these no plan is accepted and the accounting stops being exact.
_SMALLEST_NOISE = 1e-3
_LARGEST_NOISE = 1e5
_MOST_BISECTIONS = 60
# Added to the noise of a local target: devices compute with another rounding than this machine.
_ROUNDING = 1e-9
_MOST_ROUNDS = 1_000_000  # that are solved for: the accounting of more takes minutes


def calibrate_plan(plan: Plan) -> Plan:
    """The plan with `noise_multiplier` in place of `target_epsilon`.

    All `server.rounds` rounds together then have a central epsilon of at most
    the target and at least 0.99 of it, nothing else having been spent on the
    same users. A plan that already has a noise multiplier is returned as is.
    `mechanism = "auto"` becomes the mechanism of the least error (`choice`), with the
    sampling it needs.

    With `target_local_epsilon`, which stays in the plan, one report has at most that local
    epsilon. Both targets are upper bounds: of both, the one that needs more noise decides.

    Raises PlanError when no usable noise gives a target, or one that leaves no room for the
    count of adaptive clipping.
    """
    if plan.privacy.noise_multiplier is not None:
        return plan
    target = plan.privacy.target_epsilon
    if target is not None and plan.privacy.mechanism == "auto":
        possible: list[Plan] = []
        faults: list[str] = []
        for candidate in candidates(plan):
            try:
                possible.append(calibrate_plan(candidate))
            except PlanError as error:
                faults += error.faults
        if not possible:
            raise PlanError(faults)
        return with_least_error(possible, target_epsilon=target)
    noises = []
    if target is not None:
        noises.append(noise_of_central_target(plan, target))
    if plan.privacy.target_local_epsilon is not None:
        noises.append(_noise_of_local_target(plan))
    calibrated = plan.with_noise_multiplier(max(noises))
    _ = calibrated.noise_multiplier_of_updates  # PlanError where a count would need more noise
    return calibrated


def noise_of_central_target(plan: Plan, target_epsilon: float) -> float:
    """The least noise multiplier for a central epsilon of all rounds; raises PlanError."""
    # The noise does not matter here: `calibrated_noise` puts its own in.
    release = mechanism_of_plan(plan.with_noise_multiplier(1.0), rounds=plan.server.rounds)
    return calibrated_noise(release, target_epsilon=target_epsilon, delta=plan.privacy.delta)


def _noise_of_local_target(plan: Plan) -> float:
    """The least noise multiplier for the plan's local target, as a device will compute it."""
    asked = plan.privacy.target_local_epsilon
    noise = least_noise_multiplier(plan) * (1 + _ROUNDING)
    given = local_epsilon(plan.with_noise_multiplier(noise), reports=1)
    if asked is None or noise >= NOISE_MULTIPLIERS_BELOW or not given <= asked:
        raise PlanError(
            [
                f"privacy.target_local_epsilon={asked:g} needs a noise multiplier of {noise:.3g} "
                f"at delta {plan.privacy.delta:g}, which no plan may have or which cannot be "
                "checked; ask for a larger one"
            ]
        )
    return noise


SOLVABLE = {
    "rounds": ("server", "rounds"),
    "cohort": ("clients", "clients_per_round"),
}
"""What `solve_plan` can find besides the noise, and the plan's key for it."""


def solve_plan(plan: Plan, *, target_epsilon: float, what: str) -> Plan:
    """The plan with as many rounds, or as large a cohort, as the target allows.

    The noise stays that of the plan. A larger cohort costs more for it is drawn more
    often; it is what the same noise is divided by.

    Args:
      plan: with a noise multiplier.
      target_epsilon: > 0, for all rounds together.
      what: of `SOLVABLE`.

    Raises PlanError when the plan has no noise multiplier, or even one round, or one
    client a round, would cost more than the target; when what is found contradicts
    another part of the plan.
    """
    if what == "cohort" and plan.privacy.is_correlated:
        raise PlanError(
            [
                f'privacy.mechanism="{plan.privacy.mechanism}": another cohort is another '
                "separation, and another mechanism; solve for the noise or the rounds"
            ]
        )
    section, key = SOLVABLE[what]
    most = plan.clients.population if what == "cohort" else _MOST_ROUNDS
    noise = plan.privacy.calibrated_noise_multiplier

    def epsilon(number: int) -> float:
        changed = _with(plan, section, key, number)
        release = mechanism_of_plan(changed, rounds=changed.server.rounds)
        return central_epsilon([release], delta=plan.privacy.delta)

    if not epsilon(1) <= target_epsilon:
        raise PlanError(
            [
                f"privacy.noise_multiplier={noise:g} is too small for epsilon {target_epsilon:g}: "
                f"{section}.{key}=1 costs {epsilon(1):.4g}; raise it, or solve for the noise"
            ]
        )
    low, high = 1, 2
    while high < most and epsilon(high) <= target_epsilon:
        low, high = high, 2 * high
    if high >= most and epsilon(most) <= target_epsilon:
        low = high = most
    high = min(high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if epsilon(middle) <= target_epsilon else (low, middle)
    # Checked as a whole: a smallest cohort, say, may no longer fit.
    return plan_from_dict(plan_to_dict(_with(plan, section, key, low)))


def _with(plan: Plan, section: str, key: str, value: int) -> Plan:
    return replace(plan, **{section: replace(getattr(plan, section), **{key: value})})


def calibrated_noise(release: Mechanism, *, target_epsilon: float, delta: float) -> float:
    """The least noise multiplier, to 1 % of epsilon, that keeps to the target.

    Args:
      release: the rounds; its own noise multiplier is ignored.
      target_epsilon: > 0.
      delta: in (0, 1).

    Returns:
      a noise multiplier whose `central_epsilon` is in [0.99 * target, target].

    Raises PlanError when there is none between 0.001 and 100000.
    """
    if not target_epsilon > 0:
        raise PlanError([f"privacy.target_epsilon={target_epsilon!r} must be > 0"])

    def epsilon(noise: float) -> float:
        return central_epsilon([replace(release, noise_multiplier=noise)], delta=delta)

    high = 1.0
    while epsilon(high) > target_epsilon:
        high *= 2
        if high > _LARGEST_NOISE:
            raise _impossible(target_epsilon, release, "too small: it needs more noise than any")
    low = high / 2
    while not epsilon(low) > target_epsilon:
        high, low = low, low / 2
        if low < _SMALLEST_NOISE:
            raise _impossible(target_epsilon, release, "too large: it needs next to no noise in")
    for _ in range(_MOST_BISECTIONS):
        reached = epsilon(high)
        if reached >= _CLOSENESS * target_epsilon:
            return high
        middle = (low + high) / 2
        if epsilon(middle) > target_epsilon:
            low = middle
        else:
            high = middle
    raise _impossible(
        target_epsilon, release, "where the accounting is too coarse to be met to 1 % in"
    )


def _impossible(target: float, release: Mechanism, why: str) -> PlanError:
    return PlanError(
        [
            f"privacy.target_epsilon={target:g} is {why} usable plan of {release.rounds} "
            f"{release.sampling} rounds at sampling probability "
            f"{release.sampling_probability:g}; change it, or set privacy.noise_multiplier"
        ]
    )
