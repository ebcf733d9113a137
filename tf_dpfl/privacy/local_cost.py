"""What a local epsilon costs the training: the noise it takes, beside what less trust needs.

A share of noise that hides one report from the server is much more than a share of the noise
that hides one user in the sum. How much more is what this file says, in noise and in what a
model can still hear of its users.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tf_dpfl.privacy.calibration import noise_of_central_target
from tf_dpfl.privacy.preflight import DROWNED_BELOW, HEARD_FROM, most_weights
from tf_dpfl.protocol.errors import PlanError
from tf_dpfl.protocol.local_target import is_least_noise
from tf_dpfl.protocol.plan import Plan


@dataclass(frozen=True)
class LocalCost:
    """What `target_local_epsilon` costs a plan.

    Attributes:
      asked: the local epsilon of one report that the plan asks for.
      decides: whether the plan's noise is the least for it, so that nothing else, a central
        target or a noise multiplier of the plan's author, asks for more.
      noise_multiplier: the plan's.
      noise_multiplier_for_models: with which the released models alone would have that epsilon,
        all rounds together; None where no plan can have it.
      times_the_noise: how many times the noise that is in every average; None as above, or
        where adaptive clipping leaves that noise no room for its count.
      most_weights_heard: of a model that is still heard over the noise (`preflight`); None for
        the unit "example".
      weights_drowned: from so many on, noise outweighs all that users can say together.
    """

    asked: float
    decides: bool
    noise_multiplier: float
    noise_multiplier_for_models: float | None
    times_the_noise: float | None
    most_weights_heard: int | None
    weights_drowned: int | None

    def to_json(self) -> dict[str, Any]:
        """Entries of the card's local column, which names delta and the other terms."""
        return {
            "epsilon_asked_of_one_report": self.asked,
            "noise_decided_by": self._decided_by,
            "cost": {
                "noise_multiplier": self.noise_multiplier,
                "noise_multiplier_for_the_models_alone": self.noise_multiplier_for_models,
                "times_the_noise": self.times_the_noise,
                "most_weights_heard": self.most_weights_heard,
                "weights_drowned": self.weights_drowned,
            },
        }

    @property
    def _decided_by(self) -> str:
        if self.decides:
            return "privacy.target_local_epsilon"
        return "privacy.noise_multiplier or privacy.target_epsilon, which asks for more noise"

    def in_words(self, *, central_epsilon: str) -> list[str]:
        """Lines for the local column of the card's text.

        `central_epsilon` is that of all rounds, in words.
        """
        lines = [
            f"asked by the plan: epsilon {self.asked:g} for one report, which every device holds "
            f"its noise to; the noise is decided by {self._decided_by}"
        ]
        cost = f"what it costs: noise multiplier {self.noise_multiplier:.4g}"
        if self.times_the_noise is not None:
            cost += (
                f", where {self.noise_multiplier_for_models:.4g} would give the released models "
                f"an epsilon of {self.asked:g}: {self.times_the_noise:.3g} times the noise in "
                "every average"
            )
        cost += f"; the released models have epsilon {central_epsilon} for it, all rounds done"
        lines.append(cost)
        if self.most_weights_heard is not None:
            lines.append(
                f"what can be learned: models of up to {self.most_weights_heard} weights are heard "
                f"over this noise (signal to noise of at least {HEARD_FROM:g} over all rounds); "
                f"from {self.weights_drowned} on it outweighs all that users can say together"
            )
        return lines


def local_cost(plan: Plan) -> LocalCost | None:
    """What the plan's `target_local_epsilon` costs; None where there is none.

    `plan` has a noise multiplier.
    """
    asked = plan.privacy.target_local_epsilon
    if asked is None:
        return None
    noise = plan.privacy.calibrated_noise_multiplier
    for_models = _noise_for_models(plan, asked)
    heard = most_weights(plan, signal_to_noise=HEARD_FROM)
    audible = most_weights(plan, signal_to_noise=DROWNED_BELOW)
    return LocalCost(
        asked=asked,
        decides=is_least_noise(plan),
        noise_multiplier=noise,
        noise_multiplier_for_models=for_models,
        times_the_noise=None if for_models is None else _times_the_noise(plan, for_models),
        most_weights_heard=heard,
        weights_drowned=None if audible is None else audible + 1,
    )


@lru_cache(maxsize=16)  # a card is written after every round of a server
def _noise_for_models(plan: Plan, epsilon: float) -> float | None:
    try:
        return noise_of_central_target(plan, epsilon)
    except PlanError:
        return None


def _times_the_noise(plan: Plan, noise_multiplier: float) -> float | None:
    """Noise on the updates, over what it would be with another noise multiplier."""
    quieter = plan.with_noise_multiplier(noise_multiplier)
    try:
        return plan.noise_multiplier_of_updates / quieter.noise_multiplier_of_updates
    except PlanError:
        return None
