"""All pages, put together. One file for each noun; this one only lists them."""

from fastapi import APIRouter

from app.dashboard import (
    compare,
    datasets,
    deployments,
    jobs,
    live,
    new_job,
    overview,
    settings,
    signing,
    static,
    students,
    teachers,
)

router = APIRouter()
for _part in (
    signing.router,
    signing.pages,
    static.router,
    live.router,
    overview.pages,
    compare.pages,
    datasets.pages,
    new_job.pages,  # before the page of one job: `new` is no id
    deployments.pages,
    jobs.pages,
    settings.pages,
    students.pages,
    teachers.pages,
):
    router.include_router(_part)
