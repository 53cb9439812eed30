"""Datasets: what there is, sending more, and what is in one of them."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from app.dashboard import samples
from app.dashboard.pages import Api, ApiHere, Json, PageRoute, path_of, render
from app.security import needs

pages = APIRouter(include_in_schema=False, route_class=PageRoute)

_PAGE = 100
_PAGES = 10
_SHOWN = 20
_JOBS = 100


@pages.get("/ui/datasets", openapi_extra=needs("read"))
async def show_datasets(request: Request, api: ApiHere, after: str | None = None) -> HTMLResponse:
    return render(request, "datasets.html", page=await api.get("/datasets", after=after, limit=50))


@pages.get("/ui/datasets/{dataset_id}", openapi_extra=needs("read"))
async def show_dataset(request: Request, api: ApiHere, dataset_id: str) -> HTMLResponse:
    address = f"/datasets/{path_of(dataset_id)}"
    dataset = await api.get(address)
    first, sample, jobs = await asyncio.gather(
        api.get(f"{address}/rows", limit=_SHOWN),
        _sample(api, address, dataset["rows"]),
        api.get("/jobs", limit=_JOBS),
    )
    columns = dataset["columns"]
    return render(
        request,
        "dataset.html",
        dataset=dataset,
        rows=first["data"],
        sampled=len(sample),
        balances=[(one, _bars(one)) for one in samples.balances(columns, sample)],
        lengths=[(one, _histogram(one)) for one in samples.lengths(columns, sample)],
        jobs=[job for job in jobs["data"] if dataset_id in _datasets_of(job["spec"])],
        jobs_seen=len(jobs["data"]),
    )


async def _sample(api: Api, address: str, rows: int) -> list[Json]:
    """All rows of a small dataset; of a large one pages from all over it: many files are sorted by their label."""
    count = min(_PAGES, -(-rows // _PAGE))
    offsets = [at * _PAGE if rows <= _PAGES * _PAGE else at * (rows - _PAGE) // (_PAGES - 1) for at in range(count)]
    found = await asyncio.gather(*(api.get(f"{address}/rows", limit=_PAGE, offset=offset) for offset in offsets))
    return [row for page in found for row in page["data"]]


def _datasets_of(spec: Json) -> set[str]:
    part = spec.get("dataset")
    return {str(value) for value in part.values()} if isinstance(part, dict) else set()


def _bars(balance: samples.Balance) -> Json:
    names = [name for name, _ in balance.counts]
    counts = [count for _, count in balance.counts]
    title = f"How often each value of {balance.column} occurs"
    return _chart(title, balance.column, "rows", names, counts, xType="category")


def _histogram(found: samples.Lengths) -> Json:
    middles = [(one.low + one.high) / 2 for one in found.bins]
    ranges = [f"{one.low} to {one.high}" if one.high > one.low else str(one.low) for one in found.bins]
    chart = _chart(
        f"Length of {found.column} in {found.unit}", found.unit, "texts", middles, [one.texts for one in found.bins]
    )
    chart["series"][0] |= {"text": ranges}
    chart["series"][0]["trace"] |= {
        "width": [one.high - one.low + 1 for one in found.bins],
        "hovertemplate": f"%{{text}} {found.unit}: %{{y}} texts<extra></extra>",
        "textposition": "none",
    }
    return chart


def _chart(title: str, x: str, y: str, at: list[Any], counts: list[int], **options: Any) -> Json:
    series = {"name": title, "x": at, "y": counts, "trace": {"type": "bar"}}
    layout = {"bargap": 0.15, "margin": {"l": 52, "r": 12, "t": 8, "b": 44}}
    return {"title": title, "x": x, "y": y, "height": 240, "hover": "closest", "series": [series], **options} | {
        "layout": layout
    }
