"""The privacy card: what a task gives, against whom, under which assumptions.

It follows the reporting list of "How to DP-fy ML" (Ponomareva et al.,
2303.00654, section 5.3). No epsilon stands on it without the party it is
against, delta, unit, neighbouring relation and sampling assumption.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tf_dpfl.privacy import card_words
from tf_dpfl.privacy.accounting import (
    RDP,
    ZERO_OUT,
    account,
    accountant_versions,
    central_epsilon,
)
from tf_dpfl.privacy.card_setting import (
    accesses_of,
    participants_of,
    setting_of,
    trust_of,
    verification,
)
from tf_dpfl.privacy.card_tuning import TuningStatement
from tf_dpfl.privacy.card_words import NO_SAMPLING, SEEDED, Words, epsilon_text, words_of
from tf_dpfl.privacy.local_cost import LocalCost, local_cost
from tf_dpfl.privacy.mechanism import (
    FIXED,
    Mechanism,
    mechanism_of_plan,
    merge_consecutive,
)
from tf_dpfl.protocol.checks import finite_or_none
from tf_dpfl.protocol.local_privacy import local_epsilon
from tf_dpfl.protocol.plan import Plan

CARD_VERSION = 1
NOT_ENFORCED = "not enforced"


@dataclass(frozen=True)
class PrivacyCard:
    """A statement of privacy; `privacy_card` makes it.

    `spending` is everything charged so far, `planned` everything when all rounds
    are done, `prior` the part of both from before this plan; epsilons are
    infinite where there is no noise. `method` and `relation` are those of the
    central column.
    """

    plan: Plan
    rounds_done: int
    spending: tuple[Mechanism, ...]
    planned: tuple[Mechanism, ...]
    prior: tuple[Mechanism, ...]
    sampling_enforced_by: str
    noise_is_reproducible: bool
    central_epsilon: float
    central_epsilon_planned: float
    central_epsilon_rdp: float
    central_epsilon_planned_rdp: float
    central_epsilon_if_cohorts_are_known: float
    central_epsilon_planned_if_cohorts_are_known: float
    relation: str
    method: str

    @property
    def local_epsilon_one_report(self) -> float:
        """Against the server, of one report; infinite if the server is trusted."""
        return local_epsilon(self.plan, reports=1)

    @property
    def local_epsilon_all_reports(self) -> float:
        """Against the server, of the most reports one device can make."""
        return local_epsilon(self.plan, reports=self.plan.server.rounds)

    @property
    def local_cost(self) -> LocalCost | None:
        """What the local epsilon that the plan asks for costs; None if it asks for none."""
        return local_cost(self.plan)

    @property
    def sampling_is_enforced(self) -> bool:
        """Whether the amplification by sampling was counted at all."""
        return not _is_unenforced(self.sampling_enforced_by)

    @property
    def not_covered(self) -> tuple[str, ...]:
        """What no epsilon of this card speaks about."""
        lines = [SEEDED] if self.noise_is_reproducible else []
        lines += [*self.tuning.not_covered, *self._words.not_covered]
        if self.prior:
            lines.append(card_words.PRIOR)
        return (*lines, card_words.TEST_SPLIT, card_words.ELSEWHERE, card_words.FLOATS)

    @property
    def tuning(self) -> TuningStatement:
        """How the settings were chosen, and what that cost."""
        return TuningStatement(self.plan, self.planned, self.central_epsilon_planned, self.relation)

    @property
    def _accesses(self) -> str:
        rounds = max(self.plan.server.rounds, self.rounds_done)
        before = sum(mechanism.rounds for mechanism in self.prior)
        return accesses_of(rounds=rounds, prior_rounds=before)

    @property
    def _words(self) -> Words:
        return words_of(self.plan.privacy)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; an infinite epsilon is null beside a text that says so."""
        privacy = self.plan.privacy
        return {
            "version": CARD_VERSION,
            "setting": setting_of(privacy),
            "trust": trust_of(privacy),
            "unit": privacy.unit,
            "noise": privacy.noise,
            "mechanism": privacy.mechanism,
            "mechanism_chosen_because": privacy.chosen_because or None,
            "clipping": privacy.clipping,
            "clip_norm": privacy.clip_norm,
            "noise_multiplier": privacy.calibrated_noise_multiplier,
            "adaptive_clipping": self._adaptive_clipping(),
            "smallest_cohort": privacy.smallest_cohort,
            "rounds_done": self.rounds_done,
            "rounds_planned": self.plan.server.rounds,
            "participants": participants_of(self.plan),
            "data_accesses_covered": self._accesses,
            "central": self._central(),
            "local": self._local(),
            "tuning": self.tuning.to_json(),
            "released": self._words.released,
            "not_covered": list(self.not_covered),
            "noise_is_reproducible": self.noise_is_reproducible,
            "prior": [mechanism.to_json() for mechanism in self.prior],
            "spending": [mechanism.to_json() for mechanism in self.spending],
            "verification": verification(),
        }

    def _adaptive_clipping(self) -> dict[str, Any] | None:
        """How the noise multiplier is split; None where the clip norm stays what it is."""
        privacy = self.plan.privacy
        if not privacy.adaptive_clipping:
            return None
        return {
            "target_quantile": privacy.target_quantile,
            "clip_learning_rate": privacy.clip_learning_rate,
            "noise_multiplier_of_updates": self.plan.noise_multiplier_of_updates,
            "clip_count_stddev": self.plan.clip_count_stddev,
        }

    def _central(self) -> dict[str, Any]:
        known = self.central_epsilon_if_cohorts_are_known
        known_planned = self.central_epsilon_planned_if_cohorts_are_known
        return {
            "against": "whoever sees the released models, all of them",
            "epsilon": finite_or_none(self.central_epsilon),
            "epsilon_text": epsilon_text(self.central_epsilon),
            "epsilon_when_all_rounds_are_done": finite_or_none(self.central_epsilon_planned),
            "epsilon_when_all_rounds_are_done_text": epsilon_text(self.central_epsilon_planned),
            "delta": self.plan.privacy.delta,
            "unit": self._words.unit,
            "adjacency": self._words.relations[self.relation],
            "sampling": self._sampling(),
            "sampling_is_enforced": self.sampling_is_enforced,
            "sampling_enforced_by": self.sampling_enforced_by,
            "accountant": f"{self.method}, {accountant_versions()}",
            "epsilon_by_rdp": finite_or_none(self.central_epsilon_rdp),
            "epsilon_by_rdp_when_all_rounds_are_done": finite_or_none(
                self.central_epsilon_planned_rdp
            ),
            "if_cohorts_are_known": {
                "against": self._words.known_cohorts,
                "epsilon": finite_or_none(known),
                "epsilon_text": epsilon_text(known),
                "epsilon_when_all_rounds_are_done": finite_or_none(known_planned),
                "epsilon_when_all_rounds_are_done_text": epsilon_text(known_planned),
                "delta": self.plan.privacy.delta,
                "unit": self._words.unit,
                "adjacency": self._words.relations[ZERO_OUT],
                "sampling": self._sampling() if self.plan.privacy.is_correlated else NO_SAMPLING,
            },
        }

    def _local(self) -> dict[str, Any]:
        privacy, rounds = self.plan.privacy, self.plan.server.rounds
        if privacy.noise != "device":
            return {
                "against": "the server",
                "epsilon_one_report": None,
                "epsilon_all_reports": None,
                "epsilon_text": "none: the server is trusted, it sees clipped updates bare",
            }
        one, every = self.local_epsilon_one_report, self.local_epsilon_all_reports
        return {
            "against": self._words.local_against,
            "epsilon_one_report": finite_or_none(one),
            "epsilon_all_reports": finite_or_none(every),
            "epsilon_text": f"{epsilon_text(one)} for one report, {epsilon_text(every)} for the "
            f"most reports a device can make ({rounds})",
            "reports": rounds,
            "delta": privacy.delta,
            "unit": self._words.local_unit,
            "adjacency": self._words.local_relation,
            "sampling": "none is assumed",
            "accountant": "Gaussian closed form (1805.06530, theorem 8)",
            **(self.local_cost.to_json() if self.local_cost else {}),
        }

    def _sampling(self) -> str:
        if not self.sampling_is_enforced:
            return NO_SAMPLING
        clients = self.plan.clients
        text = self._words.sampling[clients.sampling].format(
            q=clients.sampling_probability, separation_less_one=clients.separation - 1
        )
        by_user = self.plan.privacy.unit == "user"
        if by_user and clients.sampling == FIXED and "without replacement" not in self.method:
            text += "; no amplification is counted for it"
        if len({m.with_rounds(1) for m in self.planned}) > 1:
            text += "; the earlier or dearer rounds as listed under spending"
        return text

    def to_text(self) -> str:
        """The card for people."""
        card = self.to_json()
        central, local = card["central"], card["local"]
        known = central["if_cohorts_are_known"]
        earlier = sum(m.rounds for m in self.prior)
        mechanism = self._words.mechanism.format(
            clip=card["clip_norm"],
            noise=card["noise_multiplier"],
            smallest=card["smallest_cohort"],
            bands=self.plan.bands,
            **(card["adaptive_clipping"] or {}),
        )
        choice = card["mechanism_chosen_because"]
        in_the_end = epsilon_text(self.central_epsilon_planned)
        asked = self.local_cost.in_words(central_epsilon=in_the_end) if self.local_cost else []
        lines = [
            "PRIVACY CARD",
            *([f"! {SEEDED}"] if self.noise_is_reproducible else []),
            f"rounds: {self.rounds_done} of {card['rounds_planned']} done"
            + (f", and {earlier} counted beside them" if earlier else ""),
            f"setting: {card['setting']}",
            f"trusted: {card['trust']}",
            f"participants: {card['participants']}",
            f"mechanism: {mechanism}",
            *([f"chosen among the mechanisms for the {choice}"] if choice else []),
            "",
            f"Against {central['against']}:",
            *_epsilon_lines(central),
            f"  sampling enforced by: {central['sampling_enforced_by']}",
            f"  accountant: {central['accountant']}; by RDP: "
            f"{epsilon_text(self.central_epsilon_rdp)} so far, "
            f"{epsilon_text(self.central_epsilon_planned_rdp)} in the end",
            "",
            f"Against {known['against']}:",
            *_epsilon_lines(known),
            "",
            f"Against {local['against']}:",
            f"  epsilon {local['epsilon_text']}"
            + (f" at delta {local['delta']:g}" if "delta" in local else ""),
            *(f"  {key}: {local[key]}" for key in _TERMS if key in local),
            *(f"  {line}" for line in asked),
            "",
            *self.tuning.paragraphs(),
            "",
            f"Counted: {card['data_accesses_covered']}",
            f"Released: {card['released']}",
            f"Computed by: {card['verification']}",
            "Not covered by any of these numbers:",
            *(f"  - {line}" for line in self.not_covered),
        ]
        return "\n".join(
            wrapped
            for line in lines
            for wrapped in (textwrap.wrap(line, 96, subsequent_indent="    ") or [""])
        )


