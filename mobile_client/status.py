"""What a state folder says about its device; reads only, and needs no lock."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mobile_client.ledger import CHARGED, DROPPED, SENT
from mobile_client.state import StateFolder
from tf_dpfl.protocol.errors import StateError
from tf_dpfl.protocol.local_privacy import local_epsilon

_UNITS = {
    "user": "all examples of this device, any two data sets (replace-one)",
    "example": "one example of this device, replaced by another (replace-one)",
}


def device_status(state: Path) -> dict[str, Any]:
    """The task, the reports by outcome and the local epsilon of all of them.

    `local_epsilon` is null when infinite. Raises StateError when `state` is not
    a device's folder or is damaged.
    """
    folder = StateFolder(state)
    binding = folder.load_binding()
    if binding is None:
        raise StateError(f"{state}: no device has joined a task here")
    ledger = folder.load_ledger()
    plan = folder.load_manifest(binding).plan
    privacy = plan.privacy
    epsilon = local_epsilon(plan, reports=ledger.count)
    return {
        "event": "status",
        "task_id": binding.task_id,
        "enrolled": binding.enrolled,
        "reports_charged": ledger.count,
        "reports_sent": ledger.outcomes(SENT),
        "reports_dropped": ledger.outcomes(DROPPED),
        "reports_unsettled": ledger.outcomes(CHARGED),
        "noise": privacy.noise,
        "local_epsilon": epsilon if math.isfinite(epsilon) else None,
        "delta": privacy.delta,
        "unit": _UNITS[privacy.unit],
    }
