"""The budget: what a round costs, whether it may be spent, and the card about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tf_dpfl.privacy.card import PrivacyCard, privacy_card
from tf_dpfl.privacy.ledger import Ledger
from tf_dpfl.privacy.mechanism import GaussianRounds, mechanism_from_json, mechanism_of_plan
from tf_dpfl.protocol.manifest import Manifest

# The claim in a manifest is the same sum over the same rounds, computed by the
# exporter: only rounding may lie between the two.
_CLAIM_TOLERANCE = 1e-6

_ENFORCED = {
    "poisson": (
        "this server: a fresh secret of the operating system for each round decides every "
        "device's invitation by itself, and updates of devices not invited are refused"
    ),
    "fixed": (
        "this server: exactly clients_per_round devices are drawn from the whole enrolled "
        "population by the operating system's generator, and updates of others are refused"
    ),
}


class Budget:
    """Prices rounds of one task. It holds no spending: the store's ledger does.

    The limit is the smaller of the operator's `max_epsilon` and the manifest's
    claim, under which devices agreed to take part.
    """

    def __init__(self, manifest: Manifest, *, max_epsilon: float | None):
        self._plan = manifest.plan
        self._prior = tuple(mechanism_from_json(entry) for entry in manifest.prior_spending)
        limits = [] if max_epsilon is None else [max_epsilon]
        if manifest.central_epsilon is not None:
            limits.append(manifest.central_epsilon * (1 + _CLAIM_TOLERANCE))
        self._limit = min(limits) if limits else None

    def round_cost(self, *, lets_one_displace_another: bool) -> GaussianRounds:
        """One round's mechanism; see `rounds.lets_one_displace_another` for the dearer one."""
        cost = mechanism_of_plan(self._plan, rounds=1)
        if lets_one_displace_another:
            cost = replace(cost, noise_multiplier=cost.noise_multiplier / 2)
        return cost

    def epsilon_after(self, charges: Sequence[Mapping[str, Any]], cost: GaussianRounds) -> float:
        """Central epsilon once `cost` is spent on top of `charges` and prior spending.

        Raises BudgetError when that is more than the limit.
        """
        return float(self._ledger(charges).charge(cost).epsilon)

    def epsilon_of(self, charges: Sequence[Mapping[str, Any]]) -> float:
        """Central epsilon of `charges` on top of prior spending; may be infinite."""
        return float(self._ledger(charges).epsilon)

    def _ledger(self, charges: Sequence[Mapping[str, Any]]) -> Ledger:
        return Ledger(
            delta=self._plan.privacy.delta,
            max_epsilon=self._limit,
            spending=(*self._prior, *(mechanism_from_json(charge) for charge in charges)),
        )

    def card(self, charges: Sequence[Mapping[str, Any]]) -> PrivacyCard:
        """The card over prior spending and the charged rounds."""
        usual = self.round_cost(lets_one_displace_another=False)
        spent = [mechanism_from_json(charge) for charge in charges]
        unusual = tuple(mechanism for mechanism in spent if mechanism != usual)
        return privacy_card(
            self._plan,
            rounds_done=len(spent) - len(unusual),
            prior=(*self._prior, *unusual),
            sampling_enforced_by=_ENFORCED[self._plan.clients.sampling],
        )
