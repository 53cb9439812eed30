"""Every change of a job's status, one verb each, and nowhere else.

    queued ──claim──> running ──succeed──> succeeded
      ^  │               │ ──fail, crashed (3 in a row)──> failed
      │  └─cancel─┐      ├──request_cancel──> cancelling ──cancelled──> cancelled
      │           v      └──(pausing)──> pausing ──release──> paused
      │       cancelled
      └──release (drain), crashed, reap (a lease that ran out)

Each verb is one `UPDATE … WHERE … RETURNING` with its event, in the caller's transaction (`Database.writing()`): of
many callers exactly one changes the row. What a worker does carries its attempt number, and where another attempt has
begun, or the job has ended, it raises `Fenced` and writes nothing. All lease arithmetic is on the database's clock.

A worker holds a *lease* on a job that is running, pausing or cancelling, and renews it by `heartbeat`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, assert_never

from sqlalchemy import Update, func, or_, select, update
from sqlalchemy import delete as delete_rows
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from models import prerequisites
from models.database import Database, db_now
from models.errors import Conflict, Fenced, Invalid, Overloaded
from models.settings import Settings
from models.specs import JobSpec, ResolvedSpec
from models.tables import (
    ALIVE,
    ENDED,
    Event,
    IdempotencyKey,
    Job,
    JobStatus,
    Metric,
    Student,
    Worker,
    new_id,
    utc_now,
)

MAX_FAILURES = 3
"""So many crashes in a row without checkpoint progress, and the job is poison."""
WORKER_FRESH_SECONDS = 60.0
"""A worker that was seen so recently is there."""
WORKER_FORGOTTEN_SECONDS = 24 * 3600.0

Device = Literal["cpu", "gpu"]
_SERVES: Mapping[str, tuple[Device, ...]] = {"cpu": ("cpu",), "gpu": ("gpu", "cpu")}
_METRICS_AT_ONCE = 500
_PLAIN = {"synchronize_session": False}


def serves(worker_device: str) -> tuple[Device, ...]:
    """The queues of a worker, first choice first: one with a GPU takes what waits for a CPU when its own is empty."""
    return _SERVES.get(worker_device, ("cpu",))


# --- what goes in and comes out ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claimed:
    """A job that this worker, and nobody else, now runs."""

    job_id: str
    owner: str
    name: str
    attempt: int
    device: str
    resolved_spec: dict[str, Any]


class Point(NamedTuple):
    """One point of a metric series."""

    arm: str
    stage: int
    phase: int
    name: str
    step: int
    value: float


class Happening(NamedTuple):
    """Something that an attempt tells of; it becomes an event."""

    code: str
    message: str
    data: dict[str, Any]


@dataclass(frozen=True)
class NewStudent:
    """What a finished job publishes."""

    id: str
    hash: str
    artifact: str
    manifest: dict[str, Any]
    report: dict[str, Any] = field(repr=False)
    teacher_artifact: str | None = None
    """The key of its teacher's export, which other students may share."""


class Bell(Protocol):
    """Tells workers that a job waits. `models.queue.Doorbell` is one; so is a list's `append` in a test."""

    def ring(self, job_id: str, device: str) -> None: ...

    def state(self) -> str: ...


# --- submitting -------------------------------------------------------------------------------------------------------


check_references = prerequisites.check_references


