"""What makes pages live: a stream that says *that* something has changed. The page then asks for itself anew."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from sqlalchemy import Select, func, select
from starlette.concurrency import run_in_threadpool

from app.dependencies import DatabaseHere
from app.security import Caller, Principal, needs, only_own
from models.database import Database
from models.tables import ArmCount, Dataset, Deployment, Event, Job, Student, Worker

router = APIRouter(include_in_schema=False)

_LOOK_SECONDS = 1.0
_KEEPALIVE_SECONDS = 15.0


@router.get("/ui/changes", openapi_extra=needs("read"), response_class=StreamingResponse)
async def changes(
    request: Request,
    database: DatabaseHere,
    who: Caller,
    job: Annotated[str | None, Query(max_length=64, description="only of this job")] = None,
) -> StreamingResponse:
    """Server-sent events without content, at most one a second: what the reader may see is not what it was."""
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    stream = _stream(request, database, who, job)
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


async def _stream(request: Request, database: Database, who: Principal, job: str | None) -> AsyncIterator[bytes]:
    yield KEEPALIVE_COMMENT
    seen = await run_in_threadpool(_mark, database, who, job)
    spoke = time.monotonic()
    while not request.app.state.leaving and not await request.is_disconnected():
        await asyncio.sleep(_LOOK_SECONDS)
        now = await run_in_threadpool(_mark, database, who, job)
        if now != seen:
            seen = now
            yield format_sse_event(event="changed", data_str="")
            spoke = time.monotonic()
        elif time.monotonic() - spoke > _KEEPALIVE_SECONDS:
            yield KEEPALIVE_COMMENT
            spoke = time.monotonic()


def _mark(database: Database, who: Principal, job: str | None) -> tuple[object, ...]:
    """Something that differs whenever what pages show differs. Cheap: counts and sums, no rows."""
    if job is not None:
        of_job = only_own(select(Job.version, Job.status).where(Job.id == job), Job.owner, who)
        events = select(func.max(Event.seq)).where(Event.job_id == job)
        with database.reading() as session:
            return (*(session.execute(of_job).one_or_none() or ()), session.scalar(events))
    questions: tuple[Select[*tuple[Any, ...]], ...] = (
        only_own(select(func.count(), func.sum(Job.version)).select_from(Job), Job.owner, who),
        only_own(select(func.count(), func.sum(Deployment.version)).select_from(Deployment), Deployment.owner, who),
        only_own(select(func.count(), func.max(Student.id)).select_from(Student), Student.owner, who),
        only_own(select(func.count(), func.max(Dataset.id)).select_from(Dataset), Dataset.owner, who),
        only_own(
            select(func.sum(ArmCount.calls), func.sum(ArmCount.errors))
            .select_from(ArmCount)
            .join(Deployment, Deployment.id == ArmCount.deployment_id),
            Deployment.owner,
            who,
        ),
        select(func.count(), func.max(Worker.id)).select_from(Worker),
    )
    with database.reading() as session:
        return tuple(value for question in questions for value in session.execute(question).one())
