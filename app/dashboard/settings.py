"""Keys, secrets, webhooks, and what this service is."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from app.dashboard.pages import Api, ApiHere, PageRoute, path_of, render
from app.security import PERMISSIONS, needs
from models.webhooks import EVENTS

pages = APIRouter(include_in_schema=False, route_class=PageRoute)

SCOPES = {
    "read": "look at everything of its owner",
    "jobs": "upload, submit, cancel, delete",
    "deploy": "move deployments",
    "predict": "call /predict",
    "admin": "everything, of every owner; make keys",
}


@pages.get("/ui/settings", openapi_extra=needs("read"))
async def show_settings(request: Request, api: ApiHere) -> HTMLResponse:
    keys, secrets, webhooks, workers, readiness = await asyncio.gather(
        api.find("/keys", limit=100),
        api.find("/secrets"),
        api.find("/webhooks", limit=100),
        api.get("/workers", limit=100),
        api.find("/readyz"),
    )
    hooks = [] if webhooks is None else webhooks["data"]
    deliveries = await asyncio.gather(*(_deliveries(api, hook["id"]) for hook in hooks))
    return render(
        request,
        "settings.html",
        keys=None if keys is None else keys["data"],
        secrets=None if secrets is None else secrets["data"],
        webhooks=list(zip(hooks, deliveries, strict=True)),
        workers=workers["data"],
        readiness=readiness or {"status": "unready", "checks": {}},
        scopes=[(scope, SCOPES[scope]) for scope in PERMISSIONS],
        events=EVENTS,
    )


async def _deliveries(api: Api, webhook_id: str) -> list[Any]:
    page = await api.find(f"/webhooks/{path_of(webhook_id)}/deliveries", limit=10)
    return [] if page is None else list(page["data"])
