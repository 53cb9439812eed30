"""How a job's row changes: one `UPDATE … WHERE … RETURNING`, with the event that tells of it, in one transaction.

Which status follows which is models.lifecycle's to know, and nobody else's to change.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import Update, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from models import webhooks
from models.errors import Fenced, Missing
from models.tables import ALIVE, Event, IdempotencyKey, Job, JobStatus, Metric, Worker

PLAIN = {"synchronize_session": False}
"""What was loaded before such a statement is not changed by it; whoever needs it refreshes it."""


class Row(NamedTuple):
    """What is known of a job whose row has just been changed."""

    id: str
    status: JobStatus
    attempt: int
    failures: int
    owner: str
    name: str


def hold(session: Session, job: Job) -> JobStatus:
    """The job's status, which nobody else changes until this transaction ends. Raises `Missing`."""
    status = session.scalar(select(Job.status).where(Job.id == job.id).with_for_update())
    if status is None:
        raise Missing(f"there is no job {job.id!r}")
    return status


def of_attempt(job_id: str, attempt: int, *statuses: JobStatus) -> Update:
    """The job while `attempt` holds it, in one of `statuses`."""
    return update(Job).where(Job.id == job_id, Job.attempt == attempt, Job.status.in_(statuses or ALIVE))


def all_changed(session: Session, statement: Update, **values: Any) -> list[Row]:
    """What `statement` finds is given `values` and, as its readers must see it, a new version."""
    if "status" in values:
        values["version"] = Job.version + 1
    rows = session.execute(
        statement.values(**values).returning(Job.id, Job.status, Job.attempt, Job.failures, Job.owner, Job.name),
        execution_options=PLAIN,
    )
    return [Row(*row) for row in rows]


def changed(session: Session, statement: Update, **values: Any) -> Row | None:
    return next(iter(all_changed(session, statement, **values)), None)


def fenced(session: Session, statement: Update, **values: Any) -> Row:
    """As `changed`. Raises `Fenced` where the attempt of `statement` no longer holds the job."""
    row = changed(session, statement, **values)
    if row is None:
        raise Fenced("this attempt no longer holds the job")
    return row


def tell(
    session: Session, job_id: str, attempt: int, code: str, message: str, data: Mapping[str, Any] | None = None
) -> None:
    """An event, and what webhooks hear of it."""
    session.add(Event(job_id=job_id, attempt=attempt, code=code[:64], message=message, data=dict(data or {})))
    webhooks.tell_of_job(session, job_id, code)


def insert(session: Session, table: type[Metric] | type[Worker] | type[IdempotencyKey]) -> Any:
    """The dialect's own INSERT, which has ON CONFLICT."""
    dialect = session.get_bind().dialect.name
    return (postgresql if dialect == "postgresql" else sqlite).insert(table.__table__)
