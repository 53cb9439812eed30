"""Whether this process is well, and what it counts."""

import time
from importlib.metadata import version
from typing import Literal, get_args

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app import views
from app.dependencies import DatabaseHere, DoorbellHere, ReadSession, SettingsHere
from app.security import needs
from models import migrations
from models.database import Database, db_now
from models.tables import JOB_STATUSES, Deployment, Job, Worker, utc_now
from models.workers import Device

router = APIRouter(tags=["health"])

_LATENCY_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SCHEMA_FRESH_SECONDS = 10.0


class Metrics:
    """What this process counts. What the database knows is counted there, when somebody asks."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        names = ("deployment", "outcome")
        self._calls = Counter("limbeck_predict_requests", "Calls of /predict", names, registry=self.registry)
        self._seconds = Histogram(
            "limbeck_predict_seconds",
            "Seconds of the calls of /predict that were answered",
            ("deployment",),
            buckets=_LATENCY_SECONDS,
            registry=self.registry,
        )
        self._inputs = Counter(
            "limbeck_predict_inputs",
            "Inputs that were answered, by the arm that did: stable or canary",
            ("deployment", "arm"),
            registry=self.registry,
        )
        build = Gauge("limbeck_build_info", "1, with the version as a label", ("version",), registry=self.registry)
        build.labels(version("limbeck-server")).set(1)
        self.waiting = Gauge("limbeck_predict_waiting_texts", "Texts that wait for a core", registry=self.registry)
        self.loaded = Gauge("limbeck_loaded_students", "Students in memory", registry=self.registry)

    def predicted(self, deployment: str, outcome: str, seconds: float) -> None:
        self._calls.labels(deployment, outcome).inc()
        if outcome == "ok":
            self._seconds.labels(deployment).observe(seconds)

    def answered(self, deployment: str, arm: str, inputs: int) -> None:
        self._inputs.labels(deployment, arm).inc(inputs)


class Schema:
    """Whether the database's schema is the one that this version knows; asked now and then, not with every probe."""

    def __init__(self) -> None:
        self._current = False
        self._until = 0.0

    def is_current(self, database: Database) -> bool:
        if time.monotonic() > self._until:
            self._current = migrations.is_current(database)
            self._until = time.monotonic() + (_SCHEMA_FRESH_SECONDS if self._current else 0.0)
        return self._current


@router.get("/healthz")
def healthz() -> views.Health:
    """The process answers."""
    return views.Health()


@router.get("/readyz", responses={503: {"model": views.Readiness}})
def readyz(request: Request, response: Response, database: DatabaseHere, doorbell: DoorbellHere) -> views.Readiness:
    """Whether to send requests here. Without a broker jobs start a little later; nothing else changes."""
    state = request.app.state
    checks: dict[str, str] = {"database": "ok", "migrations": "ok", "broker": doorbell.state()}
    try:
        with database.reading() as session:
            session.execute(text("SELECT 1"))
        if not state.schema.is_current(database):
            checks["migrations"] = "behind"
    except SQLAlchemyError:
        checks |= {"database": "unreachable", "migrations": "unknown"}
    if state.leaving:
        checks["process"] = "stopping"
    status: Literal["ready", "degraded", "unready"] = "ready"
    if checks["broker"] == "unreachable":
        status = "degraded"
    if state.leaving or (checks["database"], checks["migrations"]) != ("ok", "ok"):
        status = "unready"
        response.status_code = 503
        response.headers["Retry-After"] = "2"
    return views.Readiness(status=status, checks=checks)


@router.get("/metrics", openapi_extra=needs("read"), response_class=Response)
def metrics(request: Request, session: ReadSession, settings: SettingsHere) -> Response:
    """Prometheus text: this process's calls of /predict; the jobs, workers and deployments in the database."""
    state = request.app.state
    registry = CollectorRegistry()
    _count_jobs(session, registry)
    _count_workers(session, registry, settings.lease_ttl)
    deployments = Gauge("limbeck_deployments", "Deployments in the database", registry=registry)
    deployments.set(session.scalar(select(func.count()).select_from(Deployment)) or 0)
    counted: Metrics = state.metrics
    counted.waiting.set(state.pool.waiting)
    counted.loaded.set(len(state.shelf.loaded))
    body = generate_latest(registry) + generate_latest(counted.registry)
    return Response(body, headers={"Content-Type": CONTENT_TYPE_LATEST})


def _count_jobs(session: Session, registry: CollectorRegistry) -> None:
    by_status = select(Job.status, func.count()).group_by(Job.status)
    counts: dict[str, int] = dict(session.execute(by_status).all())
    jobs = Gauge("limbeck_jobs", "Jobs in the database", ("status",), registry=registry)
    for status in JOB_STATUSES:
        jobs.labels(status).set(counts.get(status, 0))
    oldest = session.scalar(select(func.min(Job.created_at)).where(Job.status == "queued"))
    age = Gauge(
        "limbeck_jobs_oldest_queued_seconds",
        "Seconds since the oldest job that waits was submitted; 0: none waits",
        registry=registry,
    )
    age.set(0.0 if oldest is None else max(0.0, (utc_now() - oldest).total_seconds()))


def _count_workers(session: Session, registry: CollectorRegistry, lease_ttl: float) -> None:
    since = (session.scalar(select(db_now())) or 0.0) - lease_ttl
    alive = select(Worker.device, func.count(), func.sum(Worker.slots)).where(Worker.seen_at >= since)
    workers = Gauge("limbeck_workers", "Workers that were heard of lately", ("device",), registry=registry)
    slots = Gauge("limbeck_worker_slots", "Jobs that these workers run at once", ("device",), registry=registry)
    for device in get_args(Device):
        workers.labels(device).set(0)
        slots.labels(device).set(0)
    for device, count, places in session.execute(alive.group_by(Worker.device)):
        workers.labels(device).set(count)
        slots.labels(device).set(places)