_TERMS = ("unit", "adjacency", "sampling")


def _epsilon_lines(column: dict[str, Any]) -> list[str]:
    return [
        f"  epsilon {column['epsilon_text']} so far, "
        f"{column['epsilon_when_all_rounds_are_done_text']} when all rounds are done, "
        f"at delta {column['delta']:g}",
        *(f"  {key}: {column[key]}" for key in _TERMS),
    ]


def privacy_card(
    plan: Plan,
    *,
    rounds_done: int,
    prior: Sequence[Mechanism] = (),
    sampling_enforced_by: str = NOT_ENFORCED,
    noise_is_reproducible: bool = False,
) -> PrivacyCard:
    """The card of a plan of which `rounds_done` rounds were charged.

    Args:
      plan: with a calibrated noise multiplier.
      rounds_done: >= 0; charged rounds, released or not.
      prior: what else was spent on the same users: before this plan, or in
        rounds that cost more than the plan's.
      sampling_enforced_by: who makes the sampling assumption true, and how. A
        text that begins with "not enforced" takes the amplification by sampling
        out of this plan's rounds.
      noise_is_reproducible: whether somebody chose the seed of the noise.

    Raises PlanError while the plan's noise is not calibrated.
    """
    delta = plan.privacy.delta
    one = mechanism_of_plan(plan, rounds=1)
    if _is_unenforced(sampling_enforced_by):
        one = one.unenforced()
    spending = merge_consecutive((*prior, one.with_rounds(rounds_done)))
    in_all = max(plan.server.rounds, rounds_done)
    planned = merge_consecutive((*prior, one.with_rounds(in_all)))
    in_the_end = account(planned, delta=delta)
    on_devices = plan.privacy.noise == "device"
    return PrivacyCard(
        plan=plan,
        rounds_done=rounds_done,
        spending=spending,
        planned=planned,
        prior=tuple(prior),
        sampling_enforced_by=sampling_enforced_by,
        noise_is_reproducible=noise_is_reproducible,
        central_epsilon=central_epsilon(spending, delta=delta),
        central_epsilon_planned=in_the_end.epsilon,
        central_epsilon_rdp=central_epsilon(spending, delta=delta, accountant=RDP),
        central_epsilon_planned_rdp=central_epsilon(planned, delta=delta, accountant=RDP),
        central_epsilon_if_cohorts_are_known=_unamplified(spending, delta),
        central_epsilon_planned_if_cohorts_are_known=_unamplified(planned, delta),
        # A device that stays away brings no noise: only zeroing out leaves the noise alone.
        relation=ZERO_OUT if on_devices else in_the_end.relation,
        method=in_the_end.method,
    )


def _unamplified(spending: Sequence[Mechanism], delta: float) -> float:
    return central_epsilon([m.unamplified() for m in spending], delta=delta)


def _is_unenforced(sampling_enforced_by: str) -> bool:
    return sampling_enforced_by.strip().lower().startswith(NOT_ENFORCED)