def submit(
    session: Session,
    *,
    owner: str,
    spec: JobSpec,
    resolved: ResolvedSpec,
    document: dict[str, Any],
    estimates: dict[str, Any] | None,
    idempotency_key: str | None,
    body_sha256: str,
    max_queued: int,
    rerun_of: str | None = None,
) -> tuple[Job, bool]:
    """A new job in the queue, or the one that this `idempotency_key` made before; and whether it is new.

    `rerun_of` is the job that it repeats.
    Raises `Invalid` (with every problem), `Conflict` (`idempotency_key_reused`, `idempotency_key_used`) and
    `Overloaded` (`queue_full`). Of two calls that bring one new key at once, the second waits for the first.
    """
    if idempotency_key is not None:
        known = session.get(IdempotencyKey, (owner, idempotency_key))
        if known is not None:
            return _same_job(session, known, body_sha256), False
    wrong = check_references(session, owner, spec)
    if wrong:
        raise Invalid.of(wrong)
    waiting = session.scalar(select(func.count()).where(Job.owner == owner, Job.status == "queued")) or 0
    if waiting >= max_queued:
        raise Overloaded(
            f"{waiting} jobs are waiting already",
            code="queue_full",
            retry_after=30.0,
            hint="wait until some have ended",
        )
    device = _device(session, spec)
    job = Job(
        id=new_id("job"),
        owner=owner,
        name=spec.name,
        status="queued",
        device=device,
        priority=spec.priority,
        spec=document,
        resolved_spec=resolved.model_dump(mode="json"),
        estimates=estimates,
        waiting_reason=_waiting_reason(session, device),
        rerun_of=rerun_of,
    )
    if idempotency_key is not None:
        row = {"owner": owner, "key": idempotency_key, "body_sha256": body_sha256, "job_id": job.id}
        mine = session.execute(
            _insert(session, IdempotencyKey)
            .values(**row, created_at=utc_now())
            .on_conflict_do_nothing()
            .returning(IdempotencyKey.job_id)
        ).one_or_none()
        if mine is None:
            return _same_job(session, session.get_one(IdempotencyKey, (owner, idempotency_key)), body_sha256), False
    session.add(job)
    session.flush()
    _tell(session, job.id, 0, "queued", f"Waiting for a {device.upper()} worker.", {"device": device})
    session.flush()
    return job, True


def _same_job(session: Session, known: IdempotencyKey, body_sha256: str) -> Job:
    if known.body_sha256 != body_sha256:
        raise Conflict(
            "this Idempotency-Key was used with another body",
            code="idempotency_key_reused",
            hint="use a new key for a new job",
        )
    job = session.get(Job, known.job_id)
    if job is None:
        raise Conflict("the job of this Idempotency-Key has been deleted", code="idempotency_key_used")
    return job


def _device(session: Session, spec: JobSpec) -> Device:
    match spec.resources.device:
        case "cpu" | "gpu" as device:
            return device
        case "auto":
            return "gpu" if "gpu" in _workers_there(session) else "cpu"
        case other:
            assert_never(other)


def _waiting_reason(session: Session, device: Device) -> str:
    if any(device in serves(kind) for kind in _workers_there(session)):
        return f"waiting for a free {device.upper()} worker"
    return f"no {device.upper()} worker has been seen in the last {WORKER_FRESH_SECONDS:.0f} seconds"


def _workers_there(session: Session) -> set[str]:
    fresh = select(Worker.device).where(Worker.seen_at > db_now() - WORKER_FRESH_SECONDS)
    return set(session.scalars(fresh))


# --- what a person asks -----------------------------------------------------------------------------------------------


def request_cancel(session: Session, job: Job) -> None:
    """Cancel now if it waits, or tell its worker. To ask again changes nothing.

    Raises `Conflict` (`illegal_transition`) if it has succeeded or failed.
    """
    now = _changed(
        session, update(Job).where(Job.id == job.id, Job.status.in_(("queued", "paused"))), **_ended("cancelled")
    )
    if now is not None:
        _tell(session, job.id, now.attempt, "cancelled", "Cancelled before it ran on.")
    else:
        now = _changed(
            session,
            update(Job).where(Job.id == job.id, Job.status.in_(("running", "pausing"))),
            status="cancelling",
        )
        if now is not None:
            _tell(session, job.id, now.attempt, "cancel_requested", "The worker has been asked to stop.")
    session.refresh(job)
    if job.status in ("succeeded", "failed"):
        raise Conflict(f"this job has {job.status} already", code="illegal_transition")


