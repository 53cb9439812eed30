"""Jobs: which there are, and one of them as it runs: where it stands, its curves, its events, and what may be done."""

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from app.dashboard import words
from app.dashboard.pages import ApiHere, Json, PageRoute, path_of, render
from app.security import needs
from models.tables import ENDED, JOB_STATUSES

pages = APIRouter(include_in_schema=False, route_class=PageRoute)

PHASES = ("preflight", "teach", "distil", "export", "evaluate", "publish")
_JOBS_ON_A_PAGE = 25
_EVENTS_AT_ONCE = 200

Verb = Literal["cancel", "pause", "resume", "rerun", "change", "bundle", "delete"]
_LEGAL: Mapping[Verb, tuple[str, ...]] = {
    "cancel": ("queued", "running", "pausing", "paused"),
    "pause": ("queued", "running"),
    "resume": ("pausing", "paused"),
    "rerun": JOB_STATUSES,
    "change": JOB_STATUSES,
    "bundle": ("succeeded",),
    "delete": ENDED,
}


class Step(NamedTuple):
    name: str
    state: Literal["done", "current", "stopped", "ahead"]
    said: str
    """The state in words: colour alone tells nobody."""


class Figure(NamedTuple):
    """Something that was estimated, beside what it came to."""

    name: str
    estimated: str
    came_to: str


@pages.get("/ui/jobs", openapi_extra=needs("read"))
async def show_jobs(
    request: Request,
    api: ApiHere,
    status: Annotated[list[str] | None, Query()] = None,
    name: Annotated[str, Query(max_length=200)] = "",
    after: Annotated[str | None, Query(max_length=64)] = None,
) -> HTMLResponse:
    chosen = [one for one in status or () if one]
    page = await api.get("/jobs", status=chosen or None, name=name or None, after=after, limit=_JOBS_ON_A_PAGE)
    asked = [*(("status", one) for one in chosen), *([("name", name)] if name else [])]
    return render(
        request,
        "jobs.html",
        page=page,
        rows=[{"job": job, "method": method_of(job), "took": words.duration(took(job))} for job in page["data"]],
        statuses=JOB_STATUSES,
        chosen=chosen,
        name=name,
        names=sorted({job["name"] for job in page["data"] if job["name"]}),
        filtered=bool(asked),
        later=after is not None,
        address="/ui/jobs" + (f"?{urlencode(asked)}" if asked else ""),
    )


@pages.get("/ui/jobs/{job_id}", openapi_extra=needs("read"))
async def show_job(request: Request, api: ApiHere, job_id: str) -> HTMLResponse:
    address = f"/jobs/{path_of(job_id)}"
    job, events = await asyncio.gather(api.get(address), api.get(f"{address}/events", limit=_EVENTS_AT_ONCE))
    dataset_id = (job["resolved_spec"].get("dataset") or {}).get("id")
    student, report, dataset = await asyncio.gather(
        _found(api, "/students", job["student_id"]),
        _found(api, "/students", job["student_id"], "/report"),
        _found(api, "/datasets", dataset_id),
    )
    return render(
        request,
        "job.html",
        job=job,
        steps=list(steps(job)),
        verbs=legal(job["status"], student is not None),
        events=events["data"],
        events_page=_EVENTS_AT_ONCE,
        student=student,
        dataset=dataset,
        dataset_id=dataset_id,
        method=method_of(job),
        took=took(job),
        figures=list(figures(job, report or {})),
        seconds={phase: (report or {}).get("seconds", {}).get(phase) for phase in PHASES},
        curl=curl(str(request.base_url), job["spec"]),
        ended=job["status"] in ENDED,
    )


async def _found(api: ApiHere, nouns: str, id_: str | None, rest: str = "") -> Json | None:
    found: Json | None = None if id_ is None else await api.find(f"{nouns}/{path_of(id_)}{rest}")
    return found


# --- pure -------------------------------------------------------------------------------------------------------------


def legal(status: str, has_student: bool) -> frozenset[Verb]:
    """What may be asked of a job now. A bundle needs the student that it repeats."""
    return frozenset(
        verb for verb, statuses in _LEGAL.items() if status in statuses and (verb != "bundle" or has_student)
    )


def steps(job: Mapping[str, Any]) -> Iterator[Step]:
    """The six phases, and how far this job has come in them."""
    status, phase = job["status"], job["phase"]
    at = len(PHASES) if status == "succeeded" else PHASES.index(phase) if phase in PHASES else -1
    stopped = {
        "failed": "failed here",
        "cancelled": "cancelled here",
        "paused": "paused here",
        "queued": "goes on here",
    }
    for place, name in enumerate(PHASES):
        if place < at:
            yield Step(name, "done", "done")
        elif place > at:
            yield Step(name, "ahead", "not yet")
        elif status in stopped:
            yield Step(name, "stopped", stopped[status])
        else:
            yield Step(name, "current", "now")


def method_of(job: Mapping[str, Any]) -> str:
    """How it distils, in a word: each stage's preset, or what its objectives are."""
    spec, resolved = job["spec"], job["resolved_spec"]
    sent = spec.get("stages") or [spec]
    return " → ".join(_method(one, two) for one, two in zip(sent, resolved.get("stages") or (), strict=False))


def _method(sent: Mapping[str, Any], resolved: Mapping[str, Any]) -> str:
    method = sent.get("method")
    if method:
        return str(method if isinstance(method, str) else method.get("preset"))
    if not sent.get("objectives") and not sent.get("phases"):
        return "hinton"
    phases: Sequence[Mapping[str, Any]] = resolved.get("phases") or ()
    kinds = dict.fromkeys(str(objective["kind"]) for phase in phases for objective in phase["objectives"])
    return " + ".join(kind.replace("_", " ") for kind in kinds)


def took(job: Mapping[str, Any]) -> float | None:
    """Seconds from its first start to its end; None while it goes on."""
    if job["started_at"] is None or job["finished_at"] is None:
        return None
    return (words.moment(job["finished_at"]) - words.moment(job["started_at"])).total_seconds()


def figures(job: Mapping[str, Any], report: Mapping[str, Any]) -> Iterator[Figure]:
    """What was known before, against what was measured after."""
    expected = job["estimates"] or {}
    sizes, layers = expected.get("parameters") or {}, expected.get("layers") or {}
    arms = report.get("arms") or {}
    large, small = ((arms.get(arm) or {}).get("parameters") for arm in ("teacher", "distilled"))
    for name, key, found in (("Teacher’s parameters", "teacher", large), ("Student’s parameters", "student", small)):
        if key in sizes or found is not None:
            yield Figure(name, words.count(sizes.get(key)), words.count(found))
    if "ratio" in sizes or (large and small):
        found_ratio = words.number(large / small) + " times" if large and small else words.NOTHING
        yield Figure("Smaller by", f"{words.number(sizes.get('ratio'))} times", found_ratio)
    if layers:
        yield Figure("Layers", f"{layers.get('teacher')} → {layers.get('student')}", words.NOTHING)


def curl(base: str, spec: Mapping[str, Any]) -> str:
    """The command that sends this spec again."""
    body = json.dumps(spec, indent=2, ensure_ascii=False)
    return (
        f"curl -X POST {base}jobs \\\n"
        '  -H "Authorization: Bearer $LIMBECK_API_KEY" \\\n'
        '  -H "Content-Type: application/json" \\\n'
        f"  --data-binary @- <<'SPEC'\n{body}\nSPEC"
    )
