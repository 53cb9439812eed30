"""What only the worker can see: each job fails in preflight, in seconds, with its code, and leaves nothing behind."""

import csv
from pathlib import Path
from typing import Any

import pytest

from models.settings import Settings
from tests.factories import tiny_rows, tiny_teacher
from tests.processes import processes

TASK = {"kind": "text-classification", "text": "text", "label": "label", "max_length": 32}
TEACHER = {"kind": "local", "model": "file:tiny", "fine_tune": {"epochs": 1}}
STUDENT = {"kind": "from_teacher", "layers": 1}

FOOLISH: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "one label only": ({"task": {**TASK, "label": "same"}}, "one_label_only", "/task/label"),
    "vocabulary too small": (
        {"student": {**STUDENT, "vocabulary": 10}},
        "vocabulary_too_small",
        "/stages/0/student/vocabulary",
    ),
    "a package that is not there": (
        {"teachers": [{**TEACHER, "model": "package:no_such_package/model"}]},
        "teacher_not_found",
        "/teachers/0/model",
    ),
    "a file that is not there": (
        {"teachers": [{**TEACHER, "model": "file:none"}]},
        "teacher_not_found",
        "/teachers/0/model",
    ),
    "a teacher without this task's head": (
        {"teachers": [{"kind": "local", "model": "file:headless"}]},
        "no_head",
        "/teachers/0/fine_tune",
    ),
    "a teacher of other labels": (
        {"teachers": [{"kind": "local", "model": "file:other"}]},
        "labels_disagree",
        "/teachers/0/labels",
    ),
    "longer than the teacher reads": ({"task": {**TASK, "max_length": 512}}, "max_length_too_long", "/task/max_length"),
}


@pytest.mark.timeout(400)
def test_foolish_jobs(settings: Settings, tmp_path: Path) -> None:
    tiny_teacher(settings.models_folder / "tiny")
    tiny_teacher(settings.models_folder / "headless", labels=None)
    tiny_teacher(settings.models_folder / "other", labels=("yes", "no"))
    rows = tmp_path / "rows.csv"
    with rows.open("w", encoding="utf-8", newline="") as file:
        texts, labels = tiny_rows(120)
        csv.writer(file).writerows(
            [("text", "label", "same"), *((t, n, "x") for t, n in zip(texts, labels, strict=True))]
        )
    seen = []
    with processes(settings) as client:
        dataset = client.datasets.upload(rows).id
        for what, (change, code, pointer) in FOOLISH.items():
            spec = {"task": TASK, "dataset": {}, "teachers": [TEACHER], "student": STUDENT, **change}
            spec["dataset"] = {"id": dataset, **spec["dataset"]}
            job = client.jobs.wait(client.jobs.submit(spec).id, timeout=60)
            assert job.status == "failed"
            assert job.error is not None
            seen.append((what, job.error.code, job.raw["error"]["pointer"], job.error.message))
            assert job.error.code == code, seen[-1]
            assert job.raw["error"]["pointer"] == pointer, seen[-1]
            assert not (settings.jobs_folder / job.id).exists()
        assert client.students.list().data == []
    for row in seen:
        print(" | ".join(map(str, row)))
    assert not list((settings.data_dir / "artifacts").glob("students/*"))
