"""The clip norm of a server's rounds, where it adapts: what moves it, and who may.

`protocol.clip_norms` has the rule. The clip norm of a round belongs to the model the round
starts from: both come from the newest released round, and from no other.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from server.norms import bounded_update
from server.store import Computed
from tf_dpfl.protocol.clip_count import fault_of_count, noised_count
from tf_dpfl.protocol.clip_norms import LARGEST, SMALLEST, first_clip_norm, next_clip_norm
from tf_dpfl.protocol.errors import StateError, WireError
from tf_dpfl.protocol.plan import Plan
from tf_dpfl.protocol.tensors import Float32


def clip_norm_after(plan: Plan, last: Computed | None) -> float | None:
    """That of the rounds over the newest released model; None where the plan's never changes.

    Args:
      plan: the task's.
      last: the newest released round; None before the first.

    Raises StateError when the round's row holds none.
    """
    if not plan.privacy.adaptive_clipping:
        return None
    if last is None:
        return first_clip_norm(plan)
    kept = last.next_clip_norm
    if not isinstance(kept, float) or not SMALLEST <= kept <= LARGEST:
        raise StateError(
            f"the database holds next_clip_norm={kept!r} of the newest released round; restore "
            "the state from a backup"
        )
    return kept


def clip_norm_after_sum(plan: Plan, clip_norm: float, *, unclipped: float) -> float:
    """The next round's clip norm from a round's sum of counts, as devices reported them.

    With `noise = "server"` they are bare, and the noise is added here.
    """
    if plan.privacy.noise == "server":
        unclipped = noised_count(unclipped, stddev=plan.clip_count_stddev)
    return next_clip_norm(plan, clip_norm, unclipped=unclipped)


def bounded_report(report: Float32, plan: Plan, *, clip_norm: float | None) -> Float32:
    """A device's finite report as it may be added: `bounded_update`, and the count checked.

    Args:
      report: float32 [d], or [d + 1] where the clip norm adapts.
      plan: the task's.
      clip_norm: the round's; None where the plan's never changes.

    Raises WireError 422.
    """
    if clip_norm is None:
        return bounded_update(report, plan.privacy)
    if fault := fault_of_count(plan, float(report[-1])):
        raise WireError(f"update: {fault}; nothing was added", status=422)
    update = report[:-1]
    bounded = bounded_update(update, replace(plan.privacy, clip_norm=clip_norm))
    return report if bounded is update else np.append(bounded, report[-1:])
