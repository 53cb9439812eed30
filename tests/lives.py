"""A job's life in a database: each verb of the lifecycle in its own transaction, and what can be seen afterwards."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import select, update

from models import lifecycle
from models.database import Database, db_now
from models.lifecycle import Claimed, Happening, NewStudent, Point
from models.tables import Event, Job, JobStatus, Metric, Student, new_id

TTL = 30.0


class Life:
    """Of the job `id`, which waits, or stands as `columns` say. It has no dataset and nobody trains it."""

    def __init__(self, database: Database, **columns: Any) -> None:
        self.database = database
        self.id = new_id("job")
        if columns.get("status") in ("running", "pausing", "cancelling"):
            columns = {"attempt": 1, "worker": "wk_1", "lease_until": time.time() + 3600, **columns}
        with database.writing() as session:
            session.add(Job(id=self.id, owner="default", spec={}, resolved_spec={"seed": 0}, **columns))

    # What a person asks.

    def pause(self) -> str:
        with self.database.writing() as session:
            job = session.get_one(Job, self.id)
            lifecycle.request_pause(session, job)
            return job.status

    def resume(self) -> str:
        with self.database.writing() as session:
            job = session.get_one(Job, self.id)
            lifecycle.request_resume(session, job)
            return job.status

    def cancel(self) -> str:
        with self.database.writing() as session:
            job = session.get_one(Job, self.id)
            lifecycle.request_cancel(session, job)
            return job.status

    # What a worker does.

    def claim(self, ttl: float = TTL) -> Claimed | None:
        with self.database.writing() as session:
            return lifecycle.claim(session, self.id, "wk_1", ttl)

    def begin(self) -> int:
        """Claimed for sure; the attempt's number."""
        claimed = self.claim()
        assert claimed is not None
        return claimed.attempt

    def beat(self, attempt: int) -> JobStatus | None:
        with self.database.writing() as session:
            return lifecycle.heartbeat(session, self.id, attempt, TTL)

    def record(self, attempt: int, *steps: int, **seen: Any) -> None:
        """Points of the metric `loss` at `steps`, whose value is the attempt's number; an event, too."""
        points = [Point("distilled", 0, 0, "loss", step, float(attempt)) for step in steps]
        happenings = [Happening("trained", "It went on.", {})] if steps else []
        with self.database.writing() as session:
            lifecycle.record(session, self.id, attempt, metrics=points, events=happenings, **seen)

    def checkpoint(self, attempt: int) -> None:
        with self.database.writing() as session:
            lifecycle.checkpointed(session, self.id, attempt)

    def release(self, attempt: int) -> str:
        with self.database.writing() as session:
            return lifecycle.release(session, self.id, attempt)

    def crash(self, attempt: int) -> str:
        with self.database.writing() as session:
            return lifecycle.crashed(session, self.id, attempt, "the trainer ended with status 1")

    def fail(self, attempt: int) -> str:
        with self.database.writing() as session:
            lifecycle.fail(session, self.id, attempt, code="diverged", message="The loss is not a number.")
        return "failed"

    def succeed(self, attempt: int) -> str:
        id_ = new_id("st")
        new = NewStudent(id_, "b" * 64, f"students/{id_}", {"format": 1}, {"verdict": "fine"})
        with self.database.writing() as session:
            lifecycle.succeed(session, self.id, attempt, new)
        return "succeeded"

    def obey_cancel(self, attempt: int) -> str:
        with self.database.writing() as session:
            lifecycle.cancelled(session, self.id, attempt)
        return "cancelled"

    # What time does.

    def expire(self) -> None:
        """Its worker has fallen silent for longer than its lease."""
        with self.database.writing() as session:
            session.execute(update(Job).where(Job.id == self.id).values(lease_until=db_now() - 1))

    def reap(self) -> int:
        with self.database.writing() as session:
            return lifecycle.reap(session)

    # What can be seen.

    def look(self) -> "Seen":
        with self.database.reading() as session:
            return Seen(
                session.get_one(Job, self.id),
                session.scalars(select(Event).where(Event.job_id == self.id).order_by(Event.seq)).all(),
                session.scalars(select(Metric).where(Metric.job_id == self.id).order_by(Metric.step)).all(),
                session.scalars(select(Student.id).where(Student.job_id == self.id)).all(),
            )

    @property
    def job(self) -> Job:
        return self.look().job

    @property
    def status(self) -> str:
        return self.job.status

    @property
    def codes(self) -> list[str]:
        return [event.code for event in self.look().events]


class Seen(NamedTuple):
    """A job with all that belongs to it."""

    job: Job
    events: Sequence[Event]
    metrics: Sequence[Metric]
    students: Sequence[str]

    @property
    def points(self) -> list[tuple[int, float]]:
        """Step and value."""
        return [(row.step, row.value) for row in self.metrics]
