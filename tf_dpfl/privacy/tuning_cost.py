"""What a search for settings costs the users that it is run on.

A grid search releases every try: its cost is that of all of them, one after the other.
A random search that releases its best try alone, of a number of tries that was itself
drawn, in secret, from a geometric distribution, costs little more than one try (Papernot &
Steinke 2110.03620, theorem 2); dp_accounting interprets it (`RepeatAndSelectDpEvent`).

With cross-validation a user of a held-out fold is in no training of that fold, and in its
score: a sum over the fold's users of each one's accuracy, in [0, 1], with Gaussian noise.
Adding, removing or replacing one user moves the sum by at most 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dp_accounting import dp_event, rdp

from tf_dpfl.privacy.accounting import ADD_OR_REMOVE, RDP, ZERO_OUT, account, renyi_curves
from tf_dpfl.privacy.accounting_renyi import RenyiCurve
from tf_dpfl.privacy.mechanism import (
    FIXED,
    POISSON,
    ExampleGaussianEpochs,
    GaussianRounds,
    Mechanism,
)

# Of the truncated negative binomial: with 1 it is the geometric distribution.
GEOMETRIC_SHAPE = 1.0

Try = tuple[tuple[Mechanism, ...], ...]
"""What one try releases: for the users of each fold (one, without folds), all of it."""


@dataclass(frozen=True)
class SearchCost:
    """The central epsilons of a search, all at the same delta.

    Attributes:
      epsilon: of what the search may release: of a grid every try, of a random search the
        best try alone. Infinite where a try has no noise.
      epsilon_with_training: the same, and the best plan trained afterwards, or once more, on
        all of these users; None where that was not asked for.
      epsilon_of_all_tries: of a random search, should every try be released; None of a grid.
      relation, method: of `epsilon`, as in `CentralEpsilon`.
    """

    epsilon: float
    epsilon_with_training: float | None
    epsilon_of_all_tries: float | None
    relation: str
    method: str


def release_of_try(trainings: Sequence[Mechanism], *, score_noise: float | None = None) -> Try:
    """What a try releases about each user.

    Args:
      trainings: one for each fold, over the users of all other folds; or one alone, with
        which nobody is held out.
      score_noise: standard deviation, in users, of the noise on each fold's score; None
        where scores say nothing of these users.

    Raises ValueError for folds without noise on their scores, and noise without folds.
    """
    if (len(trainings) > 1) != (score_noise is not None):
        raise ValueError(f"{len(trainings)} trainings do not go with score_noise={score_noise!r}")
    if score_noise is None:
        return (tuple(trainings),)
    score = score_mechanism(trainings[0], score_noise=score_noise)
    return tuple(
        (*trainings[:fold], *trainings[fold + 1 :], score) for fold in range(len(trainings))
    )


def score_mechanism(training: Mechanism, *, score_noise: float) -> Mechanism:
    """One noisy sum of users' accuracies, for the unit of `training`.

    Its sensitivity is 1 for a user, and so at most 1 for one example of a user.
    """
    if training.unit == ExampleGaussianEpochs.unit:
        return ExampleGaussianEpochs(score_noise, POISSON, 1.0, 1, epochs=1)
    # Nobody is sampled. Beside fixed cohorts it is named so, and their bound holds for both.
    sampling = FIXED if training.sampling == FIXED else POISSON
    return GaussianRounds(score_noise, sampling, 1.0, 1)


def grid_cost(
    tries: Sequence[Try], *, delta: float, trained_after: Sequence[Mechanism] = ()
) -> SearchCost:
    """The cost of releasing all of `tries`.

    Args:
      tries: at least one, all of as many folds.
      delta: in (0, 1).
      trained_after: what training the best plan on everybody, after the search, may release:
        one for each plan that may be the best.
    """
    whole = [_all_of(tries, fold) for fold in range(len(tries[0]))]
    costs = [account(spending, delta=delta) for spending in whole]
    worst = max(costs, key=lambda cost: cost.epsilon)
    after = [
        account((*spending, training), delta=delta).epsilon
        for spending in set(whole)
        for training in set(trained_after)
    ]
    return SearchCost(worst.epsilon, max(after, default=None), None, worst.relation, worst.method)


def random_cost(
    possible: Sequence[Try],
    *,
    mean_tries: float,
    delta: float,
    drawn: Sequence[Try] = (),
    trained_after: Sequence[Mechanism] = (),
) -> SearchCost:
    """The cost of a random search that releases its best try alone.

    Args:
      possible: every try that could have been drawn, whether or not it was: which one is
        drawn says nothing of the users, so the most revealing one bounds them all.
      mean_tries: >= 1, of the geometric number of tries.
      delta: in (0, 1).
      drawn: the tries that were made; empty before they are known.
      trained_after: as for `grid_cost`.
    """
    tries = [released for one in possible for released in one]
    bounds = [
        repeated_and_selected(curve, mean_tries=mean_tries)
        for curve in _largest([renyi_curves(released) for released in set(tries)])
    ]
    afterwards = _largest([renyi_curves((training,)) for training in set(trained_after)])
    after = None
    if trained_after:
        sums = [_sum(one, other) for one in bounds for other in afterwards if _fit(one, other)]
        after = min((curve.epsilon(delta) for curve in sums), default=math.inf)
    costs = [(curve.epsilon(delta), f"{curve.method}, repeat and select") for curve in bounds]
    epsilon, method = min(costs, default=(math.inf, "no noise"))
    everything = grid_cost(drawn, delta=delta).epsilon if drawn else None
    relations = {account(one, delta=delta, accountant=RDP).relation for one in set(tries)}
    relation = ADD_OR_REMOVE if relations == {ADD_OR_REMOVE} else ZERO_OUT
    return SearchCost(epsilon, after, everything, relation, method)


def repeated_and_selected(curve: RenyiCurve, *, mean_tries: float) -> RenyiCurve:
    """The best of a geometric number of runs, of which each one has `curve`."""
    accountant = _CurveAccountant(curve.orders)
    event = dp_event.RepeatAndSelectDpEvent(_CurveEvent(curve.values), mean_tries, GEOMETRIC_SHAPE)
    with np.errstate(all="ignore"):  # an order of infinite divergence stays so
        accountant.compose(event)
    values = tuple(float(v) if v >= 0 else math.inf for v in accountant._rdp)
    return RenyiCurve(curve.orders, values, curve.method)


@dataclass(frozen=True)
class _CurveEvent(dp_event.DpEvent):  # type: ignore[misc]
    """Releases of which dp_accounting knows nothing but their Renyi divergences."""

    values: tuple[float, ...]


class _CurveAccountant(rdp.RdpAccountant):  # type: ignore[misc]
    """dp_accounting's Renyi accountant, which takes a `_CurveEvent` at its word.

    Fixed cohorts and the unit "example" have bounds here that it has no event for.
    """

    def _maybe_compose(self, event: Any, count: int, do_compose: bool) -> Any:
        if not isinstance(event, _CurveEvent):
            return super()._maybe_compose(event, count, do_compose)
        if do_compose:
            self._rdp: Any = self._rdp + count * np.asarray(event.values)
        return None


def _all_of(tries: Sequence[Try], fold: int) -> tuple[Mechanism, ...]:
    return tuple(mechanism for one in tries for mechanism in one[fold])


def _largest(bounds: Sequence[tuple[RenyiCurve, ...]]) -> list[RenyiCurve]:
    """For each method that bounds all of them, the largest value at each order."""
    by_method = [{curve.method: curve for curve in curves} for curves in bounds]
    largest = []
    for method in by_method[0] if by_method else ():
        if all(method in curves for curves in by_method):
            same = [curves[method] for curves in by_method]
            values = tuple(map(max, zip(*(curve.values for curve in same))))
            largest.append(RenyiCurve(same[0].orders, values, method))
    return largest


def _fit(one: RenyiCurve, other: RenyiCurve) -> bool:
    return one.method == other.method and one.orders == other.orders


def _sum(one: RenyiCurve, other: RenyiCurve) -> RenyiCurve:
    values = tuple(a + b for a, b in zip(one.values, other.values))
    return RenyiCurve(one.orders, values, one.method)
