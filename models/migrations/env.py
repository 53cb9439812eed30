"""Alembic's entry: runs revisions on the engine that `models.migrations` hands over.

From the command line (`alembic revision --autogenerate`) it takes the database of this process's settings.
"""

from alembic import context
from sqlalchemy import text

from models.database import Database
from models.settings import Settings
from models.tables import Table

_ADVISORY_LOCK = 5_043_817  # any number, the same for every process of this service


def _run() -> None:
    engine = context.config.attributes.get("engine") or Database(Settings().database).engine
    with engine.execution_options(limbeck_write=True).connect() as connection:
        context.configure(
            connection=connection, target_metadata=Table.metadata, render_as_batch=True, compare_type=True
        )
        with context.begin_transaction():
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _ADVISORY_LOCK})
            context.run_migrations()


_run()
