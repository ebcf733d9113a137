"""The database's tables, and opening a file that holds them and nothing else."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    event,
)
from sqlalchemy.exc import DatabaseError

from tf_dpfl.protocol.errors import StateError

SCHEMA_VERSION = 3
# What each older version lacks, as statements that bring it to the next.
_FROM_OLDER = {
    1: ("ALTER TABLE rounds ADD COLUMN noise_blob VARCHAR",),
    2: ("ALTER TABLE rounds ADD COLUMN next_clip_norm FLOAT",),
}
# SQLite's application_id: another program's database is refused ("DPFL").
APPLICATION_ID = 0x4450464C
# Seconds a writer waits for another process (dpfl-server tokens) to commit.
BUSY_TIMEOUT_S = 20

metadata = MetaData()

facts = Table(
    "facts",
    metadata,
    Column("name", String, primary_key=True),  # task, ended
    Column("value", String, nullable=False),
)
tokens = Table(
    "tokens",
    metadata,
    Column("token_sha256", String, primary_key=True),
    Column("device_id", String),  # null until used
)
devices = Table(
    "devices",
    metadata,
    Column("device_id", String, primary_key=True),
    Column("public_key", String, nullable=False),
    Column("enrolled_at_s", Float, nullable=False),
)
rounds = Table(
    "rounds",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("model_version", Integer, nullable=False),
    Column("state", String, nullable=False),
    Column("secret", LargeBinary, nullable=False),
    Column("fixed_draw", Boolean, nullable=False),
    Column("opened_at_s", Float, nullable=False),
    Column("deadline_s", Float, nullable=False),
    Column("reports_per_round", Integer),
    Column("closed_at_s", Float),
    Column("reports", Integer),  # frozen when the round leaves "open"
    Column("reason", String),
    Column("weights_blob", String),
    Column("optimizer_blob", String),
    Column("noise_blob", String),  # what correlated noise remembers
    Column("next_clip_norm", Float),  # after this round, where it adapts
    Column("result_json", String),  # the round's line of metrics.jsonl
)
drawn = Table(
    "drawn",
    metadata,
    Column("round_number", Integer, primary_key=True),
    Column("device_id", String, primary_key=True),
)
reports = Table(
    "reports",
    metadata,
    Column("round_number", Integer, primary_key=True),
    Column("device_id", String, primary_key=True),
    Column("sha256", String, nullable=False),
)
partials = Table(
    "partials",
    metadata,
    Column("partial_id", String, primary_key=True),
    Column("round_number", Integer, nullable=False, index=True),
    Column("reports", Integer, nullable=False),
    Column("blob", String, nullable=False),
)
ledger = Table(
    "ledger",
    metadata,
    Column("round_number", Integer, primary_key=True),
    Column("mechanism_json", String, nullable=False),
    Column("charged_at_s", Float, nullable=False),
)


def open_engine(path: Path, *, create: bool) -> Engine:
    """An engine over `path`, in WAL mode with synchronous=FULL.

    Every transaction is a writer's (BEGIN IMMEDIATE), so none fails half way
    because another process wrote in between. Raises StateError when the file
    is missing (unless `create`), damaged, another program's, or of another
    schema version.
    """
    if not create and not path.exists():
        raise StateError(f"{path}: there is no server state here; dpfl-server run makes it")
    engine = create_engine(
        f"sqlite:///{path}",
        connect_args={"timeout": BUSY_TIMEOUT_S, "isolation_level": None},
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    try:
        _check_or_create(engine, path)
    except (DatabaseError, sqlite3.DatabaseError) as error:
        engine.dispose()
        reason = str(getattr(error, "orig", None) or error)
        raise StateError(
            f"{path}: not a usable database ({reason}); restore it from a backup"
        ) from None
    except StateError:
        engine.dispose()
        raise
    return engine


def _check_or_create(engine: Engine, path: Path) -> None:
    with engine.begin() as connection:
        sound = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
        if sound != "ok":
            sound = " ".join(str(sound).split())
            raise StateError(f"{path}: the database is damaged ({sound}); restore a backup")
        application = connection.exec_driver_sql("PRAGMA application_id").scalar()
        version = connection.exec_driver_sql("PRAGMA user_version").scalar()
        names = connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar()
        if (application, version, names) == (0, 0, 0):
            metadata.create_all(connection)
            connection.exec_driver_sql(f"PRAGMA application_id={APPLICATION_ID}")
            connection.exec_driver_sql(f"PRAGMA user_version={SCHEMA_VERSION}")
        elif application != APPLICATION_ID:
            raise StateError(f"{path}: another program's database; give another --state")
        elif version != SCHEMA_VERSION and version not in _FROM_OLDER:
            raise StateError(
                f"{path}: schema version {version}, this release reads {SCHEMA_VERSION}; use the "
                "release that wrote it"
            )
        else:
            for older in range(version, SCHEMA_VERSION):
                for statement in _FROM_OLDER[older]:
                    connection.exec_driver_sql(statement)
            connection.exec_driver_sql(f"PRAGMA user_version={SCHEMA_VERSION}")
            _check_columns(connection, path)


def _check_columns(connection: Connection, path: Path) -> None:
    for table in metadata.sorted_tables:
        rows = connection.exec_driver_sql(f"PRAGMA table_info({table.name})")
        missing = {column.name for column in table.columns} - {row.name for row in rows}
        if missing:
            raise StateError(
                f"{path}: the table {table.name} lacks {', '.join(sorted(missing))}; restore a "
                "backup, or use the release that wrote it"
            )