def delete(session: Session, job: Job) -> None:
    """Forget an ended job, its events and metrics. Its student stays. Raises `Conflict` (`illegal_transition`)."""
    done = session.execute(
        delete_rows(Job).where(Job.id == job.id, Job.status.in_(ENDED)).returning(Job.id),
        execution_options=_PLAIN,
    ).one_or_none()
    if done is None:
        raise Conflict(f"this job is {job.status}", code="illegal_transition", hint="cancel it first")
    session.expunge(job)


# --- what a worker does -----------------------------------------------------------------------------------------------


def next_claimable(session: Session, device: str, limit: int = 10) -> list[str]:
    """Jobs that wait for `device`: higher priority first, then older. They may be gone when they are claimed."""
    waiting = select(Job.id).where(Job.status == "queued", Job.device == device)
    return list(session.scalars(waiting.order_by(Job.priority.desc(), Job.id).limit(limit)))


def claim(
    session: Session, job_id: str, worker: str, ttl: float, devices: Sequence[str] | None = None
) -> Claimed | None:
    """Take the job for a new attempt with a lease of `ttl` seconds; None if there is nothing to take.

    A job whose lease has run out is put back first, so that it counts as the failure that it is. `devices`: only if it
    waits for one of them.
    """
    if expired(session, job_id):
        _reap(session, job_id)
    mine = update(Job).where(Job.id == job_id, Job.status == "queued")
    if devices is not None:
        mine = mine.where(Job.device.in_(devices))
    row = session.execute(
        mine.values(
            status="running",
            worker=worker,
            attempt=Job.attempt + 1,
            lease_until=db_now() + ttl,
            started_at=func.coalesce(Job.started_at, utc_now()),
            waiting_reason=None,
            version=Job.version + 1,
        ).returning(Job.owner, Job.name, Job.attempt, Job.device, Job.resolved_spec),
        execution_options=_PLAIN,
    ).one_or_none()
    if row is None:
        return None
    message = "Started." if row.attempt == 1 else f"Attempt {row.attempt} goes on from what was saved."
    _tell(session, job_id, row.attempt, "started", message, {"worker": worker})
    return Claimed(job_id, row.owner, row.name, row.attempt, row.device, row.resolved_spec)


def heartbeat(session: Session, job_id: str, attempt: int, ttl: float) -> JobStatus | None:
    """Renew the lease; the job's status, or None if this attempt has lost the job and must stop at once."""
    return session.execute(
        _of_attempt(job_id, attempt).values(lease_until=db_now() + ttl).returning(Job.status),
        execution_options=_PLAIN,
    ).scalar_one_or_none()


def record(
    session: Session,
    job_id: str,
    attempt: int,
    *,
    phase: str | None = None,
    progress: float | None = None,
    eta: float | None = None,
    metrics: Sequence[Point] = (),
    events: Sequence[Happening] = (),
) -> None:
    """Write down what an attempt has reported. A step that is trained again overwrites its point. Raises `Fenced`."""
    seen: dict[str, Any] = {}
    if phase is not None:
        seen |= {"phase": phase}
    if progress is not None:
        seen |= {"progress": progress, "eta_seconds": eta}
    if seen:
        seen |= {"version": Job.version + 1}
    # With nothing to see the update changes nothing: it is there to hold the row, so that no other attempt begins
    # before this transaction ends.
    _fenced(session, _of_attempt(job_id, attempt), **(seen or {"attempt": attempt}))
    _upsert(session, job_id, attempt, metrics)
    for code, message, data in events:
        _tell(session, job_id, attempt, code, message, data)


def checkpointed(session: Session, job_id: str, attempt: int) -> None:
    """There is progress to go on from: earlier crashes no longer count. Raises `Fenced`."""
    _fenced(session, _of_attempt(job_id, attempt), failures=0)


