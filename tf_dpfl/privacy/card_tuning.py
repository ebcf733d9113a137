"""What the privacy card says of how the settings were chosen, and what that cost."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tf_dpfl.privacy.accounting import ZERO_OUT
from tf_dpfl.privacy.card_words import SEEDED, TUNING, TUNING_BESIDE, epsilon_text, words_of
from tf_dpfl.privacy.mechanism import Mechanism
from tf_dpfl.protocol.checks import finite_or_none
from tf_dpfl.protocol.plan import Plan
from tf_dpfl.protocol.tuning_section import Tuning

_DIGEST_LETTERS = 32


def digest_of_training(spending: Sequence[Mechanism]) -> str:
    """Names what a training releases: equal for equal mechanisms, 32 hex digits."""
    content = json.dumps([mechanism.to_json() for mechanism in spending], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:_DIGEST_LETTERS]


@dataclass(frozen=True)
class TuningStatement:
    """The card's section on tuning, of one plan and what its training releases.

    Attributes:
      plan: as on the card.
      planned: everything released about the users when all rounds are done, other than by
        searching.
      epsilon_planned: central epsilon of `planned`, at the plan's delta.
      relation: neighbouring relation of `epsilon_planned`.
    """

    plan: Plan
    planned: tuple[Mechanism, ...]
    epsilon_planned: float
    relation: str

    @property
    def _tuning(self) -> Tuning:
        return self.plan.tuning

    @property
    def epsilon(self) -> float:
        """Of all searches on private data that led to the plan; 0 without any."""
        if not self._tuning.is_charged:
            return 0.0
        return math.inf if self._tuning.epsilon is None else self._tuning.epsilon

    @property
    def total(self) -> tuple[float, float] | None:
        """(epsilon, delta) of the searches and of this card's training, on the same users.

        As `dpfl tune` composed it, if this is the training it was composed with; else the sum
        of both (basic composition). None where the two protect different units.
        """
        tuning, delta = self._tuning, self.plan.privacy.delta
        if tuning.delta is None:
            return self.epsilon_planned, delta
        if tuning.unit != self.plan.privacy.unit:
            return None
        composed = tuning.epsilon_with_training
        if composed is not None and digest_of_training(self.planned) == tuning.trained:
            return composed, tuning.delta
        return self.epsilon + self.epsilon_planned, min(1.0, tuning.delta + delta)

    @property
    def not_covered(self) -> list[str]:
        """What no number covers of how the settings were chosen."""
        tuning = self._tuning
        if tuning.how and not tuning.says_how_for_nothing:
            return [f"{TUNING}; the plan says of it: {tuning.how}"]
        return [TUNING_BESIDE if tuning.how or tuning.by_search else TUNING]

    def in_words(self) -> str:
        """How the settings were chosen, without any epsilon."""
        tuning = self._tuning
        on = f"on {tuning.data} data, as was said to it"
        if tuning.by_search:
            judged = f"{tuning.folds} folds of users" if tuning.folds else "the test split"
            cost = "its cost is stated below"
            if tuning.needs_no_cost:
                cost = "it costs these users none"
                if tuning.is_charged:
                    cost += ", and what came before it costs what is stated below"
            said = f"{self._tries()} over {tuning.over}, judged on {judged}, {on}: {cost}"
            earlier = f"; before that: {tuning.earlier}" if tuning.earlier else ""
            own = f". The plan's author says besides: {self._how()}" if tuning.how else ""
            return f"chosen by dpfl tune, {said}{earlier}{own}"
        if tuning.how:
            return f"chosen as the plan's author says: {self._how()}"
        return (
            "how they were chosen is not stated ([tuning] in the plan would say it), and no number "
            "of this card covers trying them on users"
        )

    def _how(self) -> str:
        """The author's own words, and whether a number covers them."""
        tuning = self._tuning
        if not tuning.says_how_for_nothing:
            return f"{tuning.how}; no number of this card covers that"
        data = tuning.how_data if tuning.by_search else tuning.data
        return f"{tuning.how}; on {data} data, as it says: that costs these users nothing"

    def _published(self) -> str:
        """What the price covers."""
        grid, random = "all of its tries", "its best try alone"
        if self._tuning.earlier:
            return (
                f"what the searches for the settings published: of a grid search {grid}, of a "
                f"random search {random}"
            )
        published = grid if self._tuning.method == "grid" else random
        return f"what the search for the settings published: {published}"

    def _tries(self) -> str:
        tuning = self._tuning
        if tuning.method == "grid":
            return f"a grid search of {tuning.tries} tries"
        number = f"a secret number of tries, {tuning.mean_tries:g} in the mean"
        if tuning.tries is not None:
            number = f"{tuning.tries} tries"
        return f"a random search of {number},"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `cost` is null where no search on private data led to the plan."""
        tuning = self._tuning
        source = "dpfl tune" if tuning.by_search else "the plan's author" if tuning.how else None
        return {
            "stated_by": source,
            "how": self.in_words(),
            "data": tuning.data,
            "method": tuning.method,
            "over": tuning.over,
            "tries": tuning.tries,
            "mean_tries": tuning.mean_tries,
            "folds": tuning.folds,
            "earlier": tuning.earlier,
            "is_seeded": tuning.seeded,
            "cost": self._cost() if tuning.is_charged else None,
        }

    def _cost(self) -> dict[str, Any]:
        tuning, total = self._tuning, self.total
        relation = ZERO_OUT if ZERO_OUT in (tuning.adjacency, self.relation) else tuning.adjacency
        words = words_of(replace(self.plan.privacy, unit=tuning.unit))
        return {
            "against": f"whoever sees {self._published()}, and this plan",
            "epsilon": finite_or_none(self.epsilon),
            "epsilon_text": epsilon_text(self.epsilon),
            "epsilon_with_this_training": None if total is None else finite_or_none(total[0]),
            "epsilon_with_this_training_text": "none" if total is None else epsilon_text(total[0]),
            "delta_with_this_training": None if total is None else total[1],
            "delta": tuning.delta,
            "unit": words.unit,
            "adjacency": words.relations.get(relation, relation),
            "sampling": tuning.sampling,
            "accountant": tuning.accountant,
        }

    def paragraphs(self) -> list[str]:
        """Lines of the card's text, a blank one between paragraphs."""
        lines = [f"Settings: {self.in_words()}"]
        if not self._tuning.is_charged:
            return lines
        cost = self._cost()
        if self.total is None:
            total = "counted for another unit than this training, so nothing holds for both"
        else:
            total = (
                f"{cost['epsilon_with_this_training_text']} at delta "
                f"{cost['delta_with_this_training']:g} with all rounds of this training after it "
                "on the same users (a training that is itself the search's best try is in the "
                "first number)"
            )
        return [
            *lines,
            "",
            f"Against {cost['against']}:",
            *([f"  ! {SEEDED}"] if self._tuning.seeded else []),
            f"  epsilon {cost['epsilon_text']} at delta {cost['delta']:g} for "
            f"{'all searches' if self._tuning.earlier else 'the search'}; {total}",
            *(f"  {key}: {cost[key]}" for key in ("unit", "adjacency", "sampling", "accountant")),
        ]
