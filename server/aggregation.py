"""Aggregation: many uploads folded into durable partial sums, each counted once.

One fold is one transaction: rows for the devices that are new to the round,
the sum of exactly those updates as a blob on disk, then the row that names the
blob, then the commit, and only then the answers. A crash before the commit
leaves no row and an unnamed blob; a crash after it leaves a counted update
whose device will ask again and be told so.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import Connection, delete, func, insert, select
from sqlalchemy.dialects.sqlite import insert as insert_or_ignore

from server import schema
from server.blobs import BlobStore, Float64
from server.rounds import OPEN
from server.separation import reported_too_recently
from server.store import Partial, Store, partials_of
from tf_dpfl.protocol.tensors import Float32

# Beyond this many partial sums of one round a fold merges them into one, so
# that slow arrivals cost neither a file each nor a re-write each.
MOST_PARTIALS = 16

COUNTED, REPEATED, CONFLICT, CLOSED = "counted", "repeated", "conflict", "closed"


@dataclass(frozen=True)
class Upload:
    """One checked update: `vector` is the whole report, float32 and finite, with this digest."""

    device_id: str
    digest: str
    vector: Float32


def fold(
    store: Store,
    blobs: BlobStore,
    *,
    round_number: int,
    uploads: Sequence[Upload],
    most_reports: int | None = None,
    separation: int | None = None,
) -> list[str]:
    """Adds the uploads to an open round's sum; returns one outcome for each.

    Args:
      uploads: any mix of new, repeated and conflicting ones.
      most_reports: the round takes no more than this many reports.
      separation: least number of rounds from a device's report to its next; one
        that comes too early finds the round CLOSED, whoever invited it.

    Returns:
      COUNTED (in the durable sum now), REPEATED (the same bytes already were),
      CONFLICT (other bytes of this device are), CLOSED (the round takes none).
    """
    first: dict[str, Upload] = {}
    for upload in uploads:
        first.setdefault(upload.device_id, upload)
    with store.transaction() as connection:
        candidates = list(first.values())
        if separation is not None:
            candidates = _rested(connection, round_number, candidates, separation)
        new = _insert_new(connection, round_number, candidates, most_reports)
        if new:
            _add(connection, blobs, round_number, [first[device] for device in sorted(new)])
        kept = _digests(connection, round_number, list(first))
    outcomes = []
    for upload in uploads:
        if upload is first[upload.device_id] and upload.device_id in new:
            outcomes.append(COUNTED)
        elif upload.device_id not in kept:
            outcomes.append(CLOSED)
        else:
            same = kept[upload.device_id] == upload.digest
            outcomes.append(REPEATED if same else CONFLICT)
    return outcomes


def total(blobs: BlobStore, partials: Sequence[Partial], *, size: int) -> Float64:
    """The float64 sum, shape [size], of a round's partial sums."""
    result = np.zeros(size)
    for partial in partials:
        result += blobs.get_vector(partial.blob, size=size)
    return result


def _insert_new(
    connection: Connection, number: int, uploads: list[Upload], most_reports: int | None
) -> set[str]:
    """Inserts rows for devices without one; returns those devices."""
    state = connection.execute(
        select(schema.rounds.c.state).where(schema.rounds.c.number == number)
    ).scalar()
    if state != OPEN:
        return set()
    report = schema.reports.c
    if most_reports is not None:
        known = _digests(connection, number, [upload.device_id for upload in uploads])
        taken = connection.execute(
            select(func.count()).where(report.round_number == number)
        ).scalar_one()
        unknown = [upload for upload in uploads if upload.device_id not in known]
        uploads = unknown[: max(0, most_reports - taken)]
    if not uploads:
        return set()
    rows = [
        {"round_number": number, "device_id": upload.device_id, "sha256": upload.digest}
        for upload in uploads
    ]
    return set(
        connection.execute(
            insert_or_ignore(schema.reports)
            .values(rows)
            .on_conflict_do_nothing()
            .returning(report.device_id)
        ).scalars()
    )


def _rested(
    connection: Connection, number: int, uploads: list[Upload], separation: int
) -> list[Upload]:
    """The uploads of devices that may report again in this round."""
    version = connection.execute(
        select(schema.rounds.c.model_version).where(schema.rounds.c.number == number)
    ).scalar()
    if version is None:
        return []
    resting = reported_too_recently(
        connection,
        model_version=version,
        separation=separation,
        among=[upload.device_id for upload in uploads],
    )
    return [upload for upload in uploads if upload.device_id not in resting]


def _add(connection: Connection, blobs: BlobStore, number: int, uploads: list[Upload]) -> None:
    """Writes the uploads' sum as one more partial, merging when there are many."""
    sum_ = np.zeros(uploads[0].vector.shape)
    for upload in uploads:
        sum_ += upload.vector
    reports = len(uploads)
    existing = partials_of(connection, number)
    if len(existing) >= MOST_PARTIALS:
        sum_ += total(blobs, existing, size=sum_.size)
        reports += sum(partial.reports for partial in existing)
        connection.execute(delete(schema.partials).where(schema.partials.c.round_number == number))
    connection.execute(
        insert(schema.partials).values(
            partial_id=os.urandom(16).hex(),
            round_number=number,
            reports=reports,
            blob=blobs.put_vector(sum_),
        )
    )


def _digests(connection: Connection, number: int, device_ids: list[str]) -> dict[str, str]:
    report = schema.reports.c
    rows = connection.execute(
        select(report.device_id, report.sha256).where(
            report.round_number == number, report.device_id.in_(device_ids)
        )
    )
    return {row.device_id: row.sha256 for row in rows}
