"""The whole way once, with real processes: a job is submitted, a trainer process distils, the student is promoted.

Twice, because the second job must train no teacher, ask it nothing, and find its control.
"""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from models import deployments, lifecycle, migrations
from models.artifacts import Store, sha256
from models.database import Database
from models.queue import Doorbell
from models.runtime import Runtime
from models.settings import Settings
from models.specs import parse_job, resolve
from models.tables import Dataset, Event, Job, Metric, Student, new_id
from tests.factories import tiny_dataset, tiny_teacher
from worker.supervisor import Supervisor


def _spec(dataset: str) -> dict[str, Any]:
    return {
        "task": {"kind": "text-classification", "text": "text", "label": "label", "max_length": 32},
        "dataset": {"id": dataset, "validation": 0.2, "test": 0.3},
        "teachers": [{"kind": "local", "model": "file:tiny", "fine_tune": {"epochs": 8, "learning_rate": 3e-3}}],
        "student": {"kind": "from_teacher", "layers": 1},
        "schedule": {"epochs": 4, "learning_rate": 3e-3},
        "promote": {"deployment": "tiny", "gate": {"max_drop": 0.9}},
    }


@pytest.mark.timeout(600)
def test_two_jobs_with_one_teacher(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    settings.data_dir.mkdir()
    database, store = Database(settings.database), Store(settings.artifacts, tmp_path / "downloads")
    migrations.upgrade(database)
    tiny_teacher(settings.models_folder / "tiny")
    rows = tiny_dataset(tmp_path, 600)
    dataset = new_id("ds")
    store.put_file(rows, f"datasets/{dataset}.parquet")
    doorbell = Doorbell(settings)
    supervisor = Supervisor(settings, database, store, doorbell, "wk_test")
    students = []
    with database.writing() as session:
        session.add(
            Dataset(
                id=dataset,
                owner="default",
                name="tiny",
                columns=[{"name": "text", "type": "string"}, {"name": "label", "type": "string"}],
                rows=600,
                bytes=rows.stat().st_size,
                sha256=sha256(rows),
                artifact=f"datasets/{dataset}.parquet",
            )
        )
    for _ in range(2):
        document = _spec(dataset)
        spec = parse_job(document)
        with database.writing() as session:
            job, created = lifecycle.submit(
                session,
                owner="default",
                spec=spec,
                resolved=resolve(spec),
                document=document,
                estimates=None,
                idempotency_key=None,
                body_sha256="",
                max_queued=10,
            )
        assert created
        assert supervisor.serve()
        with database.reading() as session:
            ended = session.get_one(Job, job.id)
            assert ended.status == "succeeded", ended.error
            codes = list(session.scalars(select(Event.code).where(Event.job_id == job.id)))
            assert codes.count("succeeded") == 1
            assert session.scalars(select(Metric.name).where(Metric.job_id == job.id, Metric.name == "loss")).first()
            student = session.get_one(Student, ended.student_id)
            deployment = deployments.find(session, owner="default", name="tiny")
            assert deployment.student_id == student.id
            students.append(student)
    first, second = (student.report["counters"] for student in students)
    assert first["teacher_training_steps"] > 0
    assert first["teacher_forward_rows"] == 600
    assert second["teacher_training_steps"] == second["teacher_forward_rows"] == second["control_training_steps"] == 0
    assert students[0].hash == students[1].hash
    runtime = Runtime.open(store.fetch_folder(students[0].artifact))
    runtime.check_golden()
    assert runtime.predict(["a great and lovely day"])[0][0]["label"] in {"negative", "neutral", "positive"}
    assert not list(settings.jobs_folder.glob("job_*"))
    doorbell.close()
    database.close()
