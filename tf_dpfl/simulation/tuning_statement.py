"""The best plan of a search, with the section that says how it was found and at what price."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from tf_dpfl.privacy.accounting import ZERO_OUT, accountant_versions
from tf_dpfl.privacy.card_tuning import digest_of_training
from tf_dpfl.privacy.mechanism import mechanism_of_plan
from tf_dpfl.privacy.tuning_cost import SearchCost
from tf_dpfl.protocol.checks import finite_or_none
from tf_dpfl.protocol.plan import Plan
from tf_dpfl.protocol.tuning_section import Tuning
from tf_dpfl.simulation.tuning_plans import Search


def tuning_of(
    search: Search,
    cost: SearchCost | None,
    best: Plan,
    *,
    tries: int,
    samplings: Sequence[str],
    is_seeded: bool,
) -> Tuning:
    """What the best plan says of the search that found it, and of those before it.

    Args:
      search: what was searched; its plan may come out of an earlier search.
      cost: None where the data are public or synthetic.
      best: the plan with the best setting and its noise solved.
      tries: that were made; left out of what is written where the price rests on its secrecy.
      samplings: how users were sampled in the tries, in words.
      is_seeded: whether somebody chose the seed of the search.
    """
    earlier = search.plan.tuning
    found = Tuning(
        how=earlier.how,
        how_data=earlier.how_data if earlier.by_search else earlier.data,
        data=search.data_is,
        method=search.method,
        over="; ".join(key.described() for key in search.keys),
        tries=None if search.keeps_tries_secret else tries,
        mean_tries=search.mean_tries,
        folds=search.folds,
        earlier=_in_words(earlier),
        unit=best.privacy.unit,
    )
    if cost is None:
        return _as_charged_before(found, earlier)
    release = mechanism_of_plan(best, rounds=best.server.rounds)
    charged = replace(
        found,
        seeded=is_seeded,
        delta=best.privacy.delta,
        epsilon=finite_or_none(cost.epsilon),
        adjacency=cost.relation,
        sampling="; or ".join(samplings),
        accountant=f"{cost.method}, {accountant_versions()}",
        epsilon_with_training=finite_or_none(
            math.inf if cost.epsilon_with_training is None else cost.epsilon_with_training
        ),
        trained=digest_of_training([release]),
    )
    return _added(earlier, charged) if earlier.is_charged else charged


def _as_charged_before(found: Tuning, earlier: Tuning) -> Tuning:
    """A search that costs nothing takes over what earlier ones cost."""
    return replace(
        found,
        seeded=earlier.seeded,
        unit=earlier.unit if earlier.is_charged else found.unit,
        delta=earlier.delta,
        epsilon=earlier.epsilon,
        adjacency=earlier.adjacency,
        sampling=earlier.sampling,
        accountant=earlier.accountant,
    )


def _added(earlier: Tuning, later: Tuning) -> Tuning:
    """Both searches together: basic composition, epsilons and deltas add up."""

    def total(epsilon: float | None) -> float | None:
        known = earlier.epsilon is not None and epsilon is not None
        return (earlier.epsilon or 0.0) + (epsilon or 0.0) if known else None

    return replace(
        later,
        seeded=earlier.seeded or later.seeded,
        delta=(earlier.delta or 0.0) + (later.delta or 0.0),
        epsilon=total(later.epsilon),
        epsilon_with_training=total(later.epsilon_with_training),
        adjacency=ZERO_OUT if ZERO_OUT in (earlier.adjacency, later.adjacency) else later.adjacency,
        sampling=f"{later.sampling}; in earlier searches: {earlier.sampling}",
        accountant=f"{later.accountant}, added to that of earlier searches: {earlier.accountant}",
    )


def _in_words(earlier: Tuning) -> str:
    if not earlier.by_search:
        return ""
    said = f"a {earlier.method} search over {earlier.over} on {earlier.data} data"
    return f"{said}; before that: {earlier.earlier}" if earlier.earlier else said
