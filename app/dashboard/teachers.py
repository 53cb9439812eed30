"""Checkpoints that were uploaded, to be named by jobs as `teacher:tc_…`."""

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from app.dashboard.pages import ApiHere, PageRoute, render
from app.security import needs

pages = APIRouter(include_in_schema=False, route_class=PageRoute)


@pages.get("/ui/teachers", openapi_extra=needs("read"))
async def show_teachers(request: Request, api: ApiHere, after: str | None = None) -> HTMLResponse:
    return render(request, "teachers.html", page=await api.get("/teachers", after=after, limit=50))
