"""The store: every durable fact of a task, and the transactions that change them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.dialects.sqlite import insert as insert_or_ignore

from server import schema
from server.rounds import ABORTED, CHARGED, COMPUTED, OPEN, RELEASED, UNFINISHED, Round
from tf_dpfl.protocol.errors import StateError

_TASK_FACT, _ENDED_FACT = "task", "ended"


@dataclass(frozen=True)
class Computed:
    """What a charged round computed: blobs not yet published, and its metrics.

    `noise_blob` holds what correlated noise remembers, and is never published.
    `next_clip_norm` is that of the round after, where it adapts.
    """

    weights_blob: str
    optimizer_blob: str
    result: Mapping[str, Any]
    noise_blob: str | None = None
    next_clip_norm: float | None = None


@dataclass(frozen=True)
class Partial:
    """The durable sum of some reports of one round."""

    partial_id: str
    reports: int
    blob: str


class Store:
    """A server's database. Every public method is one transaction."""

    def __init__(self, path: Path, *, create: bool, clock: Callable[[], float] = time.time):
        self._engine = schema.open_engine(path, create=create)
        self._clock = clock

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds since 1970, for the rows' times."""
        return self._clock

    def close(self) -> None:
        """Ends all connections; SQLite folds its log into the file."""
        self._engine.dispose()

    def transaction(self) -> AbstractContextManager[Connection]:
        """A writer's transaction: committed at the end, rolled back on an exception."""
        return self._engine.begin()

    # Task ---------------------------------------------------------------

    def bind_task(self, digest: str) -> None:
        """Ties the database to one task; StateError when it is tied to another."""
        with self.transaction() as connection:
            kept = _fact(connection, _TASK_FACT)
            if kept is None:
                connection.execute(insert(schema.facts).values(name=_TASK_FACT, value=digest))
            elif kept != digest:
                raise StateError(
                    "the database belongs to another task; give another --state for this one"
                )

    def end_task(self, reason: str) -> None:
        """Ends the task for good; the first reason stays."""
        with self.transaction() as connection:
            _end(connection, reason)

    def ended(self) -> str | None:
        """Why the task has ended, or None."""
        with self.transaction() as connection:
            return _fact(connection, _ENDED_FACT)

    # Rounds -------------------------------------------------------------

    def open_round(self, round_: Round) -> None:
        """Records a new open round, its secret and its draw."""
        with self.transaction() as connection:
            connection.execute(
                insert(schema.rounds).values(
                    number=round_.number,
                    model_version=round_.model_version,
                    state=OPEN,
                    secret=round_.secret,
                    fixed_draw=round_.drawn is not None,
                    opened_at_s=round_.opened_at_s,
                    deadline_s=round_.deadline_s,
                    reports_per_round=round_.reports_per_round,
                )
            )
            if round_.drawn:
                connection.execute(
                    insert(schema.drawn),
                    [
                        {"round_number": round_.number, "device_id": device}
                        for device in sorted(round_.drawn)
                    ],
                )

    def unfinished_round(self) -> Round | None:
        """The one round that is neither released nor aborted."""
        with self.transaction() as connection:
            row = connection.execute(
                select(schema.rounds).where(schema.rounds.c.state.in_(UNFINISHED))
            ).first()
            return None if row is None else _round(connection, row)

    def round(self, number: int) -> Round | None:
        """The round of that number, whatever its state."""
        with self.transaction() as connection:
            row = connection.execute(
                select(schema.rounds).where(schema.rounds.c.number == number)
            ).first()
            return None if row is None else _round(connection, row)

    def last_round_number(self) -> int:
        """The highest round number used; 0 before the first."""
        with self.transaction() as connection:
            return connection.execute(select(func.max(schema.rounds.c.number))).scalar() or 0

    def released_rounds(self) -> int:
        """How many rounds were released."""
        with self.transaction() as connection:
            return connection.execute(
                select(func.count()).where(schema.rounds.c.state == RELEASED)
            ).scalar_one()

    def report_digests(self, number: int) -> dict[str, str]:
        """SHA-256 of every accepted update of a round, by device."""
        report = schema.reports.c
        with self.transaction() as connection:
            rows = connection.execute(
                select(report.device_id, report.sha256).where(report.round_number == number)
            )
            return {row.device_id: row.sha256 for row in rows}

    def report_digest(self, number: int, device_id: str) -> str | None:
        """SHA-256 of the device's accepted update in a round, if it has one."""
        report = schema.reports.c
        with self.transaction() as connection:
            return connection.execute(
                select(report.sha256).where(
                    report.round_number == number, report.device_id == device_id
                )
            ).scalar()

    # Closing: each step moves a round from one state to the next, once ------

    def charge(self, number: int, *, reports: int, mechanism: Mapping[str, Any]) -> bool:
        """From open to charged: the ledger's row and the frozen count in one transaction.

        False, and nothing changed, when the round no longer has exactly
        `reports` reports.
        """
        with self.transaction() as connection:
            if _reports(connection, number) != reports:
                return False
            if _move(connection, number, OPEN, CHARGED, reports=reports):
                connection.execute(
                    insert(schema.ledger).values(
                        round_number=number,
                        mechanism_json=json.dumps(mechanism),
                        charged_at_s=self._clock(),
                    )
                )
            return True

    def abort(self, number: int, *, reports: int, reason: str, ends_task: bool) -> bool:
        """From open to aborted: the partial sums are forgotten, the task ended if asked.

        False, and nothing changed, when the round no longer has exactly
        `reports` reports.
        """
        with self.transaction() as connection:
            if _reports(connection, number) != reports:
                return False
            values = {"reports": reports, "reason": reason, "closed_at_s": self._clock()}
            if _move(connection, number, OPEN, ABORTED, **values):
                _forget_partials(connection, number)
                if ends_task:
                    _end(connection, reason)
            return True

    def record_computed(self, number: int, computed: Computed) -> None:
        """From charged to computed: names the blobs that hold the next model."""
        with self.transaction() as connection:
            _move(
                connection,
                number,
                CHARGED,
                COMPUTED,
                weights_blob=computed.weights_blob,
                optimizer_blob=computed.optimizer_blob,
                noise_blob=computed.noise_blob,
                next_clip_norm=computed.next_clip_norm,
                result_json=json.dumps(computed.result, allow_nan=False),
            )

    def record_released(self, number: int, *, ends_task: str | None) -> None:
        """From computed to released: the partial sums are forgotten; `ends_task` is a reason."""
        with self.transaction() as connection:
            if not _move(connection, number, COMPUTED, RELEASED, closed_at_s=self._clock()):
                return
            _forget_partials(connection, number)
            if ends_task is not None:
                _end(connection, ends_task)

    def partials(self, number: int) -> list[Partial]:
        """The durable partial sums of a round."""
        with self.transaction() as connection:
            return partials_of(connection, number)

    def computed(self, number: int) -> Computed:
        """What a round past "charged" computed."""
        with self.transaction() as connection:
            row = connection.execute(
                select(schema.rounds).where(schema.rounds.c.number == number)
            ).one()
        return _computed(row)

    def last_released(self) -> Computed | None:
        """What the newest released round computed."""
        return self._last(RELEASED)

    def results(self) -> list[dict[str, Any]]:
        """The metrics of every round past "computed", oldest first."""
        column = schema.rounds.c
        with self.transaction() as connection:
            rows = connection.execute(
                select(column.result_json)
                .where(column.state.in_((COMPUTED, RELEASED)))
                .order_by(column.number)
            )
            return [_parsed(row.result_json) for row in rows]

    def charges(self) -> list[dict[str, Any]]:
        """The ledger: the mechanism of every charged round, oldest first."""
        column = schema.ledger.c
        with self.transaction() as connection:
            rows = connection.execute(select(column.mechanism_json).order_by(column.round_number))
            return [_parsed(row.mechanism_json) for row in rows]

    def blobs_in_use(self) -> set[str]:
        """Names of the blobs some row needs: open sums, computed and last models."""
        names: set[str] = set()
        with self.transaction() as connection:
            names.update(connection.execute(select(schema.partials.c.blob)).scalars())
            column = schema.rounds.c
            rows = connection.execute(select(schema.rounds).where(column.state == COMPUTED))
            needed = [_computed(row) for row in rows]
        last = self._last(RELEASED)
        for round_ in (*needed, *([] if last is None else [last])):
            names.update((round_.weights_blob, round_.optimizer_blob))
            if round_.noise_blob is not None:
                names.add(round_.noise_blob)
        return names

    def counts(self) -> dict[str, int]:
        """Sizes for the operator's status."""
        column = schema.rounds.c
        with self.transaction() as connection:
            rows = connection.execute(
                select(column.state, func.count().label("rounds")).group_by(column.state)
            )
            states = {row.state: row.rounds for row in rows}
            unused = select(func.count()).where(schema.tokens.c.device_id.is_(None))
            return {
                "enrolled_devices": count_of(connection, schema.devices),
                "unused_tokens": connection.execute(unused).scalar_one(),
                "released_rounds": states.get(RELEASED, 0),
                "aborted_rounds": states.get(ABORTED, 0),
                "charged_rounds": count_of(connection, schema.ledger),
            }

    def _last(self, state: str) -> Computed | None:
        column = schema.rounds.c
        with self.transaction() as connection:
            row = connection.execute(
                select(schema.rounds)
                .where(column.state == state)
                .order_by(column.number.desc())
                .limit(1)
            ).first()
        return None if row is None else _computed(row)


