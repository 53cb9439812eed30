"""The client against the real service on a real socket; `lifecycle` plays the worker where a job has to move."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from typer.testing import CliRunner

from limbeck import Client
from limbeck.cli import app
from models.answers import Kind
from models.tables import Student, new_id
from tests.client.scripts import Script, scripted
from tests.client.stand_ins import REPORT, Service, serving, spec_of
from tests.client.wire import Wire
from tests.factories import tiny_rows
from tests.students import published


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("client") / "data") as found:
        yield found


@pytest.fixture(scope="session")
def key(service: Service) -> str:
    return service.key("admin")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("LIMBECK_URL", "LIMBECK_API_KEY", "LIMBECK_DATA_DIR", "LIMBECK_BROKER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def client(service: Service, key: str) -> Iterator[Client]:
    with Client(service.url, key) as found:
        yield found


@pytest.fixture(scope="session")
def portal() -> Iterator[BlockingPortal]:
    """An event loop in a thread."""
    with start_blocking_portal() as found:
        yield found


@pytest.fixture
def script() -> Iterator[Script]:
    with scripted() as found:
        yield found


@pytest.fixture
def csv_file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    lines = [f"{text},{label}" for text, label in zip(*tiny_rows(60), strict=True)]
    path.write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def spec(client: Client, csv_file: Path) -> dict[str, Any]:
    return spec_of(client.datasets.upload(csv_file).id)


@pytest.fixture(scope="session")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("students") / "one")


@pytest.fixture(scope="session")
def answerers(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Path]:
    """A published student of each kind of task."""
    root = tmp_path_factory.mktemp("answerers")
    return {
        "text-classification": student_folder,
        "text-regression": published(root / "number", "text-regression"),
        "token-classification": published(root / "words", "token-classification"),
        "question-answering": published(root / "span", "question-answering"),
    }


@pytest.fixture
def student(service: Service, student_folder: Path) -> str:
    """A published student; its id."""
    return publish(service, student_folder)


def publish(service: Service, folder: Path) -> str:
    """Publish a student; its id."""
    id_ = new_id("st")
    manifest = service.store.publish(folder, f"students/{id_}")
    with service.database.writing() as session:
        session.add(
            Student(
                id=id_,
                owner="default",
                name="tiny",
                job_id=new_id("job"),
                hash=manifest.student_hash,
                artifact=f"students/{id_}",
                manifest=manifest.model_dump(mode="json"),
                report=REPORT,
            )
        )
    return id_


# --- the command ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Ran]


@pytest.fixture
def cli(service: Service, key: str) -> Cli:
    """Run `limbeck` in this process against the service."""

    def call(*arguments: object, stdin: str | None = None, **environment: str) -> Ran:
        variables = {"LIMBECK_URL": service.url, "LIMBECK_API_KEY": key, "COLUMNS": "200", **environment}
        done = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin, env=variables)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Ran(done.exit_code, done.stdout, done.stderr)

    return call


@pytest.fixture
def wire(service: Service) -> Iterator[Wire]:
    found = Wire(service.address)
    yield found
    found.close()
