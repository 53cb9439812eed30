"""Every change of a job's status, one verb each, and nowhere else.

    queued      claim → running · request_pause → paused · request_cancel → cancelled
    running     succeed → succeeded · fail → failed · request_pause → pausing · request_cancel → cancelling
                release (a drain), crashed, reap (its lease ran out) → queued; the third crash in a row → failed
    pausing     release, crashed, reap → paused · succeed → succeeded · fail → failed
                request_resume → running · request_cancel → cancelling
    paused      request_resume → queued · request_cancel → cancelled
    cancelling  cancelled, release, crashed, reap → cancelled

Each verb is one change of the row with its event, in the caller's transaction (`Database.writing()`): of many callers
exactly one changes it. What a worker does carries its attempt number, and where another attempt has begun, or the job
has ended or is paused, it raises `Fenced` and writes nothing. All lease arithmetic is on the database's clock.

A worker holds a *lease* on a job that is running, pausing or cancelling, and renews it by `heartbeat`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, assert_never

from sqlalchemy import delete as delete_rows
from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from models import prerequisites, workers
from models.database import Database, db_now
from models.errors import Conflict, Invalid, Overloaded
from models.settings import Settings
from models.specs import JobSpec, ResolvedSpec
from models.tables import ALIVE, ENDED, IdempotencyKey, Job, JobStatus, Metric, Student, new_id, utc_now
from models.transitions import PLAIN, all_changed, changed, fenced, hold, insert, of_attempt, tell

MAX_FAILURES = 3
"""So many crashes in a row without checkpoint progress, and the job is poison."""
_METRICS_AT_ONCE = 500


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
    # Those that are paused too: each may be put back into the queue at any time, and is never refused then.
    unfinished = select(func.count()).where(Job.owner == owner, Job.status.in_(("queued", "paused")))
    waiting = session.scalar(unfinished) or 0
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
            insert(session, IdempotencyKey)
            .values(**row, created_at=utc_now())
            .on_conflict_do_nothing()
            .returning(IdempotencyKey.job_id)
        ).one_or_none()
        if mine is None:
            return _same_job(session, session.get_one(IdempotencyKey, (owner, idempotency_key)), body_sha256), False
    session.add(job)
    session.flush()
    tell(session, job.id, 0, "queued", f"Waiting for a {device.upper()} worker.", {"device": device})
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


def _device(session: Session, spec: JobSpec) -> workers.Device:
    match spec.resources.device:
        case "cpu" | "gpu" as device:
            return device
        case "auto":
            return "gpu" if "gpu" in workers.there(session) else "cpu"
        case other:
            assert_never(other)


def _waiting_reason(session: Session, device: str) -> str:
    if any(device in workers.serves(kind) for kind in workers.there(session)):
        return f"waiting for a free {device.upper()} worker"
    return f"no {device.upper()} worker has been seen in the last {workers.FRESH_SECONDS:.0f} seconds"


# --- what a person asks -----------------------------------------------------------------------------------------------


def request_cancel(session: Session, job: Job) -> None:
    """Cancel now if it waits, or tell its worker. To ask again changes nothing.

    Raises `Conflict` (`illegal_transition`) if it has succeeded or failed.
    """
    match hold(session, job):
        case "queued" | "paused":
            _asked(session, job, "cancelled", "Cancelled before it ran on.", **_ended("cancelled"))
        case "running" | "pausing":
            _asked(session, job, "cancel_requested", "The worker has been asked to stop.", status="cancelling")
        case "cancelling" | "cancelled":
            session.refresh(job)
        case "succeeded" | "failed" as end:
            raise Conflict(f"this job has {end} already", code="illegal_transition")
        case other:
            assert_never(other)


def request_pause(session: Session, job: Job) -> None:
    """Pause now if it waits, or have its worker write a checkpoint and stop. To ask again changes nothing.

    Raises `Conflict` (`illegal_transition`) if it is being cancelled, or has ended.
    """
    match hold(session, job):
        case "queued":
            _asked(session, job, "paused", "Paused while it waited; what was saved is kept.", **_paused())
        case "running":
            _asked(session, job, "pause_requested", "Its worker writes a checkpoint and stops.", status="pausing")
        case "pausing" | "paused":
            session.refresh(job)
        case "cancelling" | "succeeded" | "failed" | "cancelled" as status:
            raise _too_late(status)
        case other:
            assert_never(other)


def request_resume(session: Session, job: Job) -> None:
    """Put a paused job back into the queue; whoever asks rings for it after the commit. To ask again changes nothing.

    One whose trainer has not stopped yet is running again: where the trainer has been told to stop already it is
    released, and waits, as soon as it has. Raises `Conflict` as `request_pause` does.
    """
    match hold(session, job):
        case "paused":
            values = {"status": "queued", "waiting_reason": _waiting_reason(session, job.device), "rung_at": None}
            message = f"Resumed: waiting for a {job.device.upper()} worker, to go on from what was saved."
            _asked(session, job, "resume_requested", message, **values)
        case "pausing":
            _asked(session, job, "resume_requested", "Resumed before it had stopped: it goes on.", status="running")
        case "queued" | "running":
            session.refresh(job)
        case "cancelling" | "succeeded" | "failed" | "cancelled" as status:
            raise _too_late(status)
        case other:
            assert_never(other)


def _asked(session: Session, job: Job, code: str, message: str, **values: Any) -> None:
    """What a person has asked for, done to the row that `hold` holds."""
    all_changed(session, update(Job).where(Job.id == job.id), **values)
    session.refresh(job)
    tell(session, job.id, job.attempt, code, message)


def _too_late(status: JobStatus) -> Conflict:
    what = {"cancelling": "is being cancelled", "cancelled": "was cancelled"}.get(status, f"has {status} already")
    return Conflict(f"this job {what}", code="illegal_transition", hint="rerun it to have it done anew")


def delete(session: Session, job: Job) -> None:
    """Forget an ended job, its events and metrics. Its student stays. Raises `Conflict` (`illegal_transition`)."""
    done = session.execute(
        delete_rows(Job).where(Job.id == job.id, Job.status.in_(ENDED)).returning(Job.id),
        execution_options=PLAIN,
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
        execution_options=PLAIN,
    ).one_or_none()
    if row is None:
        return None
    message = "Started." if row.attempt == 1 else f"Attempt {row.attempt} goes on from what was saved."
    tell(session, job_id, row.attempt, "started", message, {"worker": worker})
    return Claimed(job_id, row.owner, row.name, row.attempt, row.device, row.resolved_spec)


def heartbeat(session: Session, job_id: str, attempt: int, ttl: float) -> JobStatus | None:
    """Renew the lease; the job's status, or None if this attempt has lost the job and must stop at once."""
    return session.execute(
        of_attempt(job_id, attempt).values(lease_until=db_now() + ttl).returning(Job.status),
        execution_options=PLAIN,
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
    fenced(session, of_attempt(job_id, attempt), **(seen or {"attempt": attempt}))
    _upsert(session, job_id, attempt, metrics)
    for code, message, data in events:
        tell(session, job_id, attempt, code, message, data)


def checkpointed(session: Session, job_id: str, attempt: int) -> None:
    """There is progress to go on from: earlier crashes no longer count. Raises `Fenced`."""
    fenced(session, of_attempt(job_id, attempt), failures=0)


def succeed(
    session: Session, job_id: str, attempt: int, student: NewStudent, events: Sequence[Happening] = ()
) -> Student:
    """The one end at which a student becomes visible. Raises `Fenced`, also if somebody has asked to cancel."""
    now = fenced(
        session,
        of_attempt(job_id, attempt, "running", "pausing"),
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
    tell(session, job_id, attempt, "succeeded", "The student is published.", {"student_id": student.id})
    for code, message, data in events:
        tell(session, job_id, attempt, code, message, data)
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
    fenced(session, of_attempt(job_id, attempt, "running", "pausing"), **_ended("failed"), error=error)
    tell(session, job_id, attempt, "failed", message, {"code": code})


def cancelled(session: Session, job_id: str, attempt: int) -> None:
    """The trainer has stopped as it was asked to. Raises `Fenced` if nobody had asked."""
    fenced(session, of_attempt(job_id, attempt, "cancelling"), **_ended("cancelled"))
    tell(session, job_id, attempt, "cancelled", "Cancelled; nothing was published.")


def release(session: Session, job_id: str, attempt: int, reason: str = "its worker is shutting down") -> JobStatus:
    """Give the job back, through no fault of its own; its new status. Raises `Fenced`.

    `reason` is for people: why its worker stops although nobody has asked to pause or to cancel.
    """
    stopped = _stopped(session, job_id, attempt)
    if stopped is not None:
        return stopped
    fenced(session, of_attempt(job_id, attempt, "running"), **_waiting_again())
    tell(session, job_id, attempt, "released", f"Waiting again: {reason}. It does not count as a failure.")
    return "queued"


def crashed(session: Session, job_id: str, attempt: int, reason: str) -> JobStatus:
    """The trainer ended without a word. Counted: the third in a row without progress fails as `poison`.

    `reason` is for people and says how it ended; the new status is returned. Raises `Fenced`.
    """
    stopped = _stopped(session, job_id, attempt)
    if stopped is not None:
        return stopped
    running = of_attempt(job_id, attempt, "running")
    if changed(session, running.where(Job.failures + 1 >= MAX_FAILURES), **_poisoned(reason)) is not None:
        _tell_poison(session, job_id, attempt, reason)
        return "failed"
    failures = fenced(session, running, **_failed_once()).failures
    tell(session, job_id, attempt, "crashed", f"Waiting again: {reason}.", {"failures": failures})
    return "queued"


def _stopped(session: Session, job_id: str, attempt: int) -> JobStatus | None:
    """A job whose trainer was being stopped anyway has now stopped, however that came about. Raises `Fenced`."""
    # It changes nothing, and holds the row: nobody may ask for something else between here and the end.
    fenced(session, of_attempt(job_id, attempt), attempt=attempt)
    for status, values, message in _STOPS:
        if changed(session, of_attempt(job_id, attempt, status), **values()) is not None:
            end: JobStatus = values()["status"]
            tell(session, job_id, attempt, end, f"{message}.")
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
        for row in all_changed(session, over.where(Job.status == status), **values()):
            tell(session, row.id, row.attempt, values()["status"], f"{message}; its worker did not answer any more.")
            settled += 1
    running = over.where(Job.status == "running")
    reason = "its worker fell silent and lost the lease"
    for row in all_changed(session, running.where(Job.failures + 1 >= MAX_FAILURES), **_poisoned(reason)):
        _tell_poison(session, row.id, row.attempt, reason)
        settled += 1
    for row in all_changed(session, running, **_failed_once()):
        tell(session, row.id, row.attempt, "lease_lost", f"Waiting again: {reason}.", {"failures": row.failures})
        settled += 1
    return settled


def _expired() -> tuple[Any, ...]:
    return Job.status.in_(ALIVE), or_(Job.lease_until.is_(None), Job.lease_until < db_now())


# --- ringing ----------------------------------------------------------------------------------------------------------


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
    devices = workers.free(session)
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
        execution_options=PLAIN,
    ).all()
    return [(row.id, row.device) for row in sorted(rows, key=lambda row: (-row.priority, row.id))]


# --- what a row is given ----------------------------------------------------------------------------------------------


def _ended(status: JobStatus) -> dict[str, Any]:
    over = {"lease_until": None, "waiting_reason": None, "eta_seconds": None, "finished_at": utc_now()}
    return {"status": status, **over}


def _paused() -> dict[str, Any]:
    """Progress and the time that is left stay: they will be true again when it runs."""
    return {"status": "paused", "lease_until": None, "worker": None, "waiting_reason": None}


def _waiting_again() -> dict[str, Any]:
    gone = {"lease_until": None, "worker": None, "eta_seconds": None, "rung_at": None}
    return {"status": "queued", "waiting_reason": "waiting for a free worker", **gone}


def _failed_once() -> dict[str, Any]:
    return {**_waiting_again(), "failures": Job.failures + 1}


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
    ("pausing", _paused, "Paused, and what was saved is kept"),
)


def _tell_poison(session: Session, job_id: str, attempt: int, reason: str) -> None:
    tell(session, job_id, attempt, "failed", f"Failed {MAX_FAILURES} times in a row: {reason}.", {"code": "poison"})


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
        several = insert(session, Metric).values(points[start : start + _METRICS_AT_ONCE])
        session.execute(
            several.on_conflict_do_update(
                index_elements=["job_id", "name", "arm", "stage", "phase", "step"],
                set_={"value": several.excluded.value, "attempt": several.excluded.attempt},
            )
        )
