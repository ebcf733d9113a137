"""The privacy card: what a task gives, against whom, under which assumptions.

It follows the reporting list of "How to DP-fy ML" (Ponomareva et al.,
2303.00654, section 5.3). No epsilon stands on it without the party it is
against, delta, unit, neighbouring relation and sampling assumption.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tf_dpfl.privacy.accounting import (
    ADD_OR_REMOVE,
    RDP,
    ZERO_OUT,
    account,
    accountant_versions,
    central_epsilon,
)
from tf_dpfl.privacy.mechanism import (
    FIXED,
    POISSON,
    GaussianRounds,
    mechanism_of_plan,
    merge_consecutive,
)
from tf_dpfl.protocol.checks import finite_or_none
from tf_dpfl.protocol.gaussian import local_epsilon
from tf_dpfl.protocol.plan import Plan

CARD_VERSION = 1
NOT_ENFORCED = "not enforced"

_RELATIONS = {
    ADD_OR_REMOVE: "add-or-remove-one: all of one user's updates are there, or are not",
    ZERO_OUT: "zero-out: all of one user's updates are as they are, or are replaced by zero "
    "in every round the user takes part in",
}
_SAMPLING = {
    POISSON: "Poisson: each user joins each round by an independent secret coin of "
    "probability {q:g}",
    FIXED: "fixed-size: each round's cohort is drawn uniformly without replacement, in secret, "
    "probability {q:g} for each user",
}
_NO_SAMPLING = "none is assumed: every user is counted as if in every round"
_UNIT = "user (everything one user contributes over all rounds)"

_TUNING = "choosing the model, the settings and the clip norm by trying them on the same users"
_REPORTS = (
    "who took part: the number of reports of a round, whether a round was released, and any "
    "other sign of who was in a cohort count as no sign at all; against whoever has one, the "
    "numbers for known cohorts hold instead"
)
_NOISE_FLOOR = (
    "how much noise there is: noise on devices is counted at its least and grows with the number "
    "of reports, so that models of many weights can show that number (see the line above)"
)
_ELSEWHERE = "anything computed on the users' data outside of the rounds, such as local metrics"
_FLOATS = "attacks on the floating-point form of the noise beyond docs/privacy.md"
_PRIOR = "in the local column: reports a device made before this plan"
_SEEDED = (
    "THE GUARANTEE IS VOID for whoever knows the seed this run was given: cohorts and noise can "
    "be computed from it, and the noise taken off"
)


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
    spending: tuple[GaussianRounds, ...]
    planned: tuple[GaussianRounds, ...]
    prior: tuple[GaussianRounds, ...]
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
        return local_epsilon(self.plan.privacy, reports=1)

    @property
    def local_epsilon_all_reports(self) -> float:
        """Against the server, of the most reports one device can make."""
        return local_epsilon(self.plan.privacy, reports=self.plan.server.rounds)

    @property
    def sampling_is_enforced(self) -> bool:
        """Whether the amplification by sampling was counted at all."""
        return not _is_unenforced(self.sampling_enforced_by)

    @property
    def not_covered(self) -> tuple[str, ...]:
        """What no epsilon of this card speaks about."""
        lines = [_SEEDED] if self.noise_is_reproducible else []
        lines += [_TUNING, _REPORTS]
        if self.plan.privacy.noise == "device":
            lines.append(_NOISE_FLOOR)
        if self.prior:
            lines.append(_PRIOR)
        return (*lines, _ELSEWHERE, _FLOATS)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; an infinite epsilon is null beside a text that says so."""
        privacy = self.plan.privacy
        return {
            "version": CARD_VERSION,
            "unit": privacy.unit,
            "noise": privacy.noise,
            "clip_norm": privacy.clip_norm,
            "noise_multiplier": privacy.calibrated_noise_multiplier,
            "smallest_cohort": privacy.smallest_cohort,
            "rounds_done": self.rounds_done,
            "rounds_planned": self.plan.server.rounds,
            "central": self._central(),
            "local": self._local(),
            "released": "the model after each round, in checkpoints and exports; each client's "
            "own losses and the single reports are not",
            "not_covered": list(self.not_covered),
            "noise_is_reproducible": self.noise_is_reproducible,
            "prior": [mechanism.to_json() for mechanism in self.prior],
            "spending": [mechanism.to_json() for mechanism in self.spending],
        }

    def _central(self) -> dict[str, Any]:
        known = self.central_epsilon_if_cohorts_are_known
        known_planned = self.central_epsilon_planned_if_cohorts_are_known
        return {
            "against": "whoever sees the released models, all of them",
            "epsilon": finite_or_none(self.central_epsilon),
            "epsilon_text": _text(self.central_epsilon),
            "epsilon_when_all_rounds_are_done": finite_or_none(self.central_epsilon_planned),
            "epsilon_when_all_rounds_are_done_text": _text(self.central_epsilon_planned),
            "delta": self.plan.privacy.delta,
            "unit": _UNIT,
            "adjacency": _RELATIONS[self.relation],
            "sampling": self._sampling(),
            "sampling_is_enforced": self.sampling_is_enforced,
            "sampling_enforced_by": self.sampling_enforced_by,
            "accountant": f"{self.method}, {accountant_versions()}",
            "epsilon_by_rdp": finite_or_none(self.central_epsilon_rdp),
            "epsilon_by_rdp_when_all_rounds_are_done": finite_or_none(
                self.central_epsilon_planned_rdp
            ),
            "if_cohorts_are_known": {
                "against": "whoever also knows who took part in each round",
                "epsilon": finite_or_none(known),
                "epsilon_text": _text(known),
                "epsilon_when_all_rounds_are_done": finite_or_none(known_planned),
                "epsilon_when_all_rounds_are_done_text": _text(known_planned),
                "delta": self.plan.privacy.delta,
                "unit": _UNIT,
                "adjacency": _RELATIONS[ZERO_OUT],
                "sampling": _NO_SAMPLING,
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
            "against": "the server, which sees each report with one share of the noise",
            "epsilon_one_report": finite_or_none(one),
            "epsilon_all_reports": finite_or_none(every),
            "epsilon_text": f"{_text(one)} for one report, {_text(every)} for the most reports "
            f"a device can make ({rounds})",
            "reports": rounds,
            "delta": privacy.delta,
            "unit": "user (one device, all of its examples)",
            "adjacency": "replace-one: any two data sets of the device",
            "sampling": "none is assumed",
            "accountant": "Gaussian closed form (1805.06530, theorem 8)",
        }

    def _sampling(self) -> str:
        if not self.sampling_is_enforced:
            return _NO_SAMPLING
        clients = self.plan.clients
        text = _SAMPLING[clients.sampling].format(q=clients.sampling_probability)
        if clients.sampling == FIXED and "without replacement" not in self.method:
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
        place = (
            f"devices, in shares (a round with fewer than {card['smallest_cohort']} reports "
            "is not released)"
            if card["noise"] == "device"
            else f"server (a round with fewer than {card['smallest_cohort']} reports is not "
            "released)"
        )
        lines = [
            "PRIVACY CARD",
            *([f"! {_SEEDED}"] if self.noise_is_reproducible else []),
            f"rounds: {self.rounds_done} of {card['rounds_planned']} done"
            + (f", and {earlier} counted beside them" if earlier else ""),
            f"mechanism: each update clipped to norm {card['clip_norm']:g}, Gaussian noise of at "
            f"least {card['noise_multiplier']:g} clip norms on their sum, added by the {place}",
            "",
            f"Against {central['against']}:",
            *_epsilon_lines(central),
            f"  sampling enforced by: {central['sampling_enforced_by']}",
            f"  accountant: {central['accountant']}; by RDP: "
            f"{_text(self.central_epsilon_rdp)} so far, "
            f"{_text(self.central_epsilon_planned_rdp)} in the end",
            "",
            f"Against {known['against']}:",
            *_epsilon_lines(known),
            "",
            f"Against {local['against']}:",
            f"  epsilon {local['epsilon_text']}"
            + (f" at delta {local['delta']:g}" if "delta" in local else ""),
            *(f"  {key}: {local[key]}" for key in _TERMS if key in local),
            "",
            f"Released: {card['released']}",
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
    prior: Sequence[GaussianRounds] = (),
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
        one = one.unamplified()
    left = max(plan.server.rounds - rounds_done, 0)
    spending = merge_consecutive((*prior, one.with_rounds(rounds_done)))
    planned = merge_consecutive((*spending, one.with_rounds(left)))
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


def _unamplified(spending: Sequence[GaussianRounds], delta: float) -> float:
    return central_epsilon([m.unamplified() for m in spending], delta=delta)


def _is_unenforced(sampling_enforced_by: str) -> bool:
    return sampling_enforced_by.strip().lower().startswith(NOT_ENFORCED)


def _text(epsilon: float) -> str:
    return f"{epsilon:.4g}" if math.isfinite(epsilon) else "infinite"
