"""The supervisor with a stand-in for the trainer: real processes, a real database, a real store, nothing to train."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import func, select, text, update

from models import lifecycle
from models.artifacts import Manifest, Store, read_manifest, sha256
from models.database import Database
from models.settings import Settings
from models.tables import Dataset, Deployment, Event, Job, Metric, Student, new_id
from tests.servers import wait_until
from tests.submitting import submit
from worker import supervisor as supervisor_module
from worker.supervisor import Supervisor

STAND_IN = (sys.executable, "-P", str(Path(__file__).parent / "stand_in_trainer.py"))


class Bell:
    def ring(self, job_id: str, device: str) -> None:
        """Nobody hears it."""

    def state(self) -> str:
        return "none"


class World:
    """A supervisor with what it stands on."""

    def __init__(self, settings: Settings, database: Database, store: Store) -> None:
        self.settings = settings
        self.database = database
        self.store = store
        self.supervisor = Supervisor(settings, database, store, Bell(), "wk_1", trainer=STAND_IN)
        path = settings.data_dir / "rows.parquet"
        path.write_bytes(b"rows")
        self.dataset = new_id("ds")
        store.put_file(path, f"datasets/{self.dataset}.parquet")
        with database.writing() as session:
            session.add(
                Dataset(
                    id=self.dataset,
                    owner="default",
                    name="rows",
                    columns=[{"name": "text"}, {"name": "label"}],
                    rows=100,
                    bytes=4,
                    sha256=sha256(path),
                    artifact=f"datasets/{self.dataset}.parquet",
                )
            )

    def submit(self, name: str, **more: Any) -> str:
        body = {
            "name": name,
            "task": {"kind": "text-classification", "text": "text", "label": "label"},
            "dataset": {"id": self.dataset},
            "teachers": [{"kind": "local", "model": "file:teacher"}],
            "student": {"kind": "from_teacher", "layers": 1},
            **more,
        }
        return submit(self.database, body)

    def job(self, job_id: str) -> Job:
        with self.database.reading() as session:
            return session.get_one(Job, job_id)

    def events(self, job_id: str) -> list[str]:
        with self.database.reading() as session:
            return list(session.scalars(select(Event.code).where(Event.job_id == job_id).order_by(Event.seq)))

    def cancel(self, job_id: str) -> None:
        with self.database.writing() as session:
            lifecycle.request_cancel(session, session.get_one(Job, job_id))

    def pause(self, job_id: str) -> None:
        with self.database.writing() as session:
            lifecycle.request_pause(session, session.get_one(Job, job_id))

    def resume(self, job_id: str) -> None:
        with self.database.writing() as session:
            lifecycle.request_resume(session, session.get_one(Job, job_id))

    def pid(self, job_id: str, attempt: int = 1, name: str = "pid") -> int:
        """Of the trainer, once it runs."""
        path = self.settings.jobs_folder / job_id / "attempts" / str(attempt) / name
        wait_until(lambda: path.is_file() and path.read_text(), 15)
        return int(path.read_text())

    @contextmanager
    def serving(self) -> Iterator[threading.Thread]:
        thread = threading.Thread(target=self.supervisor.serve)
        thread.start()
        try:
            yield thread
            thread.join(30)
            assert not thread.is_alive()
        finally:
            self.supervisor.draining.set()
            thread.join(30)


@pytest.fixture
def world(settings: Settings, sqlite_database: Database) -> World:
    return World(settings, sqlite_database, Store(settings.artifacts, settings.cache_folder / "artifacts"))


class TestSuccess:
    def test_a_job_from_claim_to_student(self, world: World) -> None:
        job_id = world.submit("succeed", promote={"deployment": "d", "gate": {"max_drop": 0.05}})
        assert world.supervisor.serve()
        job = world.job(job_id)
        assert (job.status, job.progress, job.phase, job.attempt) == ("succeeded", 1.0, "preflight", 1)
        assert [code for code in world.events(job_id) if code == "succeeded"] == ["succeeded"]
        with world.database.reading() as session:
            student = session.get_one(Student, job.student_id)
            assert session.scalar(select(func.count()).select_from(Metric)) == 3
            assert session.scalars(select(Deployment.student_id)).all() == [student.id]
        assert world.store.fetch_folder(student.artifact).is_dir()
        assert not (world.settings.jobs_folder / job_id).exists()
        assert "promoted" in world.events(job_id)

    def test_a_gate_that_does_not_hold(self, world: World) -> None:
        job_id = world.submit("succeed", promote={"deployment": "d", "gate": {"max_drop": 0.001}})
        world.supervisor.serve()
        assert world.job(job_id).status == "succeeded"
        assert "not_promoted" in world.events(job_id)
        with world.database.reading() as session:
            assert session.scalars(select(Deployment)).all() == []

    def test_the_best_waiting_job_first(self, world: World) -> None:
        later, first = world.submit("succeed"), world.submit("succeed", priority=5)
        world.supervisor.serve()
        assert (world.job(first).status, world.job(later).status) == ("succeeded", "queued")
        assert world.supervisor.serve()
        assert not world.supervisor.serve()

    def test_what_is_no_message_is_passed_over(self, world: World) -> None:
        job_id = world.submit("babble")
        world.supervisor.serve()
        assert world.job(job_id).status == "succeeded"

    def test_nothing_of_this_process_is_in_its_environment(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("LIMBECK_SECRET_KEY", "AWS_SECRET_ACCESS_KEY", "DATABASE_PASSWORD", "HF_TOKEN"):
            monkeypatch.setenv(name, "canary")
        job_id = world.submit("succeed")
        world.supervisor.serve()
        with world.database.reading() as session:
            told = session.scalars(select(Event.data).where(Event.job_id == job_id, Event.code == "environment")).one()
        names = set(told["names"])
        assert {"PATH", "PYTHONPATH", "TMPDIR"} <= names
        assert not [name for name in names if name.startswith(("LIMBECK", "AWS")) or "TOKEN" in name or "PASS" in name]

    def test_a_child_that_it_leaves_behind_is_ended(self, world: World) -> None:
        job_id = world.submit("leave a child")
        pids: list[int] = []
        watching = threading.Thread(target=lambda: pids.append(world.pid(job_id, name="child")))
        watching.start()
        world.supervisor.serve()
        watching.join()
        assert world.job(job_id).status == "succeeded"
        wait_until(lambda: gone(pids[0]), 2)

    def test_a_publication_longer_than_the_lease(self, world: World) -> None:
        class SlowStore(Store):
            def publish(self, folder: Path, key: str) -> Manifest:
                time.sleep(world.settings.lease_ttl * 1.5)
                return super().publish(folder, key)

        world.supervisor.store = SlowStore(world.settings.artifacts, world.settings.cache_folder / "artifacts")
        job_id = world.submit("succeed")
        world.supervisor.serve()
        assert (world.job(job_id).status, world.job(job_id).attempt) == ("succeeded", 1)


class TestTeacherExport:
    def test_jobs_of_one_teacher_share_it(self, world: World) -> None:
        published: list[str] = []

        class Listening(Store):
            def publish(self, folder: Path, key: str) -> Manifest:
                published.append(key)
                return super().publish(folder, key)

        world.supervisor.store = Listening(world.settings.artifacts, world.settings.cache_folder / "artifacts")
        for _ in range(2):
            job_id = world.submit("succeed with a teacher")
            world.supervisor.serve()
            assert world.job(job_id).status == "succeeded"
        with world.database.reading() as session:
            students = session.scalars(select(Student)).all()
        (key,) = {student.teacher_artifact for student in students}
        assert key is not None
        assert [one.partition("/")[0] for one in published] == ["exports", "students", "students"]
        assert world.store.list("exports") == [key]
        assert read_manifest(world.store.fetch_folder(key)).kind == "teacher"

    def test_without_one_the_student_names_none(self, world: World) -> None:
        job_id = world.submit("succeed")
        world.supervisor.serve()
        with world.database.reading() as session:
            assert session.get_one(Student, world.job(job_id).student_id).teacher_artifact is None

    def test_another_worker_that_was_faster_is_no_failure(self, world: World) -> None:
        class Late(Store):
            def exists(self, key: str) -> bool:
                return not key.startswith("exports") and super().exists(key)

        world.supervisor.store = Late(world.settings.artifacts, world.settings.cache_folder / "artifacts")
        for _ in range(2):
            job_id = world.submit("succeed with a teacher")
            world.supervisor.serve()
            assert world.job(job_id).status == "succeeded"
        assert len(world.store.list("exports")) == 1

    def test_one_that_was_deleted_before_the_commit_is_put_back(self, world: World) -> None:
        class Racing(Store):
            def publish(self, folder: Path, key: str) -> Manifest:
                if key.startswith("students"):
                    for shared in self.list("exports"):
                        self.delete(shared)  # the last student that named it has just been deleted
                return super().publish(folder, key)

        world.supervisor.store = Racing(world.settings.artifacts, world.settings.cache_folder / "artifacts")
        job_id = world.submit("succeed with a teacher")
        world.supervisor.serve()
        with world.database.reading() as session:
            key = session.get_one(Student, world.job(job_id).student_id).teacher_artifact
        assert key is not None
        assert world.store.exists(key)

    def test_a_cancelled_job_leaves_an_orphan_at_most(self, world: World) -> None:
        job_id = world.submit("finish anyway with a teacher")
        with world.serving():
            world.pid(job_id)
            world.cancel(job_id)
        assert world.job(job_id).status == "cancelled"
        assert world.store.list("students") == []
        with world.database.reading() as session:
            assert session.scalars(select(Student)).all() == []
        world.supervisor.draining.clear()
        again = world.submit("succeed with a teacher")
        world.supervisor.serve()
        assert world.job(again).status == "succeeded"
        assert len(world.store.list("exports")) == 1


class TestFailure:
    def test_an_error_is_the_end(self, world: World) -> None:
        job_id = world.submit("fail")
        world.supervisor.serve()
        job = world.job(job_id)
        assert job.status == "failed"
        assert job.error == {
            "code": "diverged",
            "message": "the loss is not a number",
            "hint": "slower",
            "pointer": "/schedule",
        }
        assert not (world.settings.jobs_folder / job_id).exists()

    def test_three_crashes_are_poison_and_the_next_job_runs(self, world: World) -> None:
        poison, well = world.submit("crash"), world.submit("succeed")
        for _ in range(4):
            assert world.supervisor.serve()
        job = world.job(poison)
        assert (job.status, (job.error or {})["code"], job.attempt) == ("failed", "poison", 3)
        assert "signal 6" in (job.error or {})["message"]
        assert world.job(well).status == "succeeded"
        assert world.supervisor.jobs == []

    def test_a_checkpoint_forgives_earlier_crashes(self, world: World) -> None:
        job_id = world.submit("crash after a checkpoint")
        for _ in range(4):
            world.supervisor.serve()
        assert (world.job(job_id).status, world.job(job_id).attempt) == ("queued", 4)
        attempts = world.settings.jobs_folder / job_id / "attempts"
        assert sorted(path.name for path in attempts.iterdir()) == ["1", "2", "3", "4"]

    def test_a_dataset_that_is_gone(self, world: World) -> None:
        job_id = world.submit("succeed")
        with world.database.writing() as session:
            session.delete(session.get_one(Dataset, world.dataset))
        world.supervisor.serve()
        assert (world.job(job_id).error or {})["code"] == "dataset_not_found"

    def test_a_dataset_that_is_damaged(self, world: World) -> None:
        job_id = world.submit("succeed")
        with world.database.writing() as session:
            session.execute(update(Dataset).values(sha256="0" * 64))
        world.supervisor.serve()
        assert (world.job(job_id).error or {})["code"] == "artifact_damaged"

    def test_a_spec_that_this_version_cannot_read(self, world: World) -> None:
        job_id = world.submit("succeed")
        with world.database.writing() as session:
            session.execute(update(Job).values(resolved_spec={"from": "the future"}))
        for _ in range(3):
            assert world.supervisor.serve()
        assert (world.job(job_id).error or {})["code"] == "poison"

    def test_a_trainer_that_cannot_be_started(self, world: World) -> None:
        world.supervisor.trainer = ("/no/such/python",)
        job_id = world.submit("succeed")
        world.supervisor.serve()
        assert (world.job(job_id).status, world.job(job_id).failures) == ("queued", 1)


class TestStop:
    def test_cancel_is_heard_and_obeyed(self, world: World) -> None:
        job_id = world.submit("obey")
        with world.serving() as thread:
            pid = world.pid(job_id)
            world.cancel(job_id)
            thread.join(5)
            assert world.job(job_id).status == "cancelled"
        assert gone(pid)
        assert not (world.settings.jobs_folder / job_id).exists()

    def test_who_does_not_obey_is_killed(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(supervisor_module, "CANCEL_GRACE", 0.5)
        job_id = world.submit("deaf")
        with world.serving():
            pid = world.pid(job_id)
            world.cancel(job_id)
        assert world.job(job_id).status == "cancelled"
        assert gone(pid)

    def test_a_result_that_comes_too_late_is_not_published(self, world: World) -> None:
        job_id = world.submit("finish anyway")
        with world.serving():
            world.pid(job_id)
            world.cancel(job_id)
        assert (world.job(job_id).status, world.job(job_id).student_id) == ("cancelled", None)
        assert world.store.list("students") == []
        assert "succeeded" not in world.events(job_id)

    def test_a_drain_gives_the_job_back(self, world: World) -> None:
        job_id = world.submit("obey")
        with world.serving():
            world.pid(job_id)
            world.supervisor.draining.set()
        job = world.job(job_id)
        assert (job.status, job.failures, job.worker, job.lease_until) == ("queued", 0, None, None)
        assert (world.settings.jobs_folder / job_id / "attempts" / "1").is_dir()
        assert not world.supervisor.serve()

    def test_a_drain_does_not_wait_for_ever(self, world: World) -> None:
        world.supervisor.settings = world.settings.model_copy(update={"drain_timeout": 1.0})
        job_id = world.submit("deaf")
        with world.serving():
            pid = world.pid(job_id)
            world.supervisor.draining.set()
        assert (world.job(job_id).status, world.job(job_id).failures) == ("queued", 0)
        assert gone(pid)


class TestPause:
    def test_it_stops_with_a_checkpoint_and_goes_on_from_it(self, world: World) -> None:
        job_id = world.submit("save when asked")
        with world.serving() as thread:
            pid = world.pid(job_id)
            world.pause(job_id)
            thread.join(5)
            job = world.job(job_id)
            assert (job.status, job.failures, job.worker, job.lease_until) == ("paused", 0, None, None)
        assert gone(pid)
        world.supervisor.draining.clear()
        assert not world.supervisor.serve()
        world.supervisor.tidy()
        world.resume(job_id)
        assert world.supervisor.serve()
        job = world.job(job_id)
        assert (job.status, job.attempt, job.failures) == ("succeeded", 2, 0)
        assert "went_on" in world.events(job_id)
        assert not (world.settings.jobs_folder / job_id).exists()

    def test_who_does_not_obey_is_killed(self, world: World) -> None:
        world.supervisor.settings = world.settings.model_copy(update={"drain_timeout": 1.0})
        job_id = world.submit("deaf")
        with world.serving():
            pid = world.pid(job_id)
            world.pause(job_id)
        assert (world.job(job_id).status, world.job(job_id).failures) == ("paused", 0)
        assert gone(pid)

    def test_a_result_that_was_on_its_way_is_published(self, world: World) -> None:
        job_id = world.submit("finish anyway")
        with world.serving():
            world.pid(job_id)
            world.pause(job_id)
        assert world.job(job_id).status == "succeeded"
        assert len(world.store.list("students")) == 1

    def test_taken_back_before_the_trainer_has_heard_it_runs_on(self, world: World) -> None:
        job_id = world.submit("obey")
        with world.serving():
            pid = world.pid(job_id)
            with world.database.writing() as session:  # between two heartbeats
                job = session.get_one(Job, job_id)
                lifecycle.request_pause(session, job)
                lifecycle.request_resume(session, job)
            time.sleep(2 * world.settings.heartbeat_interval)
            assert (world.job(job_id).status, gone(pid)) == ("running", False)
            world.cancel(job_id)
        assert world.job(job_id).attempt == 1

    def test_taken_back_while_the_trainer_stops_it_waits_again(self, world: World) -> None:
        job_id = world.submit("obey when told to")
        with world.serving():
            told = world.settings.jobs_folder / job_id / "attempts" / "1" / "told"
            world.pid(job_id)
            world.pause(job_id)
            wait_until(told.is_file, 5)
            world.resume(job_id)
            (told.parent / "go").touch()
        job = world.job(job_id)
        assert (job.status, job.failures, job.attempt) == ("queued", 0, 1)
        with world.database.reading() as session:
            said = session.scalars(select(Event.message).where(Event.code == "released")).one()
        assert "resumed" in said

    def test_its_worker_leaves_at_the_same_time(self, world: World) -> None:
        job_id = world.submit("obey")
        with world.serving():
            world.pid(job_id)
            world.pause(job_id)
            world.supervisor.draining.set()
        assert world.job(job_id).status == "paused"

    @pytest.mark.long
    def test_its_lease_is_lost(self, world: World) -> None:
        """Its worker could not reach the database: the job is paused, not queued, and has not failed."""
        job_id = world.submit("obey when told to")
        with world.serving():
            pid = world.pid(job_id)
            world.pause(job_id)
            with locked(world.database):
                wait_until(lambda: gone(pid), world.settings.lease_ttl + 1)
        assert (world.job(job_id).status, world.job(job_id).failures) == ("paused", 0)


class TestLease:
    def test_who_is_fenced_kills_and_writes_nothing(self, world: World) -> None:
        job_id = world.submit("obey")
        with world.serving() as thread:
            pid = world.pid(job_id)
            with world.database.writing() as session:
                session.execute(update(Job).values(attempt=2, worker="wk_other"))
            thread.join(world.settings.heartbeat_interval + 2)
            assert gone(pid)
        job = world.job(job_id)
        assert (job.status, job.attempt, job.worker) == ("running", 2, "wk_other")
        assert set(world.events(job_id)) <= {"queued", "started", "phase", "environment"}

    def test_a_database_that_is_away_longer_than_the_lease(self, world: World) -> None:
        """F13: the trainer is gone before the lease has run out, whatever the database does meanwhile."""
        job_id = world.submit("obey")
        with world.serving():
            pid = world.pid(job_id)
            with locked(world.database):
                began = time.monotonic()
                wait_until(lambda: gone(pid), world.settings.lease_ttl + 1)
                assert time.monotonic() - began < world.settings.lease_ttl
                time.sleep(world.settings.lease_ttl - (time.monotonic() - began) + 0.2)
        assert (world.job(job_id).status, world.job(job_id).failures) == ("queued", 1)

    def test_a_database_that_is_away_for_a_moment(self, world: World) -> None:
        """F12: nothing is lost."""
        job_id = world.submit("obey")
        with world.serving():
            pid = world.pid(job_id)
            with locked(world.database):
                time.sleep(1.2)
            time.sleep(world.settings.lease_ttl)
            assert not gone(pid)
            world.cancel(job_id)
        assert (world.job(job_id).status, world.job(job_id).attempt) == ("cancelled", 1)

    def test_one_slot_is_one_job(self, world: World) -> None:
        job_id = world.submit("obey")
        world.submit("succeed")
        with world.serving():
            world.pid(job_id)
            assert world.supervisor.jobs == [job_id]
            assert not world.supervisor.serve()
            world.cancel(job_id)


class TestTidy:
    def test_only_what_ended_goes(self, world: World) -> None:
        waits, paused, ended = (world.submit("succeed") for _ in range(3))
        world.pause(paused)
        world.cancel(ended)
        for name in (waits, paused, ended, "job_unknown"):
            (world.settings.jobs_folder / name / "attempts").mkdir(parents=True)
        world.supervisor.tidy()
        assert {path.name for path in world.settings.jobs_folder.iterdir()} == {waits, paused}


@contextmanager
def locked(database: Database) -> Iterator[None]:
    """Nobody else can write."""
    connection = database.engine.execution_options(limbeck_write=True).connect()
    try:
        connection.execute(text("SELECT 1"))
        yield
        connection.rollback()
    finally:
        connection.close()


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
