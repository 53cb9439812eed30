"""Jobs with curves and events, and what came of them, as rows: nothing is trained."""

import copy
import json
import time
from pathlib import Path
from typing import Any

from models import specs
from models.database import Database
from models.tables import ALIVE, Dataset, Event, Job, Metric, Student, new_id

_REPORT = Path(__file__).parents[2] / "docs" / "example-report" / "report.json"


def dataset(database: Database, owner: str = "default") -> str:
    id_ = new_id("ds")
    columns: list[Any] = [{"name": name, "type": "string", "nulls": 0, "examples": []} for name in ("text", "label")]
    row = Dataset(
        id=id_,
        owner=owner,
        name="tweets",
        columns=columns,
        rows=60,
        bytes=1000,
        sha256="0" * 64,
        artifact="-",
        warnings=[],
    )
    with database.writing() as session:
        session.add(row)
    return id_


def job(database: Database, dataset_id: str, *, owner: str = "default", layers: int = 2, **columns: Any) -> str:
    """`columns` are those of its row; one that runs holds a lease that outlives the test."""
    document = {
        "name": columns.pop("name", "tweets"),
        "task": {"kind": "text-classification", "text": "text", "label": "label"},
        "dataset": {"id": dataset_id},
        "teachers": [{"kind": "local", "model": "file:teacher"}],
        "student": {"kind": "from_teacher", "layers": layers},
    }
    resolved = specs.resolve(specs.parse_job(document)).model_dump(mode="json")
    if columns.get("status") in ALIVE:
        columns.setdefault("lease_until", time.time() + 3600)
    row = Job(
        **{"id": new_id("job"), "owner": owner, "name": document["name"], "spec": document, "resolved_spec": resolved}
        | columns
    )
    with database.writing() as session:
        session.add(row)
        session.flush()
        return row.id


def happened(database: Database, job_id: str, code: str, message: str) -> None:
    with database.writing() as session:
        session.add(Event(job_id=job_id, attempt=1, code=code, message=message))


def curve(database: Database, job_id: str, name: str, steps: range, *, arm: str = "distilled", stage: int = 0) -> None:
    with database.writing() as session:
        session.add_all(
            Metric(job_id=job_id, name=name, arm=arm, stage=stage, phase=0, step=step, value=1 / (1 + step), attempt=1)
            for step in steps
        )


def student(
    database: Database,
    job_id: str,
    *,
    owner: str = "default",
    name: str = "tweets",
    score: float,
    p50_ms: float,
    size: int,
) -> str:
    """With the example report of the documentation, but for what is given."""
    report = copy.deepcopy(json.loads(_REPORT.read_text()))
    arm = report["arms"]["distilled"]
    served = arm["precisions"][arm["served"]]
    arm["score"], arm["accuracy_interval"] = score, [score - 0.02, score + 0.02]
    served["p50_ms"], served["bytes"] = p50_ms, size
    id_ = new_id("st")
    row = Student(
        id=id_,
        owner=owner,
        name=name,
        job_id=job_id,
        hash="ab" * 32,
        artifact=f"students/{id_}",
        manifest={"task": "text-classification", "files": {"student.onnx": {"sha256": "0" * 64, "size": size}}},
        report=report,
    )
    with database.writing() as session:
        session.add(row)
    return id_
