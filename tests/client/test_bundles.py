"""Verifying a student, and a job repeated from its bundle, by the client and by the command."""

import json
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from sqlalchemy import select, update

from limbeck import Client
from limbeck.bundles import Comparison, Difference, compare, read_bundle
from limbeck.errors import ApiError, DownloadDamaged, LimbeckError
from limbeck.verifying import IDENTITY, PLAIN, student_hash, verify_folder
from models import artifacts, lifecycle
from models.artifacts import Origin, write_manifest
from models.tables import Dataset, Job
from tests.client.conftest import Cli, publish
from tests.client.stand_ins import REPORT, ScriptedWorker, Service
from tests.factories import LABELS

TEACHER = Origin(reference="hub:some/teacher@main", identity="1" * 64, checkpoint="1" * 64)


def finished(source: Path, folder: Path, *, extra: bytes = b"", threads: int = 1) -> Path:
    """A student with a report and a manifest; with `extra` its weights are others."""
    shutil.copytree(source, folder)
    (folder / "manifest.json").unlink()
    (folder / "report.json").write_text(json.dumps(REPORT))
    with (folder / "model.safetensors").open("ab") as file:
        file.write(extra)
    write_manifest(
        folder,
        kind="student",
        labels=LABELS,
        max_length=32,
        data={"test": "2" * 64},
        teachers=[TEACHER],
        seeds={"seed": 0},
        hardware={"cpu": "a processor", "threads": threads},
    )
    return folder


@dataclass(frozen=True)
class Done:
    """A job that has succeeded, with its rows."""

    job: str
    dataset: str
    student: str


@pytest.fixture
def done(service: Service, client: Client, spec: dict[str, Any], student_folder: Path, tmp_path: Path) -> Done:
    job = client.jobs.submit(spec)
    student = publish(service, finished(student_folder, tmp_path / "finished"))
    with service.database.writing() as session:
        session.execute(update(Job).where(Job.id == job.id).values(status="succeeded", student_id=student))
    return Done(job.id, spec["dataset"]["id"], student)


def succeed(service: Service, job: str, folder: Path) -> None:
    """What a worker does that has trained the student in `folder`."""
    id_ = publish(service, folder)
    manifest = service.store.manifest(f"students/{id_}")
    new = lifecycle.NewStudent(
        id=f"{id_}x",
        hash=manifest.student_hash,
        artifact=f"students/{id_}",
        manifest=manifest.model_dump(mode="json"),
        report=REPORT,
    )
    ScriptedWorker(service, job).claim()
    with service.database.writing() as session:
        lifecycle.succeed(session, job, 1, new)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


class TestVerifyInTheStore:
    def test_as_it_was_published(self, client: Client, cli: Cli, student: str) -> None:
        found = client.students.verify(student)
        assert found.ok
        assert found.found_hash == found.hash == client.students.get(student).hash
        assert {file.path for file in found.files} > {"model.safetensors", "manifest.json"}
        told = cli("students", "verify", student)
        assert (told.code, told.err) == (0, "")
        assert found.hash in told.out

    def test_a_damaged_file(self, service: Service, client: Client, cli: Cli, student: str) -> None:
        damage(service.settings.data_dir / "artifacts" / "students" / student / "model.safetensors")
        found = client.students.verify(student)
        assert not found.ok
        assert [file.path for file in found.files if not file.ok] == ["model.safetensors"]
        told = cli("students", "verify", student)
        assert told.code == 1
        assert "model.safetensors  is not the file that was published" in told.err
        assert found.found_hash in told.err
        answer = cli("students", "verify", student, "--json")
        assert (answer.code, answer.json["ok"]) == (1, False)

    def test_one_that_is_not_there(self, cli: Cli) -> None:
        told = cli("students", "verify", "st_00000000")
        assert told.code == 1
        assert "st_00000000" in told.err


