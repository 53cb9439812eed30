"""Verifying a student, a job's bundle, and running a job again."""

import io
import json
import os
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from sqlalchemy import update

from models.artifacts import Origin, write_manifest
from models.specs import parse_job, resolve
from models.tables import Dataset, Job, Student
from tests.app.conftest import Api
from tests.factories import LABELS

VERSIONS = {"torch": "2.10.0"}
TEACHERS = (
    Origin(reference="teacher:tc_00000000", identity="1" * 64, checkpoint="2" * 64, license="MIT"),
    Origin(reference="hub:org/teacher@main", identity="3" * 64, checkpoint="4" * 64),
    Origin(reference="column logits", identity=""),
)


@pytest.fixture
def whole_folder(student_folder: Path, tmp_path: Path) -> Path:
    """A student with a report, and a manifest that says where it comes from."""
    folder = Path(shutil.copytree(student_folder, tmp_path / "whole"))
    (folder / "manifest.json").unlink()
    (folder / "report.json").write_text('{"format": 1}\n')
    write_manifest(
        folder, kind="student", labels=LABELS, max_length=32, teachers=TEACHERS, seeds={"seed": 3}, versions=VERSIONS
    )
    return folder


def spec(dataset: Any, **changes: Any) -> dict[str, Any]:
    return {
        "name": "tweets",
        "task": {"kind": "text-classification", "text": "text", "label": "label"},
        "dataset": dataset,
        "teachers": [{"kind": "local", "model": "hub:org/teacher"}],
        "student": {"kind": "from_teacher", "layers": 1},
    } | changes


def succeeded(api: Api, folder: Path, dataset: Any) -> str:
    """A job that has made the student in `folder`; its id."""
    job = api.client.post("/jobs", json=spec(dataset)).json()["id"]
    student = api.student(folder)
    with api.database.writing() as session:
        session.execute(update(Job).where(Job.id == job).values(status="succeeded", student_id=student))
        session.execute(update(Student).where(Student.id == student).values(job_id=job))
    return str(job)


class TestVerify:
    def test_a_student_as_it_was_published(self, api: Api, student_folder: Path) -> None:
        student = api.student(student_folder)
        answer = api.client.post(f"/students/{student}/verify").json()
        assert answer["ok"] is True
        assert answer["hash"] == answer["found_hash"] == api.client.get(f"/students/{student}").json()["hash"]
        files = {file["path"]: file for file in answer["files"]}
        assert "manifest.json" in files
        for path, file in files.items():
            assert file["ok"] is True
            assert file["problem"] is None
            assert file["sha256"] == sha256((student_folder / path).read_bytes()).hexdigest()

    def test_one_bit_is_enough_whatever_was_seen_before(self, api: Api, student_folder: Path) -> None:
        student = api.student(student_folder)
        api.store.fetch_folder(f"students/{student}")  # which has it in mind as verified
        weights = api.settings.data_dir / "artifacts" / "students" / student / "model.safetensors"
        before, content = weights.stat(), bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
        answer = api.client.post(f"/students/{student}/verify").json()
        assert answer["ok"] is False
        assert answer["found_hash"] != answer["hash"]
        (wrong,) = [file for file in answer["files"] if not file["ok"]]
        assert wrong["path"] == "model.safetensors"
        assert wrong["sha256"] == sha256(content).hexdigest()
        assert "published" in wrong["problem"]

    def test_what_is_missing_too_much_or_a_link(self, api: Api, student_folder: Path) -> None:
        student = api.student(student_folder)
        folder = api.settings.data_dir / "artifacts" / "students" / student
        (folder / "golden.json").unlink()
        (folder / "extra.bin").write_bytes(b"")
        (folder / "config.json").rename(folder.parent / "elsewhere.json")
        (folder / "config.json").symlink_to(folder.parent / "elsewhere.json")
        answer = api.client.post(f"/students/{student}/verify").json()
        wrong = {file["path"]: file["problem"] for file in answer["files"] if not file["ok"]}
        assert set(wrong) == {"golden.json", "extra.bin", "config.json"}
        assert wrong["golden.json"] == "is missing"
        assert answer["ok"] is False

    def test_a_manifest_that_was_written_anew_does_not_help(self, api: Api, student_folder: Path) -> None:
        student = api.student(student_folder)
        folder = api.settings.data_dir / "artifacts" / "students" / student
        (folder / "model.safetensors").write_bytes(b"others")
        (folder / "manifest.json").unlink()
        write_manifest(folder, kind="student", labels=LABELS, max_length=32)
        answer = api.client.post(f"/students/{student}/verify").json()
        assert {file["path"] for file in answer["files"] if not file["ok"]} == {"model.safetensors", "manifest.json"}

    def test_nothing_is_left(self, api: Api, student_folder: Path) -> None:
        student = api.student(student_folder)
        shutil.rmtree(api.settings.data_dir / "artifacts" / "students" / student)
        answer = api.client.post(f"/students/{student}/verify").json()
        assert {file["problem"] for file in answer["files"]} == {"is missing"}


