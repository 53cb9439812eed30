"""A job, its bundle, and the same student from that bundle on a service that has never seen any of it."""

import csv
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from limbeck import Client
from limbeck.cli import app
from models.settings import Settings
from tests.factories import tiny_rows, tiny_teacher
from tests.processes import processes
from tests.service import settings_in


def _spec(dataset: str) -> dict[str, Any]:
    return {
        "task": {"kind": "text-classification", "text": "text", "label": "label", "max_length": 32},
        "dataset": {"id": dataset, "validation": 0.2, "test": 0.3},
        "teachers": [{"kind": "local", "model": "file:tiny", "fine_tune": {"epochs": 1}, "at_chance": True}],
        "student": {"kind": "from_teacher", "layers": 1},
        "schedule": {"epochs": 1, "learning_rate": 3e-3},
        "control": False,
    }


def _succeeded(client: Client, job_id: str) -> str:
    job = client.jobs.wait(job_id, timeout=150)
    assert job.status == "succeeded", job.error
    assert job.student_id is not None
    return job.student_id


def _command(client: Client, settings: Settings, *arguments: object) -> str:
    secret = (settings.data_dir / "admin.key").read_text("utf-8").strip()
    environment = {"LIMBECK_URL": client.url, "LIMBECK_API_KEY": secret, "COLUMNS": "200"}
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)
    assert done.exit_code == 0, done.output
    return str(done.stdout)


@pytest.mark.timeout(400)
@pytest.mark.long
def test_the_same_student_comes_out_of_its_bundle(settings: Settings, tmp_path: Path) -> None:
    tiny_teacher(settings.models_folder / "tiny")
    rows = tmp_path / "rows.csv"
    with rows.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *zip(*tiny_rows(120), strict=True)])
    archive = tmp_path / "bundle.zip"
    with processes(settings) as client:
        dataset = client.datasets.upload(rows, name="tiny")
        first = client.students.get(_succeeded(client, client.jobs.submit(_spec(dataset.id)).id))
        assert client.students.verify(first).ok
        manifest = client.students.manifest(first)
        client.jobs.bundle(first.job_id, archive)

    fresh = settings_in(tmp_path / "fresh")
    tiny_teacher(fresh.models_folder / "tiny")
    with processes(fresh) as client:
        told = _command(client, fresh, "jobs", "rerun", archive, "--watch")
        assert "the same student, bit for bit" in told
        job = next(iter(client.jobs.list()))
        assert job.student_id is not None
        student = client.students.get(job.student_id)
        assert student.hash == first.hash
        assert job.spec["dataset"]["id"] != dataset.id
        second = client.students.manifest(student)
        assert {name: second[name] for name in ("data", "teachers", "seeds", "versions", "hardware")} == {
            name: manifest[name] for name in ("data", "teachers", "seeds", "versions", "hardware")
        }
        # The service has the rows by now.
        assert client.jobs.rerun(archive).spec["dataset"] == job.spec["dataset"]
        assert len(client.datasets.list()) == 1
