"""Jobs: asking for a distillation, watching it, pausing it, stopping it.

Long-polls and event streams are async: between two looks at the database, in a thread, they hold no session.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Request, Response, status
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from app import security, views
from app.dependencies import (
    DatabaseHere,
    DoorbellHere,
    PageWanted,
    ReadSession,
    SettingsHere,
    WriteSession,
    page_of,
)
from app.routes import series, webhooks
from app.routes.estimates import estimate
from app.security import Caller, Principal, needs, only_own
from models import lifecycle, specs
from models.database import Database, after_commit
from models.errors import Invalid, Missing, Problem
from models.queue import Doorbell
from models.settings import Settings
from models.tables import ENDED, Event, Job, JobStatus

router = APIRouter(tags=["jobs"])

LONGEST_WAIT_SECONDS = 60.0
_LOOK_SECONDS = 0.25
_KEEPALIVE_SECONDS = 15.0
_EVENTS_AT_ONCE = 500
_MOST_JOBS_COMPARED = 20


# --- asking -----------------------------------------------------------------------------------------------------------


@router.post("/jobs", status_code=status.HTTP_201_CREATED, openapi_extra=needs("jobs"))
def create_job(
    document: Annotated[Any, Body(description="a JobSpec")],
    response: Response,
    database: DatabaseHere,
    doorbell: DoorbellHere,
    settings: SettingsHere,
    checked: webhooks.CheckHere,
    who: Caller,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
) -> views.Job:
    """Submit a job. With the same `Idempotency-Key` and body it is the same job, however often it is sent."""
    spec = specs.parse_job(document)
    wanted = _Wanted(who.owner, document, spec, specs.resolve(spec), idempotency_key, _digest(document))
    job = _enqueue(wanted, database, doorbell, settings, checked)
    response.headers["Location"] = f"/jobs/{job.id}"
    return _tagged(response, job)


@router.post("/jobs/{job_id}/rerun", status_code=status.HTTP_201_CREATED, openapi_extra=needs("jobs"))
def rerun_job(
    job_id: str,
    response: Response,
    database: DatabaseHere,
    doorbell: DoorbellHere,
    settings: SettingsHere,
    checked: webhooks.CheckHere,
    who: Caller,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
) -> views.Job:
    """A new job of the same spec, with every default as it was then. An `Idempotency-Key` works as in `POST /jobs`."""
    with database.reading() as session:
        old = security.find(session, Job, job_id, who)
        wanted = _Wanted(
            old.owner,
            old.spec,
            specs.parse_job(old.spec),
            specs.ResolvedSpec.model_validate(old.resolved_spec),
            idempotency_key,
            _digest({"rerun_of": job_id}),
            rerun_of=job_id,
        )
    job = _enqueue(wanted, database, doorbell, settings, checked)
    response.headers["Location"] = f"/jobs/{job.id}"
    return _tagged(response, job)


@router.post("/jobs/validate", openapi_extra=needs("jobs"))
def validate_job(
    document: Annotated[Any, Body(description="a JobSpec")],
    session: ReadSession,
    settings: SettingsHere,
    checked: webhooks.CheckHere,
    who: Caller,
) -> views.Validation:
    """What would happen with this spec. Never creates anything; 422 with every problem at once if it could not run."""
    spec = specs.parse_job(document)
    resolved = specs.resolve(spec)
    estimates = estimate(spec, resolved, settings.models_folder)
    problems = [
        *estimates.problems,
        *_webhook_problems(checked, who.owner, spec),
        *lifecycle.check_references(session, who.owner, spec),
    ]
    if problems:
        raise Invalid.of(problems)
    return views.Validation(
        valid=True,
        problems=[],
        resolved_spec=resolved.model_dump(mode="json"),
        estimates=estimates.found,
        estimates_reason=estimates.reason,
    )


@router.post("/jobs/{job_id}/cancel", status_code=status.HTTP_202_ACCEPTED, openapi_extra=needs("jobs"))
def cancel_job(job_id: str, session: WriteSession, response: Response, who: Caller) -> views.Job:
    """Cancelled at once if it waits; if it runs, within a heartbeat or so. To cancel again is the same."""
    job = security.find(session, Job, job_id, who)
    lifecycle.request_cancel(session, job)
    return _tagged(response, job)


@router.post("/jobs/{job_id}/pause", status_code=status.HTTP_202_ACCEPTED, openapi_extra=needs("jobs"))
def pause_job(job_id: str, session: WriteSession, response: Response, who: Caller) -> views.Job:
    """Paused at once if it waits; if it runs, soon, and with a checkpoint. To pause again is the same."""
    job = security.find(session, Job, job_id, who)
    lifecycle.request_pause(session, job)
    return _tagged(response, job)


@router.post("/jobs/{job_id}/resume", status_code=status.HTTP_202_ACCEPTED, openapi_extra=needs("jobs"))
def resume_job(
    job_id: str, session: WriteSession, doorbell: DoorbellHere, response: Response, who: Caller
) -> views.Job:
    """It waits again, and goes on from its last checkpoint. What waits or runs already is left alone."""
    job = security.find(session, Job, job_id, who)
    lifecycle.request_resume(session, job)
    if job.status == "queued":
        after_commit(session, lambda: doorbell.ring(job.id, job.device))
    return _tagged(response, job)


@router.delete("/jobs/{job_id}", status_code=status.HTTP_204_NO_CONTENT, openapi_extra=needs("jobs"))
def delete_job(job_id: str, session: WriteSession, who: Caller) -> None:
    """Forget a job that has ended, with its events and metrics. Its student stays."""
    lifecycle.delete(session, security.find(session, Job, job_id, who))


# --- watching ---------------------------------------------------------------------------------------------------------


@router.get("/jobs", openapi_extra=needs("read"))
def list_jobs(
    session: ReadSession,
    wanted: PageWanted,
    who: Caller,
    status_: Annotated[list[JobStatus] | None, Query(alias="status")] = None,
    name: Annotated[str | None, Query(max_length=200)] = None,
) -> views.Page[views.Job]:
    """One's own, newest first; with `admin` everybody's. `status` may be given several times."""
    statement = only_own(select(Job), Job.owner, who)
    if status_:
        statement = statement.where(Job.status.in_(status_))
    if name is not None:
        statement = statement.where(Job.name == name)
    rows, has_more = page_of(session, statement, Job.id, wanted)
    return views.Page(data=[views.Job.model_validate(row) for row in rows], has_more=has_more)


@router.get("/jobs/{job_id}", openapi_extra=needs("read"), response_model=views.Job)
async def read_job(
    job_id: str,
    request: Request,
    database: DatabaseHere,
    who: Caller,
    wait: Annotated[float, Query(ge=0, le=LONGEST_WAIT_SECONDS, description="seconds to wait for a change")] = 0,
    if_none_match: Annotated[str | None, Header(max_length=200)] = None,
) -> Response:
    """With `?wait=30` the answer comes when the job changes: from the version in `If-None-Match`, or else from now."""
    seen = await run_in_threadpool(_look, database, job_id, who)
    known = seen.etag if if_none_match is None else if_none_match
    until = time.monotonic() + wait
    while seen.etag in known and not seen.ended and time.monotonic() < until and not _leaving(request):
        await asyncio.sleep(min(_LOOK_SECONDS, max(0.0, until - time.monotonic())))
        if await request.is_disconnected():
            return Response(status_code=499)
        seen = await run_in_threadpool(_look, database, job_id, who)
    if if_none_match is not None and seen.etag in if_none_match:
        return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers={"ETag": seen.etag})
    view = await run_in_threadpool(_view_of, database, job_id, who)
    return Response(view.model_dump_json(), media_type="application/json", headers={"ETag": _etag(view.version)})


@router.get("/jobs/{job_id}/events", openapi_extra=needs("read"), response_model=views.Page[views.Event])
async def read_events(
    job_id: str,
    request: Request,
    database: DatabaseHere,
    who: Caller,
    after: Annotated[int, Query(ge=0, description="events after this seq")] = 0,
    limit: Annotated[int, Query(ge=1, le=_EVENTS_AT_ONCE)] = 100,
    last_event_id: Annotated[str | None, Header(max_length=20)] = None,
) -> Response:
    """Oldest first: a JSON page, or with `Accept: text/event-stream` a stream that ends when the job has ended."""
    if last_event_id is not None:
        if not (last_event_id.isascii() and last_event_id.isdecimal()):
            raise Invalid.of([Problem("/header/last-event-id", "is not the id of an event", "invalid")])
        after = max(after, int(last_event_id))
    after = min(after, 2**62)
    first = await run_in_threadpool(_events, database, job_id, who, after, limit + 1)
    if "text/event-stream" in request.headers.get("accept", ""):
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        stream = _stream(request, database, job_id, who, after)
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
    page = views.Page[views.Event](data=first.data[:limit], has_more=len(first.data) > limit)
    return Response(page.model_dump_json(), media_type="application/json")


@router.get("/jobs/{job_id}/metrics", openapi_extra=needs("read"))
def read_metrics(
    job_id: str,
    session: ReadSession,
    who: Caller,
    name: Annotated[str | None, Query(max_length=64)] = None,
    points: Annotated[int, Query(ge=2, le=10_000, description="at most so many of each series")] = 10_000,
) -> views.Page[views.Point]:
    """Series by (name, arm, stage, phase), each in the order of its steps; a long one is thinned out evenly."""
    security.find(session, Job, job_id, who)
    return views.Page(data=[views.Point.model_validate(row) for row in series.read(session, [job_id], name, points)])


@router.get("/metrics/jobs", openapi_extra=needs("read"))
def compare_metrics(
    session: ReadSession,
    who: Caller,
    ids: Annotated[list[str], Query(min_length=1, description="jobs, separated by commas")],
    name: Annotated[str, Query(max_length=64)],
    points: Annotated[int, Query(ge=2, le=10_000)] = 500,
) -> views.Page[views.JobPoint]:
    """One metric of several jobs."""
    wanted = list(dict.fromkeys(part.strip() for given in ids for part in given.split(",") if part.strip()))
    if not 1 <= len(wanted) <= _MOST_JOBS_COMPARED:
        raise Invalid.of([Problem("/query/ids", f"takes 1 to {_MOST_JOBS_COMPARED} jobs", "invalid")])
    for job_id in wanted:
        security.find(session, Job, job_id, who)
    return views.Page(data=[views.JobPoint.model_validate(row) for row in series.read(session, wanted, name, points)])


# --- into the queue ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Wanted:
    """A job that is asked for: its spec as it was sent, as it was understood, and as it will run."""

    owner: str
    document: dict[str, Any]
    spec: specs.JobSpec
    resolved: specs.ResolvedSpec
    idempotency_key: str | None
    digest: str
    """SHA-256 of what was sent: with one key it must always be the same."""
    rerun_of: str | None = None


def _enqueue(
    wanted: _Wanted, database: Database, doorbell: Doorbell, settings: Settings, checked: webhooks.Check
) -> Job:
    """The job's row, new or the one that its key made before. Raises `Invalid` with every problem at once."""
    estimates = estimate(wanted.spec, wanted.resolved, settings.models_folder)
    problems = [*estimates.problems, *_webhook_problems(checked, wanted.owner, wanted.spec)]
    with database.writing() as session:
        try:
            job, created = lifecycle.submit(
                session,
                owner=wanted.owner,
                spec=wanted.spec,
                resolved=wanted.resolved,
                document=wanted.document,
                estimates=estimates.found,
                idempotency_key=wanted.idempotency_key,
                body_sha256=wanted.digest,
                max_queued=settings.max_queued_jobs,
                rerun_of=wanted.rerun_of,
            )
        except Invalid as error:
            if not error.problems:
                raise
            raise Invalid.of([*problems, *error.problems]) from error
        if problems:
            raise Invalid.of(problems)  # which rolls back
    if created:
        doorbell.ring(job.id, job.device)
    return job