def succeed(
    session: Session, job_id: str, attempt: int, student: NewStudent, events: Sequence[Happening] = ()
) -> Student:
    """The one end at which a student becomes visible. Raises `Fenced`, also if somebody has asked to cancel."""
    now = _fenced(
        session,
        _of_attempt(job_id, attempt, "running", "pausing"),
        **_ended("succeeded"),
        student_id=student.id,
        progress=1.0,
    )
    row = Student(
        id=student.id,
        owner=now.owner,
        name=now.name,
        job_id=job_id,
        hash=student.hash,
        artifact=student.artifact,
        teacher_artifact=student.teacher_artifact,
        manifest=student.manifest,
        report=student.report,
    )
    session.add(row)
    _tell(session, job_id, attempt, "succeeded", "The student is published.", {"student_id": student.id})
    for code, message, data in events:
        _tell(session, job_id, attempt, code, message, data)
    session.flush()
    return row


def fail(
    session: Session,
    job_id: str,
    attempt: int,
    *,
    code: str,
    message: str,
    hint: str | None = None,
    pointer: str | None = None,
) -> None:
    """The job cannot go on, however often it is tried. Raises `Fenced`, also if somebody has asked to cancel."""
    error = {"code": code, "message": message, "hint": hint, "pointer": pointer}
    _fenced(session, _of_attempt(job_id, attempt, "running", "pausing"), **_ended("failed"), error=error)
    _tell(session, job_id, attempt, "failed", message, {"code": code})


def cancelled(session: Session, job_id: str, attempt: int) -> None:
    """The trainer has stopped as it was asked to. Raises `Fenced` if nobody had asked."""
    _fenced(session, _of_attempt(job_id, attempt, "cancelling"), **_ended("cancelled"))
    _tell(session, job_id, attempt, "cancelled", "Cancelled; nothing was published.")


def release(session: Session, job_id: str, attempt: int, reason: str = "its worker is shutting down") -> JobStatus:
    """Give the job back, through no fault of its own; its new status. Raises `Fenced`."""
    stopped = _stopped(session, job_id, attempt)
    if stopped is not None:
        return stopped
    _fenced(session, _of_attempt(job_id, attempt, "running"), **_without_lease("queued"), rung_at=None)
    _tell(session, job_id, attempt, "released", f"Waiting again: {reason}. It does not count as a failure.")
    return "queued"


def crashed(session: Session, job_id: str, attempt: int, reason: str) -> JobStatus:
    """The trainer ended without a word. Counted: the third in a row without progress fails as `poison`.

    `reason` is for people and says how it ended; the new status is returned. Raises `Fenced`.
    """
    stopped = _stopped(session, job_id, attempt)
    if stopped is not None:
        return stopped
    running = _of_attempt(job_id, attempt, "running")
    if _changed(session, running.where(Job.failures + 1 >= MAX_FAILURES), **_poisoned(reason)) is not None:
        _tell_poison(session, job_id, attempt, reason)
        return "failed"
    failures = _fenced(session, running, **_again()).failures
    _tell(session, job_id, attempt, "crashed", f"Waiting again: {reason}.", {"failures": failures})
    return "queued"


def _stopped(session: Session, job_id: str, attempt: int) -> JobStatus | None:
    """A job whose trainer was being stopped anyway has now stopped, however that came about."""
    for status, values, message in _STOPS:
        if _changed(session, _of_attempt(job_id, attempt, status), **values()) is not None:
            end: JobStatus = values()["status"]
            _tell(session, job_id, attempt, end, f"{message}.")
            return end
    return None


def reap(session: Session) -> int:
    """Settle every job whose worker has fallen silent; how many there were."""
    return _reap(session, None)


def expired(session: Session, job_id: str | None = None) -> bool:
    """Whether `reap` would find anything (or this job): a question that takes no lock."""
    late = select(Job.id).where(*_expired())
    if job_id is not None:
        late = late.where(Job.id == job_id)
    return session.scalar(late.limit(1)) is not None


