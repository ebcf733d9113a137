"""From a search's plans to what it costs, in numbers and in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tf_dpfl.privacy.accounting import ZERO_OUT, accountant_versions
from tf_dpfl.privacy.calibration import calibrate_plan
from tf_dpfl.privacy.card_words import SEEDED, epsilon_text, words_of
from tf_dpfl.privacy.mechanism import Mechanism, mechanism_of_plan
from tf_dpfl.privacy.tuning_cost import (
    SearchCost,
    Try,
    grid_cost,
    random_cost,
    release_of_try,
)
from tf_dpfl.protocol.checks import finite_or_none
from tf_dpfl.protocol.errors import PlanError
from tf_dpfl.protocol.plan import Plan, Privacy
from tf_dpfl.protocol.tuning_section import UNSTATED
from tf_dpfl.simulation.tuning_keys import Setting, corners, grid
from tf_dpfl.simulation.tuning_plans import GRID, RANDOM, Search

_NOTHING = (
    "This {what} costs no privacy: its data are {data_is}, so you said, and nobody is in them who "
    "is to be protected. Training a plan of it on private users costs what that plan's own "
    "privacy card says, and nothing more for the {what}."
)


class Calibration:
    """Solves plans' target epsilons, each kind of training once."""

    def __init__(self) -> None:
        self._known: dict[Plan, Plan] = {}

    def __call__(self, plan: Plan) -> Plan:
        """`plan` with its noise. Raises PlanError as `calibrate_plan`."""
        if plan.privacy.noise_multiplier is not None:
            return plan
        # What has no part in the noise is left out: a search varies little else.
        local = replace(plan.local_training, learning_rate=1.0, batch_size=1, proximal=0.0)
        server = replace(plan.server, learning_rate=1.0)
        privacy = replace(plan.privacy, clip_norm=1.0)
        kind = replace(plan, local_training=local, server=server, privacy=privacy, tuning=UNSTATED)
        if kind not in self._known:
            self._known[kind] = calibrate_plan(kind)
        solved = self._known[kind]
        privacy = replace(solved.privacy, clip_norm=plan.privacy.clip_norm)
        return replace(plan, clients=solved.clients, privacy=privacy)


class Charges:
    """What the tries of one private search release about its users."""

    def __init__(self, search: Search, calibrated: Calibration):
        self._search = search
        self._calibrated = calibrated

    def cost(self, settings: Sequence[Setting]) -> SearchCost:
        """The cost of a search that makes tries of `settings`.

        Raises PlanError for a random search over a range of something that changes the
        cost of a try: no single number bounds what could be drawn.
        """
        search, delta = self._search, self._search.plan.privacy.delta
        tries = [self._try_of(setting) for setting in settings]
        if search.method == GRID:
            cost = grid_cost(tries, delta=delta, trained_after=self._trained_after())
        else:
            self._require_listed_costs()
            cost = random_cost(
                [self._try_of(setting) for setting in self._possible],
                mean_tries=search.mean_tries or 1.0,
                delta=delta,
                drawn=tries,
                trained_after=self._trained_after(),
            )
        return with_relation_of(cost, self._plans())

    def samplings(self) -> list[str]:
        """How users are sampled in the tries, each way in words once."""
        return samplings_in_words(self._plans())

    @property
    def _possible(self) -> list[Setting]:
        """Settings that cost as much as any other that may be tried."""
        keys = self._search.keys
        return grid(keys) if self._search.method == GRID else corners(keys)

    def _plans(self) -> list[Plan]:
        return [self._plan_of(setting) for setting in self._possible]

    def _plan_of(self, setting: Setting) -> Plan:
        return self._calibrated(self._search.plan_of(setting))

    def _try_of(self, setting: Setting) -> Try:
        plan = self._plan_of(setting)
        trainings = [all_rounds(training) for training in self._search.trainings(plan)]
        return release_of_try(trainings, score_noise=self._search.score_noise)

    def _trained_after(self) -> list[Mechanism]:
        return [all_rounds(plan) for plan in self._plans()]

    def _require_listed_costs(self) -> None:
        """Every drawn value of a range must cost the same as its ends."""
        ranges = [key for key in self._search.keys if key.ends]
        faults = []
        for key in ranges:
            by_rest: dict[tuple[tuple[str, Any], ...], set[Try]] = {}
            for setting in self._possible:
                rest = tuple((n, v) for n, v in setting.items() if n != key.name)
                by_rest.setdefault(rest, set()).add(self._try_of(setting))
            if any(len(costs) > 1 for costs in by_rest.values()):
                faults.append(
                    f"--over {key.described()}: a random search on private data does not draw "
                    "from a range of what changes the cost of a try; list the values: a,b,c"
                )
        if faults:
            raise PlanError(faults)