def _webhook_problems(checked: webhooks.Check, owner: str, spec: specs.JobSpec) -> Iterator[Problem]:
    if spec.webhook is not None:
        yield from checked.problems(owner=owner, url=spec.webhook.url, secret=spec.webhook.secret, at="/webhook")


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


# --- looking at the database ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Seen:
    etag: str
    ended: bool


@dataclass(frozen=True)
class _Events:
    data: list[views.Event]
    ended: bool


def _look(database: Database, job_id: str, who: Principal) -> _Seen:
    """The little that a wait needs: not the specs, which are large."""
    with database.reading() as session:
        row = session.execute(select(Job.owner, Job.version, Job.status).where(Job.id == job_id)).one_or_none()
    if row is None or not (who.is_admin or row.owner == who.owner):
        raise Missing(f"there is no job {job_id[:64]!r}")
    return _Seen(_etag(row.version), row.status in ENDED)


def _view_of(database: Database, job_id: str, who: Principal) -> views.Job:
    with database.reading() as session:
        return views.Job.model_validate(security.find(session, Job, job_id, who))


def _events(database: Database, job_id: str, who: Principal, after: int, limit: int) -> _Events:
    # The status is read first: an event of a job that has ended by then is surely among the events that follow.
    with database.reading() as session:
        ended = security.find(session, Job, job_id, who).status in ENDED
    with database.reading() as session:
        wanted = select(Event).where(Event.job_id == job_id, Event.seq > after).order_by(Event.seq).limit(limit)
        return _Events([views.Event.model_validate(row) for row in session.scalars(wanted)], ended)


async def _stream(
    request: Request, database: Database, job_id: str, who: Principal, after: int
) -> AsyncIterator[bytes]:
    yield KEEPALIVE_COMMENT
    spoke = time.monotonic()
    while not _leaving(request) and not await request.is_disconnected():
        try:
            seen = await run_in_threadpool(_events, database, job_id, who, after, _EVENTS_AT_ONCE)
        except Missing:  # deleted meanwhile
            return
        for event in seen.data:
            after = event.seq
            yield format_sse_event(data_str=event.model_dump_json(), id=str(event.seq))
            spoke = time.monotonic()
        if seen.ended and not seen.data:
            return
        if time.monotonic() - spoke > _KEEPALIVE_SECONDS:
            yield KEEPALIVE_COMMENT
            spoke = time.monotonic()
        if not seen.data:
            await asyncio.sleep(_LOOK_SECONDS)


def _leaving(request: Request) -> bool:
    """The process is shutting down: whoever waits is answered now, with what there is."""
    leaving: bool = request.app.state.leaving
    return leaving


def _etag(version: int) -> str:
    return f'"{version}"'


def _tagged(response: Response, job: Job) -> views.Job:
    response.headers["ETag"] = _etag(job.version)
    return views.Job.model_validate(job)
