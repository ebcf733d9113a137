"""A run's ledger file: each round charged once, durably, before it is computed."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tf_dpfl.privacy.accounting import central_epsilon
from tf_dpfl.privacy.card import PrivacyCard, privacy_card
from tf_dpfl.privacy.ledger import Charge, charges_from_lines
from tf_dpfl.privacy.mechanism import mechanism_of_plan
from tf_dpfl.protocol.errors import StateError
from tf_dpfl.protocol.files import append_line_durably, drop_torn_line, write_atomically
from tf_dpfl.protocol.plan import Plan
from tf_dpfl.simulation.run_folder import RunFolder, read_text

_ENFORCED = {
    "poisson": "this simulation: an independent coin for each user and round",
    "fixed": "this simulation: drawn uniformly without replacement for each round",
    "min_separation": "this simulation: cohorts go round a random order of all users",
}


class RunLedger:
    """The charges of one run; the file is read once and only ever appended to.

    `rounds_done` is how many rounds the run's checkpoint holds: StateError when
    the file has not a charge for each of them, for then its epsilon would be
    too small.
    """

    def __init__(self, folder: RunFolder, plan: Plan, *, rounds_done: int):
        self._folder = folder
        self._plan = plan
        path = folder.ledger_file
        lines = []
        if path.exists():
            read_text(path)  # what is damaged as a whole is left as it is
            drop_torn_line(path)
            lines = read_text(path).splitlines()
        try:
            self._charges = list(charges_from_lines(lines))
        except StateError as error:
            raise StateError(f"{path}: {error}") from None
        self._charged = {charge.round_number for charge in self._charges}
        missing = [n for n in range(1, rounds_done + 1) if n not in self._charged]
        if missing:
            raise StateError(
                f"{path}: has no charge for round {missing[0]} ({len(missing)} missing of the "
                f"{rounds_done} done), epsilon would be understated; restore the file, or begin "
                "anew in another folder"
            )

    @property
    def epsilon(self) -> float:
        """Central epsilon of all charged rounds."""
        return self._epsilon_of(self._charges)

    def charge(self, round_number: int) -> None:
        """Charges a round unless it already was; durable when this returns.

        A resumed run computes some rounds again with the same seeds: that is the
        same release, not a second one.
        """
        if round_number not in self._charged:
            mechanism = mechanism_of_plan(self._plan, rounds=1, first_round=round_number)
            charge = Charge(mechanism, round_number)
            append_line_durably(self._folder.ledger_file, charge.to_line())
            self._charges.append(charge)
            self._charged.add(round_number)

    def epsilon_after(self, round_number: int) -> float:
        """Central epsilon of the first `round_number` charges."""
        return self._epsilon_of(self._charges[:round_number])

    def _epsilon_of(self, charges: Sequence[Charge]) -> float:
        spending = [charge.mechanism for charge in charges]
        return central_epsilon(spending, delta=self._plan.privacy.delta)

    def write_card(self) -> PrivacyCard:
        """Writes `privacy.json` over all charged rounds and returns the card."""
        card = privacy_card(
            self._plan,
            rounds_done=len(self._charges),
            sampling_enforced_by=_ENFORCED[self._plan.clients.sampling],
            noise_is_reproducible=self._folder.reproducible,
        )
        text = json.dumps(card.to_json(), indent=1) + "\n"
        write_atomically(self._folder.card_file, text.encode())
        return card