class TestBundle:
    def test_everything_that_a_repetition_needs(self, api: Api, whole_folder: Path) -> None:
        dataset = api.dataset()
        job = succeeded(api, whole_folder, {"id": dataset})
        answer = api.client.get(f"/jobs/{job}/bundle")
        assert answer.status_code == 200, answer.text
        assert answer.headers["Content-Type"] == "application/zip"
        assert answer.headers["Content-Length"] == str(len(answer.content))
        with ZipFile(io.BytesIO(answer.content)) as archive:
            assert archive.testzip() is None
            files = {name: archive.read(name) for name in archive.namelist()}
        rows = f"datasets/{dataset}.parquet"
        assert set(files) == {"README.txt", "job.json", rows, "report.json", "manifest.json"}
        document = json.loads(files["job.json"])
        assert document["format"] == 1
        assert document["spec"] == spec({"id": dataset})
        assert document["resolved_spec"] == resolve(parse_job(document["spec"])).model_dump(mode="json")
        assert document["student_hash"] == json.loads(files["manifest.json"])["student_hash"]
        assert (document["seeds"], document["versions"]) == ({"seed": 3}, VERSIONS)
        (known,) = document["datasets"]
        assert known["sha256"] == sha256(files[rows]).hexdigest()
        assert files["report.json"] == (whole_folder / "report.json").read_bytes()
        assert files["manifest.json"] == (whole_folder / "manifest.json").read_bytes()

    def test_teachers_are_named_and_not_included(self, api: Api, whole_folder: Path) -> None:
        job = succeeded(api, whole_folder, {"id": api.dataset()})
        with ZipFile(io.BytesIO(api.client.get(f"/jobs/{job}/bundle").content)) as archive:
            teachers = json.loads(archive.read("job.json"))["teachers"]
            readme = archive.read("README.txt").decode()
        assert [teacher["identity"] for teacher in teachers] == [origin.identity for origin in TEACHERS]
        assert [teacher["uploaded"] for teacher in teachers] == [True, False, False]
        assert not any(teacher["included"] for teacher in teachers)
        assert "teacher:tc_00000000  (licence: MIT)" in readme
        assert "hub:org/teacher@main  (licence: unknown)" in readme
        assert "teacher:tc_00000000: only the service that ran the job has this" in readme
        assert f"limbeck jobs rerun {job}.zip --watch" in readme

    def test_three_datasets(self, api: Api, whole_folder: Path) -> None:
        parts = {part: api.dataset(rows=20 + place) for place, part in enumerate(("train", "validation", "test"))}
        job = succeeded(api, whole_folder, parts)
        with ZipFile(io.BytesIO(api.client.get(f"/jobs/{job}/bundle").content)) as archive:
            assert {f"datasets/{id_}.parquet" for id_ in parts.values()} < set(archive.namelist())

    def test_only_of_a_job_that_has_succeeded(self, api: Api) -> None:
        for status in ("queued", "running", "failed", "cancelled"):
            answer = api.client.get(f"/jobs/{api.job(status=status)}/bundle")
            assert (answer.status_code, answer.json()["code"]) == (409, "job_not_succeeded")

    def test_what_was_deleted_since(self, api: Api, whole_folder: Path) -> None:
        dataset = api.dataset()
        job = succeeded(api, whole_folder, {"id": dataset})
        assert api.client.delete(f"/datasets/{dataset}").status_code == 204
        answer = api.client.get(f"/jobs/{job}/bundle")
        assert (answer.status_code, answer.json()["code"]) == (409, "dataset_deleted")
        student = api.client.get(f"/jobs/{job}").json()["student_id"]
        assert api.client.delete(f"/students/{student}").status_code == 204
        answer = api.client.get(f"/jobs/{job}/bundle")
        assert (answer.status_code, answer.json()["code"]) == (409, "student_deleted")

    @pytest.mark.parametrize("what", ["rows", "report"])
    def test_damage_is_not_passed_on(self, api: Api, whole_folder: Path, what: str) -> None:
        dataset = api.dataset()
        job = succeeded(api, whole_folder, {"id": dataset})
        student = api.client.get(f"/jobs/{job}").json()["student_id"]
        key = f"datasets/{dataset}.parquet" if what == "rows" else f"students/{student}/report.json"
        with (api.settings.data_dir / "artifacts" / key).open("ab") as file:
            file.write(b" ")
        answer = api.client.get(f"/jobs/{job}/bundle")
        assert (answer.status_code, answer.json()["code"]) == (500, "artifact_damaged")