def _reap(session: Session, job_id: str | None) -> int:
    over = update(Job).where(*_expired())
    if job_id is not None:
        over = over.where(Job.id == job_id)
    settled = 0
    for status, values, message in _STOPS:
        for row in _all_changed(session, over.where(Job.status == status), **values()):
            _tell(session, row.id, row.attempt, values()["status"], f"{message}; its worker did not answer any more.")
            settled += 1
    running = over.where(Job.status == "running")
    reason = "its worker fell silent and lost the lease"
    for row in _all_changed(session, running.where(Job.failures + 1 >= MAX_FAILURES), **_poisoned(reason)):
        _tell_poison(session, row.id, row.attempt, reason)
        settled += 1
    for row in _all_changed(session, running, **_again()):
        _tell(session, row.id, row.attempt, "lease_lost", f"Waiting again: {reason}.", {"failures": row.failures})
        settled += 1
    return settled


def _expired() -> tuple[Any, ...]:
    return Job.status.in_(ALIVE), or_(Job.lease_until.is_(None), Job.lease_until < db_now())


# --- ringing and workers ----------------------------------------------------------------------------------------------


def sweep(database: Database, doorbell: Bell, settings: Settings) -> None:  # noqa: ARG001 - the lease's length is in its row
    """Settle what has fallen silent, and ring for what nobody took. Any process may do it, at any time.

    It looks before it takes the write lock, so that an idle service only reads.
    """
    with database.reading() as session:
        late = expired(session)
    if late:
        with database.writing() as session:
            reap(session)
    # While the broker is away a bell would be lost, and its job marked as rung.
    if doorbell.state() != "ok":
        return
    with database.reading() as session:
        waits = session.scalar(select(Job.id).where(Job.status == "queued").limit(1)) is not None
    if waits:
        with database.writing() as session:
            rung = to_ring(session)
        for job_id, device in rung:
            doorbell.ring(job_id, device)


