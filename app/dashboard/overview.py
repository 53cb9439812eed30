"""The first page: what runs, what waits and why, what is deployed, how busy workers and deployments are."""

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from app.dashboard.deployments import summary
from app.dashboard.pages import ApiHere, PageRoute, render
from app.security import needs

pages = APIRouter(include_in_schema=False, route_class=PageRoute)


@pages.get("/ui/", openapi_extra=needs("read"))
async def overview(request: Request, api: ApiHere) -> HTMLResponse:
    running = await api.get("/jobs", status=["running", "pausing", "cancelling"], limit=50)
    waiting = await api.get("/jobs", status=["queued", "paused"], limit=10)
    recent = await api.get("/jobs", status=["succeeded", "failed", "cancelled"], limit=8)
    deployments = await api.get("/deployments", limit=50)
    workers = await api.get("/workers", limit=50)
    busy = await asyncio.gather(*(summary(api, deployment) for deployment in deployments["data"]))
    return render(
        request,
        "overview.html",
        running=running,
        waiting=waiting,
        recent=recent,
        deployed=busy,
        workers=[worker for worker in workers["data"] if worker["alive"]],
    )
