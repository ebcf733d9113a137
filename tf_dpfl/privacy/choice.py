"""Which mechanism disturbs the training least: candidates of a plan, and their errors.

What is compared is the noise in the server's models: the sums of all averages so far,
or with momentum their running means, which noise that changes its sign leaves sooner.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tf_dpfl.privacy.factorisation import banded_last_error, banded_prefix_error
from tf_dpfl.privacy.mechanism import MIN_SEPARATION
from tf_dpfl.privacy.tree import tree_last_error, tree_prefix_error
from tf_dpfl.protocol.contradictions import MOST_ROUNDS_OF_A_TREE
from tf_dpfl.protocol.plan import Plan

# Beyond so many rounds the factorisation's error takes longer than it is worth: bands
# times rounds of products.
_MOST_ROUNDS_OF_BANDS = 100_000


def candidates(plan: Plan) -> Iterator[Plan]:
    """Every plan that `mechanism = "auto"` may become, with the sampling each one needs.

    Independent noise with the plan's own sampling, unless that is "min_separation";
    the tree; and bands of every power of two up to the separation, and of all of it.
    """
    rounds, separation = plan.server.rounds, plan.clients.separation
    if plan.clients.sampling != MIN_SEPARATION:
        yield _with(plan, mechanism="gaussian", sampling=plan.clients.sampling)
    if rounds <= MOST_ROUNDS_OF_A_TREE:
        yield _with(plan, mechanism="tree", sampling=MIN_SEPARATION)
    if rounds <= _MOST_ROUNDS_OF_BANDS:
        most = min(separation, rounds)
        for bands in sorted({*(2**i for i in range(most.bit_length())), most}):
            yield _with(plan, mechanism="banded", sampling=MIN_SEPARATION, bands=bands)


def _with(plan: Plan, *, mechanism: str, sampling: str, bands: int | None = None) -> Plan:
    return replace(
        plan,
        clients=replace(plan.clients, sampling=sampling),
        privacy=replace(plan.privacy, mechanism=mechanism, bands=bands),
    )


def model_error(plan: Plan) -> float:
    """Root mean square deviation of the noise in the models of rounds 1 to the last.

    Per weight, on the sum of updates, in clip norms and up to the server's rate; for a plan
    with a noise multiplier. Adam counts as momentum by its `beta_1`.
    """
    server = plan.server
    smoothing = {"sgd": 0.0, "momentum": server.momentum, "adam": server.beta_1}
    momentum = smoothing[server.optimizer]
    if plan.privacy.mechanism == "tree":
        error = tree_prefix_error(rounds=server.rounds, momentum=momentum)
    else:  # independent noise has one band
        bands = plan.bands if plan.privacy.mechanism == "banded" else 1
        error = banded_prefix_error(bands=bands, rounds=server.rounds, momentum=momentum)
    return plan.privacy.calibrated_noise_multiplier * error


def last_error(plan: Plan) -> float:
    """Deviation of the noise in the sum over all rounds; otherwise as `model_error`.

    Of the updates alone, where adaptive clipping releases a count too.
    """
    rounds = plan.server.rounds
    if plan.privacy.mechanism == "tree":
        error = tree_last_error(rounds=rounds)
    elif plan.privacy.mechanism == "banded":
        error = banded_last_error(bands=plan.bands, rounds=rounds)
    else:
        error = math.sqrt(rounds)
    return plan.noise_multiplier_of_updates * error


def with_least_error(calibrated: Sequence[Plan], *, target_epsilon: float) -> Plan:
    """The plan of the least model error, and its `chosen_because`.

    Args:
      calibrated: candidates, each with the noise that gives `target_epsilon`; one at least.
      target_epsilon: for the words alone.
    """
    ranked = sorted(calibrated, key=model_error)
    best = ranked[0]
    errors = ", ".join(f"{_name(plan)} {model_error(plan):.4g}" for plan in _best_of_each(ranked))
    clients = best.clients
    reason = (
        f"least noise in the models of all rounds, in clip norms: {errors}; at epsilon "
        f"{target_epsilon:g}, delta {best.privacy.delta:g}, {best.server.rounds} rounds, "
        f"{clients.clients_per_round} of {clients.population} users a round"
    )
    return replace(best, privacy=replace(best.privacy, chosen_because=reason))


def _best_of_each(ranked: Sequence[Plan]) -> Iterator[Plan]:
    seen = set()
    for plan in ranked:
        if plan.privacy.mechanism not in seen:
            seen.add(plan.privacy.mechanism)
            yield plan


def _name(plan: Plan) -> str:
    if plan.privacy.mechanism == "gaussian":
        return f"gaussian ({plan.clients.sampling} sampling)"
    if plan.privacy.mechanism == "banded":
        return f"banded ({plan.bands} bands)"
    return plan.privacy.mechanism
