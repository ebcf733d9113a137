"""Rounds: what one is, who is in it, and when it closes. Pure functions over frozen states."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from server.admission import is_poisson_invited
from tf_dpfl.protocol.errors import StateError
from tf_dpfl.protocol.plan import Plan

# A round's states, in the order they are passed through. `charged`: the ledger
# row is written, no model is. `computed`: the next model is in a blob, nothing
# is published. Then `released`; or, from open, `aborted`.
OPEN, CHARGED, COMPUTED = "open", "charged", "computed"
RELEASED, ABORTED = "released", "aborted"
UNFINISHED = (OPEN, CHARGED, COMPUTED)


@dataclass(frozen=True)
class Policy:
    """The operator's choices, checked against the plan by `check_policy`.

    `round_deadline_s` is from a round's opening; `start_when` is the number of
    enrolled devices from which rounds are opened.
    """

    start_when: int
    reports_per_round: int | None = None
    round_deadline_s: float = 600.0
    max_epsilon: float | None = None


@dataclass(frozen=True)
class Round:
    """One attempt at a round, over the model after `model_version` released rounds.

    `drawn` holds the devices of a draw of fixed size, and is None under Poisson
    sampling, where `secret` decides. `reports_per_round` is the operator's choice
    when the round was opened: it decides what the round costs, so that a restart
    with another choice must not change it.
    """

    number: int
    model_version: int
    state: str
    secret: bytes
    drawn: frozenset[str] | None
    opened_at_s: float
    deadline_s: float
    reports_per_round: int | None = None


def default_start_when(plan: Plan) -> int:
    """Enrolled devices from which a round has a fair chance of enough reports.

    Poisson: so many that the smallest cohort is invited on average. Fixed: the
    whole population, for a draw from fewer devices has a larger sampling
    probability than the plan's, which is the one that is accounted. Minimum
    separation: the whole population, so that enough of it may take part again.
    """
    clients = plan.clients
    if clients.sampling != "poisson":
        return clients.population
    needed = math.ceil(plan.privacy.smallest_cohort / clients.sampling_probability)
    return min(needed, clients.population)


def check_policy(policy: Policy, plan: Plan) -> Policy:
    """Raises StateError where the operator's choices cannot work with the plan."""
    clients, smallest = plan.clients, plan.privacy.smallest_cohort
    if not smallest <= policy.start_when <= clients.population:
        raise StateError(
            f"--start-when {policy.start_when} must be from {smallest} (smallest_cohort) to "
            f"{clients.population} (population)"
        )
    if clients.sampling == "fixed" and policy.start_when != clients.population:
        raise StateError(
            f"--start-when {policy.start_when} must be {clients.population}: fixed sampling is "
            "accounted as a draw from the whole population, so all of it must be enrolled"
        )
    if clients.sampling == "min_separation" and policy.start_when != clients.population:
        raise StateError(
            f"--start-when {policy.start_when} must be {clients.population}: of fewer devices not "
            "enough would be left while the others wait for their next round"
        )
    reports = policy.reports_per_round
    if reports is not None and plan.privacy.is_correlated:
        raise StateError(
            f"--reports-per-round {reports} must be left out with privacy.mechanism="
            f'"{plan.privacy.mechanism}": its accounting does not cover a report that displaces '
            "another"
        )
    most = clients.clients_per_round if clients.sampling == "fixed" else clients.population
    if reports is not None and not smallest <= reports <= most:
        raise StateError(
            f"--reports-per-round {reports} must be from {smallest} (smallest_cohort) to {most}"
        )
    return policy


def is_invited(round_: Round, device_id: str, plan: Plan) -> bool:
    """Whether the device was drawn for this round."""
    if round_.drawn is not None:
        return device_id in round_.drawn
    return is_poisson_invited(
        device_id,
        secret=round_.secret,
        clients_per_round=plan.clients.clients_per_round,
        population=plan.clients.population,
    )


@dataclass(frozen=True)
class Verdict:
    """What to do with an open round: nothing, close it, or abort it."""

    action: str  # "wait", "close", "abort"
    reason: str = ""


def judge(
    *,
    invited: Collection[str],
    reported: Collection[str],
    smallest_cohort: int,
    reports_per_round: int | None,
    deadline_passed: bool,
) -> Verdict:
    """Whether an open round closes now.

    Args:
      invited: the enrolled devices drawn for the round.
      reported: the devices whose update was accepted.
    """
    count = len(reported)
    if len(invited) < smallest_cohort:
        # Nobody should train and spend local epsilon on a round that cannot be released.
        return Verdict("abort", f"{len(invited)} invited, {smallest_cohort} reports needed")
    everyone = count >= len(invited)
    full = reports_per_round is not None and count >= reports_per_round
    if everyone or full:
        return Verdict("close", "target")
    if not deadline_passed:
        return Verdict("wait")
    if count >= smallest_cohort:
        return Verdict("close", "deadline")
    return Verdict("abort", f"{count} reports at the deadline, {smallest_cohort} needed")


def lets_one_displace_another(
    *, invited: int, reported: int, reports_per_round: int | None
) -> bool:
    """Whether the round was closed by the operator's count with invited devices left over.

    Then a report takes the place of another: one person changes the sum by up
    to twice the clipping norm, and the round is charged so.
    """
    return reports_per_round is not None and reported >= reports_per_round and invited > reported
