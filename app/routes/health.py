"""Whether this process is well, and what it counts."""

import time
from importlib.metadata import version
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError

from app import views
from app.dependencies import DatabaseHere, DoorbellHere, ReadSession
from app.security import needs
from models import migrations
from models.database import Database
from models.tables import JOB_STATUSES, Job

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
        self.waiting = Gauge("limbeck_predict_waiting_texts", "Texts that wait for a core", registry=self.registry)
        self.loaded = Gauge("limbeck_loaded_students", "Students in memory", registry=self.registry)

    def predicted(self, deployment: str, outcome: str, seconds: float) -> None:
        self._calls.labels(deployment, outcome).inc()
        if outcome == "ok":
            self._seconds.labels(deployment).observe(seconds)


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
def metrics(request: Request, session: ReadSession) -> Response:
    """Prometheus text: this process's calls of /predict, and the jobs in the database."""
    state = request.app.state
    by_status = select(Job.status, func.count()).group_by(Job.status)
    counts: dict[str, int] = dict(session.execute(by_status).all())
    registry = CollectorRegistry()
    jobs = Gauge("limbeck_jobs", "Jobs in the database", ("status",), registry=registry)
    for status in JOB_STATUSES:
        jobs.labels(status).set(counts.get(status, 0))
    counted: Metrics = state.metrics
    counted.waiting.set(state.pool.waiting)
    counted.loaded.set(len(state.shelf.loaded))
    body = generate_latest(registry) + generate_latest(counted.registry)
    return Response(body, headers={"Content-Type": CONTENT_TYPE_LATEST})


@router.get("/", openapi_extra=needs("read"))
def about() -> dict[str, Any]:
    return {"name": "limbeck", "version": version("limbeck-server"), "openapi": "/openapi.json"}
