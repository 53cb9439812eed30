"""The database: one engine, two kinds of transaction, and what happens after a commit.

`reading()` opens a deferred transaction and never takes SQLite's write lock; `writing()` opens `BEGIN IMMEDIATE` there,
so that a read-then-write cannot lose to another writer in between (the driver alone would let two workers claim
one job: see docs/decisions/0003). On PostgreSQL both are ordinary transactions. Nobody calls `commit()`: leaving the
block does.

The database's clock is the only one that leases know: `db_now()` in a statement, seconds since 1970.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, Float, create_engine, event
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

_BUSY_TIMEOUT_MS = 5000
_AFTER_COMMIT = "limbeck.after_commit"


class db_now(FunctionElement[float]):  # noqa: N801 - it stands in statements, as func.now() does
    """The database's own clock, in seconds since 1970, also inside a long transaction."""

    type = Float(53)
    inherit_cache = True


@compiles(db_now, "sqlite")
def _sqlite_now(element: db_now, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ARG001
    return "(julianday('now') - 2440587.5) * 86400.0"


@compiles(db_now, "postgresql")
def _postgresql_now(element: db_now, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ARG001
    return "extract(epoch from clock_timestamp())::double precision"


class Database:
    """An engine with its two session factories. Cheap to make; `close()` when done."""

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        self._read = sessionmaker(self.engine, expire_on_commit=False)
        self._write = sessionmaker(self.engine.execution_options(limbeck_write=True), expire_on_commit=False)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        with self._read() as session, session.begin():
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """One transaction, committed when the block ends; then what `after_commit` collected is called."""
        with self._write() as session:
            with session.begin():
                yield session
            callbacks = session.info.pop(_AFTER_COMMIT, [])
        for callback in callbacks:
            callback()

    def close(self) -> None:
        self.engine.dispose()


def after_commit(session: Session, callback: Callable[[], None]) -> None:
    """Call `callback` once this session's transaction has been committed, and never if it is rolled back."""
    session.info.setdefault(_AFTER_COMMIT, []).append(callback)


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        engine = create_engine(parsed, connect_args={"timeout": _BUSY_TIMEOUT_MS / 1000}, pool_size=32, max_overflow=32)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if parsed.get_backend_name() == "postgresql":
        return create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            pool_size=16,
            max_overflow=16,
            pool_pre_ping=True,
            connect_args={"connect_timeout": 5},
        )
    raise ValueError(f"LIMBECK_DATABASE_URL must be sqlite:// or postgresql://, not {parsed.drivername}://")


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # the driver would begin transactions by itself, and too late
    for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={_BUSY_TIMEOUT_MS}", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("limbeck_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
