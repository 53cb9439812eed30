"""What the contract names and this version lacks. Each answers 501 with the code `not_available_yet`."""

from collections.abc import Callable
from typing import NoReturn

from fastapi import APIRouter
from starlette.exceptions import HTTPException

from app.security import Permission, needs

LATER: tuple[tuple[str, str, Permission, str], ...] = (
    ("POST", "/jobs/{job_id}/pause", "jobs", "pausing a job"),
    ("POST", "/jobs/{job_id}/resume", "jobs", "resuming a paused job"),
    ("GET", "/secrets/{name}", "admin", "secrets"),
    ("PUT", "/secrets/{name}", "admin", "secrets"),
    ("DELETE", "/secrets/{name}", "admin", "secrets"),
    ("GET", "/webhooks", "read", "webhooks"),
    ("POST", "/webhooks", "jobs", "webhooks"),
    ("DELETE", "/webhooks/{webhook_id}", "jobs", "webhooks"),
    ("GET", "/webhooks/{webhook_id}/deliveries", "read", "webhooks"),
    ("POST", "/webhooks/{webhook_id}/deliveries/{delivery_id}/replay", "jobs", "webhooks"),
    ("POST", "/webhooks/{webhook_id}/test", "jobs", "webhooks"),
)

router = APIRouter(tags=["not available yet"])


def _refusing(what: str) -> Callable[[], NoReturn]:
    def refuse() -> NoReturn:
        raise HTTPException(501, f"{what}: not available in this version")

    return refuse


for _method, _path, _permission, _what in LATER:
    router.add_api_route(
        _path,
        _refusing(_what),
        methods=[_method],
        name=_what,
        openapi_extra=needs(_permission),
        response_model=None,
        status_code=501,
    )
