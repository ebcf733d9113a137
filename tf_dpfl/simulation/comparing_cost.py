"""What a comparison costs the users that it is run on, in numbers and in words."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from tf_dpfl.privacy.accounting import accountant_versions
from tf_dpfl.privacy.card_words import SEEDED, epsilon_text
from tf_dpfl.privacy.tuning_cost import SearchCost, grid_cost, release_of_try
from tf_dpfl.protocol.checks import finite_or_none
from tf_dpfl.protocol.plan import Plan
from tf_dpfl.simulation.comparing_plans import Comparison, Variant
from tf_dpfl.simulation.tuning_charges import (
    all_rounds,
    nothing_in_words,
    samplings_in_words,
    terms_in_words,
    with_relation_of,
)

NO_GUARANTEE = (
    "{names}: trained without privacy, which guarantees nothing to anybody. Run {them} on public, "
    "synthetic or stand-in data, not on people who are to be protected."
)
COUNTS = (
    "No price covers the counts of each round's reports and of those that were not finite, in "
    "compare.csv and compare.json, nor the seconds, which show how much was computed: keep them "
    "to those who may see the data."
)


@dataclass(frozen=True)
class ComparisonCost:
    """What all trained variants release about the users together.

    `together` is None where nobody has to be protected, or no variant with privacy was run;
    `bare` are the variants without any.
    """

    comparison: Comparison
    together: SearchCost | None
    private: tuple[Variant, ...]
    bare: tuple[Variant, ...]

    @property
    def epsilon(self) -> float:
        """Of everything: 0 where nobody has to be protected, infinite with a bare variant."""
        if not self.comparison.is_private:
            return 0.0
        if self.bare:
            return math.inf
        return self.together.epsilon if self.together else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; an infinite epsilon is null."""
        found: dict[str, Any] = {
            "data": self.comparison.data_is,
            "epsilon": finite_or_none(self.epsilon),
            "without_any_guarantee": [variant.name for variant in self.bare],
        }
        if self.together:
            found |= {
                "epsilon_of_variants_with_privacy": finite_or_none(self.together.epsilon),
                "delta": self.comparison.plan.privacy.delta,
                "unit": self.comparison.plan.privacy.unit,
                "relation": self.together.relation,
                "method": self.together.method,
                "accountant": accountant_versions(),
            }
        return found

    def in_words(self, *, is_seeded: bool) -> list[str]:
        """One sentence or more a line."""
        lines = []
        if self.bare:
            names = " and ".join(variant.name for variant in self.bare)
            them = "them" if len(self.bare) > 1 else "it"
            lines.append(NO_GUARANTEE.format(names=names, them=them))
        if not self.comparison.is_private:
            return [nothing_in_words("comparison", self.comparison.data_is), *lines]
        if is_seeded:
            lines.insert(0, SEEDED + ".")
        if self.together:
            lines += self._price(self.together)
        if self.bare:
            lines.append(
                "On these private data the comparison as a whole has no finite epsilon: keep the "
                "models, curves and figures of the variants without privacy, and this report with "
                "them, to those who may see the data."
            )
        lines.append(
            "Figures are taken on the plan's test split. It is taken as public: nothing is charged "
            "for them, and the people in it are not protected. Not covered: what was learned from "
            "these users before or elsewhere."
        )
        return lines

    def _price(self, together: SearchCost) -> list[str]:
        plans = [variant.plan for variant in self.private if variant.plan]
        privacy = self.comparison.plan.privacy
        epsilon = f"epsilon {epsilon_text(together.epsilon)} at delta {privacy.delta:g}"
        if len(plans) > 1:
            price = (
                f"Every variant is a release about the same users, and epsilons add up: the "
                f"{len(plans)} with privacy cost {epsilon} together ({together.method}). Their "
                "models and accuracies may be published at this price; one alone costs what "
                "its card says."
            )
        else:
            price = (
                f"The variant with privacy costs {epsilon} ({together.method}); its models and "
                "accuracies may be published at this price. Each further variant is one more "
                "release about the same users, and epsilons add up."
            )
        return [
            price,
            COUNTS,
            *terms_in_words(
                plans[0].privacy, relation=together.relation, samplings=samplings_in_words(plans)
            ),
        ]


def cost_of(comparison: Comparison, trained: Collection[str]) -> ComparisonCost:
    """The cost of a comparison that trains the variants of these names."""
    found = [v for v in comparison.variants if v.name in trained]
    private = tuple(variant for variant in found if variant.is_private)
    bare = tuple(variant for variant in found if not variant.is_private)
    plans: list[Plan] = [variant.plan for variant in private if variant.plan]
    together = None
    if comparison.is_private and plans:
        tries = [release_of_try([all_rounds(plan)]) for plan in plans]
        cost = grid_cost(tries, delta=comparison.plan.privacy.delta)
        together = with_relation_of(cost, plans)
    return ComparisonCost(comparison, together, private, bare)
