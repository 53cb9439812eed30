"""Tiny jobs through the whole recipe that ask for their teacher's export; in one of them int8 was spoilt on the way."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from models.artifacts import read_manifest, verify, write_manifest
from models.runtime import Runtime
from models.specs import parse_job, resolve
from tests.factories import parquet, tiny_rows, tiny_teacher
from worker import export
from worker.protocol import Assignment, PhaseName, ResultLine, StopReason
from worker.recipe import distil
from worker.supervisor import content_hash
from worker.trainer import train


class Heard:
    """A report that keeps the codes of its events."""

    def __init__(self) -> None:
        self.codes: list[str] = []

    def phase(self, phase: PhaseName) -> None:
        pass

    def progress(self, progress: float, eta_seconds: float | None = None) -> None:
        pass

    def metric(self, arm: str, stage: int, phase: int, name: str, step: int, value: float) -> None:
        pass

    def event(self, code: str, message: str, **data: Any) -> None:
        self.codes.append(code)

    def checkpoint(self, step: int, path: Path) -> None:
        pass

    def stop_requested(self) -> StopReason | None:
        return None


def assignment(folder: Path, name: str) -> Assignment:
    """A job in `folder`, where its teacher and its rows are and jobs share a cache."""
    schedule = {"epochs": 1, "learning_rate": 2e-3, "batch_tokens": 512}
    body = {
        "task": {"kind": "text-classification", "text": "text", "label": "label", "max_length": 32},
        "dataset": {"id": "ds_1", "validation": 40, "test": 40},
        "teachers": [{"kind": "local", "model": "file:tiny", "fine_tune": schedule, "at_chance": True}],
        "student": {"kind": "from_teacher", "layers": 1},
        "schedule": schedule,
        "control": False,
        "export": {"teacher": True},
    }
    return Assignment(
        job_id=f"job_{name}",
        attempt=1,
        spec=resolve(parse_job(body)),
        datasets={"ds_1": folder / "rows.parquet"},
        models_folder=folder / "models",
        work=folder / name,
        cache=folder / "cache",
        cache_bytes=10**9,
        tick_timeout=60,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("jobs")
    tiny_teacher(made / "models" / "tiny", labels=None)
    texts, labels = tiny_rows(200)
    parquet(made / "rows.parquet", text=texts, label=labels)
    return made


@pytest.fixture(scope="module")
def job(folder: Path) -> Assignment:
    """A finished job."""
    one = assignment(folder, "one")
    distil(one, Heard())
    return one


class Spoilt(NamedTuple):
    """A finished job of the same teacher whose quantizer wrote nonsense, and what it told."""

    job: Assignment
    codes: list[str]


@pytest.fixture(scope="module")
def spoilt(job: Assignment, folder: Path) -> Spoilt:
    """Comes after `job`, which has filled the cache."""

    def spoil(source: Path, target: Path, *rest: Any, **options: Any) -> None:
        target.write_bytes(b"no network")

    two, heard = assignment(folder, "two"), Heard()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "quantize_dynamic", spoil)
        patch.setattr(export, "quantize_static", spoil)
        distil(two, heard)
    return Spoilt(two, heard.codes)


class TestTeacherExport:
    def test_it_serves_as_the_student_does(self, job: Assignment) -> None:
        manifest = verify(job.teacher_export)
        assert (manifest.kind, manifest.precision) == ("teacher", "fp32")
        teacher, student = Runtime.open(job.teacher_export), Runtime.open(job.work / "student")
        teacher.check_golden()
        assert teacher.labels == student.labels
        assert (teacher.kind, teacher.max_length) == (student.kind, student.max_length)
        assert teacher.bytes > student.bytes

    def test_it_answers_as_the_report_says(self, job: Assignment) -> None:
        report = json.loads((job.work / "student" / "report.json").read_text("utf-8"))
        assert Runtime.open(job.teacher_export).bytes == report["arms"]["teacher"]["bytes"]

    def test_two_jobs_of_one_teacher_export_the_same_files(self, job: Assignment, spoilt: Spoilt) -> None:
        one, two = (read_manifest(each.teacher_export) for each in (job, spoilt.job))
        assert one.created_at != two.created_at
        assert content_hash(one) == content_hash(two)
        assert not any("latency" in name for name in one.files)

    def test_another_teacher_has_another_hash(self, job: Assignment) -> None:
        teacher, student = (read_manifest(path) for path in (job.teacher_export, job.work / "student"))
        assert content_hash(teacher) != content_hash(student)


class TestTrainer:
    @pytest.mark.parametrize("exported", [True, False])
    def test_it_tells_where_the_export_lies(self, tmp_path: Path, exported: bool) -> None:
        job = assignment(tmp_path, "one")
        job.teacher_export.mkdir(parents=True)
        (job.teacher_export / "config.json").write_text("{}")
        if exported:
            write_manifest(job.teacher_export, kind="teacher")
        line = train(lambda given, report: given.work / "student", job, None)  # type: ignore[arg-type]
        teacher = job.teacher_export if exported else None
        assert line == ResultLine(folder=job.work / "student", teacher=teacher)


class TestSpoiltInt8:
    def test_the_job_does_not_fail(self, spoilt: Spoilt) -> None:
        student = spoilt.job.work / "student"
        report = json.loads((student / "report.json").read_text("utf-8"))
        assert report["precision"]["served"] == verify(student).precision == "fp32"
        assert report["precision"]["reason"] == "fp32 is served, for the int8 file of this network cannot be used."
        assert [one["code"] for one in report["warnings"]].count("int8_damaged") == 2
        assert spoilt.codes.count("int8_damaged") == 2
        assert set(report["arms"]["distilled"]["precisions"]) == {"fp32"}
        assert not (student / "student.int8.onnx").exists()

    def test_what_is_served_is_what_was_trained(self, job: Assignment, spoilt: Spoilt) -> None:
        healthy = Runtime.open(job.work / "student", precision="fp32")
        texts = tiny_rows(10)[0]
        served = Runtime.open(spoilt.job.work / "student")
        for one, other in zip(served.answers(texts), healthy.answers(texts), strict=True):
            np.testing.assert_allclose(one[0], other[0], atol=1e-5)