class TestVerifyAFolder:
    @pytest.fixture
    def copy(self, client: Client, student: str, tmp_path: Path) -> Path:
        return client.students.download(student, tmp_path / "copy")

    def test_a_download(self, client: Client, cli: Cli, copy: Path, student: str) -> None:
        found = client.students.verify(copy)
        assert found.ok
        assert found.found_hash == client.students.get(student).hash
        assert cli("students", "verify", copy, LIMBECK_URL="http://127.0.0.1:9").code == 0  # nobody is asked

    def test_a_damaged_file(self, cli: Cli, copy: Path) -> None:
        damage(copy / "tokenizer.json")
        told = cli("students", "verify", copy)
        assert told.code == 1
        assert "tokenizer.json  is not the file that was published" in told.err
        assert "hash" in told.err
        assert [file["path"] for file in cli("students", "verify", copy, "--json").json["files"] if not file["ok"]] == [
            "tokenizer.json"
        ]

    def test_what_is_missing_too_much_or_a_link(self, copy: Path) -> None:
        (copy / "golden.json").unlink()
        (copy / "added.json").write_text("{}")
        (copy / "config.json").rename(copy.parent / "config.json")
        (copy / "config.json").symlink_to(copy.parent / "config.json")
        wrong = {file.path: file.problem for file in verify_folder(copy).files if not file.ok}
        assert set(wrong) == {"golden.json", "added.json", "config.json"}
        assert wrong["golden.json"] == "is missing"

    def test_a_manifest_with_another_hash_of_the_student(self, copy: Path) -> None:
        document = json.loads((copy / "manifest.json").read_text())
        (copy / "manifest.json").write_text(json.dumps(document | {"student_hash": "0" * 64}))
        found = verify_folder(copy)
        assert not found.ok
        assert all(file.ok for file in found.files)

    @pytest.mark.parametrize("content", [None, "{", "[]", '{"files": 1}'])
    def test_a_folder_that_is_no_students(self, cli: Cli, tmp_path: Path, content: str | None) -> None:
        if content is not None:
            (tmp_path / "manifest.json").write_text(content)
        told = cli("students", "verify", tmp_path)
        assert told.code == 1
        assert "manifest.json" in told.err

    def test_the_hash_is_computed_as_the_service_does(self, copy: Path) -> None:
        assert IDENTITY.pattern == artifacts._IDENTITY.pattern
        hashes = {path.name: artifacts.sha256(path) for path in copy.iterdir()}
        assert student_hash(hashes) == artifacts.student_hash(hashes)
        assert not any(PLAIN.fullmatch(name) for name in ("../a", "/a", "a/../b", "C:\\a", ".a", ""))


class TestBundle:
    def test_where_the_rows_are_nothing_is_uploaded(self, client: Client, cli: Cli, done: Done, tmp_path: Path) -> None:
        archive = client.jobs.bundle(done.job, tmp_path / "here" / "a.zip")
        assert read_bundle(archive).job["student_hash"] == client.students.get(done.student).hash
        before = len(list(client.datasets.all()))
        # Another dataset may have the same rows: which one is taken is all the same.
        again = client.jobs.rerun(archive)
        assert again.spec | {"dataset": None} == client.jobs.get(done.job).spec | {"dataset": None}
        assert len(list(client.datasets.all())) == before
        assert [path.name for path in archive.parent.iterdir()] == ["a.zip"]

    def test_where_they_are_not_they_are(self, service: Service, client: Client, done: Done, tmp_path: Path) -> None:
        archive = client.jobs.bundle(done.job, tmp_path / "a.zip")
        digest = client.datasets.get(done.dataset).sha256
        with service.database.writing() as session:  # jobs of other tests may need theirs
            session.execute(update(Dataset).values(sha256="0" * 64))
        again = client.jobs.rerun(archive)
        made = client.datasets.get(again.spec["dataset"]["id"])
        assert made.id != done.dataset
        # The same file: its rows are in the same order, and the next bundle will find them.
        assert made.sha256 == digest

    def test_by_the_command(self, cli: Cli, done: Done, tmp_path: Path) -> None:
        told = cli("jobs", "bundle", done.job)
        assert (told.code, (tmp_path / f"{done.job}.zip").is_file()) == (0, True)
        written = cli("jobs", "bundle", done.job, "-o", tmp_path / "b.zip", "--json").json
        assert written == {"file": str(tmp_path / "b.zip"), "bytes": (tmp_path / "b.zip").stat().st_size}
        assert cli("jobs", "rerun", tmp_path / "b.zip", "--json").json["status"] == "queued"

    def test_of_a_job_that_has_no_student(self, client: Client, spec: dict[str, Any], tmp_path: Path) -> None:
        with pytest.raises(ApiError) as caught:
            client.jobs.bundle(client.jobs.submit(spec), tmp_path / "a.zip")
        assert caught.value.code == "job_not_succeeded"
        assert not list(tmp_path.glob("a.zip*"))

    def test_damaged_rows_are_not_uploaded(self, service: Service, client: Client, done: Done, tmp_path: Path) -> None:
        archive = client.jobs.bundle(done.job, tmp_path / "a.zip")
        with ZipFile(archive) as old, ZipFile(tmp_path / "b.zip", "w") as new:
            for name in old.namelist():
                new.writestr(name, old.read(name) + (b" " if name.endswith(".parquet") else b""))
        with service.database.writing() as session:
            session.execute(update(Dataset).values(sha256="0" * 64))
        with pytest.raises(DownloadDamaged):
            client.jobs.rerun(tmp_path / "b.zip")

    @pytest.mark.parametrize("content", [b"", b"no archive", None])
    def test_what_is_no_bundle(self, cli: Cli, tmp_path: Path, content: bytes | None) -> None:
        if content is not None:
            (tmp_path / "a.zip").write_bytes(content)
        told = cli("jobs", "rerun", tmp_path / "a.zip")
        assert told.code == 1
        assert "a.zip" in told.err

    @pytest.mark.parametrize("job", [{"format": 2, "spec": {}}, {}, []])
    def test_a_format_that_is_not_known(self, tmp_path: Path, job: Any) -> None:
        with ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("job.json", json.dumps(job))
            archive.writestr("manifest.json", "{}")
        with pytest.raises(LimbeckError, match=r"a\.zip"):
            read_bundle(tmp_path / "a.zip")


