"""Artifacts that a deployment must not serve, and teachers' exports that several students share."""

import shutil
from pathlib import Path

import pytest
from sqlalchemy import update

from app import admin
from models.artifacts import write_manifest
from models.runtime import Runtime
from models.tables import Student
from tests.app.conftest import Api
from tests.students import INPUTS
from worker import export

TEXT = "a good day"


@pytest.fixture(scope="module")
def int8_folder(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published student that serves int8."""
    folder = tmp_path_factory.mktemp("int8") / "student"
    shutil.copytree(student_folder, folder)
    (folder / "manifest.json").unlink()
    export.quantize(folder)
    export.write_golden(folder, INPUTS["text-classification"][:8])
    runtime = Runtime.open(folder, precision="int8")
    write_manifest(
        folder,
        kind="student",
        task=runtime.kind,
        labels=runtime.labels,
        max_length=runtime.max_length,
        precision="int8",
    )
    return folder


def stored(api: Api, student: str) -> Path:
    return api.settings.data_dir / "artifacts" / "students" / student


def test_an_int8_file_damaged_after_publication_is_not_served(
    api: Api, student_folder: Path, int8_folder: Path
) -> None:
    old, new = api.deployed(student_folder, "live"), api.student(int8_folder)
    before = api.client.post("/predict/live", json={"inputs": TEXT})
    assert (before.status_code, before.headers["X-Limbeck-Student"]) == (200, old)
    path = stored(api, new) / "student.int8.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refused = api.client.put("/deployments/live", json={"student": new})
    assert refused.status_code == 409
    assert refused.json()["code"] == "student_unhealthy"
    assert "student.int8.onnx" in refused.json()["detail"]
    after = api.client.post("/predict/live", json={"inputs": TEXT})
    assert (after.headers["X-Limbeck-Student"], after.json()) == (old, before.json())
    assert api.client.get("/deployments/live").json()["student"] == old


def test_the_same_student_undamaged_is_served(api: Api, student_folder: Path, int8_folder: Path) -> None:
    api.deployed(student_folder, "live")
    new = api.student(int8_folder)
    assert api.client.put("/deployments/live", json={"student": new}).status_code == 200
    assert api.client.post("/predict/live", json={"inputs": TEXT}).headers["X-Limbeck-Student"] == new


class TestTeacherExports:
    KEY = "exports/one"

    def sharing(self, api: Api, folder: Path) -> list[str]:
        """Two students that name one export."""
        students = [api.student(folder) for _ in range(2)]
        api.store.publish(folder, self.KEY)
        with api.database.writing() as session:
            session.execute(update(Student).where(Student.id.in_(students)).values(teacher_artifact=self.KEY))
        return students

    def test_it_goes_with_the_last_student_that_names_it(self, api: Api, student_folder: Path) -> None:
        one, two = self.sharing(api, student_folder)
        assert api.client.delete(f"/students/{one}").status_code == 204
        assert api.store.exists(self.KEY)
        assert api.client.delete(f"/students/{two}").status_code == 204
        assert not api.store.exists(self.KEY)

    def test_a_student_that_may_not_go_keeps_it(self, api: Api, student_folder: Path) -> None:
        one, two = self.sharing(api, student_folder)
        api.client.put("/deployments/live", json={"student": two})
        api.client.delete(f"/students/{one}")
        assert api.client.delete(f"/students/{two}").status_code == 409
        assert api.store.exists(self.KEY)

    def test_verify_looks_at_it_once(self, api: Api, student_folder: Path) -> None:
        self.sharing(api, student_folder)
        outcome = admin.verify(api.settings, api.database)
        assert (outcome["ok"], outcome["checked"]["exports"]) == (True, 1)
        (api.settings.data_dir / "artifacts" / self.KEY / "student.onnx").write_bytes(b"damaged")
        problems = admin.verify(api.settings, api.database)["problems"]
        assert [problem["what"] for problem in problems] == [f"{self.KEY} (a teacher's export)"]
