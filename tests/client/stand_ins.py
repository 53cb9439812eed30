"""What stands on the other side of the client in its tests: the service as a process, and a worker that is a script."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from app import security
from limbeck.house import free_port
from models import lifecycle, migrations
from models.artifacts import Store
from models.database import Database
from models.settings import Settings
from models.tables import new_id


@dataclass(frozen=True)
class Service:
    """The API in a process of its own, as it runs anywhere, and what lies beneath it."""

    address: tuple[str, int]
    settings: Settings
    database: Database
    store: Store

    @property
    def url(self) -> str:
        return f"http://{self.address[0]}:{self.address[1]}"

    def key(self, *scopes: str) -> str:
        """The secret of a new key."""
        row, secret = security.make_key("default", scopes)
        row.id = new_id("key")
        with self.database.writing() as session:
            session.add(row)
        return secret


@contextmanager
def serving(data_dir: Path) -> Iterator[Service]:
    settings = Settings(data_dir=data_dir, database_url="", broker_url="", artifacts_url="")
    data_dir.mkdir(parents=True)
    database = Database(settings.database)
    migrations.upgrade(database)
    port = free_port()
    with (data_dir / "api.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "app.main", "--host", "127.0.0.1", "--port", str(port)],
            cwd=data_dir,
            env={**os.environ, "LIMBECK_DATA_DIR": str(data_dir)},
            stdout=log,
            stderr=log,
        )
    try:
        service = Service(("127.0.0.1", port), settings, database, Store(settings.artifacts, data_dir / "cache"))
        until = time.monotonic() + 60
        while not _is_ready(service.url):
            assert process.poll() is None, (data_dir / "api.log").read_text()
            assert time.monotonic() < until
            time.sleep(0.05)
        yield service
    finally:
        process.kill()
        process.wait()
        database.close()


def _is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz").is_success
    except httpx2.HTTPError:
        return False


REPORT: dict[str, Any] = {
    "format": 1,
    "verdict": "The student keeps what the teacher knows.",
    "arms": {
        "teacher": {"accuracy": 0.76, "macro_f1": 0.74, "parameters": 22_700_000, "bytes": 90_000_000},
        "distilled": {
            "accuracy": 0.745,
            "macro_f1": 0.73,
            "agreement": 0.9,
            "parameters": 6_700_000,
            "bytes": 7_000_000,
            "served": "int8",
            "precisions": {"int8": {"p50_ms": 0.51}},
        },
        "control": {"accuracy": 0.72, "macro_f1": 0.7, "parameters": 6_700_000},
        "untrained": {"accuracy": 0.4, "macro_f1": 0.2, "parameters": 6_700_000},
    },
    "comparisons": {"drop": {"value": 0.015, "low": 0.005, "high": 0.025}, "gain_over_control": {"value": 0.025}},
    "gate": {"passed": True, "checks": [{"gate": "max_drop", "passed": True, "reason": "at most 2.4 points"}]},
    "counters": {"teacher_training_steps": 1234, "cached_signal_rows": 0},
    "seconds": {"teach": 12.5},
    "warnings": [{"code": "few_rows", "message": "there are few rows"}],
}


def spec_of(dataset: str, **more: Any) -> dict[str, Any]:
    """A job spec that the service accepts."""
    return {
        "task": {"kind": "text-classification", "text": "text", "label": "label"},
        "dataset": {"id": dataset},
        "teachers": [{"kind": "local", "model": "hub:some/teacher"}],
        "student": {"kind": "from_teacher", "layers": 1},
        **more,
    }


class ScriptedWorker:
    """What a worker does to a job, without training anything."""

    def __init__(self, service: Service, job_id: str) -> None:
        self._database = service.database
        self._job = job_id

    def claim(self) -> None:
        with self._database.writing() as session:
            assert lifecycle.claim(session, self._job, "wk_test", 60.0) is not None

    def progress(self) -> None:
        losses = [lifecycle.Point("distilled", 0, 0, "loss", step, value) for step, value in ((1, 0.7), (2, 0.6))]
        with self._database.writing() as session:
            lifecycle.record(session, self._job, 1, phase="distil", progress=0.5, eta=12.0, metrics=losses)

    def say(self, words: str) -> None:
        with self._database.writing() as session:
            lifecycle.record(session, self._job, 1, events=[lifecycle.Happening("note", words, {})])

    def fail(self) -> None:
        with self._database.writing() as session:
            lifecycle.fail(
                session,
                self._job,
                1,
                code="diverged",
                message="the loss is not finite",
                hint="lower the learning rate",
            )
