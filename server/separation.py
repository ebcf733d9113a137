"""Separation: which devices reported too recently to take part again.

Rounds are counted as the mechanism counts them: by what was charged, and so is
released in the end. Reports of a failed attempt moved nothing.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, select

from server import admission, enrolments, schema
from server.rounds import CHARGED, COMPUTED, RELEASED
from server.store import Store
from tf_dpfl.protocol.plan import Plan


def reported_too_recently(
    connection: Connection,
    *,
    model_version: int,
    separation: int,
    among: Collection[str] | None = None,
) -> set[str]:
    """Devices with a report in the last `separation` - 1 charged rounds.

    `model_version` is that of the round they would take part in: the number of
    rounds released before it. Looks at the devices `among`, or at all.
    """
    report, round_ = schema.reports.c, schema.rounds.c
    reported = (
        select(report.device_id)
        .join(schema.rounds, round_.number == report.round_number)
        .where(
            round_.state.in_((CHARGED, COMPUTED, RELEASED)),
            round_.model_version > model_version - separation,
        )
    )
    if among is not None:
        reported = reported.where(report.device_id.in_(among))
    return set(connection.execute(reported).scalars())


def enforced_separation(plan: Plan) -> int | None:
    """Rounds from a device's report to its next one, at least; None where it is free."""
    return plan.clients.separation if plan.clients.sampling == "min_separation" else None


def draw_cohort(plan: Plan, store: Store, *, model_version: int) -> frozenset[str] | None:
    """The devices of a round about to be opened; None under Poisson sampling.

    "fixed": of all enrolled devices. "min_separation": of those that did not
    report too recently; with the whole population enrolled there are enough.
    """
    clients = plan.clients
    if clients.sampling == "poisson":
        return None
    devices = set(enrolments.device_keys(store))
    separation = enforced_separation(plan)
    if separation is not None:
        with store.transaction() as connection:
            devices -= reported_too_recently(
                connection, model_version=model_version, separation=separation
            )
    return admission.draw_fixed(devices, clients_per_round=clients.clients_per_round)