def _computed(row: Any) -> Computed:
    return Computed(
        row.weights_blob,
        row.optimizer_blob,
        _parsed(row.result_json),
        row.noise_blob,
        row.next_clip_norm,
    )


def partials_of(connection: Connection, number: int) -> list[Partial]:
    """The partial sums of a round, inside a transaction."""
    column = schema.partials.c
    rows = connection.execute(
        select(schema.partials).where(column.round_number == number).order_by(column.partial_id)
    )
    return [Partial(row.partial_id, row.reports, row.blob) for row in rows]


def _round(connection: Connection, row: Any) -> Round:
    drawn = None
    if row.fixed_draw:
        column = schema.drawn.c
        drawn = frozenset(
            connection.execute(
                select(column.device_id).where(column.round_number == row.number)
            ).scalars()
        )
    return Round(
        number=row.number,
        model_version=row.model_version,
        state=row.state,
        secret=row.secret,
        drawn=drawn,
        opened_at_s=row.opened_at_s,
        deadline_s=row.deadline_s,
        reports_per_round=row.reports_per_round,
    )


def _move(connection: Connection, number: int, before: str, after: str, **values: Any) -> bool:
    """Moves a round between states; False, and nothing changed, when it had left `before`."""
    column = schema.rounds.c
    moved = connection.execute(
        update(schema.rounds)
        .where(column.number == number, column.state == before)
        .values(state=after, **values)
        .returning(column.number)
    ).first()
    return moved is not None


def _reports(connection: Connection, number: int) -> int:
    return connection.execute(
        select(func.count()).where(schema.reports.c.round_number == number)
    ).scalar_one()


def _forget_partials(connection: Connection, number: int) -> None:
    connection.execute(delete(schema.partials).where(schema.partials.c.round_number == number))


def _parsed(text: Any) -> dict[str, Any]:
    """A row's JSON object; StateError when somebody changed it."""
    try:
        tree = json.loads(text)
    except (TypeError, ValueError):
        tree = None
    if not isinstance(tree, dict):
        raise StateError(
            f"the database holds {text!r:.40} where JSON was written; restore the state from a "
            "backup"
        )
    return tree


def _fact(connection: Connection, name: str) -> str | None:
    column = schema.facts.c
    return connection.execute(select(column.value).where(column.name == name)).scalar()


def _end(connection: Connection, reason: str) -> None:
    connection.execute(
        insert_or_ignore(schema.facts)
        .values(name=_ENDED_FACT, value=reason)
        .on_conflict_do_nothing()
    )


def count_of(connection: Connection, table: Any) -> int:
    """Number of rows of a table, inside a transaction."""
    return connection.execute(select(func.count()).select_from(table)).scalar_one()
