"""From an error to an answer: the one table of statuses, and RFC 9457 problems.

Every answer that is not a success has the type `application/problem+json` and the members `type`, `title`, `status`,
`detail`, `instance`, `code`, `request_id`, `hint` and `errors` (a list of `{pointer, message, code}`). A pointer is a
JSON pointer into the body; a problem with something else says where: `/query/limit`, `/header/if-match`, `/path/name`.

Below `/v2` an error is `{"error": "…"}` instead, for clients of that protocol read nothing else.

What an error says is what the house's own errors say. Anything else is logged here and told to nobody: no path, no SQL,
no traceback.
"""

import re
import secrets
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from sqlalchemy import exc as database_errors
from starlette._utils import get_route_path
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.errors import (
    ArtifactDamaged,
    Conflict,
    Fenced,
    Forbidden,
    Invalid,
    JobFailure,
    LimbeckError,
    Missing,
    Overloaded,
    Problem,
    StorageFailure,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from models.specs.parsing import MESSAGES, code_of

STATUSES: Mapping[type[LimbeckError], int] = {
    Unauthenticated: 401,
    Forbidden: 403,
    Missing: 404,
    Invalid: 422,
    Conflict: 409,
    TooLarge: 413,
    Overloaded: 429,
    Unavailable: 503,
    StorageFailure: 503,
    ArtifactDamaged: 500,
    Fenced: 409,
    JobFailure: 422,
    LimbeckError: 500,
}
# A few codes have a status of their own in RFC 9110 and RFC 4918.
_BY_CODE: Mapping[str, int] = {"version_mismatch": 412, "storage_full": 507}
PROTOCOL = "/v2"
"""Below it, errors have the shape of the Open Inference Protocol."""
# Called many times a second, and counted elsewhere: a line in the log for each success would say nothing more.
_COUNTED = ("/predict", f"{PROTOCOL}/", "/healthz", "/readyz", "/metrics")
_VERSION = version("limbeck-server")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

log = structlog.get_logger("limbeck.app")


def install(app: FastAPI) -> None:
    """Have every error that a route raises answered as a problem."""
    app.add_exception_handler(Exception, _handle)
    for kind in (LimbeckError, HTTPException, RequestValidationError, database_errors.SQLAlchemyError):
        app.add_exception_handler(kind, _handle)


class Problems:
    """The outermost middleware: names each request, logs how it went, and answers what the others raise.

    Every answer says of which version the service is, by which a client knows whether it understands it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(8)}"
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0
        began = time.perf_counter()

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers["X-Limbeck-Version"] = _VERSION
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            await self.app(scope, receive, send_named)
        except Exception as error:
            if status == 0:
                await _answer(Request(scope), error)(scope, receive, send_named)
            elif status != 500:
                log.exception("answer cut short", request_id=request_id)
        finally:
            if status >= 400 or not scope["path"].startswith(_COUNTED):
                log.info(
                    "request",
                    request_id=request_id,
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    milliseconds=round((time.perf_counter() - began) * 1000, 1),
                )


async def _handle(request: Request, error: Exception) -> Response:
    return _answer(request, error)


def _answer(request: Request, error: Exception) -> Response:
    request_id = getattr(request.state, "request_id", None)
    status, told, headers = _told(error)
    if status == 500 or isinstance(told, StorageFailure):
        log.error("request failed", request_id=request_id, path=request.url.path, exc_info=error)
    if isinstance(told, Overloaded | Unavailable):
        headers["Retry-After"] = str(max(1, round(told.retry_after)))
    elif status == 503:
        headers["Retry-After"] = "2"
    if f"{get_route_path(request.scope)}/".startswith(f"{PROTOCOL}/"):
        return JSONResponse(_printable({"error": _sentence(told)}), status, headers)
    body = {
        "type": f"urn:limbeck:problem:{told.code}",
        "title": told.code.replace("_", " ").capitalize(),
        "status": status,
        "detail": told.message,
        "instance": request.url.path,
        "code": told.code,
        "request_id": request_id,
        "hint": told.hint,
        "errors": [problem.as_json() for problem in told.problems],
    }
    return _Problem(body, status, headers)


def _sentence(error: LimbeckError) -> str:
    """All that an error says, in one line."""
    said = "; ".join(f"{one.pointer or '/'} {one.message}" for one in error.problems) or error.message
    return f"{error.code}: {said}" + (f" ({error.hint})" if error.hint else "")


class _Problem(JSONResponse):
    media_type = "application/problem+json"

    def render(self, content: Any) -> bytes:
        # A caller's text comes back in messages; a lone surrogate in it must not turn a 422 into a 500.
        return super().render(_printable(content))


def _printable(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "replace").decode("utf-8")
        case dict():
            return {key: _printable(inner) for key, inner in value.items()}
        case list():
            return [_printable(inner) for inner in value]
        case _:
            return value


def _told(error: Exception) -> tuple[int, LimbeckError, dict[str, str]]:
    """The status, what is said, and headers that the error brings with it."""
    match error:
        case LimbeckError():
            kind = next(kind for kind in type(error).__mro__ if kind in STATUSES)
            headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthenticated) else {}
            return _BY_CODE.get(error.code, STATUSES[kind]), error, headers
        case RequestValidationError():
            return 422, Invalid.of([_problem(detail) for detail in error.errors()]), {}
        case HTTPException(status_code=400):
            # A body that FastAPI could not read: broken in a way that its own JSON error does not know.
            return 422, Invalid("the body is not JSON that can be read", code="invalid_json"), {}
        case HTTPException():
            return error.status_code, _of_status(error.status_code), dict(error.headers or {})
        case database_errors.IntegrityError():
            return 409, Conflict("this collides with something that exists", code="conflict"), {}
        case database_errors.DataError():
            return 422, Invalid("a value in this request cannot be stored"), {}
        case database_errors.OperationalError() | database_errors.InterfaceError() | database_errors.TimeoutError():
            return 503, Unavailable("the database does not answer; try again", code="database_unavailable"), {}
        case _:
            hint = "the server's log says more under this request_id"
            return 500, LimbeckError("something went wrong on our side", hint=hint), {}


def _of_status(status: int) -> LimbeckError:
    """What the framework raises, in the house's words."""
    match status:
        case 404:
            return Missing("there is nothing at this address")
        case 405:
            return Invalid("this address does not answer this method", code="method_not_allowed")
        case 413:
            return TooLarge("the body is larger than this address takes")
        case _:
            phrase = HTTPStatus(status).phrase
            return LimbeckError(phrase, code=phrase.lower().replace(" ", "_").replace("-", "_"))


def _problem(detail: Mapping[str, Any]) -> Problem:
    kind = str(detail["type"])
    where, *rest = detail["loc"] or ("body",)
    code = code_of(kind)
    if kind == "json_invalid":
        return Problem("", f"this is not JSON: {detail['ctx']['error']} at character {rest[0]}", code)
    path: Sequence[object] = rest if where == "body" else [where, *rest]
    pointer = "".join("/" + str(part)[:200].replace("~", "~0").replace("/", "~1") for part in path)
    return Problem(pointer, MESSAGES.get(kind, str(detail["msg"])), code)
