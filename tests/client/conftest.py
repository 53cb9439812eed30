"""The client against the real service on a real socket; `lifecycle` plays the worker where a job has to move."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import BertTokenizer
from typer.testing import CliRunner

from limbeck import Client
from limbeck.cli import app
from models.artifacts import Store, write_manifest
from models.tables import Student, new_id
from tests.client.stand_ins import spec_of
from tests.client.wire import Wire
from tests.factories import LABELS, tiny_network, tiny_rows, tiny_tokenizer
from tests.service import Service, running, settings_in
from worker import export


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(settings_in(tmp_path_factory.mktemp("client") / "data", sweep_interval=0.2)) as found:
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
    folder = tmp_path_factory.mktemp("students") / "one"
    tokenizer = BertTokenizer(tokenizer_object=tiny_tokenizer(), model_max_length=32)
    network = tiny_network(LABELS)
    export.write_student(folder, network, tokenizer, task="text-classification", labels=LABELS, max_length=32)
    export.to_onnx(network, folder, max_length=32)
    export.write_golden(folder, tiny_rows(12)[0])
    write_manifest(folder, kind="student", task="text-classification", labels=LABELS, max_length=32)
    return folder


REPORT = {
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


@pytest.fixture
def student(service: Service, student_folder: Path) -> str:
    """A published student; its id."""
    id_ = new_id("st")
    store: Store = service.app.state.store
    manifest = store.publish(student_folder, f"students/{id_}")
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
