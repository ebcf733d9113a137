"""A device's own limits: what it accepts, whoever signed the task.

Each check raises BudgetError with the limit, the value and the option to
change. All of them run before anything is trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tf_dpfl.protocol.errors import BudgetError
from tf_dpfl.protocol.local_privacy import local_epsilon
from tf_dpfl.protocol.manifest import Manifest
from tf_dpfl.protocol.plan import Plan


@dataclass(frozen=True)
class Limits:
    """The owner's limits; the defaults forbid nothing but a trusted server.

    Args:
      max_local_epsilon: largest epsilon of all this device's reports together,
        at the plan's delta and for its unit, against whoever sees them singly.
      max_central_epsilon: largest epsilon the task may claim for the released
        models. A device cannot recompute that claim.
      min_noise_multiplier: smallest noise of the sum (of a round's updates, or of
        a step's gradients), in clip norms.
      allow_trusted_server: accept plans that leave the noise to the server.
      only_user_level: refuse plans that protect single examples only.
    """

    max_local_epsilon: float = math.inf
    max_central_epsilon: float = math.inf
    min_noise_multiplier: float = 0.0
    allow_trusted_server: bool = False
    only_user_level: bool = False

    def __post_init__(self) -> None:
        for name in ("max_local_epsilon", "max_central_epsilon", "min_noise_multiplier"):
            value = getattr(self, name)
            if not value >= 0:
                raise ValueError(f"{name}={value!r} must be a number >= 0")

    def check_task(self, manifest: Manifest) -> None:
        """Raises BudgetError when the task as a whole is beyond these limits."""
        privacy = manifest.plan.privacy
        if privacy.noise != "device" and not self.allow_trusted_server:
            raise BudgetError(
                f'own limit: the plan says privacy.noise="{privacy.noise}", so this device '
                "would send its update without noise and has no guarantee against the server; "
                "refused unless --allow-trusted-server is given"
            )
        if self.only_user_level and privacy.unit != "user":
            raise BudgetError(
                f'own limit: the plan says privacy.unit="{privacy.unit}", which does not protect '
                "this device's data set as a whole; refused because of --only-user-level"
            )
        noise = privacy.calibrated_noise_multiplier
        if not noise >= self.min_noise_multiplier:
            raise BudgetError(
                f"own limit: the plan's noise_multiplier={noise:g} is below "
                f"--min-noise-multiplier {self.min_noise_multiplier:g}"
            )
        claimed = math.inf if manifest.central_epsilon is None else manifest.central_epsilon
        if not claimed <= self.max_central_epsilon:
            raise BudgetError(
                f"own limit: the task claims a central epsilon of {claimed:g} (delta "
                f"{privacy.delta:g}), above --max-central-epsilon {self.max_central_epsilon:g}"
            )

    def check_reports(self, plan: Plan, *, reports: int) -> None:
        """Raises BudgetError when `reports` reports in all cost too much.

        `reports` counts the one about to be made.
        """
        epsilon = local_epsilon(plan, reports=reports)
        if not epsilon <= self.max_local_epsilon:
            raise BudgetError(
                f"own limit: report number {reports} would bring this device's local epsilon "
                f"to {epsilon:.4g} (delta {plan.privacy.delta:g}, unit {plan.privacy.unit}), above "
                f"--max-local-epsilon "
                f"{self.max_local_epsilon:g}; nothing more is sent"
            )
