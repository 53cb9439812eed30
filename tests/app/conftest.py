"""A real application over a real SQLite file and a folder of artifacts, with an admin key; small published students."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app import security
from app.main import create_app
from models import migrations
from models.answers import Kind
from models.artifacts import Store, write_manifest
from models.database import Database
from models.settings import Settings
from models.tables import ALIVE, Dataset, Job, Student, new_id
from tests.factories import LABELS, parquet, tiny_rows
from tests.students import published


@dataclass
class Api:
    """The application, and what lies beneath it. `client` has an admin key of the owner `default`."""

    app: FastAPI
    client: TestClient
    settings: Settings
    database: Database
    store: Store

    def key(self, *permissions: str, owner: str = "default", **options: Any) -> str:
        """The secret of a new key."""
        row, secret = security.make_key(owner, permissions or ("admin",), **options)
        row.id = new_id("key")
        with self.database.writing() as session:
            session.add(row)
        return secret

    def as_(self, *permissions: str, owner: str = "default") -> TestClient:
        """A client with a new key. It shares the application's loop, so it is used inside the fixture's life only."""
        other = TestClient(self.app, headers=bearer(self.key(*permissions, owner=owner)))
        other.portal = self.client.portal
        return other

    def dataset(self, owner: str = "default", rows: int = 60) -> str:
        """A dataset with the columns `text` and `label`; its id."""
        texts, labels = tiny_rows(rows)
        id_ = new_id("ds")
        path = parquet(self.settings.data_dir / f"{id_}.parquet", text=texts, label=labels)
        self.store.put_file(path, f"datasets/{id_}.parquet")
        columns = [{"name": name, "type": "string", "nulls": 0, "examples": []} for name in ("text", "label")]
        row = Dataset(
            id=id_,
            owner=owner,
            name="rows",
            columns=columns,
            rows=rows,
            bytes=path.stat().st_size,
            sha256=sha256(path.read_bytes()).hexdigest(),
            artifact=f"datasets/{id_}.parquet",
            warnings=[],
        )
        with self.database.writing() as session:
            session.add(row)
        return id_

    def job(self, owner: str = "default", **columns: Any) -> str:
        """A job's row, put there as it is; its id."""
        id_ = new_id("job")
        if columns.get("status") in ALIVE:
            columns.setdefault("lease_until", time.time() + 3600)  # else the sweep would end it or take it back
        with self.database.writing() as session:
            session.add(Job(id=id_, owner=owner, spec={}, resolved_spec={}, **columns))
        return id_

    def student(self, folder: Path, owner: str = "default", name: str = "") -> str:
        """A published student; its id."""
        id_ = new_id("st")
        manifest = self.store.publish(folder, f"students/{id_}")
        report = {"format": 1, "verdict": "It is small.", "gate": {"passed": True, "checks": []}}
        row = Student(
            id=id_,
            owner=owner,
            name=name,
            job_id=new_id("job"),
            hash=manifest.student_hash,
            artifact=f"students/{id_}",
            manifest=manifest.model_dump(mode="json"),
            report=report,
        )
        with self.database.writing() as session:
            session.add(row)
        return id_

    def deployed(self, folder: Path, name: str = "default") -> str:
        """A student that a deployment points at; its id."""
        student = self.student(folder)
        answer = self.client.put(f"/deployments/{name}", json={"student": student})
        assert answer.status_code in {200, 201}, answer.text
        return student


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", database_url="", broker_url="", artifacts_url="", sweep_interval=0.2)


@pytest.fixture
def api(settings: Settings) -> Iterator[Api]:
    with running(settings) as found:
        yield found


class running:  # noqa: N801 - it reads as a verb
    """`with running(settings) as api`: for tests that need settings of their own."""

    def __init__(self, settings: Settings, **options: Any) -> None:
        self.settings = settings
        self.options = options

    def __enter__(self) -> Api:
        self.settings.data_dir.mkdir(parents=True, exist_ok=True)
        self.database = Database(self.settings.database)
        migrations.upgrade(self.database)
        self.app = create_app(self.settings)
        self.client = TestClient(self.app, **self.options)
        self.client.__enter__()
        api = Api(self.app, self.client, self.settings, self.database, self.app.state.store)
        self.client.headers.update(bearer(api.key()))
        return api

    def __exit__(self, *error: object) -> None:
        self.client.__exit__(None, None, None)
        self.database.close()


@pytest.fixture(scope="session")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("students") / "one")


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("students") / "other", seed=1)


@pytest.fixture(scope="session")
def folders(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Path]:
    """A published student of each kind of task."""
    root = tmp_path_factory.mktemp("kinds")
    return {
        "text-classification": student_folder,
        "text-regression": published(root / "number", "text-regression", config={"limbeck_pair": True}),
        "token-classification": published(root / "words", "token-classification"),
        "question-answering": published(root / "span", "question-answering"),
    }


@pytest.fixture
def damaged_folder(student_folder: Path, tmp_path: Path) -> Path:
    """A student whose manifest is right and whose answers are not those on record."""
    folder = tmp_path / "damaged"
    shutil.copytree(student_folder, folder)
    golden = folder / "golden.json"
    document = json.loads(golden.read_text())
    document["examples"][0]["answers"]["fp32"][0][0][0] += 9
    golden.write_text(json.dumps(document))
    (folder / "manifest.json").unlink()
    write_manifest(folder, kind="student", task="text-classification", labels=LABELS, max_length=32)
    return folder


def eventually(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "did not come true in time"
        time.sleep(0.02)
