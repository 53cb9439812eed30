"""The whole way by HTTP, with real processes: upload, submit, distil, promote, predict. On each choice of servers.

Twice, because the second job must train no teacher, ask it nothing, and find its control.
"""

import csv
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limbeck import Client
from models.settings import Settings
from tests.conftest import PostgreSQL
from tests.factories import tiny_rows, tiny_teacher
from tests.processes import processes
from tests.servers import Valkey, wait_until


@pytest.fixture(
    params=[
        "sqlite, no broker",
        pytest.param("sqlite, valkey", marks=pytest.mark.valkey),
        pytest.param("postgresql, valkey", marks=[pytest.mark.postgres, pytest.mark.valkey]),
    ]
)
def client(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Client]:
    database, broker = request.param.split(", ")
    urls = {}
    if broker == "valkey":
        valkey: Valkey = request.getfixturevalue("valkey")
        urls["broker_url"] = valkey.url
    if database == "postgresql":
        server: PostgreSQL = request.getfixturevalue("postgresql")
        name = f"t_{uuid.uuid4().hex[:16]}"
        server.run(f"CREATE DATABASE {name}")
        urls["database_url"] = server.url(name)
    tiny_teacher(settings.models_folder / "tiny")
    with processes(settings, **urls) as client:
        yield client


def _spec(dataset: str) -> dict[str, Any]:
    return {
        "name": "tiny",
        "task": {"kind": "text-classification", "text": "text", "label": "label", "max_length": 32},
        "dataset": {"id": dataset, "validation": 0.2, "test": 0.3},
        "teachers": [{"kind": "local", "model": "file:tiny", "fine_tune": {"epochs": 8, "learning_rate": 3e-3}}],
        "student": {"kind": "from_teacher", "layers": 1},
        "schedule": {"epochs": 4, "learning_rate": 3e-3},
        "promote": {"deployment": "tiny", "gate": {"max_drop": 0.9}},
    }


@pytest.mark.timeout(400)
def test_two_jobs_with_one_teacher(client: Client, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    with rows.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *zip(*tiny_rows(600), strict=True)])
    dataset = client.datasets.upload(rows, name="tiny")
    counters = []
    hashes = []
    for _ in range(2):
        job = client.jobs.wait(client.jobs.submit(_spec(dataset.id)).id, timeout=180)
        assert job.status == "succeeded", job.error
        codes = [event.code for event in client.jobs.events(job.id, follow=False)]
        assert codes.count("succeeded") == 1
        assert "promoted" in codes
        assert any(point.arm == "distilled" for point in client.jobs.metrics(job.id, name="validation_accuracy"))
        assert job.student_id is not None
        student = client.students.get(job.student_id)
        hashes.append(student.hash)
        counters.append(client.students.report(student.id)["counters"])
        assert client.deployments.get("tiny").student == student.id
    assert counters[0]["teacher_training_steps"] > 0
    assert counters[0]["teacher_forward_rows"] == 600
    assert [counters[1][name] for name in ("teacher_training_steps", "teacher_forward_rows")] == [0, 0]
    assert counters[1]["control_training_steps"] == 0
    assert hashes[0] == hashes[1]
    texts = ["a great and lovely day", "an awful broken phone"]
    assert len(client.predict("tiny", texts)) == 2
    # A moved deployment takes effect within a second; the other one is for the test's own process.
    wait_until(lambda: client.predict("tiny", texts).student == student.id, 2)
    folder = tmp_path / "student"
    client.students.download(student.id, folder)
    assert (folder / "model.safetensors").exists()
