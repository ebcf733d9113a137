"""The privacy of a row in one line, where no card of a plan has one."""

from __future__ import annotations

from typing import Any


def of_central_training(statement: Any) -> str:
    """All that the statement of a `DPModel` says."""
    return "; ".join(statement.to_text().splitlines())


def of_stock(plan: Any, epsilon: float) -> str:
    """What dp_accounting alone says of stock TFF's aggregator, which states nothing itself."""
    clients = plan.clients
    return (
        f"against whoever sees the released models: epsilon {epsilon:.4g} at delta "
        f"{plan.privacy.delta:g} for one user (add-or-remove-one; {clients.sampling} sampling of "
        f"probability {clients.sampling_probability:.4g}), by dp_accounting alone. Sampling counts "
        "for nothing to whoever knows the seed of the cohorts"
    )
