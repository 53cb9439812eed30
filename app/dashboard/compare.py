"""Jobs and students side by side: one table, what differs in their specs, their curves, and what quality costs."""

import asyncio
from collections.abc import Sequence
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from app.dashboard import comparison
from app.dashboard.comparison import Candidate
from app.dashboard.jobs import method_of
from app.dashboard.pages import Api, ApiHere, Json, PageRoute, path_of, render
from app.security import needs

pages = APIRouter(include_in_schema=False, route_class=PageRoute)

MOST = 20
"""So many jobs `GET /metrics/jobs` compares."""


@pages.get("/ui/compare", openapi_extra=needs("read"))
async def show_comparison(
    request: Request,
    api: ApiHere,
    ids: Annotated[list[str] | None, Query(description="jobs and students, separated by commas")] = None,
) -> HTMLResponse:
    wanted = wanted_ids(ids or ())
    newest, *found = await asyncio.gather(
        api.get("/students", limit=20), *(_candidate(api, one) for one in wanted[:MOST])
    )
    candidates = _once([one for one in found if one is not None])
    named = comparison.named(candidates)
    known = {one.id for one in candidates} | {one.student["id"] for one in candidates if one.student}
    latency = comparison.scatter(named, cost=comparison.latency_of, x="median latency, ms", teachers=True)
    size = comparison.scatter(named, cost=_megabytes, x="size as served, MB", teachers=False)
    return render(
        request,
        "compare.html",
        named=named,
        rows=list(comparison.rows(named)),
        differences=comparison.differences([_spec(one) for one in candidates]),
        missing=[one for one, got in zip(wanted[:MOST], found, strict=True) if got is None],
        too_many=len(wanted) > MOST,
        most=MOST,
        charts=[(name, chart) for name, chart in (("latency", latency), ("size", size)) if chart is not None],
        jobs={one.job["id"]: label for label, one in named if one.job is not None},
        without={one.id: _address([other.id for other in candidates if other is not one]) for one in candidates},
        newest=[one for one in newest["data"] if one["id"] not in known],
        mixed=list(_mixed(candidates)),
    )


async def _candidate(api: Api, id_: str) -> Candidate | None:
    """What there is of a job or a student; None where there is neither, or none that this reader may see."""
    student: Json | None
    if id_.startswith("st_"):
        student = await api.find(f"/students/{path_of(id_)}")
        if student is None:
            return None
        job = await api.find(f"/jobs/{path_of(student['job_id'])}")
    else:
        job = await api.find(f"/jobs/{path_of(id_)}")
        if job is None:
            return None
        student = await api.find(f"/students/{path_of(job['student_id'])}") if job["student_id"] else None
    report = await api.find(f"/students/{path_of(student['id'])}/report") if student is not None else None
    dataset_id = (job["resolved_spec"].get("dataset") or {}).get("id") if job is not None else None
    dataset = await api.find(f"/datasets/{path_of(dataset_id)}") if dataset_id else None
    return Candidate(
        id=id_,
        job=job,
        student=student,
        report=report or {},
        method=method_of(job) if job is not None else "",
        dataset=dataset["name"] if dataset is not None else dataset_id or "",
    )


def wanted_ids(given: Sequence[str]) -> list[str]:
    """Each once, as they stand in the address: `ids=a,b` or `ids=a&ids=b`."""
    return list(dict.fromkeys(part.strip() for one in given for part in one.split(",") if part.strip()))


def _once(candidates: Sequence[Candidate]) -> list[Candidate]:
    """A job and its own student are one."""
    found: dict[str, Candidate] = {}
    for one in candidates:
        found.setdefault((one.job or one.student or {})["id"], one)
    return list(found.values())


def _megabytes(one: Candidate) -> float | None:
    found = comparison.bytes_of(one)
    return None if found is None else found / 1e6


def _spec(one: Candidate) -> Json | None:
    spec: Json | None = None if one.job is None else one.job["resolved_spec"]
    return spec


def _mixed(candidates: Sequence[Candidate]) -> list[str]:
    """Why scores may not be held against each other."""
    found = []
    if len({one.metric for one in candidates if one.metric}) > 1:
        found.append("They are measured by different metrics.")
    specs = [spec for one in candidates if one.report and (spec := _spec(one)) is not None]
    if len({str((spec.get("dataset"), spec.get("task"), spec.get("seed"))) for spec in specs}) > 1:
        found.append("Their datasets, tasks or seeds differ, so that they may have been tested on different rows.")
    return found


def _address(ids: Sequence[str]) -> str:
    return "/ui/compare" + (f"?{urlencode({'ids': ','.join(ids)}, safe=',')}" if ids else "")
