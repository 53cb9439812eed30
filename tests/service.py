"""The service on a real socket, in a thread of the test's process, with everything below one folder."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI
from sqlalchemy import func, select

from app import security
from app.main import create_app
from models import migrations
from models.database import Database
from models.settings import Settings
from models.tables import Table, new_id


@dataclass(frozen=True)
class Service:
    app: FastAPI
    settings: Settings
    address: tuple[str, int]

    @property
    def url(self) -> str:
        return f"http://{self.address[0]}:{self.address[1]}"

    @property
    def database(self) -> Database:
        found: Database = self.app.state.database
        return found

    def key(self, *scopes: str, owner: str = "default") -> str:
        """The secret of a new key."""
        row, secret = security.make_key(owner, scopes)
        row.id = new_id("key")
        with self.database.writing() as session:
            session.add(row)
        return secret

    def client(self, *scopes: str, owner: str = "default") -> httpx2.Client:
        headers = {"Authorization": f"Bearer {self.key(*scopes, owner=owner)}"}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=60)

    def rows(self) -> dict[str, int]:
        """How many rows each table has."""
        with self.database.reading() as session:
            return {
                name: session.scalar(select(func.count()).select_from(table)) or 0
                for name, table in Table.metadata.tables.items()
            }

    def artifacts(self) -> list[str]:
        """Every file below the artifact store's folder and the folder that uploads are worked on in."""
        roots = (self.settings.data_dir / "artifacts", self.settings.data_dir / "uploads")
        return sorted(str(path) for root in roots if root.exists() for path in root.rglob("*") if path.is_file())


def settings_in(folder: Path, **chosen: Any) -> Settings:
    """Everything below `folder`, whatever this machine's environment says."""
    return Settings(**({"data_dir": folder, "database_url": "", "broker_url": "", "artifacts_url": ""} | chosen))


@contextmanager
def running(settings: Settings) -> Iterator[Service]:
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    database = Database(settings.database)
    migrations.upgrade(database)
    database.close()
    app = create_app(settings)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=5
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        until = time.monotonic() + 30
        while not server.started:
            if not thread.is_alive() or time.monotonic() > until:
                raise RuntimeError("the service did not start")
            time.sleep(0.01)
        try:
            yield Service(app, settings, listener.getsockname())
        finally:
            server.should_exit = True
            thread.join(30)
