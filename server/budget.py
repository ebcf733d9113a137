"""The budget: what a round costs, whether it may be spent, and the card about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tf_dpfl.privacy.card import PrivacyCard, privacy_card
from tf_dpfl.privacy.ledger import Ledger
from tf_dpfl.privacy.mechanism import (
    Mechanism,
    mechanism_from_json,
    mechanism_of_plan,
    require_one_unit,
)
from tf_dpfl.protocol.errors import PlanError, TaskError
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
    "min_separation": (
        "this server: devices are drawn from those that reported in none of the rounds of the "
        "separation, and a report that comes too early is refused"
    ),
}


class Budget:
    """Prices rounds of one task. It holds no spending: the store's ledger does.

    The limit is the smaller of the operator's `max_epsilon` and the manifest's
    claim, under which devices agreed to take part. Raises TaskError when the
    manifest's prior spending is of another unit than its plan's.
    """

    def __init__(self, manifest: Manifest, *, max_epsilon: float | None):
        self._plan = manifest.plan
        self._by_example = manifest.plan.privacy.unit == "example"
        self._prior = tuple(mechanism_from_json(entry) for entry in manifest.prior_spending)
        limits = [] if max_epsilon is None else [max_epsilon]
        if manifest.central_epsilon is not None:
            limits.append(manifest.central_epsilon * (1 + _CLAIM_TOLERANCE))
        self._limit = min(limits) if limits else None
        try:
            require_one_unit([*self._prior, mechanism_of_plan(self._plan, rounds=1)])
        except PlanError as error:
            raise TaskError(f"task {manifest.task_id}: {error}") from None

    def round_cost(
        self,
        charges: Sequence[Mapping[str, Any]],
        *,
        round_number: int,
        lets_one_displace_another: bool,
    ) -> Mechanism:
        """What releasing round `round_number` costs after `charges`.

        Unit "user": one round, a dearer one where `rounds.lets_one_displace_another`. Where
        devices keep optimizer states, too, sampling does not count then: the state of
        the displaced one would tell who was there (docs/privacy.md).

        Unit "example": that costs nothing more, for who is invited depends on no
        example, and being displaced is taking part less often. But every attempt
        since the last charge counts, failed ones too: a round may have been
        released because this very client was in it, so only the number of rounds
        it was invited to, of all attempts, is binomial.
        """
        if self._by_example:
            attempts = round_number - sum(charge["rounds"] for charge in charges)
            return mechanism_of_plan(self._plan, rounds=attempts)
        cost = mechanism_of_plan(self._plan, rounds=1, first_round=len(charges) + 1)
        if lets_one_displace_another:
            cost = replace(cost, noise_multiplier=cost.noise_multiplier / 2)
            if self._plan.local_training.keeps_state:
                cost = cost.unamplified()
        return cost

    def epsilon_after(self, charges: Sequence[Mapping[str, Any]], cost: Mechanism) -> float:
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
        spent = [mechanism_from_json(charge) for charge in charges]
        unusual: tuple[Mechanism, ...]
        if self._by_example:
            failed = sum(mechanism.rounds for mechanism in spent) - len(spent)
            usual = mechanism_of_plan(self._plan, rounds=failed)
            unusual = (usual,) if failed else ()
            done = len(spent)
        else:
            unusual = tuple(
                mechanism
                for number, mechanism in enumerate(spent, start=1)
                if mechanism != mechanism_of_plan(self._plan, rounds=1, first_round=number)
            )
            done = len(spent) - len(unusual)
        return privacy_card(
            self._plan,
            rounds_done=done,
            prior=(*self._prior, *unusual),
            sampling_enforced_by=_ENFORCED[self._plan.clients.sampling],
        )