def all_rounds(plan: Plan) -> Mechanism:
    """What all rounds of a plan release."""
    return mechanism_of_plan(plan, rounds=plan.server.rounds)


def with_relation_of(cost: SearchCost, plans: Sequence[Plan]) -> SearchCost:
    """The same under zero-out where devices add noise, as on a privacy card.

    A device that stays away takes its noise along.
    """
    if any(plan.privacy.noise == "device" for plan in plans):
        return replace(cost, relation=ZERO_OUT)
    return cost


def samplings_in_words(plans: Sequence[Plan]) -> list[str]:
    """How users are sampled in these plans, each way once."""
    texts = []
    for plan in plans:
        clients = plan.clients
        text = words_of(plan.privacy).sampling[clients.sampling]
        separation = clients.separation - 1
        texts.append(text.format(q=clients.sampling_probability, separation_less_one=separation))
    return list(dict.fromkeys(texts))


def nothing_in_words(what: str, data_is: str) -> str:
    """That a search or a comparison on public or synthetic data costs nothing."""
    return _NOTHING.format(what=what, data_is=data_is)


def terms_in_words(privacy: Privacy, *, relation: str, samplings: Sequence[str]) -> list[str]:
    """The unit, the neighbouring relation and the sampling that an epsilon stands on."""
    words = words_of(privacy)
    return [
        f"Unit: {words.unit}. Adjacency: {words.relations[relation]}.",
        f"Sampling in training, done by this simulation: {'; or '.join(samplings)}.",
    ]


def cost_json(search: Search, cost: SearchCost | None) -> dict[str, Any]:
    """Plain JSON values; None for `cost` where the data are public, epsilon null if infinite."""
    if cost is None:
        return {"data": search.data_is, "epsilon": 0.0}
    return {
        "data": search.data_is,
        "delta": search.plan.privacy.delta,
        "unit": search.plan.privacy.unit,
        "relation": cost.relation,
        "epsilon": finite_or_none(cost.epsilon),
        "epsilon_with_training_of_best": _finite(cost.epsilon_with_training),
        "epsilon_if_all_tries_are_published": _finite(cost.epsilon_of_all_tries),
        "method": cost.method,
        "accountant": accountant_versions(),
    }


def cost_in_words(
    search: Search,
    cost: SearchCost | None,
    *,
    tries: int,
    samplings: Sequence[str] = (),
    is_seeded: bool = False,
) -> list[str]:
    """What the search costs and what that covers, one sentence or more a line."""
    if cost is None:
        return [nothing_in_words("search", search.data_is)]
    lines = [SEEDED + "."] if is_seeded else []
    if search.method == RANDOM:
        lines += _random_words(search, cost, tries)
    else:
        lines.append(
            f"This search costs epsilon {epsilon_text(cost.epsilon)} {_at(search)}: all {tries} "
            f"tries together ({cost.method}). Their models, scores and this table may be "
            "published at this price."
        )
    lines += terms_in_words(search.plan.privacy, relation=cost.relation, samplings=samplings)
    if search.folds:
        lines.append(
            f"Scores are the sum over a fold's users of each one's accuracy, with Gaussian noise "
            f"of {search.score_noise:g} users (standard deviation); that is in the number. "
            f"Training the best plan on all users afterwards makes it epsilon "
            f"{epsilon_text(cost.epsilon_with_training)} in all."
        )
    else:
        lines.append(
            "Scores are taken on the plan's test split. It is taken as public: nothing is "
            "charged for them, and the people in it are not protected. The best try is a "
            "finished training: its model costs nothing more. Training its plan once more on the "
            f"same users makes it epsilon {epsilon_text(cost.epsilon_with_training)} in all."
        )
    lines.append(
        "Not covered: what was learned from these users before, other searches on them among it, "
        "and a search that was ended early, or begun again, because of what it showed."
    )
    return lines


def _random_words(search: Search, cost: SearchCost, tries: int) -> list[str]:
    everything = epsilon_text(cost.epsilon_of_all_tries)
    return [
        f"This search costs epsilon {epsilon_text(cost.epsilon)} {_at(search)}, if its best try "
        "alone is published: settings, score and models. The number of tries was drawn from a "
        f"geometric distribution of mean {search.mean_tries:g} and stays secret, as do the other "
        f"tries: keep this table and the folder ({cost.method}; Papernot & Steinke, 2110.03620).",
        f"If they are published too, it is epsilon {everything}: all {tries} tries together.",
    ]


def _at(search: Search) -> str:
    return f"at delta {search.plan.privacy.delta:g}"


def _finite(epsilon: float | None) -> float | None:
    return None if epsilon is None else finite_or_none(epsilon)
