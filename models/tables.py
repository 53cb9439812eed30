"""What is remembered. One class a table; times are UTC; ids carry a prefix that says what they name and sort by time.

Key ─< BrowserSession · Dataset · Teacher · Job ─< Event, Metric · Student ·
Deployment ─< DeploymentChange, ArmCount, Prediction · IdempotencyKey · Worker · Secret · Webhook ─< Delivery
"""

import os
import threading
import time
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32

JobStatus = Literal["queued", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled"]
JOB_STATUSES: tuple[JobStatus, ...] = get_args(JobStatus)
ENDED: tuple[JobStatus, ...] = ("succeeded", "failed", "cancelled")
ALIVE: tuple[JobStatus, ...] = ("running", "pausing", "cancelling")
"""A worker holds a lease on it."""

DeliveryStatus = Literal["pending", "delivered", "failed"]

Prefix = Literal["ds", "tc", "job", "st", "dep", "key", "wk", "pr", "wh", "dl"]


class _Ulids:
    """Numbers of 48 bits of milliseconds and 80 random bits. Within one process each is above the one before, even if
    both fall into one millisecond or the clock is set back ("monotonicity", https://github.com/ulid/spec): who came
    first is served first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def next(self) -> int:
        fresh = (int(time.time() * 1000) << 80) | int.from_bytes(os.urandom(10))
        with self._lock:
            self._last = max(fresh, self._last + 1)
            return self._last


_ulids = _Ulids()


def new_id(prefix: Prefix) -> str:
    """An id such as `job_01k3…`: a ULID with a prefix. Ids of one process sort in the order of their making."""
    number = _ulids.next()
    return f"{prefix}_" + "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))


def utc_now() -> datetime:
    return datetime.now(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time on every database (SQLite forgets the zone)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Table(DeclarativeBase):
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own spelling
        datetime: UtcDateTime(),
        dict[str, Any]: JSON(),
        list[Any]: JSON(),
        list[str]: JSON(),
    }


Id = String(40)


class Key(Table):
    """An API key: only the hash of its secret is kept."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    owner: Mapped[str] = mapped_column(String(64), index=True)
    name: Mapped[str] = mapped_column(String(200), default="")
    scopes: Mapped[list[str]]
    public_id: Mapped[str] = mapped_column(String(8), unique=True)
    """The eight characters after `lk_`, by which the row is found."""
    secret_sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class BrowserSession(Table):
    """A browser that is signed in with a key, or a link that signs one in. Only the hash of its token is kept."""

    __tablename__ = "browser_sessions"

    token_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(8))
    """link or session."""
    key_id: Mapped[str] = mapped_column(ForeignKey("keys.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    expires_at: Mapped[datetime] = mapped_column(index=True)


class Dataset(Table):
    __tablename__ = "datasets"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    owner: Mapped[str] = mapped_column(String(64), index=True)
    name: Mapped[str] = mapped_column(String(200))
    status: Mapped[str] = mapped_column(String(16), default="ready")
    source: Mapped[str | None] = mapped_column(String(400))
    columns: Mapped[list[Any]]
    """`[{"name", "type", "nulls", "distinct"?, "examples"}]`"""
    rows: Mapped[int] = mapped_column(BigInteger)
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    artifact: Mapped[str] = mapped_column(String(200))
    """Key in the artifact store."""
    warnings: Mapped[list[Any]] = mapped_column(default=list)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Teacher(Table):
    """A checkpoint that was uploaded: `teacher:tc_…`."""

    __tablename__ = "teachers"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    owner: Mapped[str] = mapped_column(String(64), index=True)
    name: Mapped[str] = mapped_column(String(200))
    artifact: Mapped[str] = mapped_column(String(200))
    sha256: Mapped[str] = mapped_column(String(64))
    bytes: Mapped[int] = mapped_column(BigInteger)
    config: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Job(Table):
    """One distillation. `lifecycle.py` alone changes `status`, `attempt`, `lease_until` and what goes with them."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("jobs_waiting", "status", "device", "priority", "id"),
        Index("jobs_leases", "status", "lease_until"),
        Index("jobs_of_owner", "owner", "id"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(200), default="")
    status: Mapped[JobStatus] = mapped_column(String(16), default="queued")
    device: Mapped[str] = mapped_column(String(8), default="cpu")
    """The queue: `limbeck.<device>`."""
    priority: Mapped[int] = mapped_column(default=0)
    phase: Mapped[str | None] = mapped_column(String(16))
    waiting_reason: Mapped[str | None] = mapped_column(String(400))
    progress: Mapped[float] = mapped_column(default=0.0)
    eta_seconds: Mapped[float | None]
    attempt: Mapped[int] = mapped_column(default=0)
    """The fencing token: grows with every claim."""
    failures: Mapped[int] = mapped_column(default=0)
    """Crashes in a row without checkpoint progress."""
    worker: Mapped[str | None] = mapped_column(Id)
    lease_until: Mapped[float | None] = mapped_column(Float(53))
    """Seconds since 1970 on the database's clock."""
    rung_at: Mapped[float | None] = mapped_column(Float(53))
    spec: Mapped[dict[str, Any]]
    resolved_spec: Mapped[dict[str, Any]]
    estimates: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    student_id: Mapped[str | None] = mapped_column(Id)
    rerun_of: Mapped[str | None] = mapped_column(Id)
    """The job that it repeats."""
    version: Mapped[int] = mapped_column(default=1)
    """Grows with every visible change: the ETag, and what a long-poll waits for."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Event(Table):
    """Something that happened to a job, in order of `seq`."""

    __tablename__ = "events"
    __table_args__ = (Index("events_of_job", "job_id", "seq"),)

    seq: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    attempt: Mapped[int]
    code: Mapped[str] = mapped_column(String(64))
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any]] = mapped_column(default=dict)
    at: Mapped[datetime] = mapped_column(default=utc_now)


class Metric(Table):
    """One point of a series. A step that is trained again overwrites its point."""

    __tablename__ = "metrics"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    arm: Mapped[str] = mapped_column(String(16), primary_key=True)
    stage: Mapped[int] = mapped_column(primary_key=True)
    phase: Mapped[int] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[float] = mapped_column(Float(53))
    attempt: Mapped[int]


class Student(Table):
    """A published student: an artifact that never changes."""

    __tablename__ = "students"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    owner: Mapped[str] = mapped_column(String(64), index=True)
    name: Mapped[str] = mapped_column(String(200), default="")
    job_id: Mapped[str] = mapped_column(Id, unique=True)
    """Unique: a job publishes once, whatever happens."""
    hash: Mapped[str] = mapped_column(String(64), index=True)
    artifact: Mapped[str] = mapped_column(String(200))
    teacher_artifact: Mapped[str | None] = mapped_column(String(200), index=True)
    """The key of its teacher's export, which students of one teacher share; None: none was published."""
    manifest: Mapped[dict[str, Any]]
    report: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Deployment(Table):
    """A name that production calls, pointing at a student."""

    __tablename__ = "deployments"
    __table_args__ = (UniqueConstraint("owner", "name"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(64))
    student_id: Mapped[str] = mapped_column(ForeignKey("students.id"))
    gate: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    traffic: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """A `models.specs.Traffic`; the fallback's target is a threshold here."""
    version: Mapped[int] = mapped_column(default=1)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    updated_at: Mapped[datetime] = mapped_column(default=utc_now)


class DeploymentChange(Table):
    """One move of a deployment's pointer."""

    __tablename__ = "deployment_changes"
    __table_args__ = (UniqueConstraint("deployment_id", "version"),)

    seq: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    deployment_id: Mapped[str] = mapped_column(ForeignKey("deployments.id", ondelete="CASCADE"))
    version: Mapped[int]
    student_id: Mapped[str] = mapped_column(Id)
    previous_student_id: Mapped[str | None] = mapped_column(Id)
    verb: Mapped[str] = mapped_column(String(16))
    """put, override, promote, abort or rollback."""
    by: Mapped[str] = mapped_column(String(64))
    """The key or the job that moved it, or `auto`."""
    reason: Mapped[str] = mapped_column(Text, default="")
    gate: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    traffic: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Both as they were after the move."""
    at: Mapped[datetime] = mapped_column(default=utc_now)


class ArmCount(Table):
    """What one API process has seen of one arm of a deployment's version: totals, which it writes over."""

    __tablename__ = "arm_counts"

    deployment_id: Mapped[str] = mapped_column(ForeignKey("deployments.id", ondelete="CASCADE"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    arm: Mapped[str] = mapped_column(String(16), primary_key=True)
    """stable, canary, shadow or fallback."""
    process: Mapped[str] = mapped_column(String(40), primary_key=True)
    student_id: Mapped[str] = mapped_column(Id)
    calls: Mapped[int] = mapped_column(BigInteger, default=0)
    inputs: Mapped[int] = mapped_column(BigInteger, default=0)
    errors: Mapped[int] = mapped_column(BigInteger, default=0)
    """Calls that failed through no fault of the caller."""
    compared: Mapped[int] = mapped_column(BigInteger, default=0)
    """Inputs that this arm and the stable student both answered."""
    agreed: Mapped[int] = mapped_column(BigInteger, default=0)
    latency: Mapped[list[Any]] = mapped_column(default=list)
    """Calls by bucket of latency, as `models.figures` bounds them."""
    updated_at: Mapped[datetime] = mapped_column(default=utc_now)


class Prediction(Table):
    """An input with its answer that a deployment's capture kept."""

    __tablename__ = "predictions"
    __table_args__ = (Index("predictions_of_deployment", "deployment_id", "id"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    """`pr_…`; the inputs of one call share the call's id before a dot: `pr_….0`."""
    owner: Mapped[str] = mapped_column(String(64))
    deployment_id: Mapped[str] = mapped_column(ForeignKey("deployments.id", ondelete="CASCADE"))
    student_id: Mapped[str] = mapped_column(Id)
    """Who answered, as the header `X-Limbeck-Student` has it."""
    arm: Mapped[str] = mapped_column(String(16))
    input: Mapped[Any] = mapped_column(JSON)
    answer: Mapped[Any] = mapped_column(JSON)
    bytes: Mapped[int]
    label: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))
    """The true answer, where somebody has told it."""
    labelled_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    expires_at: Mapped[datetime] = mapped_column(index=True)


class IdempotencyKey(Table):
    """The answer that a POST with this key got."""

    __tablename__ = "idempotency_keys"

    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    body_sha256: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str] = mapped_column(Id)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Worker(Table):
    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int]
    device: Mapped[str] = mapped_column(String(8))
    device_name: Mapped[str] = mapped_column(String(200), default="")
    slots: Mapped[int]
    jobs: Mapped[list[str]] = mapped_column(default=list)
    started_at: Mapped[datetime] = mapped_column(default=utc_now)
    seen_at: Mapped[float] = mapped_column(Float(53))
    """Seconds since 1970 on the database's clock."""


class Secret(Table):
    """Something that nobody is shown again, encrypted. `models.secrets` alone reads and writes it."""

    __tablename__ = "secrets"

    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Of an owner's own choice; one with a slash is ours, and in no list."""
    sealed: Mapped[str] = mapped_column(Text)
    key_id: Mapped[str] = mapped_column(String(16), index=True)
    """Which key it is encrypted with."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    updated_at: Mapped[datetime] = mapped_column(default=utc_now)


class Webhook(Table):
    """An address that is told of events: of all of an owner's jobs and deployments, or of one job."""

    __tablename__ = "webhooks"
    __table_args__ = (Index("webhooks_of_owner", "owner", "job_id"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    url: Mapped[str] = mapped_column(Text)
    events: Mapped[list[str]]
    secret: Mapped[str] = mapped_column(String(64))
    """The name of the secret that signs."""
    job_id: Mapped[str | None] = mapped_column(Id, index=True)
    """Only this job's events, as its spec asks; no foreign key, so that what is under way outlives the job's row."""
    disabled_at: Mapped[datetime | None]
    disabled_reason: Mapped[str | None] = mapped_column(String(200))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Delivery(Table):
    """One event for one webhook: the outbox, and the log of what became of it."""

    __tablename__ = "deliveries"
    __table_args__ = (
        Index("deliveries_due", "status", "next_at"),
        Index("deliveries_of_webhook", "webhook_id", "id"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    """Sent as `webhook-id` with every attempt."""
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    type: Mapped[str] = mapped_column(String(32))
    body: Mapped[str] = mapped_column(Text)
    """The bytes that are signed and sent, the same with every attempt."""
    status: Mapped[DeliveryStatus] = mapped_column(String(16), default="pending")
    attempts: Mapped[int] = mapped_column(default=0)
    """Of sending it; the fencing token: what an attempt writes down counts only while no other one has begun."""
    failures: Mapped[int] = mapped_column(default=0)
    """In a row: how far the schedule of retries has come."""
    next_at: Mapped[float | None] = mapped_column(Float(53))
    """Seconds since 1970 on the database's clock; while it is being sent, when it is given to somebody else."""
    last_status_code: Mapped[int | None]
    last_error: Mapped[str | None] = mapped_column(String(200))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    attempted_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None] = mapped_column(index=True)
