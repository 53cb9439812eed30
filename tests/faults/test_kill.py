"""F2, F4, F23: the worker is killed or asked to go, or a job is paused.

Real processes: the worker as it is started, and the real trainer.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import func, select

from models import lifecycle
from models.artifacts import Store, sha256
from models.database import Database
from models.queue import Doorbell
from models.settings import Settings
from models.tables import Dataset, Event, Job, Metric, Student, Worker, new_id
from tests.factories import tiny_dataset, tiny_teacher
from tests.servers import Valkey, leashed, wait_until
from tests.submitting import submit

ROOT = Path(__file__).parents[2]


class Fleet:
    """Workers on one data folder, with a job to do."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.settings = settings
        self.database = database
        self.workers: list[subprocess.Popen[bytes]] = []
        store = Store(settings.artifacts, settings.cache_folder / "artifacts")
        tiny_teacher(settings.models_folder / "tiny")
        rows = tiny_dataset(settings.data_dir / "upload", 600)
        self.dataset = new_id("ds")
        store.put_file(rows, f"datasets/{self.dataset}.parquet")
        with database.writing() as session:
            session.add(
                Dataset(
                    id=self.dataset,
                    owner="default",
                    name="rows",
                    columns=[{"name": "text"}, {"name": "label"}],
                    rows=600,
                    bytes=rows.stat().st_size,
                    sha256=sha256(rows),
                    artifact=f"datasets/{self.dataset}.parquet",
                )
            )

    def start(self) -> "subprocess.Popen[bytes]":
        environment = {
            **os.environ,
            "LIMBECK_DATA_DIR": str(self.settings.data_dir),
            "LIMBECK_DATABASE_URL": self.settings.database_url,
            "LIMBECK_BROKER_URL": self.settings.broker_url,
            "LIMBECK_LEASE_TTL": str(self.settings.lease_ttl),
            "LIMBECK_SWEEP_INTERVAL": str(self.settings.sweep_interval),
            "LIMBECK_DEVICE": "cpu",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(ROOT),
        }
        with (self.settings.data_dir / f"worker-{len(self.workers)}.log").open("wb") as errors:
            worker = subprocess.Popen(
                leashed(sys.executable, "-P", "-m", "worker.main"),
                env=environment,
                cwd=self.settings.data_dir,
                stdin=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        self.workers.append(worker)
        return worker

    def submit(self, *, epochs: int = 2) -> str:
        schedule = {"epochs": epochs, "learning_rate": 3e-3, "batch_tokens": 256}
        body = {
            "name": "tiny",
            "task": {"kind": "text-classification", "text": "text", "label": "label", "max_length": 32},
            "dataset": {"id": self.dataset},
            "teachers": [{"kind": "local", "model": "file:tiny", "fine_tune": {"epochs": 8, "learning_rate": 3e-3}}],
            "student": {"kind": "from_teacher", "layers": 1},
            "schedule": schedule,
            "control": False,
        }
        return submit(self.database, body)

    def job(self, job_id: str) -> Job:
        with self.database.reading() as session:
            return session.get_one(Job, job_id)

    def trainer(self, worker: "subprocess.Popen[bytes]", within: float = 20) -> int:
        """The pid of the worker's trainer, as soon as it has begun."""
        parent = psutil.Process(worker.pid)
        wait_until(parent.children, within)
        return parent.children()[0].pid

    def log(self, number: int) -> list[dict[str, Any]]:
        text = (self.settings.data_dir / f"worker-{number}.log").read_text("utf-8")
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def stop(self) -> None:
        for worker in self.workers:
            children = psutil.Process(worker.pid).children(recursive=True) if worker.poll() is None else []
            for process in (worker, *children):
                process.kill()
            worker.wait()


@pytest.fixture
def fleet(settings: Settings, sqlite_database: Database) -> Iterator[Fleet]:
    fleet = Fleet(settings, sqlite_database)
    yield fleet
    fleet.stop()


def check_invariants(fleet: Fleet, job_id: str) -> None:
    """I1, I2, I3, I4 and I5 of a job that has succeeded."""
    with fleet.database.reading() as session:
        job = session.get_one(Job, job_id)
        assert job.status == "succeeded", job.error
        told = session.execute(
            select(Event.code, Event.attempt).where(Event.job_id == job_id).order_by(Event.seq)
        ).all()
        assert [event.code for event in told].count("succeeded") == 1
        attempts = [event.attempt for event in told]
        assert attempts == sorted(attempts)
        student = session.scalars(select(Student).where(Student.job_id == job_id)).one()
        keys = session.execute(
            select(Metric.name, Metric.arm, Metric.stage, Metric.phase, Metric.step).where(Metric.job_id == job_id)
        ).all()
        assert len(keys) == len(set(keys)) > 0
    store = Store(fleet.settings.artifacts, fleet.settings.cache_folder / "artifacts")
    assert store.list("students") == [student.artifact]
    store.fetch_folder(student.artifact)
    # Which goes after the row: a worker that dies in between leaves it to the next one's sweep.
    wait_until(lambda: not (fleet.settings.jobs_folder / job_id).exists(), 5)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class TestKilled:
    def test_the_trainer_dies_with_its_worker_while_it_loads(self, fleet: Fleet) -> None:
        """Loading torch takes seconds, in which a careless trainer would not yet know whose child it is."""
        fleet.submit()
        worker = fleet.start()
        trainer = fleet.trainer(worker)
        time.sleep(0.3)
        worker.kill()
        wait_until(lambda: gone(trainer), 1)

    @pytest.mark.timeout(300)
    def test_the_job_goes_on_with_another_worker(self, fleet: Fleet) -> None:
        job_id = fleet.submit(epochs=60)
        worker = fleet.start()
        trainer = fleet.trainer(worker)
        unit = fleet.settings.jobs_folder / job_id / "attempts" / "1" / "checkpoints" / "distilled-0-0"
        wait_until(lambda: list(unit.glob("step-*")), 60)
        worker.kill()
        wait_until(lambda: gone(trainer), 1)
        killed = time.monotonic()
        fleet.start()
        wait_until(lambda: fleet.job(job_id).attempt == 2, 20)
        # The lease, a sweep, and the time in which a worker starts.
        assert time.monotonic() - killed < fleet.settings.lease_ttl + fleet.settings.sweep_interval + 5
        wait_until(lambda: fleet.job(job_id).status not in ("queued", "running"), 120)
        check_invariants(fleet, job_id)
        unbroken = fleet.submit(epochs=60)
        wait_until(lambda: fleet.job(unbroken).status not in ("queued", "running"), 120)
        with fleet.database.reading() as session:
            steps = session.scalars(select(Event.data).where(Event.job_id == job_id, Event.code == "resumed")).all()
            hashes = session.scalars(select(Student.hash).where(Student.job_id.in_((job_id, unbroken)))).all()
        assert steps
        assert all(data["step"] > 0 for data in steps)
        # The hash is over the weights' bytes: bit for bit the same student.
        assert len(hashes) == 2
        assert hashes[0] == hashes[1]

    def test_a_frozen_worker_does_not_train_on(self, fleet: Fleet) -> None:
        """F14: it holds no lease and cannot know it; its trainer hears no tick and ends by itself."""
        job_id = fleet.submit(epochs=1000)
        worker = fleet.start()
        trainer = fleet.trainer(worker)
        wait_until(lambda: fleet.job(job_id).phase is not None, 60)
        worker.send_signal(signal.SIGSTOP)
        wait_until(lambda: gone(trainer), fleet.settings.lease_ttl + 1)
        fleet.start()
        wait_until(lambda: fleet.job(job_id).attempt == 2, 20)
        worker.send_signal(signal.SIGCONT)
        time.sleep(1.5)
        assert (fleet.job(job_id).attempt, fleet.job(job_id).status) == (2, "running")
        with fleet.database.reading() as session:
            last = session.scalars(
                select(Event.attempt).where(Event.job_id == job_id).order_by(Event.seq.desc())
            ).first()
        assert last == 2


class TestAskedToGo:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_an_idle_worker_goes_at_once(self, fleet: Fleet, number: signal.Signals) -> None:
        worker = fleet.start()
        wait_until(workers_there(fleet), 20)
        worker.send_signal(number)
        assert worker.wait(5) == 0
        assert not workers_there(fleet)()

    @pytest.mark.timeout(120)
    def test_a_busy_worker_gives_its_job_back(self, fleet: Fleet) -> None:
        job_id = fleet.submit(epochs=1000)
        worker = fleet.start()
        trainer = fleet.trainer(worker)
        wait_until(lambda: fleet.job(job_id).phase == "distil", 60)
        time.sleep(1)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(fleet.settings.drain_timeout) == 0
        job = fleet.job(job_id)
        assert (job.status, job.failures, job.attempt) == ("queued", 0, 1)
        assert gone(trainer)
        assert list((fleet.settings.jobs_folder / job_id / "attempts" / "1").rglob("tensors.safetensors"))


class TestPaused:
    @pytest.mark.long
    @pytest.mark.timeout(400)
    def test_it_goes_on_after_a_restart_and_nothing_is_lost(self, fleet: Fleet) -> None:
        job_id = fleet.submit(epochs=60)
        worker = fleet.start()
        trainer = fleet.trainer(worker)
        unit = fleet.settings.jobs_folder / job_id / "attempts" / "1" / "checkpoints" / "distilled-0-0"
        wait_until(lambda: list(unit.glob("step-*")), 120)
        with fleet.database.writing() as session:
            lifecycle.request_pause(session, session.get_one(Job, job_id))
        wait_until(lambda: fleet.job(job_id).status == "paused", 30)
        assert gone(trainer)
        paused = fleet.job(job_id)
        assert (paused.attempt, paused.failures, paused.worker, paused.lease_until) == (1, 0, None, None)
        assert 0 < paused.progress < 1
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(fleet.settings.drain_timeout) == 0
        fleet.start()
        wait_until(workers_there(fleet), 20)
        time.sleep(3)  # several sweeps, the first of which tidies
        assert (fleet.job(job_id).status, fleet.job(job_id).progress) == ("paused", paused.progress)
        with fleet.database.writing() as session:
            lifecycle.request_resume(session, session.get_one(Job, job_id))
        wait_until(lambda: fleet.job(job_id).status not in ("queued", "running"), 180)
        check_invariants(fleet, job_id)
        assert (fleet.job(job_id).attempt, fleet.job(job_id).failures) == (2, 0)
        unbroken = fleet.submit(epochs=60)
        wait_until(lambda: fleet.job(unbroken).status not in ("queued", "running"), 180)
        with fleet.database.reading() as session:
            steps = session.scalars(select(Event.data).where(Event.job_id == job_id, Event.code == "resumed")).all()
            hashes = session.scalars(select(Student.hash).where(Student.job_id.in_((job_id, unbroken)))).all()
        assert any(data["unit"] == "distilled-0-0" and data["step"] > 0 for data in steps)
        # The hash is over the weights' bytes: bit for bit the same student.
        assert len(hashes) == 2
        assert hashes[0] == hashes[1]


@pytest.mark.valkey
class TestWithABroker:
    @pytest.fixture
    def fleet(self, settings: Settings, sqlite_database: Database, valkey: Valkey) -> Iterator[Fleet]:
        # The sweep sleeps for long here: what is prompt, is prompt because of the bell.
        options = {"broker_url": valkey.url, "sweep_interval": 30.0}
        fleet = Fleet(settings.model_copy(update=options), sqlite_database)
        yield fleet
        fleet.stop()

    @pytest.mark.timeout(120)
    def test_a_bell_is_heard_and_garbage_is_not(self, fleet: Fleet, valkey: Valkey) -> None:
        """F10: a hundred bells are one run; what is no bell is dropped and the worker lives."""
        worker = fleet.start()
        wait_until(workers_there(fleet), 20)
        time.sleep(3)
        with valkey.client as client:
            client.lpush("limbeck:limbeck.cpu", "garbage", json.dumps({"body": "bm90aGluZw==", "headers": {}}))
        job_id = fleet.submit()
        doorbell = Doorbell(fleet.settings)
        for number in range(100):
            doorbell.ring(job_id if number else "job_forged", "cpu")
            time.sleep(0.001)
        doorbell.close()
        wait_until(lambda: fleet.job(job_id).status == "running", 8)
        wait_until(lambda: fleet.job(job_id).status != "running", 60)
        check_invariants(fleet, job_id)
        assert fleet.job(job_id).attempt == 1
        assert worker.poll() is None
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(15) == 0

    def test_it_starts_and_stops_without_the_broker(self, fleet: Fleet, valkey: Valkey) -> None:
        valkey.stop()
        worker = fleet.start()
        wait_until(workers_there(fleet), 20)
        time.sleep(2)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(15) == 0


def workers_there(fleet: Fleet) -> Callable[[], bool]:
    def look() -> bool:
        with fleet.database.reading() as session:
            return bool(session.scalar(select(func.count()).select_from(Worker)))

    return look