class TestRerun:
    def test_a_new_job_of_the_same_spec(self, api: Api) -> None:
        first = api.client.post("/jobs", json=spec({"id": api.dataset()}, seed=7)).json()
        answer = api.client.post(f"/jobs/{first['id']}/rerun")
        assert answer.status_code == 201, answer.text
        again = answer.json()
        assert answer.headers["Location"] == f"/jobs/{again['id']}"
        assert again["id"] != first["id"]
        assert (first["rerun_of"], again["rerun_of"]) == (None, first["id"])
        assert (again["spec"], again["resolved_spec"]) == (first["spec"], first["resolved_spec"])
        assert api.client.get(f"/jobs/{again['id']}").json()["rerun_of"] == first["id"]

    def test_defaults_are_those_of_then(self, api: Api) -> None:
        """A default that a newer version has changed would make another student."""
        first = api.client.post("/jobs", json=spec({"id": api.dataset()})).json()
        then = first["resolved_spec"] | {"seed": 1234}
        with api.database.writing() as session:
            session.execute(update(Job).where(Job.id == first["id"]).values(resolved_spec=then))
        assert api.client.post(f"/jobs/{first['id']}/rerun").json()["resolved_spec"] == then

    def test_an_idempotency_key(self, api: Api) -> None:
        one, two = (api.client.post("/jobs", json=spec({"id": api.dataset()})).json()["id"] for _ in range(2))
        headers = {"Idempotency-Key": "again"}
        made = [api.client.post(f"/jobs/{one}/rerun", headers=headers).json()["id"] for _ in range(2)]
        assert made[0] == made[1]
        assert api.client.post(f"/jobs/{one}/rerun").json()["id"] != made[0]
        other = api.client.post(f"/jobs/{two}/rerun", headers=headers)
        assert (other.status_code, other.json()["code"]) == (409, "idempotency_key_reused")

    def test_a_dataset_that_is_gone_is_named(self, api: Api) -> None:
        dataset = api.dataset()
        job = api.client.post("/jobs", json=spec({"id": dataset})).json()["id"]
        with api.database.writing() as session:
            session.delete(session.get_one(Dataset, dataset))
        answer = api.client.post(f"/jobs/{job}/rerun")
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/dataset/id")
