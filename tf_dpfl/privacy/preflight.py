"""Before a run: can anything be learned under this noise?

The most that T rounds can move the model is T clip norms over the expected cohort, if
all users pull in one direction. The noise that the sum of the rounds ends up with is
known exactly. Their ratio needs no data and spends nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tf_dpfl.privacy.accounting import central_epsilon
from tf_dpfl.privacy.choice import last_error
from tf_dpfl.privacy.mechanism import mechanism_of_plan
from tf_dpfl.protocol.local_privacy import local_epsilon
from tf_dpfl.protocol.local_target import is_least_noise
from tf_dpfl.protocol.plan import Plan

# Below 1 noise outweighs anything that users can say together; from 3 on, real users,
# who do not all pull one way, have been seen to be heard (docs/privacy.md has the table).
DROWNED_BELOW = 1.0
HEARD_FROM = 3.0

# Three digits of this many times a number are not below it.
_ROUNDED_UP = 1.005


@dataclass(frozen=True)
class Preflight:
    """What a plan's noise leaves of its updates, over all rounds.

    Attributes:
      signal_to_noise: L2 norm of the most that all updates can add up to, over that of
        the noise in the sum; infinite without noise.
      warning: what to expect and what to change, in words; empty where nothing is wrong.
    """

    signal_to_noise: float
    warning: str


def preflight(plan: Plan, *, weights: int) -> Preflight | None:
    """The ratio for a model of so many `weights`; None for the unit "example".

    Args:
      plan: with a noise multiplier.
      weights: that are trained, >= 1.
    """
    if plan.privacy.unit != "user":
        return None
    ratio = _signal_to_noise(plan, weights=weights)
    return Preflight(ratio, _warning(plan, ratio) if ratio < HEARD_FROM else "")


def most_weights(plan: Plan, *, signal_to_noise: float) -> int | None:
    """The most weights of a model with at least that ratio; None for the unit "example".

    Args:
      plan: with a noise multiplier > 0.
      signal_to_noise: > 0.
    """
    if plan.privacy.unit != "user":
        return None
    return math.floor((_signal_to_noise(plan, weights=1) / signal_to_noise) ** 2)


def _signal_to_noise(plan: Plan, *, weights: int) -> float:
    noise = last_error(plan) * math.sqrt(weights)
    return plan.server.rounds * plan.clients.clients_per_round / noise if noise else math.inf


def _warning(plan: Plan, ratio: float) -> str:
    privacy, clients = plan.privacy, plan.clients
    missing = HEARD_FROM / ratio
    if ratio < DROWNED_BELOW:
        expect = "the model can not learn: the noise outweighs all that users can say together"
    else:
        expect = "the model will learn little: the noise is nearly as large as what users can say"
    noise = float(f"{privacy.calibrated_noise_multiplier / missing:.3g}")
    quieter = plan.with_noise_multiplier(noise)
    ways = [f"{_change_to(quieter, plan)} (epsilon {_epsilon(quieter):.3g})"]
    cohort = math.ceil(clients.clients_per_round * missing)
    if cohort <= clients.population and not privacy.is_correlated:
        larger = replace(plan, clients=replace(clients, clients_per_round=cohort))
        ways.append(f"clients.clients_per_round={cohort} (epsilon {_epsilon(larger):.3g})")
    else:
        users = math.ceil(clients.population * missing)
        ways.append(f"{users} users instead of {clients.population}, with as many times the cohort")
    ways.append("fewer weights, or more rounds")
    return (
        f"{expect} (signal to noise over all {plan.server.rounds} rounds at most {ratio:.2g}; "
        f"from {HEARD_FROM:g} on models have been seen to learn). What would change it: "
        + "; ".join(ways)
    )


def _change_to(quieter: Plan, plan: Plan) -> str:
    """What to write into `plan` for less noise; its local target must allow that."""
    noise = f"privacy.noise_multiplier={quieter.privacy.noise_multiplier:.3g}"
    asked, given = plan.privacy.target_local_epsilon, local_epsilon(quieter, reports=1)
    if asked is None or given <= asked:
        return noise
    local = f"privacy.target_local_epsilon={given * _ROUNDED_UP:.3g}"
    # In this order: on the command line a local target takes a noise multiplier away.
    return local if is_least_noise(plan) else f"{local} and then {noise}"


def _epsilon(plan: Plan) -> float:
    release = mechanism_of_plan(plan, rounds=plan.server.rounds)
    return central_epsilon([release], delta=plan.privacy.delta)