class TestRerun:
    def test_by_its_id(self, client: Client, cli: Cli, done: Done) -> None:
        again = client.jobs.rerun(done.job, idempotency_key=f"again {done.job}")
        assert client.jobs.rerun(done.job, idempotency_key=f"again {done.job}").id == again.id
        assert again.rerun_of == done.job
        assert done.job in cli("jobs", "show", again.id).out
        assert cli("jobs", "rerun", done.job, "--json").json["rerun_of"] == done.job

    def test_the_same_student(
        self, service: Service, cli: Cli, done: Done, student_folder: Path, tmp_path: Path
    ) -> None:
        told = self._watched(service, cli, done.job, finished(student_folder, tmp_path / "again"))
        assert told.code == 0
        assert "the same student, bit for bit" in told.out

    def test_another_student(
        self, service: Service, client: Client, cli: Cli, done: Done, student_folder: Path, tmp_path: Path
    ) -> None:
        archive = client.jobs.bundle(done.job, tmp_path / "a.zip")
        other = finished(student_folder, tmp_path / "other", extra=b"\0", threads=2)
        told = self._watched(service, cli, archive, other)
        assert told.code == 1
        assert "another student" in told.out
        assert "file model.safetensors" in told.out
        assert "hardware threads  1 → 2" in told.out

    def test_as_json(self, service: Service, cli: Cli, done: Done, student_folder: Path, tmp_path: Path) -> None:
        told = self._watched(service, cli, done.job, finished(student_folder, tmp_path / "again", threads=2), "--json")
        last = json.loads(told.out.splitlines()[-1])
        assert (last["object"], last["same"]) == ("comparison", True)
        assert last["differences"] == [{"what": "hardware threads", "before": 1, "now": 2}]

    def _watched(self, service: Service, cli: Cli, source: object, folder: Path, *options: str) -> Any:
        before = _jobs(service)

        def work() -> None:
            until = threading.Event()
            for _ in range(200):
                new = _jobs(service) - before
                if new:
                    succeed(service, new.pop(), folder)
                    return
                until.wait(0.05)

        worker = threading.Thread(target=work)
        worker.start()
        try:
            return cli("jobs", "rerun", source, "--watch", *options)
        finally:
            worker.join()


def _jobs(service: Service) -> set[str]:
    with service.database.reading() as session:
        return set(session.scalars(select(Job.id)))


class TestCompare:
    MANIFEST: Mapping[str, Any] = {
        "student_hash": "a",
        "files": {"config.json": {"sha256": "1"}, "report.json": {"sha256": "2"}},
        "data": {"train": "3"},
        "teachers": [{"checkpoint": "4", "identity": "5"}],
        "versions": {"torch": "2.10.0"},
    }

    def test_the_same(self) -> None:
        other = {**self.MANIFEST, "files": {**self.MANIFEST["files"], "report.json": {"sha256": "other timings"}}}
        assert compare(self.MANIFEST, other) == Comparison(True, "a", "a", [])

    def test_every_kind_of_difference(self) -> None:
        other = {
            "student_hash": "b",
            "files": {"config.json": {"sha256": "x"}},
            "data": {"train": "y"},
            "teachers": [{"checkpoint": "4", "identity": "z"}],
            "versions": {"torch": "2.11.0", "numpy": "2.0"},
        }
        found = compare(self.MANIFEST, other)
        assert (found.same, found.hash, found.expected) == (False, "b", "a")
        assert found.differences == [
            Difference("file config.json", "1", "x"),
            Difference("data train", "3", "y"),
            Difference("teacher 1 identity", "5", "z"),
            Difference("versions numpy", None, "2.0"),
            Difference("versions torch", "2.10.0", "2.11.0"),
        ]
