"""Enrolments: one-time tokens and devices, as rows of the store."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import insert, select, update
from sqlalchemy.dialects.sqlite import insert as insert_or_ignore

from server import schema
from server.store import Store, count_of
from tf_dpfl.protocol.errors import WireError


def add_tokens(store: Store, digests: Iterable[str]) -> None:
    """Keeps the digests of one-time tokens; known ones stay as they are."""
    rows = [{"token_sha256": digest} for digest in digests]
    if not rows:
        return
    with store.transaction() as connection:
        connection.execute(insert_or_ignore(schema.tokens).on_conflict_do_nothing(), rows)


def enroll(
    store: Store, *, token_digest: str, device_id: str, public_key: str, population: int
) -> None:
    """Uses a token for one device; again for the same device changes nothing.

    Raises WireError 403 for an unknown token, a token another key used, and
    when all `population` places are taken.
    """
    token, device = schema.tokens.c, schema.devices.c
    with store.transaction() as connection:
        row = connection.execute(
            select(token.device_id).where(token.token_sha256 == token_digest)
        ).first()
        if row is None:
            raise WireError(
                "enroll: the token is not known here; ask the task's operator for one",
                status=403,
            )
        if row.device_id not in (None, device_id):
            raise WireError(
                "enroll: the token was used by another key; ask the operator for a new one",
                status=403,
            )
        if connection.execute(
            select(device.device_id).where(device.device_id == device_id)
        ).first():
            return
        if count_of(connection, schema.devices) >= population:
            raise WireError(
                f"enroll: all {population} places of this task's population are taken",
                status=403,
            )
        connection.execute(
            update(schema.tokens)
            .where(token.token_sha256 == token_digest)
            .values(device_id=device_id)
        )
        connection.execute(
            insert(schema.devices).values(
                device_id=device_id, public_key=public_key, enrolled_at_s=store.clock()
            )
        )


def device_keys(store: Store) -> dict[str, str]:
    """Public key (hex) of every enrolled device, by id."""
    device = schema.devices.c
    with store.transaction() as connection:
        rows = connection.execute(select(device.device_id, device.public_key))
        return {row.device_id: row.public_key for row in rows}