def to_ring(session: Session, older_than: float = 60.0, limit: int = 100) -> list[tuple[str, str]]:
    """The first of the waiting jobs that were not rung in the last `older_than` seconds, and are marked as rung now.

    Only for devices with a free slot: a bell is heard by nobody else, and bells that nobody hears would pile up in the
    broker for as long as a long job runs.
    """
    devices = _free_devices(session)
    if not devices:
        return []
    silent = or_(Job.rung_at.is_(None), Job.rung_at < db_now() - older_than)
    wanted = (
        select(Job.id)
        .where(Job.status == "queued", Job.device.in_(devices), silent)
        .order_by(Job.priority.desc(), Job.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    rows = session.execute(
        update(Job).where(Job.id.in_(wanted)).values(rung_at=db_now()).returning(Job.id, Job.device, Job.priority),
        execution_options=_PLAIN,
    ).all()
    return [(row.id, row.device) for row in sorted(rows, key=lambda row: (-row.priority, row.id))]


def _free_devices(session: Session) -> set[Device]:
    fresh = select(Worker.device, Worker.slots, Worker.jobs).where(Worker.seen_at > db_now() - WORKER_FRESH_SECONDS)
    return {device for kind, slots, jobs in session.execute(fresh) if len(jobs) < slots for device in serves(kind)}


def worker_seen(
    session: Session,
    *,
    worker_id: str,
    host: str,
    pid: int,
    device: Device,
    device_name: str,
    slots: int,
    jobs: Sequence[str],
) -> None:
    """A worker says that it is there. Those that have said nothing for a day are forgotten."""
    insert = _insert(session, Worker).values(
        id=worker_id,
        host=host[:255],
        pid=pid,
        device=device,
        device_name=device_name[:200],
        slots=slots,
        jobs=list(jobs),
        started_at=utc_now(),
        seen_at=db_now(),
    )
    session.execute(
        insert.on_conflict_do_update(index_elements=["id"], set_={"jobs": insert.excluded.jobs, "seen_at": db_now()})
    )
    forgotten = delete_rows(Worker).where(Worker.seen_at < db_now() - WORKER_FORGOTTEN_SECONDS)
    session.execute(forgotten, execution_options=_PLAIN)


def worker_left(session: Session, worker_id: str) -> None:
    """A worker has ended in order."""
    session.execute(delete_rows(Worker).where(Worker.id == worker_id), execution_options=_PLAIN)


# --- how a row changes ------------------------------------------------------------------------------------------------


def _of_attempt(job_id: str, attempt: int, *statuses: JobStatus) -> Update:
    return update(Job).where(Job.id == job_id, Job.attempt == attempt, Job.status.in_(statuses or ALIVE))


def _ended(status: JobStatus) -> dict[str, Any]:
    over = {"lease_until": None, "waiting_reason": None, "eta_seconds": None, "finished_at": utc_now()}
    return {"status": status, **over}


def _without_lease(status: JobStatus) -> dict[str, Any]:
    reason = "waiting for a free worker" if status == "queued" else None
    return {"status": status, "lease_until": None, "worker": None, "eta_seconds": None, "waiting_reason": reason}


def _again() -> dict[str, Any]:
    return {**_without_lease("queued"), "failures": Job.failures + 1, "rung_at": None}


def _poisoned(reason: str) -> dict[str, Any]:
    error = {
        "code": "poison",
        "message": f"{MAX_FAILURES} attempts in a row ended without progress; in the last one {reason}",
        "hint": "look at the worker's log: memory, drivers and broken libraries are the usual causes",
        "pointer": None,
    }
    return {**_ended("failed"), "failures": Job.failures + 1, "error": error}


# What becomes of a job that was being stopped, and the sentence of its event.
_STOPS: tuple[tuple[JobStatus, Callable[[], dict[str, Any]], str], ...] = (
    ("cancelling", lambda: _ended("cancelled"), "Cancelled, and nothing was published"),
    ("pausing", lambda: _without_lease("paused"), "Paused with a checkpoint"),
)


class _Row(NamedTuple):
    id: str
    attempt: int
    failures: int
    owner: str
    name: str


def _all_changed(session: Session, statement: Update, **values: Any) -> list[_Row]:
    """What `statement` finds is given `values` and, as its readers must see it, a new version."""
    if "status" in values:
        values["version"] = Job.version + 1
    rows = session.execute(
        statement.values(**values).returning(Job.id, Job.attempt, Job.failures, Job.owner, Job.name),
        execution_options=_PLAIN,
    )
    return [_Row(*row) for row in rows]


def _changed(session: Session, statement: Update, **values: Any) -> _Row | None:
    return next(iter(_all_changed(session, statement, **values)), None)


def _fenced(session: Session, statement: Update, **values: Any) -> _Row:
    row = _changed(session, statement, **values)
    if row is None:
        raise Fenced("this attempt no longer holds the job")
    return row


def _tell(
    session: Session, job_id: str, attempt: int, code: str, message: str, data: Mapping[str, Any] | None = None
) -> None:
    session.add(Event(job_id=job_id, attempt=attempt, code=code[:64], message=message, data=dict(data or {})))


def _tell_poison(session: Session, job_id: str, attempt: int, reason: str) -> None:
    _tell(session, job_id, attempt, "failed", f"Failed {MAX_FAILURES} times in a row: {reason}.", {"code": "poison"})


def _upsert(session: Session, job_id: str, attempt: int, metrics: Sequence[Point]) -> None:
    # By key, the last one wins: PostgreSQL refuses one statement that would write a row twice. A value that is not a
    # number cannot be answered as JSON, and a loss that is none fails the job by itself.
    rows = {
        point[:5]: {"job_id": job_id, "attempt": attempt, **point._asdict()}
        for point in metrics
        if math.isfinite(point.value)
    }
    points = list(rows.values())
    for start in range(0, len(points), _METRICS_AT_ONCE):
        insert = _insert(session, Metric).values(points[start : start + _METRICS_AT_ONCE])
        session.execute(
            insert.on_conflict_do_update(
                index_elements=["job_id", "name", "arm", "stage", "phase", "step"],
                set_={"value": insert.excluded.value, "attempt": insert.excluded.attempt},
            )
        )


def _insert(session: Session, table: type[Metric] | type[Worker] | type[IdempotencyKey]) -> Any:
    """The dialect's own INSERT, which has ON CONFLICT."""
    dialect = session.get_bind().dialect.name
    return (postgresql if dialect == "postgresql" else sqlite).insert(table.__table__)
